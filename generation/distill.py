"""Score distillation: what a diffusion prior would change about a picture, as a gradient for whatever drew it.

All methods are one kernel (`distill_kernel.py`) with other scales, other weights w(t), other times t
(`guidance_schedules.py`) and another way to z_t; their numbers are in `guidance.py`. CFG(s) is e_null + s (e_text -
e_null), e the drawn noise, z_t = a z + s e.

| method | source | gradient by z, before w(t) |
| sds | DreamFusion (Poole et al., 2209.14988), eq. 3 | CFG(s) - e |
| sjc | Score Jacobian Chaining (Wang et al., 2212.00774) | CFG(s) - e, that is -(D - z) / sigma; or CFG(s) alone |
| vsd | ProlificDreamer (Wang et al., 2305.16213), eq. 9 | CFG(s) - e_src of a second model, which learns the renders |
| ism | LucidDreamer (Liang et al., 2311.11284), section 4.1 | CFG(s) in z_t - e_null in z_s, both by inversion |
| csd | Classifier Score Distillation (Yu et al., 2310.19415) | e_text + c_u e_neg + c_0 e_null |
| nfsd | Noise-Free Score Distillation (Katzir et al., 2310.17590) | delta_D + s (e_text - e_null) |
| x0 | MVDream (Shi et al., 2308.16512), section 3.3 | z - z0 = s/a (CFG(s) - e), with CFG rescale |
| sdi | Score Distillation via Inversion (Lukoianov et al., 2405.15891) | x0, with e found by inversion |
| hifa | HiFA (Zhu et al., 2305.18766) | sds, and the same in pictures |
| rfds, rfds-rev | Rectified flow as a prior (Yang et al., 2406.03293) | v_CFG(s) - (e - z) = (CFG(s) - e) / a |
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from generation.distill_kernel import (
    Noises,
    Predictor,
    Prompts,
    Scales,
    cfg,
    combined,
    predict,
    surrogate_loss,
    tamed,
    weights,
)
from generation.guidance import Guidance
from generation.guidance_schedules import at, draw_times
from generation.priors import Condition, Prior, clean_of_noise, noise_of_clean, noised
from scene.errors import InputError

EARLIEST = 0.001  # the time of a clean picture: networks are not asked about t = 0


# Methods: where z_t comes from, and with which scales its noises are added.


@dataclass(frozen=True)
class Draw:
    """A batch at its times: z [N, C, h, w] without gradient, t [N] with a, s [N], fresh noise, and z_t of them."""

    prior: Prior
    prompts: Prompts
    guidance: Guidance
    step: int
    z: Tensor
    t: Tensor
    a: Tensor
    s: Tensor
    noise: Tensor
    generator: torch.Generator
    source: Predictor | None

    @property
    def z_t(self) -> Tensor:
        return noised(self.z, self.noise, self.a, self.s)


class Terms(NamedTuple):
    """What the kernel adds up, and the z_t that it was predicted in."""

    z_t: Tensor
    noises: Noises
    scales: Scales


def _terms(draw: Draw) -> Terms:
    method, scale = draw.guidance.method, draw.guidance.scale
    if method == "ism":
        return _ism(draw)
    if method == "vsd":
        return _vsd(draw)
    if method == "sdi":
        draw = replace(draw, noise=inverted_noise(draw))
    elif method == "rfds-rev":
        draw = replace(draw, noise=reversed_noise(draw))
    scales = cfg(scale)._replace(drawn=-1.0)
    if method == "sjc":
        scales = scales._replace(drawn=-1.0 if draw.guidance.variance_reduced else 0.0)
    elif method == "csd":
        scales = csd_scales(draw.guidance, draw.step)
    elif method == "nfsd":
        scales = nfsd_scales(draw.guidance, draw.t)
    z_t = draw.z_t
    return Terms(z_t, predict(draw.prior, draw.prompts, z_t, draw.t, scales)._replace(drawn=draw.noise), scales)


def csd_scales(guidance: Guidance, step: int) -> Scales:
    """e_text with c_u and c_0 of the step; together they are to add up to zero."""
    return Scales(text=1.0, negative=at(guidance.negative, step), null=at(guidance.null, step), repelled=1.0)


def nfsd_scales(guidance: Guidance, t: Tensor) -> Scales:
    """s (e_text - e_null) + delta_D, which is e_null for small t and e_null - e_neg for others."""
    return cfg(guidance.scale)._replace(negative=-(t >= guidance.split).to(t))


def reversed_noise(draw: Draw) -> Tensor:
    """RFDS-Rev: e <- e + a (v_text + z - e), one step of the flow for the noise.

    With v = e_hat - z of z_t = a z + s e that is the prior's own e_text in z_t.
    """
    text = predict(draw.prior, draw.prompts, draw.z_t, draw.t, Scales(text=1.0)).text
    assert text is not None
    return text


def inverted_noise(draw: Draw) -> Tensor:
    """SDI: the noise that DDIM inversion of the picture itself ends with, e = (z_t - a z) / s."""
    way = draw.guidance.inversion
    start = torch.full_like(draw.t, EARLIEST)
    times = [start + (draw.t - start) * (i / way.steps) for i in range(way.steps + 1)]
    z_t, _ = inverted(draw, draw.z, times, cfg(way.scale))
    return noise_of_clean(z_t, draw.z, draw.a, draw.s)


def _ism(draw: Draw) -> Terms:
    way = draw.guidance.inversion
    last = (draw.t - at(way.interval, draw.step)).clamp(min=EARLIEST)
    first = (last - way.steps * way.stride).clamp(min=EARLIEST)
    times = [first]
    while len(times) <= way.steps and bool((times[-1] < last).any()):
        times.append((times[-1] + way.stride).minimum(last))
    start = noised(draw.z, draw.noise, *draw.prior.levels(first))
    z_t, seen = inverted(draw, start, [*times, draw.t], cfg(way.scale))
    scales = cfg(draw.guidance.scale)._replace(source=-1.0)
    return Terms(z_t, predict(draw.prior, draw.prompts, z_t, draw.t, scales)._replace(source=seen), scales)


def _vsd(draw: Draw) -> Terms:
    if draw.source is None:
        raise InputError("VSD needs a second model that learns the renders (a LoRA of the prior), got none")
    z_t, scales = draw.z_t, cfg(draw.guidance.scale)._replace(source=-1.0)
    with torch.no_grad():
        source = draw.source.predict(z_t, draw.t, [source_condition(draw.prompts)])[0]
    return Terms(z_t, predict(draw.prior, draw.prompts, z_t, draw.t, scales)._replace(source=source), scales)


def source_condition(prompts: Prompts) -> Condition:
    """What VSD's second model is told, when it predicts and when it learns."""
    return prompts.source or prompts.texts[0]


