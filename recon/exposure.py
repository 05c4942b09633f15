"""Per-photo exposure: cameras change gain and white balance between shots, the scene does not.

A photo shows gain * render + offset, per channel. Training learns both per photo; held-out photos, never trained on,
are judged after a fit on other parts of the picture (after NeRF in the Wild, 2021, section 4.2).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scene.ops.adam import adam_visible

LEARNING_RATE = (1e-2, 1e-3)  # at the start and at the end of a run
BETAS, EPS = (0.9, 0.99), 1e-8


@dataclass
class Exposures:
    """Gain and offset per photo and channel, with Adam's moments.

    values: [V, 2, 3], log gain then offset.  Over the trained photos both have mean zero, so the scene keeps the mean
    exposure of its photos.
    """

    values: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    counts: Tensor  # [V] int64, updates so far, on the CPU
    trained: tuple[int, ...]

    def __post_init__(self) -> None:
        self._rows = torch.tensor(self.trained, dtype=torch.int64, device=self.values.device)
        self._is_trained = self.values.new_zeros(len(self.values), 1, 1)
        self._is_trained[self._rows] = 1

    @staticmethod
    def identity(views: int, trained: tuple[int, ...]) -> Exposures:
        """No change for any of `views` photos, of which those in `trained` will be learned."""
        zeros = torch.zeros(views, 2, 3)
        return Exposures(zeros, zeros.clone(), zeros.clone(), torch.zeros(views, dtype=torch.int64), trained)

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor], trained: tuple[int, ...]) -> Exposures:
        """What `tensors` returned."""
        return Exposures(**tensors, trained=trained)

    def to(self, device: torch.device) -> Exposures:
        """The same with values and moments on `device`, where the gradients come from."""
        values, exp_avg, exp_avg_sq = (value.to(device) for value in (self.values, self.exp_avg, self.exp_avg_sq))
        return Exposures(values, exp_avg, exp_avg_sq, self.counts, self.trained)

    def tensors(self) -> dict[str, Tensor]:
        """The state by name, for a checkpoint."""
        return {
            "values": self.values,
            "exp_avg": self.exp_avg,
            "exp_avg_sq": self.exp_avg_sq,
            "counts": self.counts,
        }

    def of(self, view: int) -> Tensor:
        """[2, 3] gain and offset per channel of a photo, as `photometric_loss` takes them."""
        exposure = self.values[view].clone()
        exposure[0].exp_()
        return exposure

    def learn(self, view: int, v_exposure: Tensor, progress: float) -> None:
        """One Adam step from the gradient [2, 3] by what `of` gave; progress: 0 to 1, for the falling rate.

        Overwrites v_exposure. Few operations: on a GPU each of these tiny ones costs as much host time as a large one.
        """
        value = self.values[view]
        v_exposure[0].mul_(value[0].exp())  # by the log gain
        self.counts[view] += 1
        step = int(self.counts[view])  # on the CPU always: nobody waits for it
        start, end = LEARNING_RATE
        rate = start * (end / start) ** progress
        moments = (self.exp_avg[view], self.exp_avg_sq[view])
        adam_visible(value, v_exposure, None, *moments, step=step, lr=rate, betas=BETAS, eps=EPS)
        self.values.addcmul_(self._is_trained, self.values[self._rows].mean(0), value=-1)


def fit_exposure(render: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Least-squares gain [3] and offset [3] that bring `render` [P, 3] to `truth` [P, 3].

    A channel without contrast gets gain 1 and the mean difference.
    """
    mean_render, mean_truth = render.mean(0), truth.mean(0)
    centred = render - mean_render
    variance = (centred**2).mean(0)
    covariance = (centred * (truth - mean_truth)).mean(0)
    flat = variance < 1e-6
    gain = torch.where(flat, torch.ones_like(variance), covariance / variance.clamp_min(1e-6)).clamp(0.25, 4.0)
    return gain, mean_truth - gain * mean_render


def cross_fitted(render: Tensor, truth: Tensor, cells: int = 8, mask: Tensor | None = None) -> Tensor:
    """`render` [H, W, 3] with the exposure of `truth`: black fields of a chessboard fitted on the white, and back.

    cells: fields across and down.  mask: [H, W] bool, the pixels that are known; None is all.
    No pixel takes part in the fit that it is judged by, yet both fits see all parts of the picture. (NeRF in the Wild
    fits one half and judges the other: a tree in one half spoils the fit of both.)
    """
    height, width = render.shape[:2]
    rows = torch.arange(height, device=render.device) * cells // height
    columns = torch.arange(width, device=render.device) * cells // width
    black = (rows[:, None] + columns) % 2 == 0
    fitted = render.clone()
    known = torch.ones_like(black) if mask is None else mask
    for judged, used in ((black, ~black & known), (~black, black & known)):
        if bool(used.any()):
            gain, offset = fit_exposure(render[used], truth[used])
            fitted[judged] = render[judged] * gain + offset
    return fitted.clamp(0, 1)
