// Projection of many Gaussians on the CPU: what the fused step calls and what Python calls.
#pragma once
#include <cstdint>

#include "cpu/splat_batch.h"

namespace maquette {

template <typename T>
struct ProjectSettings {
    const T* viewmat;  // 16 numbers by rows
    double fx, fy, cx, cy;
    int width, height;
    double near;
    int degree;
    bool antialias;
};

// Room for N splats each; normals may be null.
template <typename T>
struct ProjectedArrays {
    std::int32_t* ids;
    T *means2d, *conics, *opacities, *colors, *depths, *normals, *extents;
};

// Writes the visible splats in ascending order and returns how many there are.
template <typename T>
std::int64_t project_splats(const SplatArrays<T>& splats, const ProjectSettings<T>& settings,
                            const ProjectedArrays<T>& out);

}  // namespace maquette
