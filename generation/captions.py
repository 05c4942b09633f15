"""Captions of procedural objects: what can be said, in words and as attributes, and which combinations are held out.

    caption -> [PREFIX] phrase [RELATION phrase] [", VIEW view"]
    phrase  -> (a | two | three) [SIZE] [PROPORTION] [MATERIAL] [COLOR] NOUN [with COLOR PART and COLOR PART]

`parse` reads more than `Caption.text` writes: synonyms, attributes in any order, "a red and blue chair", "a table and a
chair". A tenth of the triples (noun, color of its first main part, color of its second) is held out: no object or
sampled caption has one unless it is asked for, so that networks can be judged on combinations that they never saw.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from functools import cache

import torch

from generation import caption_words as words
from generation.draws import Draw

TOKENS = 24  # length of what `tokenize` returns; sampled captions fit
PAD, UNKNOWN = 0, 1
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Phrase:
    """One kind of thing and what is said of it; None where nothing is said."""

    noun: str
    count: int = 1
    size: str | None = None
    proportion: str | None = None
    material: str | None = None
    color: str | None = None
    parts: tuple[tuple[str, str], ...] = ()  # (part, color)

    def colors(self) -> tuple[str | None, str | None]:
        """Colors of the two main parts as far as words settle them."""
        first, second = words.PARTS[self.noun][:2]
        own, kept = dict(self.parts), words.KEEPS_SECOND.get(self.noun, self.color)
        return own.get(first, self.color), own.get(second, kept if self.color else None)

    def implies(self, other: Phrase) -> bool:
        """Whether all that the other one says is said here too, as "a red chair with blue legs" says "a chair"."""
        if (self.noun, self.count) != (other.noun, other.count):
            return False
        mine = (self.size, self.proportion, self.material, *self.colors())
        theirs = (other.size, other.proportion, other.material, *other.colors())
        main = words.PARTS[self.noun][:2]
        return all(b in (None, a) for a, b in zip(mine, theirs)) and all(
            part in main or (part, color) in self.parts for part, color in other.parts
        )

    def words(self) -> list[str]:
        """The phrase as words of the grammar."""
        number = next((word for word, count in words.COUNTS.items() if count == self.count), "a")
        said = [word for word in (self.size, self.proportion, self.material, self.color) if word]
        said.append(words.PLURALS[self.noun] if self.count > 1 else self.noun)
        if self.parts:
            said += ["with", *" and ".join(f"{color} {part}" for part, color in self.parts).split()]
        return [number, *said]


@dataclass(frozen=True)
class Caption:
    """What a picture shows: a phrase, perhaps in relation to another, and from where."""

    phrase: Phrase
    relation: str | None = None  # of RELATIONS or INTERACTIONS
    other: Phrase | None = None
    prefix: str | None = None
    view: str | None = None  # front, side, back or overhead

    def text(self, generator: torch.Generator | None = None, synonyms: float = 0.1) -> str:
        """The caption in words; with a generator, each word that has synonyms is one with probability `synonyms`."""
        said = (self.prefix or "").split() + _spoken(self.phrase.words(), generator, synonyms)
        if self.relation and self.other:
            said += [*self.relation.split(), *_spoken(self.other.words(), generator, synonyms)]
        said = ["an" if w == "a" and after[:1] in "aeiou" else w for w, after in zip(said, [*said[1:], "x"])]
        return " ".join(said) + (f", {self.view} view" if self.view else "")

    def phrases(self) -> tuple[Phrase, ...]:
        """One or two."""
        return (self.phrase,) if self.other is None else (self.phrase, self.other)

    def implies(self, other: Caption) -> bool:
        """Whether the other one, of as many things, is true of whatever this one is true of; views do not matter."""
        mine, theirs = self.phrases(), other.phrases()
        same = self.relation == other.relation and len(mine) == len(theirs)
        return same and all(a.implies(b) for a, b in zip(mine, theirs))

    def seen_from(self, view: str | None) -> Caption:
        """The same with the words of a view, or without."""
        return replace(self, view=view)


def _spoken(said: list[str], generator: torch.Generator | None, share: float) -> list[str]:
    """The words of a phrase, some of them as other people say them."""
    if generator is None:
        return said
    draw = Draw(generator)
    return [draw.choice(words.SPOKEN[word]) if word in words.SPOKEN and draw.chance(share) else word for word in said]


def parse(text: str) -> Caption:
    """Attributes of a caption; see `caption_parsing.py`. Raises InputError with one line for users."""
    from generation.caption_parsing import parse_caption

    return parse_caption(text)


@cache
def held_out_triples() -> frozenset[tuple[str, str, str]]:
    """Tenth of (noun, first color, second color), the same for ever: those with the lowest SHA-256 of each noun."""
    found: list[tuple[str, str, str]] = []
    for noun in words.NOUNS:
        pairs = [(a, b) for a in words.COLORS for b in words.COLORS]
        free = [(noun, *pair) for pair in pairs if pair not in words.NATURAL[noun]]
        free.sort(key=lambda triple: hashlib.sha256("|".join(triple).encode()).digest())
        found += free[: round(HELD_OUT_SHARE * len(pairs))]
    return frozenset(found)


def is_held_out(caption: Caption) -> bool:
    """Whether words of the caption settle a held-out triple."""
    return any((phrase.noun, *phrase.colors()) in held_out_triples() for phrase in caption.phrases())


@dataclass(frozen=True)
class Mix:
    """How often sampled captions have what; the rest are plain nouns. Probabilities."""

    color: float = 0.7
    parts: float = 0.7
    size: float = 0.3
    proportion: float = 0.3
    material: float = 0.3
    several: float = 0.1
    relation: float = 0.1
    interaction: float = 0.06
    prop: float = 0.05
    prefix: float = 0.4


PLAIN = Mix(size=0, proportion=0, material=0, several=0, relation=0, interaction=0, prop=0)


def sample_caption(generator: torch.Generator, held_out: bool | None = None, mix: Mix = Mix()) -> Caption:
    """A caption as training draws them.

    held_out: False for none that settles a held-out triple; True for captions of one object whose both main colors are
    named and held out; None for any.
    """
    draw = Draw(generator)
    while True:
        caption = _held_out_caption(draw, mix) if held_out else _caption(draw, mix)
        if held_out is None or is_held_out(caption) == held_out:
            return caption


def _caption(draw: Draw, mix: Mix) -> Caption:
    prefix = draw.choice(words.PREFIXES) if draw.chance(mix.prefix) else None
    kind = draw.number()
    if kind < mix.interaction:
        verb = draw.choice(tuple(words.INTERACTIONS))
        actor, thing = (_phrase(draw, noun, mix, alone=False) for noun in ("person", draw.choice(_things(verb))))
        return Caption(actor, verb, thing, prefix)
    if kind < mix.interaction + mix.relation:
        first, second = (_phrase(draw, draw.choice(words.CLASSES), mix, alone=False) for _ in range(2))
        return Caption(first, draw.choice(words.RELATIONS), second, prefix)
    noun = draw.choice(words.PROPS if draw.chance(mix.prop) else words.CLASSES)
    return Caption(_phrase(draw, noun, mix, alone=True), prefix=prefix)


def _things(verb: str) -> tuple[str, ...]:
    return words.INTERACTIONS[verb]


def _phrase(draw: Draw, noun: str, mix: Mix, *, alone: bool) -> Phrase:
    """Words for one noun; in a relation without parts, so that the whole fits into TOKENS."""

    def maybe(options: tuple[str, ...], probability: float) -> str | None:
        return draw.choice(options) if draw.chance(probability) else None

    names, parts = tuple(words.COLORS), ()
    if alone and draw.chance(mix.parts):
        first, second = words.PARTS[noun][:2]
        chosen = (first, second) if draw.chance(0.8) else (draw.choice(words.PARTS[noun]),)
        parts = tuple((part, draw.choice(names)) for part in chosen)
    covered = len(parts) == 2
    return Phrase(
        noun,
        count=draw.choice((2, 3)) if alone and draw.chance(mix.several) else 1,
        size=maybe(words.SIZES, mix.size),
        proportion=maybe(words.PROPORTIONS, mix.proportion),
        material=maybe(words.MATERIALS, mix.material),
        color=None if covered else maybe(names, mix.color),
        parts=parts,
    )


def _held_out_caption(draw: Draw, mix: Mix) -> Caption:
    noun = draw.choice(words.PROPS if draw.chance(mix.prop) else words.CLASSES)
    pairs = sorted(triple[1:] for triple in held_out_triples() if triple[0] == noun)
    plain = _phrase(draw, noun, replace(mix, parts=0, color=0), alone=True)
    colors = draw.choice(pairs)
    prefix = draw.choice(words.PREFIXES) if draw.chance(mix.prefix) else None
    return Caption(replace(plain, parts=tuple(zip(words.PARTS[noun][:2], colors))), prefix=prefix)


def _vocabulary() -> tuple[str, ...]:
    glue = ["a", "an", "two", "three", "with", "and", "view", "front", "side", "back", "overhead"]
    said = [*glue, *words.NOUNS, *words.PLURALS.values(), *words.COLORS]
    said += [*words.SIZES, *words.PROPORTIONS, *words.MATERIALS]
    said += [part for parts in words.PARTS.values() for part in parts]
    said += [word for phrase in (*words.RELATIONS, *words.INTERACTIONS, *words.PREFIXES) for word in phrase.split()]
    said += [word for others in words.SPOKEN.values() for word in others]
    return ("<pad>", "<unk>", *sorted(set(said)))


VOCABULARY = _vocabulary()
_INDEX = {word: index for index, word in enumerate(VOCABULARY)}


def vocabulary_hash() -> str:
    """16 hex digits that change with the vocabulary; weights are kept with it."""
    return hashlib.sha256("\n".join(VOCABULARY).encode()).hexdigest()[:16]


def tokenize(text: str, length: int = TOKENS) -> list[int]:
    """`length` indices into VOCABULARY: known words, known words for synonyms, else UNKNOWN; PAD at the end."""
    said = re.findall(r"\w+|&", text.lower())
    indices = [_INDEX.get(word, _INDEX.get(words.SYNONYMS.get(word, ""), UNKNOWN)) for word in said][:length]
    return indices + [PAD] * (length - len(indices))
