"""The data set: made from a seed, in parts, without held-out combinations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from generation.captions import PAD, TOKENS, is_held_out, parse, tokenize
from generation.prior_data import (
    HELD_OUT_PART,
    PART,
    PriorData,
    make_part,
    objects_of,
    over_background,
    part_file,
    parts_to_make,
    read_parts,
    view_tokens,
    write_part,
)
from generation.views import VIEW_WORDS
from scene.errors import InputError


@pytest.fixture(scope="module")
def part() -> PriorData:
    return make_part(0, 8, seed=7, count=24)


@pytest.fixture(scope="module")
def held_out() -> PriorData:
    return make_part(HELD_OUT_PART, 8, seed=7, count=6)


def test_the_same_seed_gives_the_same_bytes_and_another_others(part: PriorData) -> None:
    again, other = make_part(0, 8, seed=7, count=24), make_part(0, 8, seed=8, count=24)
    assert torch.equal(again.rgba, part.rgba)
    assert again.texts == part.texts
    assert other.texts != part.texts
    assert make_part(1, 8, seed=7, count=2).texts != part.texts[:2]


def test_a_shorter_part_has_the_first_objects_of_a_longer_one(part: PriorData) -> None:
    short = make_part(0, 8, seed=7, count=3)
    assert torch.equal(short.rgba, part.rgba[:3])
    assert torch.equal(short.cameras, part.cameras[:3])


def test_held_out_combinations_are_in_the_held_out_part_alone(part: PriorData, held_out: PriorData) -> None:
    assert not any(is_held_out(parse(text)) for text in part.texts)
    assert all(is_held_out(parse(text)) for text in held_out.texts)


def test_words_belong_to_the_captions_and_meanings_leave_synonyms_out(part: PriorData) -> None:
    assert part.words.shape == (24, 2, TOKENS)
    assert part.words[:, 0].tolist() == [tokenize(text) for text in part.texts]
    for text, meaning, kind in zip(part.texts, part.meanings, part.kinds):
        assert parse(text).phrases() == parse(meaning).phrases()
        assert parse(meaning).phrase.noun == kind
    same = [part.meanings[i] == part.meanings[j] for i in range(24) for j in range(24)]
    assert (part.ids[:, None] == part.ids[None]).flatten().tolist() == same


def test_pictures_show_something_and_views_stand_a_quarter_turn_apart(part: PriorData) -> None:
    # A thin thing seen edge-on may slip between the samples of 8 pixels.
    assert float((part.rgba[:, :, :, 3] > 0).any(-1).any(-1).float().mean()) > 0.95
    rotations = part.cameras[..., :12].unflatten(-1, (3, 4))
    centres = rotations[..., :2, 3] / rotations[..., :2, 3].norm(dim=-1, keepdim=True)
    dots = (centres * centres.roll(1, dims=2)).sum(-1)
    torch.testing.assert_close(dots, torch.zeros_like(dots), atol=1e-5, rtol=0)


def test_parts_survive_the_disk_and_are_only_made_once(tmp_path: Path, part: PriorData, held_out: PriorData) -> None:
    assert list(parts_to_make(tmp_path, 24, 6)) == [HELD_OUT_PART, 0]
    write_part(tmp_path, 0, part, 8, 7)
    assert list(parts_to_make(tmp_path, 24, 6)) == [HELD_OUT_PART]
    write_part(tmp_path, HELD_OUT_PART, held_out, 8, 7)
    back = read_parts(tmp_path, 20, 8, 7, held_out=False)
    assert torch.equal(back.rgba, part.rgba[:20])
    assert torch.equal(back.words, part.words[:20])
    assert (back.texts, back.meanings, back.kinds) == (part.texts[:20], part.meanings[:20], part.kinds[:20])
    assert read_parts(tmp_path, 6, 8, 7, held_out=True).texts == held_out.texts


def test_another_data_sets_parts_are_refused(tmp_path: Path, part: PriorData) -> None:
    with pytest.raises(InputError, match="no part"):
        read_parts(tmp_path, 24, 8, 7, held_out=False)
    write_part(tmp_path, 0, part, 8, 7)
    with pytest.raises(InputError, match="another data set"):
        read_parts(tmp_path, 24, 8, 6, held_out=False)
    part_file(tmp_path, 0).write_bytes(b"\x80\x04 a pickle")
    with pytest.raises(InputError, match="pickle"):
        read_parts(tmp_path, 24, 8, 7, held_out=False)


def test_parts_share_the_objects_out() -> None:
    assert [objects_of(n, 600, 10) for n in range(3)] == [PART, PART, 600 - 2 * PART]
    assert objects_of(HELD_OUT_PART, 600, 10) == 10


def test_a_view_is_said_at_the_end_where_there_is_room() -> None:
    words = torch.tensor([tokenize("a red chair"), tokenize("a red chair"), [5] * TOKENS])
    said = view_tokens(words, torch.tensor([VIEW_WORDS.index("front"), VIEW_WORDS.index("back"), 0]))
    assert said[0].tolist() == tokenize("a red chair, front view")
    assert said[1].tolist() == tokenize("a red chair, back view")
    assert said[2].tolist() == [5] * TOKENS
    assert int((words[0] != PAD).sum()) == 3  # what came in stays as it was


def test_pictures_are_laid_over_their_background() -> None:
    rgba = torch.tensor([255, 0, 51, 255], dtype=torch.uint8).view(4, 1, 1)
    torch.testing.assert_close(over_background(rgba, torch.ones(3, 1, 1)).flatten(), torch.tensor([1.0, -1.0, -0.6]))
    rgba[3] = 0
    torch.testing.assert_close(over_background(rgba, torch.full((3, 1, 1), 0.25)).flatten(), torch.full((3,), -0.5))
