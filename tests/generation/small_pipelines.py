"""Diffusion pipelines of the real classes with a few thousand random weights, saved as their authors save theirs.

Each function saves a pipeline of diffusers with `save_pretrained(safe_serialization=True)` and returns it, so that a
test can compute with the pipeline's own modules.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

START, END = "<|startoftext|>", "<|endoftext|>"
LAYERS = 1  # residual blocks of a level of the U-Nets


def clip_tokenizer() -> Any:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    letters = sorted(ByteLevel.alphabet())
    merges: Any = [("c", "h"), ("a", "i"), ("ai", "r</w>"), ("ch", "air</w>")]
    words = ["".join(pair) for pair in merges]
    pieces = [*letters, *(letter + "</w>" for letter in letters), *words, START, END]
    return CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=merges, model_max_length=77)


def t5_tokenizer() -> Any:
    from transformers import T5Tokenizer

    letters = [(letter, -3.0) for letter in "abcdefghijklmnopqrstuvwxyz,."]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5Tokenizer(vocab=[*special, *letters, ("▁chair", -5.0)], extra_ids=0, model_max_length=512)


def clip_config(width: int) -> Any:
    from transformers import CLIPTextConfig

    tokenizer = clip_tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def t5_encoder(width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=40, d_model=width, d_kv=8, d_ff=24, num_layers=2, num_heads=2, dropout_rate=0.0)
    return T5EncoderModel(config).eval()


def vae(channels: int, scaling: float, shift: float | None) -> Any:
    from diffusers import AutoencoderKL

    blocks: dict[str, Any] = {
        "block_out_channels": (16, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    return AutoencoderKL(
        **blocks,
        latent_channels=channels,
        norm_num_groups=8,
        scaling_factor=scaling,
        shift_factor=shift,
        sample_size=16,
    ).eval()


def unet_options(channels: int = 4, width: int = 32) -> dict[str, Any]:
    return {
        "sample_size": 8,
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": (32, 64),
        "layers_per_block": LAYERS,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": width,
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
    }


def _latent_pipeline(folder: Path, seed: int, options: dict[str, Any], prediction: str) -> Any:
    from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    torch.manual_seed(seed)
    schedule: Any = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "prediction_type": prediction,
        "skip_prk_steps": True,
        "steps_offset": 1,
    }
    scheduler: Any = PNDMScheduler(**schedule)
    without: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    pipe = StableDiffusionPipeline(
        vae=vae(4, 0.18215, None),
        text_encoder=CLIPTextModel(clip_config(32)).eval(),
        tokenizer=clip_tokenizer(),
        unet=UNet2DConditionModel(**options).eval(),
        scheduler=scheduler,
        **without,
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    return pipe


def stable_diffusion(folder: Path, prediction: str = "epsilon") -> Any:
    """16 px, latents [4, 8, 8]; its scheduler is Stable Diffusion 1.5's."""
    return _latent_pipeline(folder, 0, unet_options(), prediction)


def multi_view(folder: Path) -> Any:
    """MVDream in the plain layout; used with `mvdream.join_views`, as diffusers has no pipeline for it."""
    cameras = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16}
    return _latent_pipeline(folder, 3, unet_options() | cameras, "epsilon")


def deepfloyd(folder: Path) -> Any:
    """8 px, pixels, six channels out; the blocks are those of stage I."""
    from diffusers import DDPMScheduler, IFPipeline, UNet2DConditionModel

    torch.manual_seed(1)
    pipe = IFPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_encoder(24),
        unet=UNet2DConditionModel(
            sample_size=8,
            in_channels=3,
            out_channels=6,
            block_out_channels=(32, 64),
            layers_per_block=LAYERS,
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            cross_attention_dim=32,
            encoder_hid_dim=24,
            attention_head_dim=8,
            addition_embed_type="text",
            addition_embed_type_num_heads=2,
            cross_attention_norm="group_norm",
            resnet_time_scale_shift="scale_shift",
            act_fn="gelu",
            time_embedding_act_fn="gelu",
        ).eval(),
        scheduler=DDPMScheduler(
            beta_schedule="squaredcos_cap_v2",
            variance_type="learned_range",
            thresholding=True,
            prediction_type="epsilon",
        ),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    return pipe


def stable_diffusion_3(folder: Path) -> Any:
    """16 px, latents [4, 8, 8] with a shift, three text encoders, noise levels shifted by 3."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(2)
    pipe = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(
            sample_size=8,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=8,
            num_attention_heads=4,
            joint_attention_dim=40,
            caption_projection_dim=32,
            pooled_projection_dim=32,
            pos_embed_max_size=8,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(4, 1.5305, 0.0609),
        text_encoder=CLIPTextModelWithProjection(clip_config(16)).eval(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(16)).eval(),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_encoder(40),
        tokenizer_3=t5_tokenizer(),
    )
    pipe.save_pretrained(folder, safe_serialization=True)
    return pipe


def save_in_shards(weights: dict[str, torch.Tensor], folder: Path, stem: str) -> None:
    """Weights in two files and their index, as large models have them."""
    import json

    from safetensors.torch import save_file

    names = sorted(weights)
    places = {name: f"{stem}-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(places.values())):
        save_file({name: weights[name] for name in names if places[name] == file}, folder / file, {"format": "pt"})
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
