"""3DGS PLY: Gaussians as the original 3D Gaussian Splatting writes them; compressed ones of PlayCanvas are read."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import torch

from scene.errors import InputError
from scene.formats.compressed_ply import is_compressed, unpack_ply
from scene.formats.ply import read_ply, write_ply
from scene.formats.quantised import checked
from scene.gaussians import Gaussians

SH_REST = {0: 0, 9: 1, 24: 2, 45: 3}  # f_rest values per Gaussian -> degree


def splat_properties(rest: int) -> list[str]:
    """Names of the 3DGS vertex properties in their order, with `rest` spherical-harmonics values beyond the first."""
    return [
        *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2"),
        *(f"f_rest_{i}" for i in range(rest)),
        *("opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
    ]


def write_splat_ply(path: Path, gaussians: Gaussians) -> None:
    """Write a 3DGS PLY: unactivated values in the source's frame, normals zero, f_rest red first, then green, blue.

    Spherical harmonics have their own frame: whoever turns the means for another format turns them too.
    """
    g = gaussians.detach().to(device="cpu", dtype=torch.float32)
    n = len(g)
    columns = torch.cat(
        [
            *(g.means, torch.zeros(n, 3), g.sh_dc, g.sh_rest.transpose(1, 2).reshape(n, 3 * g.sh_rest.shape[1])),
            *(g.opacity_logits[:, None], g.log_scales, torch.nn.functional.normalize(g.quats, dim=1)),
        ],
        dim=1,
    )
    names = splat_properties(3 * g.sh_rest.shape[1])
    records = columns.contiguous().numpy().astype("<f4").view(np.dtype([(name, "<f4") for name in names]))
    write_ply(Path(path), {"vertex": records.reshape(n)})


def read_splat_ply(path: Path) -> Gaussians:
    """Read a 3DGS PLY, binary or ascii, its properties in any order; other properties are ignored. Or a compressed one.

    Raises InputError when it is not one, is damaged, or holds values that are not finite or quaternions of length 0.
    """
    path = Path(path)
    tables = read_ply(path, ("chunk", "vertex", "sh"))
    if is_compressed(tables):
        return unpack_ply(tables, path)
    table = tables.get("vertex")
    rest = len([name for name in table.columns if re.fullmatch(r"f_rest_\d+", name)]) if table else 0
    if rest not in SH_REST:
        raise InputError(f"{path} has {rest} f_rest values per Gaussian; 3DGS files have {sorted(SH_REST)}")
    names = [name for name in splat_properties(rest) if name not in ("nx", "ny", "nz")]
    missing = [name for name in names if table is None or name not in table.columns]
    if table is None or missing:
        raise InputError(
            f"{path} is not a 3DGS splat file: it lacks {', '.join(missing[:4])}"
            f"{' and more' if len(missing) > 4 else ''}; a plain point cloud or mesh cannot be read as splats"
        )

    def block(*wanted: str) -> torch.Tensor:
        return torch.from_numpy(np.stack([table.columns[name].astype(np.float32) for name in wanted], axis=1))

    gaussians = Gaussians(
        means=block("x", "y", "z"),
        quats=block("rot_0", "rot_1", "rot_2", "rot_3"),
        log_scales=block("scale_0", "scale_1", "scale_2"),
        opacity_logits=block("opacity")[:, 0],
        sh_dc=block("f_dc_0", "f_dc_1", "f_dc_2"),
        sh_rest=(
            block(*(f"f_rest_{i}" for i in range(rest))).reshape(table.rows, 3, rest // 3).transpose(1, 2).contiguous()
            if rest
            else torch.zeros(table.rows, 0, 3)
        ),
    )
    return checked(gaussians, str(path))
