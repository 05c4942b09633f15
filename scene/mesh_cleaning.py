"""Noise taken out of a mesh without shrinking it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from scene.mesh import Edges, Mesh

INWARD, OUTWARD = 0.5, -0.53  # steps of a round; their difference is the pass band: bumps over 13 edges long stay


def smooth(mesh: Mesh, rounds: int) -> Mesh:
    """The mesh after `rounds` of smoothing that flattens bumps a few edges wide and keeps larger shapes and the volume.

    Each vertex moves half way to the mean of its neighbours and a little farther back. Vertices of the border follow
    the border alone, so that holes do not grow. Topology, colours and uvs stay.
    Source: Taubin, A Signal Processing Approach to Fair Surface Design (1995), section 3.
    """
    if rounds <= 0 or not len(mesh.faces):
        return mesh
    from scipy.sparse import coo_matrix, diags

    start, stop = mesh.faces.reshape(-1), np.roll(mesh.faces, -1, axis=1).reshape(-1)
    edges = Edges.of(mesh.faces)
    single = np.bincount(edges.ids, minlength=edges.count)[edges.ids] == 1
    on_border = np.zeros(len(mesh.vertices), dtype=bool)
    on_border[start[single]] = on_border[stop[single]] = True
    a, b = np.concatenate([start, stop]), np.concatenate([stop, start])
    pulls = ~on_border[a] | np.concatenate([single, single])
    a, b = a[pulls], b[pulls]
    graph = coo_matrix((np.ones(len(a)), (a, b)), shape=(len(mesh.vertices),) * 2).tocsr()
    graph.data[:] = 1  # an inner edge came from both its faces
    count = np.asarray(graph.sum(axis=1)).reshape(-1)
    mean = diags(1 / np.maximum(count, 1)) @ graph
    moves = (count > 0)[:, None]
    vertices = mesh.vertices
    for _ in range(rounds):
        for step in (INWARD, OUTWARD):
            vertices = vertices + np.where(moves, step * (mean @ vertices - vertices), 0)
    return replace(mesh, vertices=vertices)
