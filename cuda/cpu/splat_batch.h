// Batches of Gaussians, one per SIMD lane: read from and written to the row-major arrays of the Python side, coloured
// by spherical harmonics, and sent through the projection's gradient. Shared by the projection and the fused step.
#pragma once
#include <cstdint>

#include "cpu/lanes.h"
#include "math/splat_shade.h"

namespace maquette {

template <typename T>
using Batch = Lanes<T, kVectorBytes / int(sizeof(T))>;

// The parameters of all N Gaussians, row-major; `rest` is the number of coefficients of sh_rest per Gaussian.
template <typename T>
struct SplatArrays {
    const T *means, *quats, *log_scales, *opacity_logits, *sh_dc, *sh_rest;
    std::int64_t count;
    int rest;
};

// Gradients by the V visible splats' footprints; depths and normals may be null.
template <typename T>
struct FootprintGradients {
    const T *means2d, *conics, *opacities, *colors, *depths, *normals;
};

// Rows of at least a vector's width go through registers, a square of N rows and N components at a time; the last
// square overlaps the one before.
template <int Components, int N, typename Body>
MQ_INLINE void for_squares(const Body& body) {
    for (int c = 0; c + N < Components; c += N) body(c);
    body(Components - N);
}

// out[c][lane] = from[rows[lane] * stride + c]
template <int Components, typename L, typename T>
MQ_INLINE void gather_rows(const T* from, std::int64_t stride, const std::int32_t* rows, L* out) {
    if constexpr (Components >= L::count) {
        for_squares<Components, L::count>([&](int c) {
            for (int lane = 0; lane < L::count; ++lane) out[c + lane] = L::load(from + rows[lane] * stride + c);
            L::transpose(out + c);
        });
        return;
    }
    alignas(kVectorBytes) T buffer[Components][L::count];
    for (int lane = 0; lane < L::count; ++lane) {
        const T* row = from + rows[lane] * stride;
        for (int c = 0; c < Components; ++c) buffer[c][lane] = row[c];
    }
    for (int c = 0; c < Components; ++c) out[c] = L::load(buffer[c]);
}

// The same for `valid` rows that follow each other; lanes beyond are zero.
template <int Components, typename L, typename T>
MQ_INLINE void load_rows(const T* from, int valid, L* out) {
    alignas(kVectorBytes) T buffer[Components][L::count] = {};
    for (int lane = 0; lane < valid; ++lane)
        for (int c = 0; c < Components; ++c) buffer[c][lane] = from[lane * Components + c];
    for (int c = 0; c < Components; ++c) out[c] = L::load(buffer[c]);
}

// to[rows[lane] * stride + c] = in[c][lane] for the first `valid` lanes.
template <int Components, typename L, typename T>
MQ_INLINE void scatter_rows(T* to, std::int64_t stride, const std::int32_t* rows, int valid, const L* in) {
    if constexpr (Components >= L::count) {
        for_squares<Components, L::count>([&](int c) {
            L square[L::count];
            for (int i = 0; i < L::count; ++i) square[i] = in[c + i];
            L::transpose(square);
            for (int lane = 0; lane < valid; ++lane) square[lane].store(to + rows[lane] * stride + c);
        });
        return;
    }
    alignas(kVectorBytes) T buffer[Components][L::count];
    for (int c = 0; c < Components; ++c) in[c].store(buffer[c]);
    for (int lane = 0; lane < valid; ++lane)
        for (int c = 0; c < Components; ++c) to[rows[lane] * stride + c] = buffer[c][lane];
}

template <typename L, typename T>
MQ_INLINE Splat<L> gather_splats(const SplatArrays<T>& arrays, const std::int32_t* rows) {
    L mean[3], quat[4], scale[3], logit;
    gather_rows<3>(arrays.means, 3, rows, mean);
    gather_rows<4>(arrays.quats, 4, rows, quat);
    gather_rows<3>(arrays.log_scales, 3, rows, scale);
    gather_rows<1>(arrays.opacity_logits, 1, rows, &logit);
    return {{mean[0], mean[1], mean[2]}, {quat[0], quat[1], quat[2], quat[3]}, {scale[0], scale[1], scale[2]}, logit};
}

// Coefficients of the first sh_count(Degree) basis functions, three channels each.
template <int Degree, typename L>
struct Coefficients {
    L values[sh_count(Degree)][3];
};

template <int Degree, typename L, typename T>
MQ_INLINE void gather_coefficients(const SplatArrays<T>& arrays, const std::int32_t* rows,
                                   Coefficients<Degree, L>& out) {
    gather_rows<3>(arrays.sh_dc, 3, rows, out.values[0]);
    if constexpr (Degree > 0)
        gather_rows<3 * (sh_count(Degree) - 1)>(arrays.sh_rest, 3 * arrays.rest, rows, out.values[1]);
}

// Gradients of one batch. That of coefficient k, channel c is basis[k] * color[c].
template <int Degree, typename L>
struct BatchGradient {
    Splat<L> splat;
    Vec3<L> color;
    L basis[sh_count(Degree)];
    ViewGradient<L> view;
};

// What else pulls on opacities and scales: gradients by each opacity and each axis length (MCMC, eq. 10).
struct Pull {
    double opacity = 0, scale = 0;
};

// Rows of the visible splats [first, end), one batch of them; the last is repeated beyond the end. Returns how many.
template <typename L>
MQ_INLINE int pick_rows(const std::int32_t* ids, std::int64_t first, std::int64_t end, std::int32_t* rows) {
    const int valid = int(end - first < L::count ? end - first : L::count);
    for (int lane = 0; lane < L::count; ++lane) rows[lane] = ids[first + (lane < valid ? lane : valid - 1)];
    return valid;
}

// Back-propagates `valid` visible splats that start at `first` of the compact gradients; `colors` are the forward's.
template <int Degree, typename L, typename T>
MQ_INLINE void backward_batch(const View<L>& view, const Splat<L>& splat, const Coefficients<Degree, L>& sh,
                              const FootprintGradients<T>& v, const T* colors, std::int64_t first, int valid,
                              bool antialias, const Pull& pull, BatchGradient<Degree, L>& out) {
    const L zero(0);
    L mean2d[2], conic[3], opacity, depth, color[3], v_color[3];
    load_rows<2>(v.means2d + 2 * first, valid, mean2d);
    load_rows<3>(v.conics + 3 * first, valid, conic);
    load_rows<1>(v.opacities + first, valid, &opacity);
    depth = zero;
    if (v.depths) load_rows<1>(v.depths + first, valid, &depth);
    load_rows<3>(colors + 3 * first, valid, color);
    load_rows<3>(v.colors + 3 * first, valid, v_color);

    const Projection<L> projection = project_splat(view, splat, antialias);
    const Sight<Degree, L> sight(view, splat.mean);
    Mat3<L> v_axes = {{zero, zero, zero}, {zero, zero, zero}, {zero, zero, zero}};
    if (v.normals) {
        L v_normal[3];
        load_rows<3>(v.normals + 3 * first, valid, v_normal);
        const Normal<L> normal = normal_of(projection.axes, splat.log_scales, sight.from_camera);
        v_axes = outer(normal.sign * Vec3<L>{v_normal[0], v_normal[1], v_normal[2]}, normal.which);
    }
    const Footprint<L> v_out = {mean2d[0], mean2d[1], conic[0], conic[1], conic[2], opacity, depth};
    const SplatGradient<L> g = project_splat_backward(view, splat, projection, v_out, v_axes, antialias);

    // Colour: through the clamp at zero, to the coefficients and to the direction.
    out.color = clamp_backward(Vec3<L>{color[0], color[1], color[2]}, Vec3<L>{v_color[0], v_color[1], v_color[2]});
    for (int k = 0; k < sh_count(Degree); ++k) out.basis[k] = sight.basis[k];
    const Vec3<L> v_mean = sight_backward(sight, sh.values, out.color);
    out.splat = g.splat;
    out.splat.mean = g.splat.mean + v_mean;
    out.splat.opacity_logit += L(pull.opacity) * projection.sigmoid * (L(1) - projection.sigmoid);
    out.splat.log_scales = out.splat.log_scales + L(pull.scale) * projection.scales;
    out.view = {g.rotation, g.in_camera, L(-1) * v_mean};
}

// Calls body with the degree as a compile-time constant.
template <typename Body>
void with_degree(int degree, const Body& body) {
    switch (degree) {
        case 0: return body(std::integral_constant<int, 0>());
        case 1: return body(std::integral_constant<int, 1>());
        case 2: return body(std::integral_constant<int, 2>());
        default: return body(std::integral_constant<int, 3>());
    }
}

}  // namespace maquette
