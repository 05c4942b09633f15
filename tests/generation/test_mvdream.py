"""MVDream's U-Net: its cameras, what its views see of each other, and the layouts that its weights come in."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from generation import mvdream
from generation.diffusers_prior import DiffusersPrior, load_prior
from generation.priors import Condition
from scene.cameras import Camera, look_at
from scene.errors import InputError
from tests.generation import small_pipelines

RELEASED = {  # sd-v2-base.yaml of MVDream's release
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "num_head_channels": 64,
    "transformer_depth": 1,
    "context_dim": 1024,
    "camera_dim": 16,
}
SMALL = RELEASED | {
    "image_size": 8,
    "model_channels": 32,
    "attention_resolutions": [1],
    "num_res_blocks": small_pipelines.LAYERS,
    "channel_mult": [1, 2],
    "num_head_channels": 16,
    "context_dim": 32,
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def linear(name: str, wide: int, out: int, bias: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, wide)
    if bias:
        yield f"{name}.bias", (out,)


def conv(name: str, wide: int, out: int, size: int = 3) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, wide, size, size)
    yield f"{name}.bias", (out,)


def norm(name: str, wide: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (wide,)
    yield f"{name}.bias", (wide,)


def residual(name: str, wide: int, out: int, embedding: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from norm(f"{name}.in_layers.0", wide)
    yield from conv(f"{name}.in_layers.2", wide, out)
    yield from linear(f"{name}.emb_layers.1", embedding, out)
    yield from norm(f"{name}.out_layers.0", out)
    yield from conv(f"{name}.out_layers.3", out, out)
    if wide != out:
        yield from conv(f"{name}.skip_connection", wide, out, 1)


def transformer(name: str, wide: int, context: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    block = f"{name}.transformer_blocks.0"
    yield from norm(f"{name}.norm", wide)
    yield from linear(f"{name}.proj_in", wide, wide)
    for attention, source in (("attn1", wide), ("attn2", context)):
        yield from linear(f"{block}.{attention}.to_q", wide, wide, bias=False)
        yield from linear(f"{block}.{attention}.to_k", source, wide, bias=False)
        yield from linear(f"{block}.{attention}.to_v", source, wide, bias=False)
        yield from linear(f"{block}.{attention}.to_out.0", wide, wide)
    yield from linear(f"{block}.ff.net.0.proj", wide, 8 * wide)
    yield from linear(f"{block}.ff.net.2", 4 * wide, wide)
    for i in (1, 2, 3):
        yield from norm(f"{block}.norm{i}", wide)
    yield from linear(f"{name}.proj_out", wide, wide)


def original_tensors(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a U-Net of latent-diffusion with cameras, by how it is put together."""
    width, mults, layers = config["model_channels"], config["channel_mult"], config["num_res_blocks"]
    embedding, context = 4 * width, config["context_dim"]
    found: list[tuple[str, tuple[int, ...]]] = []
    for name, numbers in (("time_embed", width), ("camera_embed", config["camera_dim"])):
        found += [*linear(f"{name}.0", numbers, embedding), *linear(f"{name}.2", embedding, embedding)]
    found += conv("input_blocks.0.0", config["in_channels"], width)
    wide, skips, number = width, [width], 1
    for level, mult in enumerate(mults):
        for _ in range(layers):
            found += residual(f"input_blocks.{number}.0", wide, mult * width, embedding)
            wide = mult * width
            if 2**level in config["attention_resolutions"]:
                found += transformer(f"input_blocks.{number}.1", wide, context)
            skips.append(wide)
            number += 1
        if level < len(mults) - 1:
            found += conv(f"input_blocks.{number}.0.op", wide, wide)
            skips.append(wide)
            number += 1
    found += residual("middle_block.0", wide, wide, embedding)
    found += transformer("middle_block.1", wide, context)
    found += residual("middle_block.2", wide, wide, embedding)
    number = 0
    for level, mult in reversed(list(enumerate(mults))):
        for i in range(layers + 1):
            found += residual(f"output_blocks.{number}.0", wide + skips.pop(), mult * width, embedding)
            wide, place = mult * width, 1
            if 2**level in config["attention_resolutions"]:
                found += transformer(f"output_blocks.{number}.1", wide, context)
                place = 2
            if level and i == layers:
                found += conv(f"output_blocks.{number}.{place}.conv", wide, wide)
            number += 1
    found += norm("out.0", width)
    found += conv("out.2", width, config["out_channels"])
    return dict(found)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    small_pipelines.multi_view(folder)
    return folder


