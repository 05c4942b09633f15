"""Model folders that lie, are damaged, or hold what would run code: one clear line each, and nothing of them runs."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from generation.diffusers_files import find_model
from generation.diffusers_prior import load_prior
from scene.errors import InputError
from tests.generation import small_pipelines

POINTER = (
    "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32\nsize 492265168\n"
)
UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.target, "the pickle ran"))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    small_pipelines.stable_diffusion(folder)
    return folder


def text(name: str, content: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_text(content)

    return damage


def change(name: str, **values: Any) -> Callable[[Path], None]:
    """Set values in a JSON file; None of Python takes the key out."""

    def damage(folder: Path) -> None:
        config = json.loads((folder / name).read_text())
        config |= values
        (folder / name).write_text(json.dumps({key: value for key, value in config.items() if value is not None}))

    return damage


def tensors(name: str, edit: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        held = load_file(folder / name)
        edit(held)
        save_file(held, folder / name, metadata={"format": "pt"})

    return damage


def cut(name: str, share: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return damage


def pickled(name: str, loose: bool = False) -> Callable[[Path], None]:
    """Weights as a pickle with a bomb, in place of the safetensors or (loose) of the whole layout."""

    def damage(folder: Path) -> None:
        (folder / name).write_bytes(pickle.dumps(Bomb(folder / "ran.txt")))
        for file in folder.glob("*/*.safetensors") if loose else [(folder / name).with_suffix(".safetensors")]:
            file.unlink()
        if loose:
            (folder / "model_index.json").unlink()

    return damage


def shard(name: str) -> Callable[[Path], None]:
    """Weights in shards, one of which lies elsewhere."""

    def damage(folder: Path) -> None:
        (folder / UNET).unlink()
        index = {"metadata": {}, "weight_map": {"conv_in.weight": name}}
        (folder / f"{UNET}.index.json").write_text(json.dumps(index))

    return damage


def header(edit: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Lies in the header of the U-Net's weights."""

    def damage(folder: Path) -> None:
        data = (folder / UNET).read_bytes()
        length = int.from_bytes(data[:8], "little")
        told = json.loads(data[8 : 8 + length])
        edit(told)
        written = json.dumps(told).encode()
        (folder / UNET).write_bytes(struct.pack("<Q", len(written)) + written + data[8 + length :])

    return damage


def index(**values: Any) -> Callable[[Path], None]:
    return change("model_index.json", **values)


