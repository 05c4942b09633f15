"""The state of a 3D Gaussian scene: parameters as stored, activations, selection, initialisation from points.

3D Gaussian Splatting (Kerbl et al. 2023). What the parameters mean and which activations they go through is 3DGS's own
(specs/recon.md, 0.4); how they are drawn is in `scene/rasterize.py`, how they are trained in `recon/gaussians.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from scene import sh

INITIAL_OPACITY = 0.1
LEAST_SQUARED_DISTANCE = 1e-7  # scene units^2; two points in the same place still get a splat with a size
LONE_POINT_SCALE = 0.1  # scene units; a single point has no neighbour to take its size from


@dataclass
class Gaussians:
    """A set of N Gaussians. All tensors share dtype and device; the stored values are not activated.

    means: [N, 3] world.  quats: [N, 4] wxyz, any length but zero.  log_scales: [N, 3] log of the axis lengths.
    opacity_logits: [N].  sh_dc: [N, 3].  sh_rest: [N, K, 3], K = 0, 3, 8 or 15 for degree 0 to 3.
    Raises ValueError when a shape, dtype or device does not match.
    """

    means: Tensor
    quats: Tensor
    log_scales: Tensor
    opacity_logits: Tensor
    sh_dc: Tensor
    sh_rest: Tensor

    def __post_init__(self) -> None:
        if self.means.dim() != 2 or self.sh_rest.dim() != 3:
            raise ValueError(
                f"means must be [N, 3] and sh_rest [N, K, 3], got {tuple(self.means.shape)} and "
                f"{tuple(self.sh_rest.shape)}"
            )
        n, rest = self.means.shape[0], self.sh_rest.shape[1]
        wanted = {
            "means": (n, 3),
            "quats": (n, 4),
            "log_scales": (n, 3),
            "opacity_logits": (n,),
            "sh_dc": (n, 3),
            "sh_rest": (n, rest, 3),
        }
        for name, tensor in self.parameters().items():
            if tuple(tensor.shape) != wanted[name]:
                raise ValueError(
                    f"{name} must be {list(wanted[name])} to match means, got {list(tensor.shape)}; "
                    "prune all of them together with Gaussians.select"
                )
            if tensor.dtype != self.means.dtype or tensor.device != self.means.device:
                raise ValueError(
                    f"{name} must be {self.means.dtype} on {self.means.device} as means is, got {tensor.dtype} on "
                    f"{tensor.device}"
                )
        sh.degree_of(rest + 1)

    def __len__(self) -> int:
        return self.means.shape[0]

    @property
    def scales(self) -> Tensor:
        """[N, 3] axis lengths (standard deviations) in scene units, > 0."""
        return self.log_scales.exp()

    @property
    def opacities(self) -> Tensor:
        """[N] in (0, 1)."""
        return torch.sigmoid(self.opacity_logits)

    @property
    def sh_coeffs(self) -> Tensor:
        """[N, (degree + 1)^2, 3], the constant term first."""
        return torch.cat([self.sh_dc[:, None], self.sh_rest], dim=1)

    @property
    def sh_degree(self) -> int:
        """Highest degree that is stored."""
        return sh.degree_of(self.sh_rest.shape[1] + 1)

    def parameters(self) -> dict[str, Tensor]:
        """The stored tensors by name, in a fixed order."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def select(self, index: Tensor) -> Gaussians:
        """Those named by `index`: a boolean mask [N] or integers, in the order given."""
        return Gaussians(**{name: tensor[index] for name, tensor in self.parameters().items()})

    def to(self, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Gaussians:
        """The same on another device or in another float type."""
        return Gaussians(**{name: tensor.to(device=device, dtype=dtype) for name, tensor in self.parameters().items()})

    def detach(self) -> Gaussians:
        """The same storage, cut off from the autograd graph."""
        return Gaussians(**{name: tensor.detach() for name, tensor in self.parameters().items()})

    def clone(self) -> Gaussians:
        """A copy with storage of its own."""
        return Gaussians(**{name: tensor.clone() for name, tensor in self.parameters().items()})

    def turned(self, matrix: Tensor) -> Gaussians:
        """The same light after x -> matrix x: means, axes and spherical harmonics turn, sizes and opacities stay.

        matrix: [3, 3] orthogonal, target from source; a mirror (determinant -1) is one too.
        Raises ValueError when it is not orthogonal.
        """
        matrix = matrix.detach().to(device=self.means.device, dtype=torch.float64)
        if not torch.allclose(matrix @ matrix.T, torch.eye(3).to(matrix), atol=1e-6):
            raise ValueError(f"splats are turned by an orthogonal matrix, got {matrix.tolist()}")
        # An ellipsoid is its own image through its centre: a mirror turns its axes as the rotation -matrix does.
        quat = _matrix_to_quat(matrix * torch.linalg.det(matrix).sign())
        coeffs = sh.rotate(self.sh_coeffs, matrix)
        return Gaussians(
            means=(self.means.double() @ matrix.T).to(self.means),
            quats=_quat_product(quat, self.quats.double()).to(self.quats),
            log_scales=self.log_scales,
            opacity_logits=self.opacity_logits,
            sh_dc=coeffs[:, 0],
            sh_rest=coeffs[:, 1:],
        )

    @staticmethod
    def concat(parts: Sequence[Gaussians]) -> Gaussians:
        """All of `parts` in one, in order.  Raises ValueError when there are none or their SH degrees differ."""
        if not parts or len({part.sh_degree for part in parts}) != 1:
            degrees = sorted({part.sh_degree for part in parts})
            raise ValueError(f"concat needs parts of one SH degree, got {len(parts)} parts of degrees {degrees}")
        return Gaussians(**{name: torch.cat([getattr(p, name) for p in parts]) for name in parts[0].parameters()})

    @staticmethod
    def from_points(xyz: Tensor, rgb: Tensor, *, sh_degree: int = 3, opacity: float = INITIAL_OPACITY) -> Gaussians:
        """One round Gaussian for each point, as large as the way to its neighbours.

        xyz: [P, 3]; rgb: [P, 3] uint8.  The scale is the root of the mean squared distance to the 3 nearest points
        (fewer where there are fewer).  Colours do not depend on the direction yet.
        Raises ValueError when the shapes differ or rgb is not uint8.
        """
        if xyz.dim() != 2 or xyz.shape[1] != 3 or rgb.shape != xyz.shape or rgb.dtype != torch.uint8:
            raise ValueError(
                f"xyz must be [P, 3] and rgb [P, 3] uint8, got {list(xyz.shape)} and {list(rgb.shape)} {rgb.dtype}"
            )
        count = xyz.shape[0]
        means = xyz.detach().to(torch.float32)
        quats = means.new_zeros(count, 4)
        quats[:, 0] = 1
        log_scales = (0.5 * _squared_spacing(means).log()).to(means)[:, None].repeat(1, 3)
        return Gaussians(
            means=means.clone(),
            quats=quats,
            log_scales=log_scales,
            opacity_logits=torch.logit(means.new_full((count,), opacity)),
            sh_dc=sh.from_rgb(rgb.to(means).clamp_min(1) / 255),  # exactly black would have no gradient: clamped colour
            sh_rest=means.new_zeros(count, sh.coefficients(sh_degree) - 1, 3),
        )


def _matrix_to_quat(rotation: Tensor) -> Tensor:
    """[4] unit wxyz of a rotation [3, 3]; from the largest of the four sums, so that none is divided by zero."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation.tolist()
    rows = [
        [1 + xx + yy + zz, zy - yz, xz - zx, yx - xy],
        [zy - yz, 1 + xx - yy - zz, xy + yx, xz + zx],
        [xz - zx, xy + yx, 1 - xx + yy - zz, yz + zy],
        [yx - xy, xz + zx, yz + zy, 1 - xx - yy + zz],
    ]  # 4 q q^T: each row is the quaternion, scaled
    largest = max(range(4), key=lambda i: rows[i][i])
    return torch.nn.functional.normalize(torch.tensor(rows[largest]).to(rotation), dim=0)


def _quat_product(first: Tensor, second: Tensor) -> Tensor:
    """[N, 4] wxyz of the rotation `second` [N, 4] followed by `first` [4]."""
    w, x, y, z = first.unbind(-1)
    matrix = torch.stack(
        [
            torch.stack([w, -x, -y, -z]),
            torch.stack([x, w, -z, y]),
            torch.stack([y, z, w, -x]),
            torch.stack([z, -y, x, w]),
        ]
    )
    return second @ matrix.T


def _squared_spacing(points: Tensor) -> Tensor:
    """[P] float64 mean squared distance to the 3 nearest other points."""
    count = points.shape[0]
    neighbours = min(3, count - 1)
    if neighbours < 1:
        return torch.full((count,), LONE_POINT_SCALE**2, dtype=torch.float64)
    xyz = points.cpu().double()
    try:
        from scipy.spatial import KDTree
    except ImportError:  # a bare machine: seconds for 30,000 points instead of a tenth of one
        distances = _nearest_reference(xyz, neighbours + 1)
    else:
        distances = torch.from_numpy(KDTree(xyz.numpy()).query(xyz.numpy(), k=neighbours + 1)[0])
    squared = distances[:, 1:].square().mean(dim=1)  # the nearest is the point itself
    return squared.clamp_min(LEAST_SQUARED_DISTANCE)


def _nearest_reference(points: Tensor, count: int) -> Tensor:
    """[P, count] distances of each point to the nearest ones, itself among them, by comparing all with all."""
    exact = "donot_use_mm_for_euclid_dist"  # products of matrices would lose the digits of points that lie close
    parts = [torch.cdist(part, points, compute_mode=exact) for part in points.split(256)]
    return torch.cat([part.topk(count, largest=False).values for part in parts])
