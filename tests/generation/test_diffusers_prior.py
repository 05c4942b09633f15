"""Priors of diffusers' pipelines against the pipelines' own modules, on small pipelines of the real classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from generation.diffusers_prior import MAX_TEXT, DiffusersPrior, load_prior
from generation.priors import Condition, noised
from scene.cameras import Camera, look_at
from scene.errors import InputError
from tests.generation import small_pipelines

TEXTS = ("a red chair", "a blue chair, side view")
SCALE = 7.5
TIMES = (0.137, 0.4374, 0.6, 0.902)  # the second is nearest to step 437
STEPS = (137, 437, 600, 902)
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}  # the order of sums differs between a batch of 4 and one of 8


@dataclass(frozen=True)
class Small:
    """A pipeline of diffusers and the prior that was loaded from its folder."""

    pipe: Any
    prior: DiffusersPrior
    folder: Path


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Small]:
    """small(kind, *options): made once for the module."""
    made: dict[tuple[str, ...], Small] = {}

    def make(kind: str, *options: str) -> Small:
        key = (kind, *options)
        if key not in made:
            folder = tmp_path_factory.mktemp("-".join(key))
            pipe = getattr(small_pipelines, kind)(folder, *options)
            made[key] = Small(pipe, load_prior(str(folder)), folder)
        return made[key]

    return make


@pytest.fixture
def pictures() -> Tensor:
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def noise(shape: tuple[int, ...], seed: int = 6) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def cameras(elevation: float = 15.0, azimuth: float = 30.0, distance: float = 2.3) -> tuple[Camera, ...]:
    """Four orthogonal views."""
    views = []
    for turn in range(4):
        a, e = math.radians(azimuth + 90 * turn), math.radians(elevation)
        eye = distance * torch.tensor([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
        c2w = look_at(eye, torch.zeros(3), torch.tensor([0.0, 0.0, 1.0]))
        views.append(Camera(torch.tensor([[20.0, 0, 8], [0, 20, 8], [0, 0, 1]]), c2w, 16, 16))
    return tuple(views)


def sds_step(prior: DiffusersPrior, images: Tensor, e: Tensor, t: Tensor, **given: Any) -> tuple[Tensor, Tensor]:
    """Gradient s^2 (e_cfg - e) by z, and what of it reaches the pixels."""
    images = images.clone().requires_grad_()
    z = prior.encode(images)
    a, s = prior.levels(t)
    asked = [Condition((TEXTS * 2)[: len(t)], **given), Condition((None,) * len(t), **given)]
    text, null = prior.predict(noised(z.detach(), e, a, s), t, asked)
    gradient = (s * s).view(-1, 1, 1, 1) * (null + SCALE * (text - null) - e)
    return gradient, torch.autograd.grad(z, images, gradient)[0]


def hand_step(z: Tensor, images: Tensor, e: Tensor, s: Tensor, text: Tensor, null: Tensor) -> tuple[Tensor, Tensor]:
    gradient = (s * s).view(-1, 1, 1, 1) * ((1 - SCALE) * null + SCALE * text - e)
    return gradient, torch.autograd.grad(z, images, gradient)[0]


def assert_same_step(got: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    for mine, theirs in zip(got, wanted, strict=True):
        scale = float(theirs.abs().max())
        assert scale > 1e-3 and bool((theirs != 0).any(dim=(1, 2, 3)).all())
        torch.testing.assert_close(mine / scale, theirs / scale, **CLOSE)


@torch.no_grad()
def prompts(pipe: Any, **options: Any) -> list[Tensor]:
    """What the pipeline's own encode_prompt says of the four texts and of the empty one."""
    return list(
        pipe.encode_prompt(
            prompt=list(TEXTS * 2),
            negative_prompt=[""] * 4,
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=True,
            **options,
        )
    )


def latents(pipe: Any, images: Tensor) -> Tensor:
    found = pipe.vae.encode(images * 2 - 1).latent_dist.mode()
    return (found - (pipe.vae.config.shift_factor or 0)) * pipe.vae.config.scaling_factor


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_step_of_stable_diffusion(small: Callable[..., Small], pictures: Tensor, prediction: str) -> None:
    it, steps = small("stable_diffusion", prediction), torch.tensor(STEPS)
    e, images = noise((4, 4, 8, 8)), pictures.clone().requires_grad_()
    z = latents(it.pipe, images)
    z_t = it.pipe.scheduler.add_noise(z.detach(), e, steps)
    alpha = it.pipe.scheduler.alphas_cumprod[steps].view(-1, 1, 1, 1)
    found = []
    for context in prompts(it.pipe):
        out = it.pipe.unet(z_t, steps, context).sample.detach()
        found.append(alpha.sqrt() * out + (1 - alpha).sqrt() * z_t if prediction == "v_prediction" else out)
    s = (1 - alpha.flatten()).sqrt()
    assert_same_step(sds_step(it.prior, pictures, e, torch.tensor(TIMES)), hand_step(z, images, e, s, *found))


