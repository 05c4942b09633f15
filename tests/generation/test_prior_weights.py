"""Files of weights: what they say of themselves, and that nothing but the right ones is loaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from generation.captions import vocabulary_hash
from generation.networks import TOY_LAYOUT
from generation.prior_weights import GUIDE_FILE, PRIOR_FILE, About, load_clip, load_prior_network, save_weights
from generation.trained_prior import TrainedPrior
from scene.errors import InputError
from tests.generation.prior_toys import TOY_GUIDE, toy_guide, toy_network

ABOUT = About("prior", TOY_LAYOUT, 7, "abc123", {"sample_exact": 0.75})
GUIDE_ABOUT = About("clip_guide", TOY_GUIDE, 7, "abc123", {})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / PRIOR_FILE
    save_weights(path, toy_network(), ABOUT)
    return path


def rewritten(file: Path, tensors: dict[str, torch.Tensor] | None = None, **meta: str) -> Path:
    """The same file with other tensors or metadata."""
    with safe_open(file, "pt") as opened:
        kept = opened.metadata()
    save_file(load_file(file) if tensors is None else tensors, file, {**kept, **meta})
    return file


def refused(file: Path, told: str) -> None:
    with pytest.raises(InputError, match=told) as caught:
        load_prior_network(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_weights_come_back_in_half_precision_with_what_they_are(file: Path) -> None:
    network, about = load_prior_network(file)
    assert about == ABOUT
    for name, tensor in toy_network().state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor.half().float())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    again = file.with_name("again.safetensors")
    save_weights(again, network, about)
    assert again.read_bytes() == file.read_bytes()


def test_other_programs_read_the_description(file: Path) -> None:
    with safe_open(file, "pt") as opened:
        meta = opened.metadata()
    assert meta["vocabulary"] == vocabulary_hash()
    assert json.loads(meta["architecture"])["channels"] == list(TOY_LAYOUT.channels)
    assert json.loads(meta["metrics"]) == {"sample_exact": 0.75}
    assert (meta["data_seed"], meta["commit"]) == ("7", "abc123")


def test_another_vocabulary_is_refused(file: Path) -> None:
    refused(rewritten(file, vocabulary="0123456789abcdef"), "another vocabulary.*train it again")


def test_wrong_shapes_and_missing_or_foreign_tensors_are_refused(file: Path) -> None:
    tensors = load_file(file)
    refused(rewritten(file, {**tensors, "conv_in.bias": torch.zeros(5)}), "conv_in.bias should be")
    refused(rewritten(file, {name: t for name, t in tensors.items() if name != "film.bias"}), "film.bias.*got nothing")
    refused(rewritten(file, {**tensors, "more": torch.zeros(1)}), "more should be absent")
    refused(rewritten(file, {**tensors, "film.bias": torch.full_like(tensors["film.bias"], torch.nan)}), "not finite")


def test_an_architecture_that_the_tensors_do_not_have_is_refused_before_memory_is_taken(file: Path) -> None:
    architecture = json.loads(json.dumps(TOY_LAYOUT.__dict__))
    refused(rewritten(file, architecture=json.dumps({**architecture, "channels": [4096, 4096]})), "should be")
    for bad in (
        {"channels": [10**9, 10**9]}, {"channels": [16] * 9}, {"channels": "x"}, {"head": 0}, {"patch": 0},
        {"words": 3}, {"blocks": 4000}, {"text_layers": 4000}, {"size": 7}, {"attention": [True]}, {"more": 1},
    ):  # fmt: skip
        refused(rewritten(file, architecture=json.dumps({**architecture, **bad})), "does not describe")


def test_pickles_pointers_and_torn_files_are_refused(file: Path) -> None:
    data = file.read_bytes()
    torch.save({"weights": torch.zeros(3)}, file)
    refused(file, "pickle")
    file.write_bytes(b"\x80\x04\x95 a bare pickle")
    refused(file, "pickle")
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    refused(file, "git lfs pull")
    for length in (0, 7, 100, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:length])
        refused(file, "cut short|damaged|not valid JSON")
    file.unlink()
    refused(file, "No such file")


def test_a_header_as_long_as_a_pickle_begins_is_no_pickle(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    begins = set()
    for more in range(0, 256, 8):  # the length of the header's padding differs in its last byte
        save_weights(path, toy_network(), replace(ABOUT, metrics={"a" * (1 + more): 1.0}))
        begins.add(path.read_bytes()[0])
        load_prior_network(path)
    assert 0x80 in begins


def test_strangers_safetensors_and_the_wrong_kind_are_refused(file: Path) -> None:
    save_file({"x": torch.zeros(2)}, file)
    refused(file, "no weights of Maquette's own prior")
    save_weights(file, toy_guide(), GUIDE_ABOUT)
    refused(file, "clip_guide; expected those of a prior")
    with pytest.raises(InputError, match="clip_guide; expected those of a clip_scorer"):
        load_clip(file, "clip_scorer")


def test_a_folder_loads_with_its_guide_and_not_with_another_trainings(file: Path) -> None:
    assert TrainedPrior.load(file.parent).guide is None
    save_weights(file.with_name(GUIDE_FILE), toy_guide(), GUIDE_ABOUT)
    loaded = TrainedPrior.load(file.parent)
    assert loaded.guide is not None
    assert loaded.about == ABOUT
    wider = replace(TOY_GUIDE, channels=(8, 24))
    from generation.clip import Clip

    save_weights(file.with_name(GUIDE_FILE), Clip(wider), replace(GUIDE_ABOUT, layout=wider))
    with pytest.raises(InputError, match="does not belong"):
        TrainedPrior.load(file.parent)
