"""The GPU's counterpart of the compiled CPU module: the same functions and classes, float32, on CUDA tensors.

`native.kernels(device)` gives either; the ops know only that. Each file here drives the kernels of one cuda/gpu/*.cu.
"""

from scene.ops.gpu.adam import adam
from scene.ops.gpu.composite import composite
from scene.ops.gpu.photometric_loss import photometric_loss
from scene.ops.gpu.splat_bin import SplatBins
from scene.ops.gpu.splat_blend import SplatBlend
from scene.ops.gpu.splat_project import project_splats, project_splats_backward, project_splats_dense
from scene.ops.gpu.splat_update import update_splats
from scene.ops.gpu.texture import blend_texels, cover, gather_photo, mesh_depth
from scene.ops.gpu.tsdf import tsdf_integrate

__all__ = [
    "SplatBins",
    "SplatBlend",
    "adam",
    "blend_texels",
    "composite",
    "cover",
    "gather_photo",
    "mesh_depth",
    "photometric_loss",
    "project_splats",
    "project_splats_backward",
    "project_splats_dense",
    "tsdf_integrate",
    "update_splats",
]
