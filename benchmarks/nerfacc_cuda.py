"""nerfacc on the GPU in a training step of DVGO: its occupancy traversal, its weights and its sums along rays.

Peers are imported when asked for; without nerfacc `why_not` says so and its columns stay empty. What nerfacc leaves to
its user, interpolation, network and optimiser, is torch's (benchmarks/dvgo_reference.py), as in its own examples.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

import torch
from torch import Tensor

from benchmarks.dvgo_reference import Seen, TorchGrid
from scene.ops.grid_march import RaySpans
from scene.voxel_grid import STOP


def why_not() -> str | None:
    """Why nerfacc cannot run here; None when it can. The first answer may take minutes: it compiles its kernels."""
    try:
        backend: Any = importlib.import_module("nerfacc.cuda._backend")
    except Exception as error:  # its build fails in as many ways as there are compilers
        return (
            f"nerfacc is not installed or cannot be built ({type(error).__name__}: {str(error).splitlines()[0][:120]})"
        )
    return None if backend._C is not None else "nerfacc is installed without its CUDA kernels"


def version() -> str:
    """Of nerfacc."""
    return f"nerfacc {importlib.metadata.version('nerfacc')}"


def march(grid: TorchGrid, spans: RaySpans) -> Seen:
    """The samples that straight rays see, found by nerfacc, at the places where ours lie.

    A cell of its grid is what is nearest to a voxel of ours: the box reaches half a voxel beyond the outermost centres.
    Its samples lie in the middle of intervals of length 1 in units of the directions, the first around `starts`.
    """
    nerfacc: Any = importlib.import_module("nerfacc")
    about, count = grid.grid, len(spans.counts)
    with torch.no_grad():
        size = torch.tensor(about.frame.size, dtype=torch.float32, device=grid.density.device)
        box = torch.cat([torch.full_like(size, -0.5), size - 0.5])[None]
        first = spans.starts - 0.5
        intervals, samples, _ = nerfacc.traverse_grids(
            spans.origins,
            spans.directions,
            about.occupied[None],
            box,
            near_planes=first,
            far_planes=first + spans.counts,
            step_size=1.0,
        )
        starts = intervals.vals[intervals.is_left]
        rays = samples.ray_indices.long()
        points = spans.origins[rays] + (starts + 0.5)[:, None] * spans.directions[rays]
    alpha = grid.alpha(points)
    dense = alpha > about.threshold
    points, rays, alpha = points[dense], rays[dense], alpha[dense]
    lit = nerfacc.render_visibility_from_alpha(alpha.detach(), ray_indices=rays, n_rays=count, early_stop_eps=STOP)
    points, rays, alpha = points[lit], rays[lit], alpha[lit]
    weight, _ = nerfacc.render_weight_from_alpha(alpha, ray_indices=rays, n_rays=count)
    last: Tensor = 1 - nerfacc.accumulate_along_rays(weight, None, rays, count)[:, 0]
    seen = weight > about.threshold
    return Seen(points[seen], rays[seen], weight[seen], last)
