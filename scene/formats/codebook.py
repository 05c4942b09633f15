"""Codebooks for packed splat files: 256 levels for numbers, a palette for vectors. Lloyd's k-means throughout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LEVELS = 256
HISTOGRAM = 1 << 14
LLOYD_STEPS = 8
SAMPLE = 1 << 16  # vectors from which the coarse cells of a palette are found


def levels(values: NDArray) -> NDArray[np.float32]:
    """[256] ascending levels for numbers, by least squared error with a bound on the worst one.

    Levels lie as densely as half the cube root of the density of the values (Panter and Dite 1951, least squared error)
    and half evenly, then each moves to the mean of its values. So no value is much further from its level than a
    step of 1/128 of the range, however rare it is. Up to 256 different values are kept as they are.
    """
    values = np.sort(values.reshape(-1).astype(np.float64))
    distinct = np.unique(values[:: max(1, len(values) // 4096)])
    if len(distinct) <= LEVELS:
        distinct = np.unique(values)
    if len(distinct) <= LEVELS:
        return np.pad(distinct, (0, LEVELS - len(distinct)), mode="edge").astype(np.float32)
    counts, edges = np.histogram(values, HISTOGRAM)
    share = counts ** (1 / 3)
    cumulative = np.concatenate([[0], np.cumsum(0.5 * share / share.sum() + 0.5 / HISTOGRAM)])
    found = np.interp((np.arange(LEVELS) + 0.5) / LEVELS, cumulative / cumulative[-1], edges)
    sums = np.concatenate([[0], np.cumsum(values)])
    for _ in range(LLOYD_STEPS):
        bounds = np.searchsorted(values, 0.5 * (found[1:] + found[:-1]))
        starts, stops = np.concatenate([[0], bounds]), np.concatenate([bounds, [len(values)]])
        filled = stops > starts
        found[filled] = (sums[stops] - sums[starts])[filled] / (stops - starts)[filled]
    return np.sort(found).astype(np.float32)


def nearest_level(values: NDArray, table: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Index of the nearest of ascending levels for each value, in the shape of `values`."""
    middles = 0.5 * (table[1:].astype(np.float64) + table[:-1])
    return np.searchsorted(middles, values).astype(np.uint8)


def palette(vectors: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """At most `size` vectors [P, D] that stand for `vectors` [N, D], and the number of its stand-in for each [N].

    In two stages, so that a million vectors take seconds: coarse cells first, then k-means within each cell, whose
    share of the palette grows with the number of its vectors and how far they lie apart. The same for the same input.
    """
    if len(vectors) <= size:
        return vectors, torch.arange(len(vectors))
    with _one_thread():
        return _two_stages(vectors, size, torch.Generator().manual_seed(0))


def _two_stages(vectors: Tensor, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    coarse = max(1, round(size**0.5))
    sample = vectors[torch.randperm(len(vectors), generator=generator)[:SAMPLE]]
    cells = _nearest(vectors, _k_means(sample, coarse, generator))
    order = cells.argsort(stable=True)
    groups = vectors[order].split(cells.bincount(minlength=coarse).tolist())
    spread = torch.tensor([float((g - g.mean(dim=0)).square().sum()) ** 0.5 * len(g) ** 0.5 for g in groups if len(g)])
    groups = [g for g in groups if len(g)]
    wanted = (1 + (size - len(groups)) * spread / spread.sum().clamp_min(1e-30)).int().tolist()
    centres, labels, start = [], [], 0
    for group, count in zip(groups, wanted, strict=True):
        found = _k_means(group, count, generator)
        centres.append(found)
        labels.append(start + _nearest(group, found))
        start += len(found)
    result = torch.empty(len(vectors), dtype=torch.int64)
    result[order] = torch.cat(labels)
    return torch.cat(centres), result


@contextmanager
def _one_thread() -> Iterator[None]:
    """Thousands of small products: threads gain 15 % on an idle machine and wait for each other ten times as long on a
    busy one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _k_means(vectors: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """At most `count` centres [P, D], begun at vectors picked at random."""
    if len(vectors) <= count:
        return vectors
    centres = vectors[torch.randperm(len(vectors), generator=generator)[:count]].clone()
    for _ in range(LLOYD_STEPS):
        nearest = _nearest(vectors, centres)
        counts = nearest.bincount(minlength=count)
        sums = torch.zeros_like(centres).index_add_(0, nearest, vectors)
        filled = counts > 0
        centres[filled] = sums[filled] / counts[filled, None]
    return centres


def _nearest(vectors: Tensor, centres: Tensor) -> Tensor:
    """[N] number of the nearest centre, by |c|^2 - 2 v c, in pieces of a bounded size."""
    squares = centres.square().sum(dim=1)
    rows = max(1, (1 << 24) // len(centres))
    return torch.cat([torch.addmm(squares, piece, centres.T, alpha=-2).argmin(dim=1) for piece in vectors.split(rows)])
