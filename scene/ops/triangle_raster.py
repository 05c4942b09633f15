"""Triangles over a grid of pixels: which one covers each pixel centre, and which is nearest to a camera."""

from __future__ import annotations

import torch
from torch import Tensor

from scene.cameras import Camera
from scene.ops import native

NEAR = 1e-3  # of the median depth of the vertices before the camera: what is closer is cut off


def cover(triangles: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Which triangle [F, 3, 2] (pixels, x right and y down, centres at +0.5) covers each pixel centre.

    Returns [H, W] int32, the first of them or -1, and [F] bool: triangles that found a pixel taken by an earlier one.
    A pixel on an edge between two triangles belongs to one of them. Triangles of negative area cover nothing.
    Raises ValueError for a wrong shape.
    """
    if triangles.ndim != 3 or triangles.shape[1:] != (3, 2) or height < 1 or width < 1:
        raise ValueError(f"triangles must be [F, 3, 2] and the grid not empty, got {list(triangles.shape)}")
    triangles = triangles.detach().to(torch.float64).contiguous()
    if not native.has(triangles.device):
        return cover_reference(triangles, height, width)
    faces = torch.empty(height, width, dtype=torch.int32, device=triangles.device)
    lost = torch.zeros(len(triangles), dtype=torch.uint8, device=triangles.device)
    native.kernels(triangles.device).cover(triangles, faces, lost)
    return faces, lost.bool()


def cover_reference(triangles: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The same in plain torch."""
    faces = torch.full((height, width), -1, dtype=torch.int32, device=triangles.device)
    lost = torch.zeros(len(triangles), dtype=torch.bool, device=triangles.device)
    for index, corners in enumerate(triangles):
        rows, columns, _ = _inside(corners, height, width)
        taken = faces[rows, columns] >= 0
        lost[index] = bool(taken.any())
        faces[rows[~taken], columns[~taken]] = index
    return faces, lost


def mesh_depth(vertices: Tensor, faces: Tensor, camera: Camera) -> Tensor:
    """[H, W] float32 z-depth of the nearest triangle at each pixel centre, 0 where none is; both sides of a face count.

    vertices: [V, 3].  faces: [F, 3] indices.  The result is on the device of the vertices.
    Raises ValueError for a wrong shape.
    """
    if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3:
        raise ValueError(f"expected vertices [V, 3] and faces [F, 3], got {list(vertices.shape)}, {list(faces.shape)}")
    device = vertices.device
    camera = camera.to(device=device, dtype=torch.float64)
    vertices, faces = vertices.to(torch.float64).contiguous(), faces.to(device, torch.int32).contiguous()
    z = camera.project(vertices)[1]
    before = z[z > 0]
    if not len(before) or not len(faces):
        return torch.zeros(camera.height, camera.width, device=device)
    near = NEAR * float(before.median())
    if not native.has(device):
        return mesh_depth_reference(vertices, faces, camera, near)
    depth = torch.empty(camera.height, camera.width, device=device)
    viewmat, K = camera.viewmat.contiguous(), camera.K.contiguous()
    native.kernels(device).mesh_depth(vertices, faces, viewmat, K, near, depth)
    return depth


def mesh_depth_reference(vertices: Tensor, faces: Tensor, camera: Camera, near: float) -> Tensor:
    """The same in plain torch; `near` is the z-depth before which everything is cut off."""
    depth = torch.zeros(camera.height, camera.width, device=vertices.device)
    placed = (vertices - camera.center) @ camera.c2w[:3, :3]
    for corners in placed[faces.long()]:
        before = _before(corners, near)
        for last in range(2, len(before)):
            piece = before[[0, last - 1, last]]
            pixels = piece[:, :2] / piece[:, 2:] * camera.K.diagonal()[:2] + camera.K[:2, 2]
            if float(_edge(pixels[0], pixels[1], pixels[2][None])) < 0:
                piece, pixels = piece[[0, 2, 1]], pixels[[0, 2, 1]]
            rows, columns, shares = _inside(pixels, camera.height, camera.width)
            z = (1 / (shares / piece[:, 2]).sum(1)).float()
            there = depth[rows, columns]
            depth[rows, columns] = torch.where((there == 0) | (z < there), z, there)
    return depth


def _before(corners: Tensor, near: float) -> Tensor:
    """[0 to 4, 3] the piece of a triangle [3, 3] in the camera's axes with z >= near, as a fan."""
    kept = []
    for p, q in zip(corners, corners.roll(-1, 0), strict=True):
        if p[2] >= near:
            kept.append(p)
        if (p[2] >= near) != (q[2] >= near):
            kept.append(p + (near - p[2]) / (q[2] - p[2]) * (q - p))
    return torch.stack(kept) if kept else corners[:0]


def _inside(corners: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and shares of the corners [P, 3] of the pixel centres that a triangle [3, 2] covers."""
    device = corners.device
    nowhere = torch.zeros(0, dtype=torch.long, device=device)
    low, high = corners.amin(0), corners.amax(0)
    size = corners.new_tensor([width, height])
    if not bool(corners.isfinite().all() and (high >= 0).all() and (low <= size).all()):
        return nowhere, nowhere, corners.new_zeros(0, 3)
    left, top = (low - 0.5).floor().clamp(min=0).long().tolist()
    right, below = torch.minimum(high, size - 1).long().tolist()
    rows, columns = torch.meshgrid(
        torch.arange(top, below + 1, device=device), torch.arange(left, right + 1, device=device), indexing="ij"
    )
    rows, columns = rows.reshape(-1), columns.reshape(-1)
    centres = torch.stack([columns, rows], dim=1) + corners.new_tensor(0.5)
    area = _edge(corners[0], corners[1], corners[2][None])
    inside = (area > 0).expand(len(rows))
    shares = []
    for i in range(3):
        a, b = corners[(i + 1) % 3], corners[(i + 2) % 3]
        value = _edge(a, b, centres)
        owns = bool(b[1] < a[1] or (b[1] == a[1] and b[0] > a[0]))
        inside = inside & ((value >= 0) if owns else (value > 0))
        shares.append(value / area)
    return rows[inside], columns[inside], torch.stack(shares, dim=1)[inside]


def _edge(a: Tensor, b: Tensor, points: Tensor) -> Tensor:
    """[P] twice the signed area of a, b and each point, from the same end whichever way the edge runs."""
    swap = bool(b[0] < a[0] or (b[0] == a[0] and b[1] < a[1]))
    start, stop = (b, a) if swap else (a, b)
    along = stop - start
    area = along[0] * (points[:, 1] - start[1]) - along[1] * (points[:, 0] - start[0])
    return -area if swap else area