def test_a_step_of_deepfloyd(small: Callable[..., Small], pictures: Tensor) -> None:
    it, steps = small("deepfloyd"), torch.tensor(STEPS)
    e, images = noise((4, 3, 8, 8)), pictures[:, :, :8, :8].clone().requires_grad_()
    z = images * 2 - 1
    z_t = it.pipe.scheduler.add_noise(z.detach(), e, steps)
    found = [it.pipe.unet(z_t, steps, context).sample.detach().split(3, dim=1)[0] for context in prompts(it.pipe)]
    s = (1 - it.pipe.scheduler.alphas_cumprod[steps]).sqrt()
    mine = sds_step(it.prior, pictures[:, :, :8, :8], e, torch.tensor(TIMES))
    assert_same_step(mine, hand_step(z, images, e, s, *found))


def test_a_step_of_stable_diffusion_3(small: Callable[..., Small], pictures: Tensor) -> None:
    it = small("stable_diffusion_3")
    chosen = torch.tensor([900, 700, 400, 50])  # of its scheduler, whose steps are shifted and run downward
    sigmas, steps = it.pipe.scheduler.sigmas[chosen], it.pipe.scheduler.timesteps[chosen]
    e, images = noise((4, 4, 8, 8)), pictures.clone().requires_grad_()
    z = latents(it.pipe, images)
    z_t = it.pipe.scheduler.scale_noise(z.detach(), steps, e)
    text, null, pooled, pooled_null = prompts(it.pipe, prompt_2=None, prompt_3=None)
    found = []
    for context, pool in ((text, pooled), (null, pooled_null)):
        v = it.pipe.transformer(z_t, timestep=steps, encoder_hidden_states=context, pooled_projections=pool).sample
        found.append(z_t + (1 - sigmas).view(-1, 1, 1, 1) * v.detach())
    assert_same_step(sds_step(it.prior, pictures, e, sigmas), hand_step(z, images, e, sigmas, *found))


class PlainJointAttention:
    """Attention of all tokens of four views to each other, written out."""

    def __call__(self, attn: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
        out = []
        for views in x.split(4):
            tokens = torch.cat(list(views))
            q, k, v = (f(tokens).unflatten(-1, (attn.heads, -1)) for f in (attn.to_q, attn.to_k, attn.to_v))
            share = (torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])).softmax(-1)
            out += attn.to_out[0](torch.einsum("hqk,khd->qhd", share, v).flatten(1)).chunk(4)
        return torch.stack(out)


def test_a_step_of_mvdream(small: Callable[..., Small], pictures: Tensor) -> None:
    it, steps = small("multi_view"), torch.full((4,), 437)
    for name, module in it.pipe.unet.named_modules():
        if name.endswith("attn1"):
            module.set_processor(PlainJointAttention())
    numbers = []
    for turn in range(4):  # right, up, back and place of a camera at 30 degrees and 15 above
        a, e = math.radians(30 + 90 * turn), math.radians(15)
        right = (-math.sin(a), math.cos(a), 0.0)
        up = (-math.sin(e) * math.cos(a), -math.sin(e) * math.sin(a), math.cos(e))
        back = (math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e))
        numbers.append([n for row in zip(right, up, back, back, strict=True) for n in row] + [0, 0, 0, 1])
    drawn, images = noise((4, 4, 8, 8)), pictures.clone().requires_grad_()
    z = latents(it.pipe, images)
    z_t = it.pipe.scheduler.add_noise(z.detach(), drawn, steps)
    views = torch.tensor(numbers)
    found = [it.pipe.unet(z_t, steps, context, class_labels=views).sample.detach() for context in prompts(it.pipe)]
    s = (1 - it.pipe.scheduler.alphas_cumprod[steps]).sqrt()
    mine = sds_step(it.prior, pictures, drawn, torch.full((4,), 0.437), cameras=cameras())
    assert_same_step(mine, hand_step(z, images, drawn, s, *found))


