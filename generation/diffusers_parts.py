"""The modules of a diffusion pipeline, loaded from a checked folder; and texts through its text encoders.

Every model is loaded by its own class, named here, from safetensors in its own folder: no code, no pickles, no network.
A tensor that is missing or of another shape is an error: the libraries would go on with random numbers in its place.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from generation import mvdream
from generation.diffusers_files import Component, ModelFolder
from scene.errors import InputError, is_out_of_memory

log = logging.getLogger(__name__)

VIEWS = 4  # of MVDream
MAX_STEPS = 100_000  # of a scheduler
_IF_TOKENS = 77  # T5 reads more, but DeepFloyd-IF was trained with so many
_SD3_TOKENS = 256


class Words(NamedTuple):
    """A text as a network takes it. context: [L, D]. pooled: [P], of Stable Diffusion 3 only."""

    context: Tensor
    pooled: Tensor | None = None


class Parts(NamedTuple):
    """What a pipeline is made of. alphas: abar [T] of ddpm, None for flow. prediction: as in diffusers' schedulers."""

    network: nn.Module
    vae: nn.Module | None
    words: Callable[[str], Words]
    steps: int
    alphas: Tensor | None
    prediction: str


def load_parts(folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> Parts:
    """The modules of a folder: frozen, on the device, network and text encoders in dtype, the VAE in float32.

    Raises InputError for what does not load or does not fit together.
    """
    import diffusers
    import transformers

    with _quiet(diffusers, transformers):
        return _parts(folder, device, dtype)


def _parts(folder: ModelFolder, device: torch.device, dtype: torch.dtype) -> Parts:
    parts = folder.parts
    flow = folder.kind == "stable-diffusion-3"
    with _one_line(parts["scheduler"]):
        steps, alphas, prediction = _flow_schedule(parts) if flow else _ddpm_schedule(parts)
    network = _frozen(_network(folder, dtype), device, dtype)
    vae = _frozen(_loaded(parts["vae"], torch.float32), device, torch.float32) if "vae" in parts else None
    _check_channels(folder, network, vae)
    encoders = {name: _encoder(folder, name, device, dtype) for name in parts if name.startswith("text_encoder")}
    config: Any = network.config
    if flow:
        width = int(config.joint_attention_dim)

        def words(text: str) -> Words:
            return _three_encoders(text, encoders, width, device, dtype)

    else:
        encoder, tokens = encoders["text_encoder"], _IF_TOKENS if folder.kind == "deepfloyd-if" else None

        def words(text: str) -> Words:
            return Words(_context(text, *encoder, tokens=tokens).to(dtype))

    return Parts(network, vae, words, steps, alphas.to(device) if alphas is not None else None, prediction)


def _ddpm_schedule(parts: dict[str, Component]) -> tuple[int, Tensor, str]:
    """T, abar [T] and what is predicted, whichever sampler the folder names: they share the training's options."""
    from diffusers import DDPMScheduler

    config = parts["scheduler"].config
    if int(config.get("num_train_timesteps", 1000)) > MAX_STEPS or "beta_start" not in config:
        raise InputError(f"{parts['scheduler'].folder} describes no DDPM schedule of at most {MAX_STEPS} steps")
    options = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
    given = {key: config[key] for key in (*options, "rescale_betas_zero_snr") if key in config}
    scheduler = DDPMScheduler(**given)
    prediction, alphas = str(given.get("prediction_type", "epsilon")), scheduler.alphas_cumprod
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise InputError(f"{parts['scheduler'].folder}: prediction_type is {prediction[:40]!r}, which is not known")
    if not bool(((alphas >= 0) & (alphas <= 1)).all()) or bool((alphas.diff() > 0).any()):
        raise InputError(f"{parts['scheduler'].folder}: its levels of noise do not grow from 0 to 1")
    return len(alphas), alphas, prediction


def _flow_schedule(parts: dict[str, Component]) -> tuple[int, None, str]:
    if parts["scheduler"].class_name != "FlowMatchEulerDiscreteScheduler":
        raise InputError(f"{parts['scheduler'].folder} is a {parts['scheduler'].class_name}; expected flow matching")
    return int(parts["scheduler"].config.get("num_train_timesteps", 1000)), None, "velocity"


def _network(folder: ModelFolder, dtype: torch.dtype) -> nn.Module:
    part = folder.parts["transformer" if "transformer" in folder.parts else "unet"]
    if part.class_name == "MultiViewUNetModel":
        with _one_line(part):
            network = mvdream.original_unet(part.config, _tensors(part))
    else:
        network = _loaded(part, dtype)
    if "camera_proj" in folder.parts:
        with _one_line(folder.parts["camera_proj"]):
            mvdream.add_cameras(network, _tensors(folder.parts["camera_proj"]))
    if folder.kind == "mvdream":
        mvdream.join_views(network, VIEWS)
    return network


def _check_channels(folder: ModelFolder, network: Any, vae: Any) -> None:
    """Refuse the relatives that need more than a noisy picture: inpainting, depth, upscaling."""
    wanted = 3 if vae is None else int(vae.config.latent_channels)
    config = network.config
    takes, gives = int(config.in_channels), int(config.out_channels or config.in_channels)
    if takes != wanted or gives not in (wanted, 2 * wanted if vae is None else wanted):
        raise InputError(
            f"{folder.path}: the network takes {takes} channels and gives {gives}, as those for inpainting, depth or "
            f"upscaling do; expected {wanted}"
        )
    if not isinstance(config.sample_size, int):
        raise InputError(f"{folder.path}: the network's sample_size is {config.sample_size!r}; expected one number")


def _tensors(part: Component) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {name: tensor for file in part.files for name, tensor in load_file(file).items()}


def _loaded(part: Component, dtype: torch.dtype) -> nn.Module:
    """A model by its own from_pretrained, told to stay in its folder; nothing of it may be left to chance."""
    import diffusers
    import transformers

    ours = part.class_name.startswith(("CLIP", "T5"))
    options: dict[str, Any] = {"attn_implementation": "sdpa", "dtype": dtype} if ours else {"torch_dtype": dtype}
    if part.class_name.startswith("T5"):
        options["attn_implementation"] = "eager"
    with _one_line(part):
        model, told = getattr(transformers if ours else diffusers, part.class_name).from_pretrained(
            part.folder,
            variant=part.variant,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    for name, found, wanted in sorted(told["mismatched_keys"]):
        raise InputError(
            f"{part.folder}: '{name}' is {list(found)} in its weights, but {list(wanted)} by its config.json; these "
            "files do not belong together"
        )
    for name in sorted(told["missing_keys"]):
        count = len(told["missing_keys"])
        raise InputError(f"{part.folder}: its weights lack {count} tensors, '{name}' among them; fetch the model again")
    return model


def _encoder(folder: ModelFolder, name: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, Any]:
    """A tokenizer and its text encoder."""
    part = folder.parts.get(name.replace("text_encoder", "tokenizer"))
    if part is None:
        raise InputError(f"{folder.path}: model_index.json names {name}, but no tokenizer for it")
    tokenizer, encoder = _tokenizer(part), _frozen(_loaded(folder.parts[name], dtype), device)
    config: Any = encoder.config
    if max(tokenizer.get_vocab().values(), default=0) >= config.vocab_size:
        raise InputError(f"{part.folder} has more words than the {config.vocab_size:,} that {name} knows")
    return tokenizer, encoder


def _tokenizer(part: Component) -> Any:
    import transformers

    with _one_line(part):
        if part.class_name.startswith("T5") and not (part.folder / "tokenizer.json").is_file():
            _need_sentencepiece(part)
        return getattr(transformers, part.class_name).from_pretrained(part.folder, local_files_only=True)


def _need_sentencepiece(part: Component) -> None:
    from transformers.utils import is_protobuf_available, is_sentencepiece_available

    if not (is_sentencepiece_available() and is_protobuf_available()):
        raise InputError(
            f"{part.folder} has only a spiece.model; run pip install sentencepiece protobuf, with which it can be read"
        )


def _frozen(model: nn.Module, device: torch.device, dtype: torch.dtype | None = None) -> nn.Module:
    return model.requires_grad_(False).eval().to(device, dtype)


@contextmanager
def _one_line(part: Component) -> Iterator[None]:
    """What the libraries raise for a part that does not load, as one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a config may fail in any line of these libraries
        if is_out_of_memory(error):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines[:2])[:240] or type(error).__name__
        raise InputError(f"{part.folder} cannot be loaded as {part.class_name}: {reason}") from error


@contextmanager
def _quiet(*libraries: Any) -> Iterator[None]:
    """Without the libraries' progress bars and warnings: what matters of them is said here."""
    before = [library.utils.logging.get_verbosity() for library in libraries]
    bars = [library.utils.logging.is_progress_bar_enabled() for library in libraries]
    for library in libraries:
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity, bar in zip(libraries, before, bars, strict=True):
            library.utils.logging.set_verbosity(verbosity)
            if bar:
                library.utils.logging.enable_progress_bar()


# Text encoders, as the pipelines of diffusers use them.


def _tokens(text: str, tokenizer: Any, most: int) -> Any:
    """Token ids and mask [1, most], padded or cut; says so when it cuts."""
    count = len(tokenizer(text, verbose=False).input_ids)
    if count > most:
        log.warning("the prior reads %d tokens of a prompt; this has %d: %.60s...", most, count, text)
    return tokenizer(text, padding="max_length", max_length=most, truncation=True, return_tensors="pt")


def _context(text: str, tokenizer: Any, encoder: Any, *, tokens: int | None) -> Tensor:
    """[L, D] last hidden states of CLIP, or of T5 under its mask where tokens is given (DeepFloyd-IF)."""
    if tokens is None:
        most = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        return encoder(_tokens(text, tokenizer, most).input_ids.to(encoder.device))[0][0]
    found = _tokens(text.lower().strip(), tokenizer, tokens).to(encoder.device)
    return encoder(found.input_ids, attention_mask=found.attention_mask)[0][0]


def _three_encoders(text: str, encoders: dict[str, Any], width: int, device: torch.device, dtype: torch.dtype) -> Words:
    """Both CLIPs' last hidden states but one side by side, then T5's; and the CLIPs' pooled ones (SD3, section 4)."""
    hidden, pooled = [], []
    most = min(encoders["text_encoder"][0].model_max_length, 77)
    for tokenizer, encoder in (encoders["text_encoder"], encoders["text_encoder_2"]):
        found = encoder(_tokens(text, tokenizer, most).input_ids.to(device), output_hidden_states=True)
        hidden.append(found.hidden_states[-2][0])
        pooled.append(found[0][0])
    clip = functional.pad(torch.cat(hidden, dim=-1), (0, width - sum(h.shape[-1] for h in hidden)))
    if "text_encoder_3" in encoders:
        tokenizer, encoder = encoders["text_encoder_3"]
        t5 = encoder(_tokens(text, tokenizer, _SD3_TOKENS).input_ids.to(device))[0][0]
    else:
        t5 = torch.zeros(_SD3_TOKENS, width, device=device)
    return Words(torch.cat([clip.to(dtype), t5.to(dtype)]), torch.cat(pooled).to(dtype))
