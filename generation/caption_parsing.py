"""Reads captions: words in, `Caption` out, and one clear line where that fails. The grammar is in `captions.py`."""

from __future__ import annotations

import difflib
import re

from generation import caption_words as words
from generation.captions import Caption, Phrase
from scene.errors import InputError

LONGEST = 1_000  # characters; the longest caption of the grammar has about 200

_PARTS = {part for parts in words.PARTS.values() for part in parts}
_VIEWS = {f"{word} view": word for word in ("front", "side", "back", "overhead")}
_LINKS = {*words.RELATIONS, *words.INTERACTIONS}
_GLUE = {"with", "and"}
_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "size": words.SIZES,
    "proportion": words.PROPORTIONS,
    "material": words.MATERIALS,
    "color": tuple(words.COLORS),
}
_KIND = {word: kind for kind, options in _ATTRIBUTES.items() for word in options}
_KNOWN = {*words.NOUNS, *_KIND, *_PARTS, *words.COUNTS, *_GLUE}
_LONGEST_PHRASE = max(len(phrase.split()) for phrase in words.SAID_TOGETHER)


def parse_caption(text: str) -> Caption:
    """Attributes of a caption.

    Raises InputError where it is empty or too long, has unknown words (all are listed), names nothing, or says of a
    thing what cannot be.
    """
    if not text.strip():
        raise InputError('the prompt is empty; say what to make, such as "a red chair with blue legs"')
    if len(text) > LONGEST:
        raise InputError(f"the prompt has {len(text):,} characters; captions are at most {LONGEST:,}")
    said = _meant(re.findall(r"\w+|&", text.lower()))
    if not said:
        raise InputError('the prompt has no words; say what to make, such as "a red chair with blue legs"')
    views = [_VIEWS[word] for word in said if word in _VIEWS]
    prefix = next((word for word in said if word in words.PREFIXES), None)
    said = [word for word in said if word not in _VIEWS and word not in words.PREFIXES]
    said, relation, rest = _split(said)
    phrase = _phrase(said)
    other = _phrase(rest) if relation else None
    if relation in words.INTERACTIONS:
        _check_interaction(phrase, relation, other)
    return Caption(phrase, relation, other, prefix, views[-1] if views else None)


def _meant(said: list[str]) -> list[str]:
    """Words and phrases of the grammar for what was said, skipping words that change nothing."""
    meant: list[str] = []
    unknown: list[str] = []
    at = 0
    while at < len(said):
        for length in range(min(_LONGEST_PHRASE, len(said) - at), 0, -1):
            phrase = words.SAID_TOGETHER.get(" ".join(said[at : at + length]))
            if phrase:
                meant.append(phrase)
                at += length
                break
        else:
            word = words.SYNONYMS.get(said[at], said[at])
            if word in _KNOWN:
                meant.append(word)
            elif word not in words.SKIPPED:
                unknown.append(said[at])
            at += 1
    if unknown:
        raise InputError(_unknown(unknown))
    return meant


def _unknown(unknown: list[str]) -> str:
    """One line about unknown words: which, what they may be slips of, what is known."""
    shown = ", ".join(f"'{word[:40]}'" for word in dict.fromkeys(unknown[:5]))
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    near = difflib.get_close_matches(unknown[0][:40], sorted(_KNOWN | set(words.SYNONYMS)), n=1, cutoff=0.75)
    guess = f" (did you mean '{near[0]}'?)" if near else ""
    return (
        f"unknown {'words' if len(unknown) > 1 else 'word'} {shown}{more}{guess}; known are {', '.join(words.NOUNS)}; "
        f"{', '.join(words.COLORS)}; {', '.join((*words.SIZES, *words.PROPORTIONS, *words.MATERIALS))}; "
        f"{', '.join((*words.RELATIONS, *words.INTERACTIONS))}; with COLOR PART"
    )


def _split(said: list[str]) -> tuple[list[str], str | None, list[str]]:
    """The words before and after the relation; "a table and a chair" stand next to each other."""
    links = [at for at, word in enumerate(said) if word in _LINKS]
    nouns = [at for at, word in enumerate(said) if word in words.NOUNS]
    if len(links) > 1 or len(nouns) > 2:
        raise InputError("the prompt relates more than two things; at most two can be, as in 'a mug on top of a table'")
    if links:
        return said[: links[0]], said[links[0]], said[links[0] + 1 :]
    if len(nouns) == 2:
        ands = [at for at in range(nouns[0], nouns[1]) if said[at] == "and"]
        if not ands:
            raise InputError(
                f"the prompt names '{said[nouns[0]]}' and '{said[nouns[1]]}' without a relation; "
                f"put one of {', '.join((*words.RELATIONS, *words.INTERACTIONS))} between them"
            )
        return said[: ands[-1]], "next to", said[ands[-1] + 1 :]
    return said, None, []


def _phrase(said: list[str]) -> Phrase:
    """One noun with its attributes; colors wait for the noun or part that follows them."""
    nouns = [word for word in said if word in words.NOUNS]
    if len(nouns) != 1:
        named = "two things" if nouns else "no thing"
        about = f"'{' '.join(said)[:60]}' names {named}" if said else "something is missing"
        raise InputError(f"{about}; expected one of {', '.join(words.NOUNS)}")
    noun, count = nouns[0], 1
    found: dict[str, str] = {}
    parts: dict[str, str] = {}
    waiting: list[str] = []
    for word in said:
        kind = _KIND.get(word)
        if word in words.COUNTS:
            count = words.COUNTS[word]
        elif kind == "color":
            waiting.append(word)
        elif kind is not None:
            if found.setdefault(kind, word) != word:
                raise InputError(f"a {noun} cannot be both {found[kind]} and {word}; leave one out")
        elif word == noun and waiting:
            found["color"], *second = waiting
            parts.update(zip(words.PARTS[noun][1:2], second))
            _check_few(noun, waiting)
            waiting = []
        elif word == "with" and len(waiting) == 1:  # "a car, red, with black wheels"
            found.setdefault("color", waiting.pop())
        elif word in _PARTS:
            _add_part(noun, word, waiting, parts)
    if waiting:  # "a chair, red"
        found.setdefault("color", waiting[0])
        if found["color"] != waiting[-1]:
            raise InputError(f"a {noun} cannot be both {found['color']} and {waiting[-1]}; say which part is which")
    return Phrase(noun, count, parts=tuple(parts.items()), **found)


def _check_few(noun: str, colors: list[str]) -> None:
    if len(colors) > 2:
        raise InputError(f"a {noun} has at most two colors before its name, got {', '.join(colors)}; name its parts")


def _add_part(noun: str, part: str, waiting: list[str], parts: dict[str, str]) -> None:
    """Gives the waiting color to a part; "red seat and legs" is red for both."""
    if part not in words.PARTS[noun]:
        raise InputError(f"a {noun} has no '{part}' that could be colored; it has {', '.join(words.PARTS[noun])}")
    if not waiting and not parts:
        raise InputError(f"'{part}' needs a color, such as 'a {noun} with red {part}'")
    if len(waiting) > 1 or part in parts:
        raise InputError(f"'{part}' of a {noun} has more than one color; leave one out")
    parts[part] = waiting.pop() if waiting else list(parts.values())[-1]


def _check_interaction(phrase: Phrase, verb: str | None, other: Phrase | None) -> None:
    if phrase.noun != "person" or phrase.count > 1 or other is None or other.count > 1:
        raise InputError(f"'{verb}' is what one person does with one thing, as in 'a person {verb} a box'")
