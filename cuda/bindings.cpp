// The Python face of the CPU kernels. Each kernel file registers its own functions.
#include <nanobind/nanobind.h>

#include "cpu/bindings.h"
#include "cpu/parallel.h"

namespace nb = nanobind;

NB_MODULE(MAQUETTE_MODULE, m) {
    // Workspaces kept for reuse live until the interpreter ends; nanobind would list them on the console as leaks.
    nb::set_leak_warnings(false);
    m.def("set_threads", &maquette::set_threads, nb::arg("count"),
          "Number of threads the kernels use, the calling one included.");
    m.def("threads", &maquette::threads);
    maquette::bind_adam(m);
    maquette::bind_color_mlp(m);
    maquette::bind_composite(m);
    maquette::bind_hash_encoding(m);
    maquette::bind_photometric_loss(m);
    maquette::bind_volume_loss(m);
    maquette::bind_total_variation(m);
    maquette::bind_masked_adam(m);
    maquette::bind_octree_render(m);
    maquette::bind_octree_train(m);
    maquette::bind_sh_color(m);
    maquette::bind_splat_blend(m);
    maquette::bind_splat_project(m);
    maquette::bind_splat_update(m);
    maquette::bind_texture(m);
    maquette::bind_tsdf(m);
    maquette::bind_triangle_tree(m);
    maquette::bind_trilinear(m);
    maquette::bind_grid_march(m);
}