def inverted(draw: Draw, start: Tensor, times: Sequence[Tensor], scales: Scales) -> tuple[Tensor, Tensor]:
    """DDIM steps (Song et al., 2021, eq. 12) from `start` at times[0] up to times[-1], each [N].

    Returns z_t at the last time, and the noise predicted before the last step.
    """
    z, seen = start, torch.zeros_like(start)
    for now, after in itertools.pairwise(times):
        (a, s), (next_a, next_s) = draw.prior.levels(now), draw.prior.levels(after)
        seen = combined(predict(draw.prior, draw.prompts, z, now, scales), scales)
        z = noised(clean_of_noise(z, seen, a, s), seen, next_a, next_s)
        if draw.guidance.inversion.churn:
            fresh = s / next_s * (1 - (next_a / a) ** 2).clamp(min=0).sqrt()
            z = z + draw.guidance.inversion.churn * fresh.view(-1, 1, 1, 1) * _normal(z, draw.generator)
    return z, seen


# What a training loop calls.


class Distilled(NamedTuple):
    """loss: 0-dim; its gradient by z is gradient / N.  gradient: [N, C, h, w].  t: [N].

    clean: [N, C, h, w], what the prior takes the pictures for, under the prompt alone.  z: the pictures, encoded.
    """

    loss: Tensor
    gradient: Tensor
    t: Tensor
    clean: Tensor | None
    z: Tensor