def as_original(plain: Path, folder: Path) -> None:
    """Save the pipeline again as ashawkey's conversion does."""
    shutil.copytree(plain, folder)
    weights = load_file(plain / "unet" / WEIGHTS)
    layers = SMALL["num_res_blocks"]
    named = {name: weights[mvdream.unet_name(name, layers)] for name in original_tensors(SMALL)}
    assert len(named) == len(weights)
    save_file(named, folder / "unet" / WEIGHTS)
    (folder / "unet" / "config.json").write_text(json.dumps({"_class_name": "MultiViewUNetModel", **SMALL}))
    (folder / "unet" / "mv_unet.py").write_text("raise SystemExit('code of a model folder ran')")
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "MVDreamPipeline", "unet": ["mv_unet", "MultiViewUNetModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))


def as_projected(plain: Path, folder: Path) -> None:
    """Save the pipeline again with the MLP of the cameras beside the U-Net."""
    shutil.copytree(plain, folder)
    weights = load_file(plain / "unet" / WEIGHTS)
    cameras = {name: tensor for name, tensor in weights.items() if name.startswith("class_embedding.")}
    save_file({name: t for name, t in weights.items() if name not in cameras}, folder / "unet" / WEIGHTS)
    config = json.loads((folder / "unet" / "config.json").read_text())
    config |= {"class_embed_type": None, "projection_class_embeddings_input_dim": None}
    (folder / "unet" / "config.json").write_text(json.dumps(config))
    (folder / "camera_proj").mkdir()
    save_file({name.partition(".")[2]: t for name, t in cameras.items()}, folder / "camera_proj" / WEIGHTS)
    (folder / "camera_proj" / "config.json").write_text(json.dumps({"in_channels": 16, "camera_embed_dim": 128}))
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"_class_name": "MVDreamPipeline", "camera_proj": ["mvdream.camera_proj", "CameraMatrixEmbedding"]}
    (folder / "model_index.json").write_text(json.dumps(index))


