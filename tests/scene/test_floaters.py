"""Floaters: planted ones are found, what is real stays, thin things included, and the pictures stay as they were."""

from __future__ import annotations

import math

import pytest
import torch

from scene.cameras import Camera
from scene.errors import InputError
from scene.floaters import _light_of_view, floater_score, without_floaters
from scene.gaussians import Gaussians
from scene.rasterize import render
from tests.scene.splats import random_rotation
from tests.scene.still_life import planted, ring, shell, still_life


def test_planted_floaters_are_found_and_what_is_real_stays():
    real, cameras = still_life(), ring()
    both = Gaussians.concat([real, planted(60)])
    cleaned, report = without_floaters(both, cameras)
    found = torch.zeros(len(both), dtype=torch.bool)
    found[report.ids] = True
    assert found[len(real) :].float().mean() >= 0.95
    assert found[: len(real)].float().mean() <= 0.005
    assert len(cleaned) == len(both) - len(report.ids) and "float in free space" in report.sentence
    after = floater_score(cleaned, cameras)
    assert report.score > 0.005 and after.score < 0.05 * report.score


def test_a_clean_scene_loses_nothing_that_shows():
    real, cameras = still_life(), ring()
    cleaned, report = without_floaters(real, cameras)
    assert report.score < 1e-3 and len(report.ids) <= 0.005 * len(real)
    pole = torch.arange(len(real)) >= len(real) - 60
    assert not pole[report.ids].any()
    for camera in cameras[::5]:
        before, after = render(real, camera).rgb, render(cleaned, camera).rgb
        assert -10 * (before - after).square().mean().log10() > 45


def test_splats_that_no_camera_sees_and_stand_alone_float():
    real = still_life()
    behind = shell(torch.tensor([[0.0, 0.0, 30.0], [40.0, 0.0, 0.0]]), 0.1, (0, 0, 0))
    report = floater_score(Gaussians.concat([real, behind]), ring())
    assert set(report.ids.tolist()) >= {len(real), len(real) + 1}


def test_the_light_of_all_splats_is_what_the_picture_is_opaque_by():
    scene, camera = Gaussians.concat([still_life(), planted(20)]), ring()[1]
    ids, seen = _light_of_view(scene, camera, distance=3.0, antialias=False)
    alpha = render(scene, camera).alpha
    assert float(seen.light.sum()) == pytest.approx(float(alpha.sum()), rel=1e-5)
    assert seen.light.min() > -1e-6 and len(ids.unique()) == len(ids)


def test_turning_and_scaling_the_scene_changes_nothing():
    both, cameras = Gaussians.concat([still_life(), planted(20)]), ring()
    ids = floater_score(both, cameras).ids
    rotation = random_rotation(3)
    turned = both.turned(rotation)
    turned.means, turned.log_scales = 7 * turned.means, turned.log_scales + math.log(7)
    moved = []
    for camera in cameras:
        c2w = camera.c2w.clone()
        c2w[:3, :3] = rotation.float() @ c2w[:3, :3]
        c2w[:3, 3] = 7 * rotation.float() @ c2w[:3, 3]
        moved.append(Camera(camera.K, c2w, camera.width, camera.height))
    again = set(floater_score(turned, moved).ids.tolist())
    assert len(again ^ set(ids.tolist())) <= 2  # splats at a limit, by rounding


def test_too_few_cameras_and_an_empty_scene():
    with pytest.raises(InputError, match="3 cameras"):
        floater_score(still_life(), ring()[:2])
    nothing = still_life().select(torch.zeros(0, dtype=torch.int64))
    assert not len(floater_score(nothing, ring()).ids)