def distil(
    prior: Prior,
    images: Tensor,
    prompts: Prompts,
    guidance: Guidance,
    *,
    step: int,
    steps: int,
    generator: torch.Generator,
    source: Predictor | None = None,
) -> Distilled:
    """One step's loss of pictures [N, 3, H, W] in 0..1; its gradient by them is the method's, nothing else's.

    N is a multiple of prior.views.  step: of a run of `steps`.  source: VSD's second model.
    Raises InputError where the method needs what is not there, and what the prior raises.
    """
    z = prior.encode(images)
    if len(z) % prior.views:
        raise InputError(f"the prior {prior.name} takes {prior.views} views together, got {len(z)} pictures")
    t = draw_times(guidance.times, step, steps, len(z) // prior.views, prior.levels, generator)
    t = t.to(z).repeat_interleave(prior.views)
    a, s = prior.levels(t)
    still = z.detach()
    draw = Draw(prior, prompts, guidance, step, still, t, a, s, _normal(still, generator), generator, source)
    terms = _terms(draw)
    if guidance.rescale:
        terms = _rescaled(terms, draw)
    weight = guidance.factor * weights(guidance.weighting, a, s)
    if guidance.random_weight:
        weight = weight * _normal(weight, generator).sigmoid()
    gradient = tamed(weight.view(-1, 1, 1, 1) * combined(terms.noises, terms.scales), guidance, step)
    loss = surrogate_loss(z, gradient)
    if guidance.pictures:
        loss = loss + guidance.pictures * _picture_loss(draw, terms, images, weight)
    text = terms.noises.text
    return Distilled(loss, gradient, t, None if text is None else clean_of_noise(terms.z_t, text, a, s), still)


def source_loss(
    source: Predictor,
    prior: Prior,
    z: Tensor,
    condition: Condition,
    generator: torch.Generator,
    camera_drop: float = 0.1,
) -> Tensor:
    """What VSD's second model learns by: |e_src(z_t) - e|^2, without cameras for a share of the calls.

    z: [N, C, h, w] of the renders; no gradient goes to it.  ProlificDreamer, eq. 10.
    """
    z = z.detach()
    t = torch.rand(len(z) // prior.views, generator=generator, device=generator.device).clamp(EARLIEST, 1 - EARLIEST)
    t = t.to(z).repeat_interleave(prior.views)
    if float(torch.rand((), generator=generator, device=generator.device)) < camera_drop:
        condition = replace(condition, cameras=None)
    noise = _normal(z, generator)
    predicted = source.predict(noised(z, noise, *prior.levels(t)), t, [condition])[0]
    return (predicted - noise).square().mean()


@dataclass(frozen=True)
class Surrounding:
    """A second model for VSD that needs no training: each render z [N, C, h, w] is N(z, variance), exactly."""

    prior: Prior
    z: Tensor
    variance: float

    def predict(self, z_t: Tensor, t: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """s (z_t - a z) / (a^2 variance + s^2), whatever the conditions."""
        a, s = (level.view(-1, 1, 1, 1) for level in self.prior.levels(t))
        noise = s * (z_t - a * self.z) / (a * a * self.variance + s * s)
        return noise.expand(len(conditions), *noise.shape)


def _rescaled(terms: Terms, draw: Draw) -> Terms:
    """CFG rescale (Lin et al., 2305.08891, section 3.4) of the clean picture, over the views of each set."""
    scales, phi, views = terms.scales, draw.guidance.rescale, draw.prior.views
    guided = Scales(text=scales.text, null=scales.null, repelled=scales.repelled)
    assert terms.noises.text is not None
    plain = clean_of_noise(terms.z_t, terms.noises.text, draw.a, draw.s)
    clean = clean_of_noise(terms.z_t, combined(terms.noises, guided), draw.a, draw.s)
    ratio = _spread(plain, views) / _spread(clean, views).clamp(min=1e-12)
    clean = (phi * ratio.repeat_interleave(views).view(-1, 1, 1, 1) + 1 - phi) * clean
    noise = noise_of_clean(terms.z_t, clean, draw.a, draw.s)
    return Terms(terms.z_t, terms.noises._replace(text=noise), scales._replace(text=1.0, null=0.0, repelled=0.0))


def _picture_loss(draw: Draw, terms: Terms, images: Tensor, weight: Tensor) -> Tensor:
    """HiFA's: pictures against the decoded z0, weighted by a / s."""
    noise = combined(terms.noises, cfg(draw.guidance.scale))
    with torch.no_grad():
        target = draw.prior.decode(clean_of_noise(terms.z_t, noise, draw.a, draw.s))
    shown = functional.interpolate(images, size=target.shape[-2:], mode="bilinear", antialias=True)
    return surrogate_loss(shown, (weight * draw.a / draw.s).view(-1, 1, 1, 1) * (shown - target).detach())


def _spread(z: Tensor, views: int) -> Tensor:
    return z.unflatten(0, (-1, views)).flatten(1).std(dim=1)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)
