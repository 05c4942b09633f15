"""Memory of a training step, followed without a card: it finds what is known to be there, and less than the bar."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu_memory import Case, Lives, buffers, lives_of, text
from benchmarks.gpu_model import Work

SMALL = Work(splats=20_000, visible=20_000, pairs=50_000, pixels=256 * 162)  # a fiftieth of 1M splats at 1080p


def test_lives_are_followed_from_allocation_to_release() -> None:
    with Lives() as lives:
        first = torch.zeros(1000)
        view = first[10:].view(3, 330)  # shares its memory
        second = torch.ones(500)
        del first, view
        third = torch.zeros(250)
    assert sum(lives.peak.values()) == 6000
    assert len(second) + len(third) == 750


def test_ours_holds_what_the_design_says() -> None:
    found = {buffer.name: buffer for buffer in buffers(Case("ours", SMALL, 256))}
    moments = found["splat_step: AdamState.zeros"]
    assert moments.per_splat == 2 * 2 * 59 and moments.at_peak == moments.most
    slots = found["splat_blend: SplatBlend.backward"]
    assert slots.per_pair == pytest.approx(1.25 * 4 * 12, rel=0.01) and slots.per_splat == slots.per_pixel == 0
    precise = lives_of(Case("ours", SMALL, 256, torch.float32))
    spared = sum(precise.peak.values()) - sum(buffer.at_peak for buffer in found.values())
    assert spared == 2 * 2 * 59 * SMALL.splats


def test_a_step_of_ours_takes_at_most_seven_tenths_of_gsplats() -> None:
    pytest.importorskip("gsplat")
    ours, theirs = buffers(Case("ours", SMALL, 256)), buffers(Case("gsplat", SMALL, 256))
    peaks = [sum(buffer.at_peak for buffer in found) for found in (ours, theirs)]
    assert peaks[0] <= 0.7 * peaks[1]
    state = sum(buffer.at_peak for buffer in theirs if buffer.name.startswith("adam"))
    assert state == pytest.approx(2 * 4 * 59 * SMALL.splats, rel=1e-4)  # torch's moments, and its counts of steps
    assert "bytes a splat at the peak" in text("gsplat", theirs, SMALL)