@pytest.mark.parametrize("kind", ["stable_diffusion", "deepfloyd"])
def test_levels_are_those_of_the_nearest_training_step(small: Callable[..., Small], kind: str) -> None:
    it, x = small(kind), torch.ones(1, 1, 1, 1)
    t = torch.linspace(1e-6, 1 - 1e-6, 4001, dtype=torch.float64)
    steps = it.prior.steps(t)
    assert steps[0] == 0 and steps[-1] == 999 and bool((steps.diff() >= 0).all())
    assert bool(((steps / 1000 - t).abs() <= 0.0005 + 1e-6)[t < 0.9994].all())
    a, s = it.prior.levels(t)
    torch.testing.assert_close(a * a + s * s, torch.ones_like(a), rtol=0, atol=1e-6)
    wanted = it.pipe.scheduler.add_noise(x.expand(len(t), 1, 1, 1), torch.zeros(len(t), 1, 1, 1), steps)
    torch.testing.assert_close(a.float(), wanted.flatten(), rtol=0, atol=1e-7)
    wanted = it.pipe.scheduler.add_noise(torch.zeros(len(t), 1, 1, 1), x.expand(len(t), 1, 1, 1), steps)
    torch.testing.assert_close(s.float(), wanted.flatten(), rtol=0, atol=1e-7)


def test_flow_levels_are_the_schedulers_at_each_of_its_steps(small: Callable[..., Small]) -> None:
    it = small("stable_diffusion_3")
    a, s = it.prior.levels(it.pipe.scheduler.sigmas)
    torch.testing.assert_close(it.prior.steps(s), it.pipe.scheduler.timesteps, rtol=1e-6, atol=0)
    assert torch.equal(a, 1 - s)
    assert float(it.pipe.scheduler.sigmas[299]) == pytest.approx(0.875, abs=1e-3)  # index .3 is far from s = .3


@pytest.mark.parametrize(("kind", "size"), [("stable_diffusion", 16), ("deepfloyd", 8), ("stable_diffusion_3", 16)])
def test_pictures_of_any_size_are_encoded_and_come_back_through_the_decoder(
    small: Callable[..., Small], kind: str, size: int
) -> None:
    it = small(kind)
    large = torch.rand(2, 3, 40, 24, generator=torch.Generator().manual_seed(0), requires_grad=True)
    z = it.prior.encode(large)
    assert tuple(z.shape) == (2, *it.prior.shape)
    (gradient,) = torch.autograd.grad(z.square().sum(), large)
    assert bool((gradient != 0).all())  # no pixel is skipped
    flat = torch.full((1, 3, 50, 33), 0.3)
    torch.testing.assert_close(it.prior.encode(flat), it.prior.encode(torch.full((1, 3, size, size), 0.3)))
    picture = it.prior.decode(z)
    assert tuple(picture.shape) == (2, 3, size, size)
    if kind == "deepfloyd":
        wanted = torch.nn.functional.interpolate(large, (8, 8), mode="bilinear", antialias=True)
    else:
        config = it.pipe.vae.config
        wanted = it.pipe.vae.decode(z / config.scaling_factor + (config.shift_factor or 0)).sample / 2 + 0.5
    torch.testing.assert_close(picture, wanted, rtol=0, atol=1e-5)


def test_conditions_in_one_call_are_as_in_calls_of_their_own(small: Callable[..., Small]) -> None:
    for kind in ("stable_diffusion", "deepfloyd", "stable_diffusion_3"):
        prior = small(kind).prior
        z, t = noise((2, *prior.shape)), torch.tensor([0.3, 0.8])
        asked = [Condition(TEXTS), Condition((TEXTS[1], None)), Condition(("", ""))]
        together = prior.predict(z, t, asked)
        torch.testing.assert_close(together, torch.cat([prior.predict(z, t, [one]) for one in asked]), **CLOSE)
        assert float((together[0] - together[2]).abs().max()) > 1e-4  # words count
        torch.testing.assert_close(prior.predict(z[1:], t[1:], [Condition((None,))])[0], together[1, 1:], **CLOSE)


def test_gradients_reach_z_only_where_they_are_asked_for(small: Callable[..., Small]) -> None:
    prior = small("stable_diffusion").prior
    z, t, asked = noise((1, *prior.shape)), torch.tensor([0.5]), [Condition(("a chair",))]
    assert not prior.predict(z, t, asked).requires_grad
    z = z.requires_grad_()
    (gradient,) = torch.autograd.grad(prior.predict(z, t, asked).sum(), z)
    assert bool((gradient != 0).all())
    for module in (prior.parts.network, prior.parts.vae):
        assert module is not None and not any(p.requires_grad for p in module.parameters())


