"""Regularisers: known values, and what they prefer."""

from __future__ import annotations

import math

import pytest
import torch

from generation import regularisers


def test_values_that_are_known() -> None:
    assert float(regularisers.sparsity(torch.tensor([0.0, 0.0]))) == pytest.approx(0.1)
    assert float(regularisers.opaqueness(torch.tensor([0.5]))) == pytest.approx(math.log(2))
    assert float(regularisers.opaqueness(torch.tensor([0.0, 1.0]))) < 0.01
    assert float(regularisers.emptiness(torch.tensor([0.1, 0.0]))) == pytest.approx(math.log(2) / 2)
    picture = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    assert float(regularisers.total_variation(picture)) == 1
    normals = torch.tensor([[0.0, 0.0, 1.0]])
    assert float(regularisers.normal_smoothness(normals, -normals)) == pytest.approx(2 / 3)


def test_only_normals_that_face_away_are_punished_and_weights_are_fixed() -> None:
    weights = torch.tensor([0.5, 0.5], requires_grad=True)
    normals = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]], requires_grad=True)
    loss = regularisers.orientation(weights, normals, torch.tensor([[0.0, 0.0, 1.0]] * 2))
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.25)
    assert weights.grad is None and normals.grad is not None and float(normals.grad[1].abs().max()) == 0


def test_depth_variance_and_distortion_are_those_of_their_definitions() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(6, 9, generator=generator, dtype=torch.float64) / 9
    places = torch.rand(6, 9, generator=generator, dtype=torch.float64).sort(dim=1).values
    apart = (places[:, :, None] - places[:, None]).abs()
    wanted = ((weights[:, :, None] * weights[:, None] * apart).sum((1, 2)) + weights.square().sum(1) / 27).mean()
    torch.testing.assert_close(regularisers.distortion(weights, places, 1 / 9), wanted)
    share = weights / weights.sum(1, keepdim=True)
    mean = (share * places).sum(1, keepdim=True)
    variance = (share * (places - mean) ** 2).sum(1).mean()
    torch.testing.assert_close(regularisers.depth_variance(weights, places), variance)
    assert float(regularisers.depth_variance(torch.eye(9)[:3], places[:3].float())) == pytest.approx(0, abs=1e-9)
