"""How well a representation shows views it was never trained on: the same judge for every method."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from data.captures import Capture
from recon.exposure import cross_fitted
from scene.cameras import Camera
from scene.metrics import psnr, ssim

WHITE = torch.ones(3)


@dataclass(frozen=True)
class ViewScore:
    """One held-out view: its name, figures and pictures ([H, W, 3] float in 0..1).

    psnr, ssim: after the cross-fitted exposure where that is on, else plain.  psnr_plain: without any fit.
    """

    index: int
    name: str
    psnr: float
    ssim: float
    psnr_plain: float
    truth: Tensor
    render: Tensor


def evaluate(
    render: Callable[[Camera, Tensor], Tensor],
    capture: Capture,
    *,
    exposure: bool,
    indices: tuple[int, ...] | None = None,
) -> Iterator[ViewScore]:
    """Judges the held-out views of a capture one after the other.

    render: (camera, background [3]) -> picture [H, W, 3]; it is judged on its device.  exposure: judge after
    `cross_fitted`, for photos whose exposure is not known.  Pictures with alpha are compared on white (NeRF's
    convention), others as they are.
    """
    for index in capture.test if indices is None else indices:
        view = capture.views[index]
        photo = capture.photo(index)
        assert view.camera is not None
        background = WHITE if photo.alpha is not None else torch.zeros(3)
        truth = photo.rgb.float() / 255
        if photo.alpha is not None:
            share = photo.alpha[..., None].float() / 255
            truth = truth * share + background * (1 - share)
        with torch.no_grad():
            plain = render(view.camera, background).clamp(0, 1)
        truth = truth.to(plain.device)
        shown = cross_fitted(plain, truth) if exposure else plain
        yield ViewScore(
            index,
            view.name,
            float(psnr(shown, truth)),
            float(ssim(shown, truth)),
            float(psnr(plain, truth)),
            truth,
            shown,
        )