def camera(azimuth: float, elevation: float = 0.0, distance: float = 1.0) -> Camera:
    a, e = math.radians(azimuth), math.radians(elevation)
    eye = distance * torch.tensor([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    c2w = look_at(eye, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
    return Camera(torch.tensor([[20.0, 0, 8], [0, 20, 8], [0, 0, 1]]), c2w, 16, 16)


def views(azimuth: float = 0.0, distance: float = 2.0) -> tuple[Camera, ...]:
    return tuple(camera(azimuth + 90 * turn, 15, distance) for turn in range(4))


def predicted(prior: DiffusersPrior, z: Tensor, cameras: tuple[Camera, ...]) -> Tensor:
    with torch.no_grad():
        texts = ("a chair",) * len(z)
        return prior.predict(z, torch.full((len(z),), 0.5), [Condition(texts, cameras)])[0]


def latents(count: int) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def test_cameras_are_opengl_matrices_at_distance_one() -> None:
    front, left = mvdream.camera_numbers([camera(0, distance=3.0), camera(90, 30, distance=0.5)]).view(2, 4, 4)
    wanted = torch.tensor([[0.0, 0, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]])  # right +y, up +z, back +x
    torch.testing.assert_close(front, wanted, rtol=0, atol=1e-6)
    h, c = 0.5, math.sqrt(0.75)
    wanted = torch.tensor([[-1.0, 0, 0, 0], [0, -h, c, c], [0, c, h, h], [0, 0, 0, 1]])
    torch.testing.assert_close(left, wanted, rtol=0, atol=1e-6)


def test_views_of_one_object_see_each_other_and_other_objects_do_not(plain: Path) -> None:
    from diffusers.models.attention_processor import AttnProcessor2_0

    prior = load_prior(str(plain))
    z, cameras = latents(8), views() + views(30)
    before = predicted(prior, z, cameras)
    torch.testing.assert_close(before[4:], predicted(prior, z[4:], cameras[4:]), rtol=0, atol=1e-5)
    changed = z.clone()
    changed[2] += 1
    moved = (predicted(prior, changed, cameras) - before).abs().amax(dim=(1, 2, 3))
    assert bool((moved[:4] > 1e-4).all()) and float(moved[4:].max()) < 1e-5
    network: Any = prior.parts.network
    joint = [name for name, it in network.attn_processors.items() if isinstance(it, mvdream.JointViews)]
    assert joint == [name for name in network.attn_processors if ".attn1." in name]
    network.set_attn_processor(AttnProcessor2_0())
    moved = (predicted(prior, changed, cameras) - predicted(prior, z, cameras)).abs().amax(dim=(1, 2, 3))
    assert [i for i in range(8) if float(moved[i]) > 1e-5] == [2]  # nothing else joins the views


def test_the_order_of_views_means_nothing(plain: Path) -> None:
    prior, z, cameras = load_prior(str(plain)), latents(4), views()
    order = [2, 0, 3, 1]
    turned = predicted(prior, z[order], tuple(cameras[i] for i in order))
    torch.testing.assert_close(turned, predicted(prior, z, cameras)[order], rtol=0, atol=1e-5)


def test_cameras_count_but_their_distance_does_not(plain: Path) -> None:
    prior, z = load_prior(str(plain)), latents(4)
    here = predicted(prior, z, views())
    torch.testing.assert_close(predicted(prior, z, views(distance=5)), here, rtol=0, atol=1e-5)
    assert float((predicted(prior, z, views(45)) - here).abs().max()) > 1e-3


@pytest.mark.parametrize("save", [as_original, as_projected])
def test_all_layouts_are_the_same_network(plain: Path, tmp_path: Path, save: Any) -> None:
    save(plain, tmp_path / "model")
    one, other = load_prior(str(plain)), load_prior(str(tmp_path / "model"))
    assert other.describe()["kind"] == "mvdream" and other.shape == one.shape
    assert other.describe()["network_parameters"] == one.describe()["network_parameters"]
    z = latents(4)
    torch.testing.assert_close(predicted(other, z, views()), predicted(one, z, views()), rtol=0, atol=1e-6)


def test_names_and_shapes_of_the_released_network_are_those_of_a_plain_one() -> None:
    from diffusers import UNet2DConditionModel
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    options = mvdream.unet_config(RELEASED, linear=True)
    with torch.device("meta"):
        wanted = {name: tuple(t.shape) for name, t in UNet2DConditionModel(**options).state_dict().items()}
    tensors = original_tensors(RELEASED)
    assert {mvdream.unet_name(name, 2): shape for name, shape in tensors.items()} == wanted
    # diffusers' own converter, which knows class labels but no cameras
    named = {f"model.diffusion_model.{name}": name for name in tensors}
    named |= {key.replace("camera_embed", "label_emb.0"): name for key, name in named.items()}
    theirs = convert_ldm_unet_checkpoint(named, options)
    assert {new: old for old, new in ((old, mvdream.unet_name(old, 2)) for old in tensors)} == theirs


def test_imagedream_and_other_networks_are_refused(plain: Path, tmp_path: Path) -> None:
    as_original(plain, tmp_path / "model")
    file = tmp_path / "model" / "unet" / "config.json"
    file.write_text(json.dumps({**SMALL, "ip_dim": 16}))
    with pytest.raises(InputError, match="ImageDream"):
        load_prior(str(tmp_path / "model"))
    for change in ({"num_res_blocks": 2}, {"context_dim": 48}, {"model_channels": "wide"}):
        file.write_text(json.dumps(SMALL | change))
        with pytest.raises(InputError, match="cannot be loaded as MultiViewUNetModel"):
            load_prior(str(tmp_path / "model"))
    file.write_text(json.dumps(SMALL))
    weights = load_file(tmp_path / "model" / "unet" / WEIGHTS)
    save_file(weights | {"image_embed.latents": torch.zeros(2)}, tmp_path / "model" / "unet" / WEIGHTS)
    with pytest.raises(InputError, match=r"image_embed\.latents"):
        load_prior(str(tmp_path / "model"))
