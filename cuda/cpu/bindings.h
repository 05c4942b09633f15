// Shared by the kernels' bindings: array types that accept no silent conversion, and what each file registers.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

namespace maquette {

template <typename T, typename... Shape>
using Array = nanobind::ndarray<T, nanobind::device::cpu, nanobind::c_contig, Shape...>;

void bind_adam(nanobind::module_& m);
void bind_color_mlp(nanobind::module_& m);
void bind_composite(nanobind::module_& m);
void bind_hash_encoding(nanobind::module_& m);
void bind_photometric_loss(nanobind::module_& m);
void bind_volume_loss(nanobind::module_& m);
void bind_total_variation(nanobind::module_& m);
void bind_masked_adam(nanobind::module_& m);
void bind_octree_render(nanobind::module_& m);
void bind_octree_train(nanobind::module_& m);
void bind_sh_color(nanobind::module_& m);
void bind_splat_blend(nanobind::module_& m);
void bind_splat_project(nanobind::module_& m);
void bind_splat_update(nanobind::module_& m);
void bind_texture(nanobind::module_& m);
void bind_tsdf(nanobind::module_& m);
void bind_triangle_tree(nanobind::module_& m);
void bind_trilinear(nanobind::module_& m);
void bind_grid_march(nanobind::module_& m);

}  // namespace maquette
