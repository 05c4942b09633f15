"""Features, matches and the choice of pairs, each against brute force or a set whose answer is known."""

from __future__ import annotations

import numpy as np
import torch

from recon.sfm_features import (
    UNIT,
    Features,
    FeatureSettings,
    choose_pairs,
    find_features,
    match_descriptors,
    near_places,
    overlap_scores,
    similar_photos,
)
from tests.recon.corner import corner_cameras, render_corner


def _descriptors(count: int, seed: int) -> torch.Tensor:
    """Random unit descriptors as bytes in float32."""
    rows = torch.rand(count, 128, generator=torch.Generator().manual_seed(seed)) ** 4
    return (rows / rows.norm(dim=1, keepdim=True) * UNIT).round()


def test_matches_are_those_of_brute_force_by_angles() -> None:
    first = _descriptors(60, 0)
    second = torch.cat([(first[10:40] + _descriptors(30, 2) * 0.1).round(), _descriptors(20, 1)])
    angles = np.arccos(np.clip(first.double().numpy() @ second.double().numpy().T / UNIT**2, -1, 1))
    expected = set()
    for i, row in enumerate(angles):
        j, k = np.argsort(row)[:2]
        if row[j] < 0.8 * row[k] and row[j] < 0.7 and angles[:, j].argmin() == i:
            expected.add((i, int(j)))
    got = {tuple(pair) for pair in match_descriptors(first, second).tolist()}
    assert got == expected
    assert len(got) >= 25


def test_matches_are_the_same_seen_from_the_other_photo_and_in_any_order() -> None:
    first = _descriptors(50, 3)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    second = (first + 0.05 * _descriptors(50, 4)).round()[order]
    got = {tuple(pair) for pair in match_descriptors(first, second).tolist()}
    assert got == {(int(i), k) for k, i in enumerate(order)}
    assert {(j, i) for i, j in match_descriptors(second, first).tolist()} == got


def test_photos_without_features_have_no_matches() -> None:
    assert match_descriptors(_descriptors(0, 0), _descriptors(5, 0)).shape == (0, 2)
    assert match_descriptors(_descriptors(5, 0), _descriptors(1, 0)).shape == (0, 2)
    blank = find_features(np.full((64, 64, 3), 200, np.uint8), FeatureSettings())
    assert len(blank) == 0
    assert blank.descriptors.shape == (0, 128)


def test_features_keep_colmaps_pixel_centres_and_scale_of_descriptors() -> None:
    picture = np.zeros((101, 121, 3), np.float32)
    y, x = np.mgrid[:101, :121]
    picture += 220 * np.exp(-((x - 40) ** 2 + (y - 60) ** 2) / (2 * 4.0**2))[..., None]
    features = find_features(picture.astype(np.uint8), FeatureSettings())
    off = np.abs(features.keypoints[:, :2] - (40.5, 60.5)).max(axis=1)  # the blob's middle pixel is at +0.5
    assert off.min() < 0.1
    lengths = np.linalg.norm(features.descriptors.astype(float), axis=1)
    assert np.abs(lengths / UNIT - 1).max() < 0.02  # rounding to bytes


def test_shrunk_photos_give_features_in_pixels_of_the_whole_one() -> None:
    import cv2

    photo = render_corner(corner_cameras(1)[0])
    large = cv2.resize(photo, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    own = find_features(photo, FeatureSettings(count=400))
    shrunk = find_features(large, FeatureSettings(count=400, max_size=320))
    matches = match_descriptors(*(torch.from_numpy(f.descriptors).float() for f in (own, shrunk)))
    assert len(matches) > 200
    i, j = matches.numpy().T
    assert np.median(np.abs(2 * own.keypoints[i, :2] - shrunk.keypoints[j, :2])) < 0.3


def test_nothing_is_found_where_the_photo_is_transparent() -> None:
    photo = render_corner(corner_cameras(1)[0])
    alpha = np.zeros(photo.shape[:2], np.uint8)
    alpha[:, :160] = 255
    features = find_features(photo, FeatureSettings(count=500), alpha)
    assert len(features) > 50
    assert features.keypoints[:, 0].max() <= 161


def _two_places() -> list[Features]:
    """Three photos each of two places that have nothing in common."""
    shots = [render_corner(camera) for camera in corner_cameras(3, degrees=20)]
    upside = [255 - shot[::-1, :, ::-1] for shot in shots]
    return [find_features(shot, FeatureSettings(count=500)) for shot in shots + upside]


def test_overlap_and_likeness_tell_two_places_apart() -> None:
    descriptors = [features.descriptors for features in _two_places()]
    scores = overlap_scores(descriptors)
    same = torch.zeros(6, 6, dtype=torch.bool)
    same[:3, :3] = same[3:, 3:] = True
    same.fill_diagonal_(False)
    other = ~same & ~torch.eye(6, dtype=torch.bool)
    assert float(scores[same].min()) > 3 * float(scores[other].max())
    assert torch.equal(scores, scores.T)
    alike = similar_photos(descriptors, 2)
    assert torch.equal(alike, same)
    assert torch.equal(overlap_scores(descriptors, same), torch.where(same, scores, 0))


def test_pairs_hold_best_neighbours_and_the_next_photos_best_first() -> None:
    scores = torch.zeros(6, 6)
    scores[0, 4] = scores[4, 0] = 50
    scores[1, 5] = scores[5, 1] = 3  # too weak to count
    pairs = choose_pairs(scores, 2, steps=(1,))
    assert pairs[0] == (0, 4)
    assert set(pairs) == {(0, 4), (0, 1), (1, 2), (2, 3), (3, 4), (4, 5)}
    assert len(choose_pairs(torch.zeros(6, 6), 6, weakest=0)) == 15


def test_near_places_ignore_photos_without_a_place() -> None:
    places = np.array([[0.0, 0, 0], [1, 0, 0], [10, 0, 0], [np.nan] * 3])
    near = near_places(places, 1)
    assert near.nonzero().tolist() == [[0, 1], [1, 0], [2, 1]]