def test_each_text_is_encoded_once(
    small: Callable[..., Small], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    prior = load_prior(str(small("stable_diffusion").folder))
    seen: list[str] = []

    def counted(text: str) -> Any:
        seen.append(text)
        return encode(text)

    encode = prior.parts.words
    prior.parts = prior.parts._replace(words=counted)
    z, t = noise((2, *prior.shape)), torch.tensor([0.3, 0.8])
    for _ in range(3):
        prior.predict(z, t, [Condition(TEXTS), Condition((None, ""))])
    assert seen == [*TEXTS, ""]
    monkeypatch.setattr("generation.diffusers_prior._CACHED_TEXTS", 2)
    for text in ("one", "two", "three", "two"):
        prior.words(text)
    assert seen == [*TEXTS, "", "one", "two", "three"] and len(prior._cached) == 2
    assert not caplog.records
    prior.words("chair " * 100)
    assert "reads 77 tokens of a prompt; this has 102" in caplog.text


def test_half_precision_is_near_and_leaves_the_encoder_alone(small: Callable[..., Small], pictures: Tensor) -> None:
    for kind in ("stable_diffusion", "deepfloyd", "stable_diffusion_3", "multi_view"):
        it = small(kind)
        n, t = it.prior.views, torch.full((it.prior.views,), 0.5)
        z, asked = noise((n, *it.prior.shape)), [Condition(("a chair",) * n, cameras=cameras()[:n])]
        exact = it.prior.predict(z, t, asked)
        for dtype, share in ((torch.bfloat16, 0.06), (torch.float16, 0.008)):  # 8 and 11 bits through some 30 layers
            half = load_prior(str(it.folder), dtype=dtype)
            got = half.predict(z, t, asked)
            assert got.dtype == torch.float32 and half.describe()["precision"] == str(dtype)[6:]
            assert 0 < float((got - exact).norm() / exact.norm()) < share, (kind, dtype)
            assert torch.equal(half.encode(pictures), it.prior.encode(pictures))


def test_same_folder_same_bytes(small: Callable[..., Small]) -> None:
    it = small("stable_diffusion")
    again = load_prior(str(it.folder))
    z, t, asked = noise((1, *again.shape)), torch.tensor([0.5]), [Condition(("a chair",))]
    assert torch.equal(again.predict(z, t, asked), it.prior.predict(z, t, asked))


def test_what_a_prior_cannot_take_is_said(small: Callable[..., Small]) -> None:
    prior, views = small("stable_diffusion").prior, small("multi_view").prior
    z, t = noise((1, *prior.shape)), torch.tensor([0.5])
    for condition, word in (
        (Condition(("a chair",), image=torch.zeros(3, 8, 8)), "not pictures"),
        (Condition(("x" * (MAX_TEXT + 1),)), "2,001"),
        (Condition(("a\0b",)), "NUL"),
    ):
        with pytest.raises(InputError, match=word):
            prior.predict(z, t, [condition])
    for given in (None, cameras()[:3]):
        with pytest.raises(InputError, match="expected 4 cameras"):
            views.predict(noise((4, *views.shape)), t.expand(4), [Condition(("a chair",) * 4, given)])
    with pytest.raises(ValueError, match="z_t must be"):
        views.predict(noise((3, *views.shape)), t.expand(3), [Condition(("a chair",) * 3, cameras()[:3])])
    with pytest.raises(ValueError, match="a text for each"):
        prior.predict(z, t, [Condition(TEXTS)])


def test_a_report_can_say_what_was_used(small: Callable[..., Small]) -> None:
    it = small("stable_diffusion")
    (it.folder / "README.md").write_text("---\nlicense: creativeml-openrail-m\ntags:\n- x\n---\n# Model\n")
    told = load_prior(str(it.folder)).describe()
    assert told["licence"] == "creativeml-openrail-m" and told["revision"] == "not stated (local folder)"
    assert told["network_parameters"] == sum(p.numel() for p in it.pipe.unet.parameters())
    weights = [*it.folder.glob("*/*.safetensors")]
    assert told["weights_bytes"] == sum(file.stat().st_size for file in weights) and len(weights) == 3
    assert (told["picture_size"], told["process"], told["prediction"]) == (16, "ddpm", "epsilon")


@pytest.fixture(autouse=True)
def quiet_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test here may reach for the network."""
    import socket

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a prior reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    yield
