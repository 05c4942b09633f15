// Blocks of Gaussians, one per thread: how their rows come from memory, and the gradient of one of them. Shared by the
// projection (splat_project.cu) and the end of the training step (splat_update.cu).
//
// A row of harmonics is 180 bytes: a thread that walked its own would touch a sector for each number. The block walks
// the rows of all its splats together, neighbouring threads at neighbouring numbers, by way of shared memory.
#pragma once
#include "gpu/device.h"
#include "math/splat_shade.h"

namespace maquette {

constexpr int kSplats = 128;  // per block, one per thread
constexpr int kShared = 49;   // floats of shared memory per splat; odd, so that 32 threads in their rows meet 32 banks

// The parameters of all Gaussians, row-major; `rest` is the number of coefficients of sh_rest per Gaussian.
// Not __restrict__: the training step changes in place what these point to.
struct SplatPointers {
    const float *means, *quats, *log_scales, *opacity_logits, *sh_dc, *sh_rest;
    int rest;
};

// Gradients by the footprints, a row per thread of the grid; depths and normals may be null.
struct FootprintPointers {
    const float *means2d, *conics, *opacities, *colors, *depths, *normals;
};

// What MCMC adds to the gradient by each opacity and each axis length (eq. 10).
struct Pull {
    float opacity, scale;
};

template <int Value>
struct Constant {
    static constexpr int value = Value;
};

// Calls body with the degree as a compile-time constant; all threads take the same way.
template <typename Body>
__device__ inline void with_degree(int degree, const Body& body) {
    switch (degree) {
        case 0: return body(Constant<0>());
        case 1: return body(Constant<1>());
        case 2: return body(Constant<2>());
        default: return body(Constant<3>());
    }
}

__device__ inline Vec3<float> load3(const float* from, int row) {
    const float* at = from + 3LL * row;
    return {at[0], at[1], at[2]};
}

__device__ inline void store3(float* to, int row, const Vec3<float>& v) {
    float* at = to + 3LL * row;
    at[0] = v.x, at[1] = v.y, at[2] = v.z;
}

__device__ inline Splat<float> load_splat(const SplatPointers& from, int row) {
    const float* quat = from.quats + 4LL * row;
    return {load3(from.means, row),
            {quat[0], quat[1], quat[2], quat[3]},
            load3(from.log_scales, row),
            from.opacity_logits[row]};
}

// Visits the numbers of Width columns of the block's rows, in the order in which they lie in memory:
// body(splat of the block, its row, column). A row of -1 is left out.
template <int Width, typename Body>
__device__ inline void walk_rows(const int* rows, const Body& body) {
#pragma unroll 5  // reads in flight at once
    for (int i = int(threadIdx.x); i < Width * kSplats; i += kSplats) {
        const int splat = i / Width, row = rows[splat];
        if (row >= 0) body(splat, row, i - splat * Width);
    }
}

// Coefficients of the block's splats, three channels each: shared[kShared * splat + 3 * k + channel].
template <int Degree>
__device__ inline void load_harmonics(const SplatPointers& from, const int* rows, float* shared) {
    walk_rows<3>(rows, [&](int splat, int row, int column) {
        shared[kShared * splat + column] = from.sh_dc[3LL * row + column];
    });
    if constexpr (Degree > 0)
        walk_rows<3 * (sh_count(Degree) - 1)>(rows, [&](int splat, int row, int column) {
            shared[kShared * splat + 3 + column] = from.sh_rest[3LL * from.rest * row + column];
        });
}

using HarmonicRow = const float (*)[3];

__device__ inline HarmonicRow harmonics_of(const float* shared, int splat) {
    return reinterpret_cast<HarmonicRow>(shared + kShared * splat);
}

// Where the gradient of a splat lies in its row of shared memory, once its coefficients have been used.
constexpr int kMean = 0, kQuat = 3, kLogScales = 7, kLogit = 10, kColor = 11, kBasis = 14, kView = 30;
constexpr int kViewSums = 15;  // rotation by rows, translation, centre
static_assert(kView + kViewSums <= kShared, "a gradient must fit where the coefficients were");

// Back-propagates the footprint `at` of the splat; `own` is its row of shared memory, which holds its coefficients
// before and its gradient after. That of coefficient k, channel c is own[kBasis + k] * own[kColor + c].
template <int Degree>
__device__ inline void splat_backward(const View<float>& view, const Splat<float>& splat, const float* colors,
                                      const FootprintPointers& v, int at, bool antialias, const Pull& pull,
                                      bool with_view, float* own) {
    const Projection<float> p = project_splat(view, splat, antialias);
    const Sight<Degree, float> sight(view, splat.mean);
    const Vec3<float> v_color = clamp_backward(load3(colors, at), load3(v.colors, at));
    const Vec3<float> v_sight = sight_backward(sight, reinterpret_cast<HarmonicRow>(own), v_color);

    Mat3<float> v_axes = {{0, 0, 0}, {0, 0, 0}, {0, 0, 0}};
    if (v.normals) {
        const Normal<float> normal = normal_of(p.axes, splat.log_scales, sight.from_camera);
        v_axes = outer(normal.sign * load3(v.normals, at), normal.which);
    }
    const Vec3<float> v_conic = load3(v.conics, at);
    const Footprint<float> v_out = {v.means2d[2LL * at], v.means2d[2LL * at + 1], v_conic.x, v_conic.y, v_conic.z,
                                    v.opacities[at], v.depths ? v.depths[at] : 0.0f};
    const SplatGradient<float> g = project_splat_backward(view, splat, p, v_out, v_axes, antialias);

    store3(own + kMean, 0, g.splat.mean + v_sight);
    const Quat<float>& quat = g.splat.quat;
    own[kQuat] = quat.w, own[kQuat + 1] = quat.x, own[kQuat + 2] = quat.y, own[kQuat + 3] = quat.z;
    store3(own + kLogScales, 0, g.splat.log_scales + pull.scale * p.scales);
    own[kLogit] = g.splat.opacity_logit + pull.opacity * p.sigmoid * (1.0f - p.sigmoid);
    store3(own + kColor, 0, v_color);
    for (int k = 0; k < sh_count(Degree); ++k) own[kBasis + k] = sight.basis[k];
    if (!with_view) return;
    store3(own + kView, 0, g.rotation.r0), store3(own + kView, 1, g.rotation.r1), store3(own + kView, 2, g.rotation.r2);
    store3(own + kView, 3, g.in_camera), store3(own + kView, 4, -1.0f * v_sight);
}

// The gradient by number `column` of the splat's coefficients, the first three being sh_dc.
__device__ inline float harmonic_gradient(const float* own, int column) {
    const int k = column / 3;
    return own[kBasis + k] * own[kColor + column - 3 * k];
}

}  // namespace maquette