def removed(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()

    return damage


def more_words(folder: Path) -> None:
    tokenizer = small_pipelines.clip_tokenizer()
    tokenizer.add_tokens(["unheard-of"])
    tokenizer.save_pretrained(folder / "tokenizer")


FIRST = "down_blocks.0.resnets.0.conv1.weight"
BAD: dict[str, tuple[Callable[[Path], None], str]] = {
    "no index": (removed("model_index.json"), "no model_index.json"),
    "one checkpoint": (pickled("v1-5-pruned.ckpt", loose=True), "only v1-5-pruned.ckpt"),
    "pickles of a network": (pickled("unet/diffusion_pytorch_model.bin"), "only as pickles"),
    "pickles of words": (pickled("text_encoder/model.pt"), "only as pickles"),
    "code of a network": (index(unet=["my_unet", "BetterUNet"]), "runs no code"),
    "code of words": (index(text_encoder=["my_words", "CLIPTextModel"]), "runs no code"),
    "code of a scheduler": (index(scheduler=["my_schedule", "PNDMScheduler"]), "runs no code"),
    "code by a map": (change("text_encoder/config.json", auto_map={"AutoModel": "evil.Model"}), "auto_map"),
    "code of a tokenizer": (change("tokenizer/tokenizer_config.json", auto_map={"AutoTokenizer": "x.T"}), "auto_map"),
    "quantised": (change("text_encoder/config.json", quantization_config={"quant_method": "gptq"}), "quantised"),
    "pointer of an index": (text("model_index.json", POINTER), "git lfs pull"),
    "pointer of a config": (text("vae/config.json", POINTER), "git lfs pull"),
    "pointer of weights": (text(UNET, POINTER), "git lfs pull"),
    "pointer of a tokenizer": (text("tokenizer/tokenizer.json", POINTER), "git lfs pull"),
    "cut weights": (cut(UNET, 0.7), "cut short"),
    "cut header": (cut(UNET, 0.001), "cut short"),
    "empty weights": (cut(TEXT, 0), "cut short"),
    "text for weights": (text(TEXT, "no weights, only words " * 9), "cut short or no safetensors"),
    "json that is none": (text("unet/config.json", "{'sample_size': 8"), "not valid JSON"),
    "json of a list": (text("unet/config.json", "[1, 2]"), "JSON object"),
    "deep json": (text("unet/config.json", "[" * 100_000), "nests too deeply"),
    "no network": (index(unet=None), "network none and text encoder CLIPTextModel; known are Stable Diffusion"),
    "no tokenizer": (index(tokenizer=None), "names no 'tokenizer'"),
    "no folder of a part": (removed("vae"), "missing"),
    "no weights": (removed(UNET), "holds no weights"),
    "no words of a tokenizer": (removed("tokenizer/tokenizer.json"), "holds no words"),
    "another pipeline": (
        index(text_encoder_2=["transformers", "CLIPTextModelWithProjection"]),
        "is a StableDiffusionPipeline",
    ),
    "another class": (index(vae=["diffusers", "AutoencoderTiny"]), "expected AutoencoderKL"),
    "another shape": (
        tensors(UNET, lambda held: held.update({FIRST: torch.zeros(32, 32, 1, 1)})),
        f"'{FIRST}' is [32, 32, 1, 1] in its weights, but [32, 32, 3, 3] by its config.json",
    ),
    "another shape of words": (
        tensors(TEXT, lambda held: held.update({"final_layer_norm.weight": torch.zeros(5)})),
        "[5] in its weights, but [32]",
    ),
    "a tensor less": (tensors(UNET, lambda held: held.pop(FIRST)), f"lack 1 tensors, '{FIRST}'"),
    "words less": (tensors(TEXT, lambda held: held.pop("final_layer_norm.weight")), "lack 1 tensors"),
    "another config": (change("unet/config.json", block_out_channels=[32, 96]), "do not belong together"),
    "nonsense in a config": (change("unet/config.json", block_out_channels="wide"), "cannot be loaded"),
    "a thousand layers": (change("text_encoder/config.json", num_hidden_layers=10**9), "at most 512"),
    "many blocks": (change("unet/config.json", layers_per_block=[1, 10**7]), "at most 512"),
    "inpainting": (change("unet/config.json", in_channels=9), "conv_in.weight"),
    "no square": (change("unet/config.json", sample_size=[8, 16]), "sample_size"),
    "endless schedule": (change("scheduler/scheduler_config.json", num_train_timesteps=10**12), "at most 100000"),
    "noise that shrinks": (change("scheduler/scheduler_config.json", trained_betas=[-0.5] * 9), "do not grow"),
    "unknown prediction": (change("scheduler/scheduler_config.json", prediction_type="dreams"), "'dreams'"),
    "a schedule without betas": (change("scheduler/scheduler_config.json", beta_start=None), "no DDPM schedule"),
    "shard outside": (shard("../../outside.safetensors"), "no safetensors file beside it"),
    "shard that is a pickle": (shard("pytorch_model.bin"), "no safetensors file beside it"),
    "shard that is missing": (shard("part-1.safetensors"), "no safetensors file beside it"),
    "bytes beyond the file": (header(lambda told: told[FIRST].update(data_offsets=[0, 1 << 50])), "cut short"),
    "a huge shape": (header(lambda told: told[FIRST].update(shape=[1 << 60, 1 << 60])), "damaged"),
    "a negative shape": (header(lambda told: told[FIRST].update(shape=[-1, 3])), "damaged"),
    "no offsets": (header(lambda told: told[FIRST].pop("data_offsets")), "header cannot be read"),
    "overlapping tensors": (header(lambda told: told[FIRST].update(data_offsets=[0, 4])), "cannot be loaded as UNet"),
    "more words than known": (more_words, "more words than the 518 that text_encoder knows"),
}


def one_line(call: Callable[[], Any]) -> str:
    with pytest.raises(InputError) as caught:
        call()
    said = str(caught.value)
    assert "\n" not in said and len(said) < 700, said
    return said


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_are_refused_in_one_line(good: Path, tmp_path: Path, case: str) -> None:
    damage, reason = BAD[case]
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    damage(folder)
    said = one_line(lambda: load_prior(str(folder)))
    assert reason in said and str(folder) in said
    assert not list(tmp_path.rglob("ran.txt"))


def test_inpainting_models_are_named_as_such(good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    change("unet/config.json", in_channels=9)(folder)
    tensors(UNET, lambda held: held.update({"conv_in.weight": torch.zeros(32, 9, 3, 3)}))(folder)
    assert "takes 9 channels" in one_line(lambda: load_prior(str(folder)))


def test_pickles_and_code_beside_safetensors_are_left_alone(good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(good, folder)
    for name in ("unet/diffusion_pytorch_model.bin", "text_encoder/pytorch_model.bin", "safety_checker.ckpt"):
        (folder / name).write_bytes(pickle.dumps(Bomb(tmp_path / "ran.txt")))
    for name in ("pipeline.py", "unet/diffusers.py", "text_encoder/transformers.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'ran.txt')!r}, 'w').write('code ran')")
    index(safety_checker=["my_checker", "Censor"])(folder)
    assert load_prior(str(folder)).describe()["kind"] == "stable-diffusion"
    assert not (tmp_path / "ran.txt").exists()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "empty"),
        ("  ", "empty"),
        ("a\0b", "unusable"),
        ("x" * 5000, "unusable"),
        ("/no/such/folder", "no folder"),
        ("sd15", "no folder"),
        ("../sd15", "no folder"),
        ("a/b/c", "no folder"),
        ("https://huggingface.co/a/b", "no folder"),
    ],
)
def test_bad_names_are_refused_in_one_line(name: str, reason: str) -> None:
    assert reason in one_line(lambda: find_model(name))


def test_a_checkpoint_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(pickle.dumps(Bomb(tmp_path / "ran.txt")))
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert "could run any code" in one_line(lambda: load_prior(str(tmp_path / "model.ckpt")))
    said = one_line(lambda: load_prior(str(tmp_path / "model.safetensors")))
    assert "single file; expected a folder" in said
    assert not (tmp_path / "ran.txt").exists()
