"""MVDream (Shi et al., 2024): Stable Diffusion's U-Net for four views of one object that are denoised together.

Two things are added to the U-Net of Stable Diffusion (section 3.1 of the paper): self-attention is over the pixels of
all views of an object, and an MLP of each view's camera is added to the embedding of the time. diffusers has no such
class, but its UNet2DConditionModel with a "projection" class embedding of 16 numbers and `JointViews` as processor of
self-attention is the same network. Weights come in three layouts, all of safetensors:

    plain       UNet2DConditionModel with class_embed_type "projection"
    original    MultiViewUNetModel with the names of latent-diffusion (ashawkey/mvdream-sd2.1-diffusers)
    projected   a plain U-Net, and a component camera_proj beside it (lzq49/mvdream-sd21-diffusers)
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from scene.cameras import Camera
from scene.errors import InputError

_BLOCKS = {  # of a residual block in the original layout
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "camera_embed.0": "class_embedding.linear_1",
    "camera_embed.2": "class_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}


def camera_numbers(cameras: Sequence[Camera]) -> Tensor:
    """[N, 16]: rows of each camera's c2w, with its centre moved to distance 1 from the world's origin.

    MVDream's cameras are OpenGL's (x right, y up, looking along -z) in a world with +z up in which an object's front
    looks along +x, which is the world here (camera_utils.py and the azimuth of 90 degrees in t2i.py of its release).
    """
    c2w = torch.stack([camera.c2w for camera in cameras])
    c2w[:, :3, 1:3] *= -1
    c2w[:, :3, 3] /= c2w[:, :3, 3].norm(dim=-1, keepdim=True).clamp(min=1e-8)
    return c2w.flatten(1)


class JointViews:
    """Attention processor: the tokens of the `views` consecutive pictures of an object attend to each other."""

    def __init__(self, views: int) -> None:
        from diffusers.models.attention_processor import AttnProcessor2_0

        self.views = views
        self.inner = AttnProcessor2_0()

    def __call__(self, attn: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """hidden_states: [B V, L, C]. The others: of diffusers' processors, none in self-attention."""
        n, length, channels = hidden_states.shape
        joined = hidden_states.reshape(n // self.views, self.views * length, channels)
        return self.inner(attn, joined, *args, **kwargs).reshape(n, length, channels)


def join_views(unet: Any, views: int) -> None:
    """Let self-attention run over the views of each object. unet: a UNet2DConditionModel."""
    for name, module in unet.named_modules():
        if name.endswith(".attn1"):
            module.set_processor(JointViews(views))


def unet_config(original: Mapping[str, Any], linear: bool) -> dict[str, Any]:
    """Options of UNet2DConditionModel for the config.json of a MultiViewUNetModel.

    linear: whether its transformers project by matrices, not by 1x1 convolutions.  Raises InputError for ImageDream.
    """
    if original.get("ip_dim"):
        raise InputError("the model is ImageDream's, which also asks for a picture; expected MVDream, which takes text")
    width, mults = int(original["model_channels"]), [int(mult) for mult in original["channel_mult"]]
    channels = [width * mult for mult in mults]
    layers = original["num_res_blocks"]
    head = int(original.get("num_head_channels", -1))
    attends = [2**level in original["attention_resolutions"] for level in range(len(mults))]
    return {
        "sample_size": int(original["image_size"]),
        "in_channels": int(original["in_channels"]),
        "out_channels": int(original["out_channels"]),
        "down_block_types": tuple("CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends),
        "up_block_types": tuple("CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attends)),
        "block_out_channels": tuple(channels),
        "layers_per_block": int(layers[0] if isinstance(layers, list) else layers),
        "transformer_layers_per_block": int(original.get("transformer_depth", 1)),
        "cross_attention_dim": int(original["context_dim"]),
        "attention_head_dim": tuple(c // head if head > 0 else int(original["num_heads"]) for c in channels),
        "use_linear_projection": linear,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": int(original["camera_dim"]),
    }


def unet_name(name: str, layers: int) -> str:
    """Name in UNet2DConditionModel of a tensor of MultiViewUNetModel; layers: residual blocks of a level."""
    for old, new in _ENDS.items():
        if name.startswith(old + "."):
            return new + name[len(old) :]
    if name.startswith("middle_block."):
        _, place, rest = name.split(".", 2)
        kind, layer = ("attentions", 0) if place == "1" else ("resnets", int(place) // 2)
        return f"mid_block.{kind}.{layer}.{_inside(rest)}"
    found = re.fullmatch(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)", name)
    if found is None:
        raise InputError(f"the U-Net has a tensor {name[:80]!r}, which MVDream's has not")
    down, place, rest = found.group(1) == "input", int(found.group(3)), found.group(4)
    level, layer = divmod(int(found.group(2)) - (1 if down else 0), layers + 1)
    block = f"{'down' if down else 'up'}_blocks.{level}"
    if rest.startswith(("op.", "conv.")):
        return f"{block}.{'downsamplers' if down else 'upsamplers'}.0.conv.{rest.partition('.')[2]}"
    return f"{block}.{'attentions' if place else 'resnets'}.{layer}.{_inside(rest)}"


def _inside(rest: str) -> str:
    stem, _, kind = rest.rpartition(".")
    return f"{_BLOCKS.get(stem, stem)}.{kind}"


def original_unet(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> nn.Module:
    """UNet2DConditionModel with the weights of a MultiViewUNetModel.

    Raises InputError for ImageDream and unknown tensors, and what Python and torch do for a config that does not fit.
    """
    from diffusers import UNet2DConditionModel

    options = unet_config(config, linear=weights["middle_block.1.proj_in.weight"].dim() == 2)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**options)
    layers = options["layers_per_block"]
    unet.load_state_dict({unet_name(name, layers): tensor for name, tensor in weights.items()}, assign=True)
    return unet


def add_cameras(unet: Any, weights: Mapping[str, Tensor]) -> None:
    """Give a UNet2DConditionModel the camera MLP of a camera_proj component."""
    from diffusers.models.embeddings import TimestepEmbedding

    numbers, width = weights["linear_1.weight"].shape[1], weights["linear_2.weight"].shape[0]
    with torch.device("meta"):
        embedding = TimestepEmbedding(numbers, width)
    embedding.load_state_dict(dict(weights), assign=True)
    unet.class_embedding = embedding
    unet.register_to_config(class_embed_type="projection", projection_class_embeddings_input_dim=numbers)
