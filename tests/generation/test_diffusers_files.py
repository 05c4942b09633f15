"""Model folders: which of their files count, what they state of themselves; the hub, which is never asked unasked."""

from __future__ import annotations

import json
import logging
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from generation.diffusers_files import find_model, wanted_files
from generation.diffusers_prior import load_prior
from generation.priors import Condition
from scene.errors import InputError
from tests.generation import small_pipelines

COMMIT = "0123456789abcdef0123456789abcdef01234567"
UNET = "diffusion_pytorch_model"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    small_pipelines.stable_diffusion(folder)
    return folder


@pytest.fixture
def copy(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "model"))


@pytest.fixture
def hub(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A local cache of the hub that has own/small; the network is out of reach."""
    cache = tmp_path / "hub"
    repository = cache / "models--own--small"
    shutil.copytree(good, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)
    return cache


def predicted(folder: Path) -> torch.Tensor:
    prior = load_prior(str(folder))
    z = torch.randn(1, *prior.shape, generator=torch.Generator().manual_seed(0))
    return prior.predict(z, torch.tensor([0.5]), [Condition(("a red chair",))])


def test_a_hub_id_is_read_from_the_local_cache(hub: Path) -> None:
    found = find_model("own/small")
    assert (found.name, found.revision, found.kind) == ("own/small", COMMIT, "stable-diffusion")
    assert load_prior(f"own/small@{COMMIT}").describe()["revision"] == COMMIT


def test_a_hub_id_that_is_not_there_is_not_fetched(hub: Path) -> None:
    with pytest.raises(
        InputError, match=r"^'own/other' is neither a folder here nor .*add --allow-download .*fetch it$"
    ):
        find_model("own/other")
    with pytest.raises(InputError, match="add --allow-download"):
        find_model("own/small@v2")
    with pytest.raises(InputError, match=r"fetch it \(4\.3 GB\)$"):
        find_model("stable-diffusion-v1-5/stable-diffusion-v1-5")
    (hub / "models--own--small" / "snapshots" / COMMIT / "unet" / f"{UNET}.safetensors").unlink()
    with pytest.raises(InputError, match="unet holds no weights"):  # a download that was broken off
        find_model("own/small")


def test_a_download_takes_only_what_is_needed_and_says_its_size_first(
    hub: Path, good: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked: dict[str, Any] = {}
    files = {str(file.relative_to(good)): file.stat().st_size for file in good.rglob("*") if file.is_file()}
    listing = [SimpleNamespace(rfilename=name, size=size) for name, size in files.items()]
    listing.append(SimpleNamespace(rfilename="v1-5.ckpt", size=4 << 30))

    def model_info(self: Any, model: str, **options: Any) -> Any:
        return SimpleNamespace(siblings=listing, sha=COMMIT, card_data={"license": "openrail"})

    def snapshot_download(model: str, **options: Any) -> str:
        assert "GB, licence openrail" in caplog.text
        asked.update(options, model=model)
        return str(hub / "models--own--small" / "snapshots" / COMMIT)

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with caplog.at_level(logging.INFO):
        assert find_model("own/new", allow_download=True).revision == COMMIT
    assert asked["model"] == "own/new" and asked["revision"] == COMMIT
    assert sorted(asked["allow_patterns"]) == sorted(files)
    assert f"{sum(files.values()) / 1e9:.2f} GB" in caplog.text

    def fails(*_: Any, **__: Any) -> None:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(InputError, match=r"^'own/new' could not be fetched from the hub: no route to host; .*$"):
        find_model("own/new", allow_download=True)


def test_of_a_repository_one_variant_of_the_safetensors_is_wanted() -> None:
    files = {
        "model_index.json": 1,
        "README.md": 1,
        "v1-5-pruned.ckpt": 7_000,
        "v1-5-pruned.safetensors": 7_000,
        "unet/config.json": 1,
        "unet/diffusion_pytorch_model.bin": 3_000,
        "unet/diffusion_pytorch_model.safetensors": 3_000,
        "unet/diffusion_pytorch_model.non_ema.safetensors": 3_000,
        "unet/diffusion_pytorch_model.fp16.safetensors": 1_500,
        "text_encoder/config.json": 1,
        "text_encoder/model-00001-of-00002.safetensors": 400,
        "text_encoder/model-00002-of-00002.safetensors": 400,
        "text_encoder/model.safetensors.index.json": 1,
        "text_encoder/model.fp16-00001-of-00001.safetensors": 400,
        "text_encoder/model.safetensors.index.fp16.json": 1,
        "safety_checker/model.safetensors": 1_200,
        "tokenizer/vocab.json": 1,
        "tokenizer/merges.txt": 1,
        "tokenizer_3/spiece.model": 1,
        "scheduler/scheduler_config.json": 1,
        "unet/mv_unet.py": 1,
    }
    small = {name for name in files if name.endswith((".json", ".txt", "spiece.model", ".md")) and ".index" not in name}
    full = {"unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors.index.json"}
    full |= {f"text_encoder/model-0000{i}-of-00002.safetensors" for i in (1, 2)}
    assert set(wanted_files(files, half=False)) == small | full
    halves = {name for name in files if ".fp16" in name}
    assert set(wanted_files(files, half=True)) == small | halves
    only_half = {name: size for name, size in files.items() if name not in full}
    assert halves < set(wanted_files(only_half, half=False))
    with pytest.raises(InputError, match="unet only as pickles"):
        wanted_files({"unet/diffusion_pytorch_model.bin": 1, "unet/config.json": 1}, half=False)


def test_files_of_half_precision_and_shards_are_the_same_model(good: Path, copy: Path) -> None:
    exact = predicted(good)
    unet = copy / "unet"
    (unet / f"{UNET}.safetensors").rename(unet / f"{UNET}.fp16.safetensors")
    (copy / "text_encoder" / "model.safetensors").rename(copy / "text_encoder" / "model.fp16.safetensors")
    assert torch.equal(predicted(copy), exact)
    small_pipelines.save_in_shards(load_file(unet / f"{UNET}.fp16.safetensors"), unet, UNET)
    (unet / f"{UNET}.fp16.safetensors").unlink()
    assert len(list(unet.glob("*-of-*.safetensors"))) == 2
    # Weights lie in memory as in their files, and how they are aligned decides in which order some sums are taken.
    torch.testing.assert_close(predicted(copy), exact, rtol=0, atol=1e-5)
    one, other = (load_prior(str(folder)).parts.network.state_dict() for folder in (good, copy))
    assert all(torch.equal(other[name], tensor) for name, tensor in one.items())


def test_a_tokenizer_of_old_files_reads_the_same_words(good: Path, copy: Path) -> None:
    tokenizer = small_pipelines.clip_tokenizer()
    told = json.loads((copy / "tokenizer" / "tokenizer.json").read_text())["model"]
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in told["merges"]]
    (copy / "tokenizer" / "tokenizer.json").unlink()
    (copy / "tokenizer" / "vocab.json").write_text(json.dumps(tokenizer.get_vocab()))
    (copy / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    assert torch.equal(predicted(copy), predicted(good))


def test_weights_under_their_names_of_2022_are_the_same_model(good: Path, copy: Path) -> None:
    """Stable Diffusion 1.5 was saved when CLIP's tensors had a prefix and the VAE's attention had other names."""
    file = copy / "text_encoder" / "model.safetensors"
    weights = {f"text_model.{name}": tensor for name, tensor in load_file(file).items()}
    weights["text_model.embeddings.position_ids"] = torch.arange(77)[None]
    save_file(weights, file, {"format": "pt"})
    file = copy / "vae" / f"{UNET}.safetensors"
    renamed, weights = 0, {}
    for name, tensor in load_file(file).items():
        old = name
        for new, was in (
            (".to_q.", ".query."),
            (".to_k.", ".key."),
            (".to_v.", ".value."),
            (".to_out.0.", ".proj_attn."),
        ):
            old = old.replace(new, was) if "attentions" in name else old
        renamed += old != name
        weights[old] = tensor
    save_file(weights, file, {"format": "pt"})
    one, other = load_prior(str(good)), load_prior(str(copy))
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert renamed == 16
    torch.testing.assert_close(other.words("a chair").context, one.words("a chair").context, rtol=0, atol=1e-5)
    torch.testing.assert_close(other.encode(picture), one.encode(picture), rtol=0, atol=1e-5)


def test_what_a_folder_states_of_itself(copy: Path) -> None:
    def stated() -> tuple[str, str]:
        found = find_model(str(copy))
        return found.revision, found.licence

    assert stated() == ("not stated (local folder)", "not stated in its folder")
    (copy / "LICENSE.md").write_text("\n  CreativeML Open RAIL-M  \nmore\n")
    assert stated()[1] == "CreativeML Open RAIL-M"
    (copy / "README.md").write_text("---\nlicense: other\nlicense_name: 'stability-ai-community'\n---\nlicense: no\n")
    assert stated()[1] == "stability-ai-community"
    git = copy / ".git" / "refs" / "heads"
    git.mkdir(parents=True)
    (copy / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (git / "main").write_text(COMMIT + "\n")
    assert stated()[0] == COMMIT
    (copy / ".git" / "HEAD").write_text("ref: refs/heads/../../../../etc/passwd\n")
    assert stated()[0] == "not stated (local folder)"
    notes = copy / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    (notes / "model_index.json.metadata").write_text(f"{COMMIT[::-1]}\netag\n1700000000.0\n")
    assert stated()[0] == COMMIT[::-1]


def test_a_text_encoder_that_stable_diffusion_3_can_do_without(tmp_path: Path) -> None:
    pipe = small_pipelines.stable_diffusion_3(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    for part in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(tmp_path / part)
    pipe.text_encoder_3 = None
    with torch.no_grad():
        wanted = pipe.encode_prompt("a chair", None, None, device="cpu", do_classifier_free_guidance=False)
    words = load_prior(str(tmp_path)).words("a chair")
    assert words.pooled is not None
    torch.testing.assert_close(words.context, wanted[0][0])
    torch.testing.assert_close(words.pooled, wanted[2][0])


def test_a_t5_of_a_sentencepiece_file_needs_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_pipelines.deepfloyd(tmp_path)
    (tmp_path / "tokenizer" / "tokenizer.json").rename(tmp_path / "tokenizer" / "spiece.model")
    monkeypatch.setattr("transformers.utils.is_sentencepiece_available", lambda: False)
    with pytest.raises(InputError, match="pip install sentencepiece protobuf"):
        load_prior(str(tmp_path))
