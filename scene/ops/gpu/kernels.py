"""The GPU's counterpart of the compiled CPU module: the same functions and classes, float32, on CUDA tensors.

`native.kernels(device)` gives either; the ops know only that. Each file here drives the kernels of one cuda/gpu/*.cu.
"""

from scene.ops.gpu.adam import adam
from scene.ops.gpu.composite import composite
from scene.ops.gpu.grid_march import GridMarch, grid_hits
from scene.ops.gpu.hash_encoding import hash_encode, hash_encode_backward, hash_encode_slopes
from scene.ops.gpu.masked_adam import masked_adam
from scene.ops.gpu.octree_render import octree_render
from scene.ops.gpu.octree_train import OctreeTrainer, octree_backward, octree_weights
from scene.ops.gpu.photometric_loss import photometric_loss
from scene.ops.gpu.sh_color import sh_color, sh_color_backward
from scene.ops.gpu.splat_bin import SplatBins
from scene.ops.gpu.splat_blend import SplatBlend
from scene.ops.gpu.splat_project import project_splats, project_splats_backward, project_splats_dense
from scene.ops.gpu.splat_update import update_splats
from scene.ops.gpu.texture import blend_texels, cover, gather_photo, mesh_depth
from scene.ops.gpu.total_variation import total_variation, total_variation_rows
from scene.ops.gpu.trilinear import trilinear, trilinear_backward
from scene.ops.gpu.tsdf import tsdf_integrate
from scene.ops.gpu.volume_loss import composite_rays, volume_loss

__all__ = [
    "GridMarch",
    "OctreeTrainer",
    "SplatBins",
    "SplatBlend",
    "adam",
    "blend_texels",
    "composite",
    "composite_rays",
    "cover",
    "gather_photo",
    "grid_hits",
    "hash_encode",
    "hash_encode_backward",
    "hash_encode_slopes",
    "masked_adam",
    "mesh_depth",
    "octree_backward",
    "octree_render",
    "octree_weights",
    "photometric_loss",
    "project_splats",
    "project_splats_backward",
    "project_splats_dense",
    "sh_color",
    "sh_color_backward",
    "total_variation",
    "total_variation_rows",
    "trilinear",
    "trilinear_backward",
    "tsdf_integrate",
    "update_splats",
    "volume_loss",
]
