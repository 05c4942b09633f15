"""Compositing against its twin, and where the answer is plain."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from scene.ops.composite import composite, composite_reference

BACKGROUND = torch.tensor([0.2, 0.5, 1.0])


def picture(height: int, width: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    values = torch.randint(0, 256, (height, width, 4), generator=generator, dtype=torch.uint8)
    return values[..., :3], values[..., 3]  # not contiguous, as an RGBA photo gives them


@pytest.mark.parametrize("size", [(1, 1), (3, 7), (130, 257), (0, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_twin_agrees(size: tuple[int, int], dtype: torch.dtype) -> None:
    rgb, alpha = picture(*size)
    got = composite(rgb, alpha, BACKGROUND.to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got, composite_reference(rgb, alpha, BACKGROUND.to(dtype)), rtol=0, atol=2e-7)


def test_opaque_shows_the_picture_and_clear_shows_the_background() -> None:
    rgb, alpha = picture(20, 30)
    assert torch.equal(composite(rgb, torch.full_like(alpha, 255), BACKGROUND), rgb.float() / 255)
    assert torch.equal(composite(rgb, torch.zeros_like(alpha), BACKGROUND), BACKGROUND.expand(20, 30, 3))


def test_every_number_of_a_given_buffer_is_written() -> None:
    rgb, alpha = picture(33, 41)
    buffer = torch.full((33, 41, 3), math.nan)
    assert composite(rgb, alpha, BACKGROUND, out=buffer) is buffer
    assert torch.equal(buffer, composite(rgb, alpha, BACKGROUND))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rgb": torch.zeros(4, 4, 3)}, "rgb must be uint8"),
        ({"alpha": torch.zeros(4, 5, dtype=torch.uint8)}, "alpha must be"),
        ({"background": torch.zeros(4)}, "background"),
        ({"out": torch.zeros(4, 4, 3, dtype=torch.float64)}, "out must be"),
        ({"out": torch.zeros(4, 3, 4).transpose(1, 2)}, "out must be"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(change: dict[str, Tensor], message: str) -> None:
    byte = torch.uint8
    arguments = {"rgb": torch.zeros(4, 4, 3, dtype=byte), "alpha": torch.zeros(4, 4, dtype=byte)}
    with pytest.raises(ValueError, match=message):
        composite(**(arguments | {"background": BACKGROUND} | change))
