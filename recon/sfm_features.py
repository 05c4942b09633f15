"""Features of photos and the pairs of photos worth matching.

SIFT by OpenCV (several times quicker on a CPU than the one inside COLMAP, and it leaves Python free), turned into
RootSIFT bytes as COLMAP stores them: square root of the L1-normalised histogram times 512, so that the dot product of
two descriptors is close to 512^2 cos(angle).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

UNIT = 512.0  # length of a RootSIFT descriptor in its byte form


@dataclass(frozen=True)
class Features:
    """Features of one photo, largest first.

    keypoints: [F, 4] float32: x, y in px of the photo with pixel centres at +0.5, scale in px, angle in radians.
    descriptors: [F, 128] uint8 RootSIFT.
    """

    keypoints: np.ndarray
    descriptors: np.ndarray

    def __len__(self) -> int:
        return len(self.keypoints)


@dataclass(frozen=True)
class FeatureSettings:
    """How features are looked for."""

    count: int = 3000  # kept per photo, the strongest
    max_size: int = 1600  # px, longer side of the picture searched; larger photos are searched shrunk
    contrast: float = 0.02  # weakest accepted; half of OpenCV's default, for flat walls and soft phone photos


def find_features(rgb: np.ndarray, settings: FeatureSettings, alpha: np.ndarray | None = None) -> Features:
    """SIFT features of a photo [H, W, 3] uint8, in the same order whatever the number of threads.

    alpha: [H, W] uint8; nothing is looked for where it is below a half.
    """
    import cv2

    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    shrink = min(1.0, settings.max_size / max(height, width))
    if shrink < 1:
        small = (max(1, round(width * shrink)), max(1, round(height * shrink)))
        grey = cv2.resize(grey, small, interpolation=cv2.INTER_AREA)
    mask = None
    if alpha is not None:
        mask = cv2.resize(alpha, grey.shape[::-1], interpolation=cv2.INTER_AREA)
        mask = ((mask >= 128) * 255).astype(np.uint8)
    sift = cv2.SIFT.create(nfeatures=settings.count, contrastThreshold=settings.contrast, enable_precise_upscale=True)
    found, histograms = sift.detectAndCompute(grey, mask)  # type: ignore[arg-type]
    if not found or histograms is None:
        return Features(np.zeros((0, 4), np.float32), np.zeros((0, 128), np.uint8))
    keypoints = np.array([(*k.pt, 0.5 * k.size, np.deg2rad(k.angle)) for k in found], np.float64)
    keypoints[:, :2] += 0.5  # OpenCV counts from pixel centres
    keypoints[:, 0] *= width / grey.shape[1]
    keypoints[:, 1] *= height / grey.shape[0]
    keypoints[:, 2] /= shrink
    share = histograms / np.maximum(histograms.sum(1, keepdims=True), 1e-9)
    descriptors = np.clip(np.round(UNIT * np.sqrt(share)), 0, 255).astype(np.uint8)
    order = np.lexsort((keypoints[:, 3], keypoints[:, 1], keypoints[:, 0], -keypoints[:, 2]))
    return Features(keypoints[order].astype(np.float32), descriptors[order])


def match_descriptors(first: Tensor, second: Tensor, *, ratio: float = 0.8, max_angle: float = 0.7) -> Tensor:
    """Mutual nearest neighbours that pass Lowe's ratio test, [M, 2] indices.

    first, second: [F, 128] and [G, 128] float32 descriptors of length UNIT.  ratio: of the angles to the nearest and
    the second nearest.  max_angle: radians.  Sums stay below 2^24: float32 is exact in any order.
    """
    if min(len(first), len(second)) < 2:
        return torch.zeros(0, 2, dtype=torch.int64)
    similarity = first @ second.T
    best, nearest = similarity.topk(2, dim=1)
    angles = torch.arccos((best / UNIT**2).clamp(max=1))
    distinct = (angles[:, 0] < ratio * angles[:, 1]) & (angles[:, 0] < max_angle)
    rows = distinct.nonzero()[:, 0]
    columns = nearest[rows, 0]
    mutual = similarity[:, columns].argmax(0) == rows  # only the columns in question: a third of the time of all
    return torch.stack([rows[mutual], columns[mutual]], dim=1)


def overlap_scores(descriptors: Sequence[np.ndarray], candidates: Tensor | None = None, probes: int = 256) -> Tensor:
    """[N, N] number of matches among the `probes` largest features of each two photos: a cheap sign of overlap.

    Large features are few, stable and seen from afar, so 256 of several thousand tell which photos see the same
    things (preemptive matching, Wu 2013) at 1/100 of the cost.  candidates: [N, N] bool, pairs looked at (all).
    """
    total = len(descriptors)
    probe = torch.zeros(total, probes, 128)
    for i, rows in enumerate(descriptors):
        probe[i, : min(probes, len(rows))] = torch.from_numpy(rows[:probes]).float()
    scores = torch.zeros(total, total)
    own = torch.arange(probes)[:, None]
    for i in range(total - 1):
        others = torch.arange(i + 1, total)
        if candidates is not None:
            others = others[candidates[i, i + 1 :] | candidates[i + 1 :, i]]
        for part in others.split(128):  # bounds the table of similarities to 32 MB
            similarity = (probe[i] @ probe[part].reshape(-1, 128).T).view(probes, len(part), probes)
            best, nearest = similarity.topk(2, dim=2)
            angles = torch.arccos((best / UNIT**2).clamp(max=1))
            distinct = (angles[..., 0] < 0.85 * angles[..., 1]) & (angles[..., 0] < 0.8)
            back = similarity.argmax(0)  # [part, probes]: which own probe each foreign one likes best
            mutual = own == back.gather(1, nearest[..., 0].T).T
            scores[i, part] = (distinct & mutual).sum(0).float()
    return scores + scores.T


def similar_photos(descriptors: Sequence[np.ndarray], neighbours: int, *, seed: int = 0) -> Tensor:
    """[N, N] bool, the `neighbours` most alike photos of each by VLAD, for sets too large to compare all pairs.

    VLAD (Jegou et al. 2010): descriptors are assigned to 64 words, and the residuals are summed per word, square-rooted
    and normalised within each word.  The words come from k-means on a sample of this very set: nothing to download.
    """
    generator = torch.Generator().manual_seed(seed)
    sample = torch.from_numpy(np.concatenate([rows[:200] for rows in descriptors])).float() / UNIT
    sample = sample[torch.randperm(len(sample), generator=generator)[:20_000]]
    words = sample[:64].clone()
    for _ in range(10):
        nearest = (sample @ words.T - 0.5 * words.square().sum(1)).argmax(1)
        sums = torch.zeros_like(words).index_add_(0, nearest, sample)
        counts = torch.bincount(nearest, minlength=len(words))[:, None]
        words = torch.where(counts > 0, sums / counts.clamp(min=1), words)
    signatures = torch.zeros(len(descriptors), *words.shape)
    for i, rows in enumerate(descriptors):
        own = torch.from_numpy(rows[:1000]).float() / UNIT
        nearest = (own @ words.T - 0.5 * words.square().sum(1)).argmax(1)
        signatures[i].index_add_(0, nearest, own - words[nearest])
    signatures = signatures.sign() * signatures.abs().sqrt()
    flat = torch.nn.functional.normalize(torch.nn.functional.normalize(signatures, dim=2).flatten(1), dim=1)
    return _most(flat @ flat.T, neighbours)


def near_places(positions: np.ndarray, neighbours: int) -> Tensor:
    """[N, N] bool, the `neighbours` nearest photos of each by place. positions: [N, 3], NaN where unknown."""
    places = torch.from_numpy(positions)
    return _most(-torch.cdist(places, places).nan_to_num(nan=torch.inf), neighbours)


def _most(similarity: Tensor, neighbours: int) -> Tensor:
    """[N, N] bool: the most similar others in each row; minus infinity never counts."""
    similarity = similarity.clone().fill_diagonal_(-torch.inf)
    best, index = similarity.topk(min(neighbours, len(similarity) - 1), dim=1)
    return torch.zeros_like(similarity, dtype=torch.bool).scatter_(1, index, best > -torch.inf)


def choose_pairs(scores: Tensor, neighbours: int, *, steps: Sequence[int] = (1, 2), weakest: int = 4) -> list[tuple]:
    """Pairs (i, j), i < j, best first: the best-scoring `neighbours` of each photo, and those `steps` apart by name.

    People walk while they take photos, so the next one nearly always overlaps: such pairs are kept whatever the score.
    """
    total = len(scores)
    wanted = _most(scores, neighbours) & (scores >= weakest)
    for step in steps:
        for i in range(total - step):
            wanted[i, i + step] = True
    wanted = wanted | wanted.T
    pairs = [(i, j) for i, j in itertools.combinations(range(total), 2) if wanted[i, j]]
    return sorted(pairs, key=lambda pair: (-float(scores[pair]), pair))
