// Blending of projected splats at one pixel, front to back, and its gradient. Equations: scene/ops/splat_blend.py.
//
// S is the scalar of a splat, R that of a pixel: the same, or a vector of pixels (cuda/cpu/simd.h). 2^x is the
// caller's, because it is what processors differ in most.
#pragma once
#include "math/vec.h"

namespace maquette {

constexpr double kMaxAlpha = 0.999;          // keeps 1 / (1 - alpha) finite in the gradient
constexpr double kMinAlpha = 1.0 / 255.0;    // below, an 8-bit screen shows nothing
constexpr double kMinTransmittance = 1e-4;   // less light than this changes no 8-bit pixel
constexpr double kLog2E = 1.4426950408889634, kLn2 = 0.6931471805599453;

#ifdef __CUDA_ARCH__
// To 1 ulp, one instruction where the division takes ten; the backward pass takes one at every pixel of every splat.
__device__ inline float reciprocal(float a) {
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(a));
    return inverse;
}
#else
MQ_HD float reciprocal(float a) { return 1.0f / a; }
#endif
MQ_HD double reciprocal(double a) { return 1.0 / a; }
MQ_HD float absolute(float a) { return a < 0 ? -a : a; }
MQ_HD double absolute(double a) { return a < 0 ? -a : a; }
template <typename S> MQ_HD bool at_least(S a, S b) { return a >= b; }
template <typename S> MQ_HD bool below(S a, S b) { return a < b; }
MQ_HD bool both(bool a, bool b) { return a && b; }
template <typename S> MQ_HD S choose(bool first, S a, S b) { return first ? a : b; }
template <typename S> MQ_HD S keep(bool kept, S a) { return kept ? a : S(0); }
template <typename S> MQ_HD S at_most(S a, S bound) { return a < bound ? a : bound; }

// A splat as the loops read it: 16 numbers, one cache line in float32. With d = mean - pixel,
// log2 alpha = log2_opacity + xx dx^2 + xy dx dy + yy dy^2.
template <typename S>
struct SplatRecord {
    S mean_x, mean_y, xx, xy, yy, log2_opacity, inverse_opacity;
    S red, green, blue;
    S z, normal_x, normal_y, normal_z;
    S unused[2];
};

template <typename S>
MQ_HD void set_shape(SplatRecord<S>& splat, const S* mean2d, const S* conic, S log2_opacity) {
    splat.mean_x = mean2d[0], splat.mean_y = mean2d[1];
    splat.xx = S(-0.5 * kLog2E) * conic[0], splat.xy = S(-kLog2E) * conic[1], splat.yy = S(-0.5 * kLog2E) * conic[2];
    splat.log2_opacity = log2_opacity;
}

template <typename R, typename S>
MQ_HD R log2_alpha(const SplatRecord<S>& splat, R dx, R dy) {
    const R along_y = R(splat.yy) * dy * dy + R(splat.log2_opacity);
    return (R(splat.xx) * dx + R(splat.xy) * dy) * dx + along_y;
}

#if defined(__CUDACC__) || defined(MQ_HOST_SHIM)
// On the device in so many words: left to the compiler, forward and backward could round it differently, and a pixel at
// a cut-off would see a splat in one and not in the other.
MQ_HD float log2_alpha(const SplatRecord<float>& splat, float dx, float dy) {
    const float along_y = fmaf(splat.yy * dy, dy, splat.log2_opacity);
    return fmaf(fmaf(splat.xx, dx, splat.xy * dy), dx, along_y);
}
#endif

// A pixel on its way through the splats. Where it stops, `transmittance` stays and `light` goes on falling: the chain
// from splat to splat is then a single product, which decides how fast the loop can run.
template <typename R>
struct PixelSums {
    R light, transmittance, red, green, blue;
    R z, normal_x, normal_y, normal_z, median_depth;  // geometry only
};

// alpha: 2^log2_alpha, not yet clamped.
template <bool kGeometry, typename R, typename S>
MQ_HD void add_splat(PixelSums<R>& pixel, const SplatRecord<S>& splat, R alpha) {
    alpha = keep(at_least(alpha, R(kMinAlpha)), at_most(alpha, R(kMaxAlpha)));
    const auto open = at_least(pixel.light, R(kMinTransmittance));
    const R weight = keep(open, alpha * pixel.light);
    const R after = pixel.light * (R(1) - alpha);
    pixel.red += weight * R(splat.red), pixel.green += weight * R(splat.green), pixel.blue += weight * R(splat.blue);
    if constexpr (kGeometry) {
        pixel.z += weight * R(splat.z);
        pixel.normal_x += weight * R(splat.normal_x);
        pixel.normal_y += weight * R(splat.normal_y);
        pixel.normal_z += weight * R(splat.normal_z);
        const auto crosses = both(at_least(pixel.light, R(0.5)), below(after, R(0.5)));
        pixel.median_depth = choose(crosses, R(splat.z), pixel.median_depth);
    }
    pixel.transmittance = choose(open, after, pixel.transmittance);
    pixel.light = after;
}

// A pixel on its way through the splats a second time, front to back again: T is then the same to the last bit, and
// what lies behind is the whole less what was passed.
template <typename R>
struct PixelGradient {
    R light;
    R behind;                                // R_i of the docstring: gradient-weighted light from behind splat i
    R v_red, v_green, v_blue;                // upstream
    R v_z, v_normal_x, v_normal_y, v_normal_z;  // geometry only
};

// Sums over pixels, from which the gradients of one splat follow; v = alpha dL/dalpha, w = weight.
enum SplatSum {
    kV, kVDx, kVDy, kVDxDx, kVDxDy, kVDyDy, kWRed, kWGreen, kWBlue,
    kAbsX, kAbsY,                          // absgrad only: |v dlog2(alpha)/dmean|
    kWZ, kWNormalX, kWNormalY, kWNormalZ,  // geometry only
    kSplatSums = 16                        // a cache line in float32
};

// What a pixel says of a splat: v and w of the sums.
template <typename R>
struct PixelShare {
    R v, weight;
};

// Takes the pixel past the splat.
template <bool kGeometry, typename R, typename S>
MQ_HD PixelShare<R> pass_splat(PixelGradient<R>& pixel, const SplatRecord<S>& splat, R alpha) {
    const auto follows = below(alpha, R(kMaxAlpha));  // a clamped alpha does not follow its splat
    alpha = keep(at_least(alpha, R(kMinAlpha)), at_most(alpha, R(kMaxAlpha)));
    const auto open = at_least(pixel.light, R(kMinTransmittance));
    const R rest = R(1) - alpha, weight = keep(open, alpha * pixel.light);
    pixel.light = pixel.light * rest;
    R g = R(splat.red) * pixel.v_red + R(splat.green) * pixel.v_green + R(splat.blue) * pixel.v_blue;
    if constexpr (kGeometry)
        g += R(splat.z) * pixel.v_z + R(splat.normal_x) * pixel.v_normal_x + R(splat.normal_y) * pixel.v_normal_y +
             R(splat.normal_z) * pixel.v_normal_z;
    pixel.behind -= weight * g;
    return {keep(both(open, follows), weight * g - alpha * (pixel.behind * reciprocal(rest))), weight};
}

// The sums of w. A adds up R: the same, or one vector for several.
template <bool kGeometry, typename A, typename R>
MQ_HD void add_weighted(A* sums, const PixelGradient<R>& pixel, R weight) {
    sums[kWRed] += weight * pixel.v_red, sums[kWGreen] += weight * pixel.v_green;
    sums[kWBlue] += weight * pixel.v_blue;
    if constexpr (kGeometry) {
        sums[kWZ] += weight * pixel.v_z;
        sums[kWNormalX] += weight * pixel.v_normal_x, sums[kWNormalY] += weight * pixel.v_normal_y;
        sums[kWNormalZ] += weight * pixel.v_normal_z;
    }
}

template <typename A, typename R, typename S>
MQ_HD void add_absolute(A* sums, const SplatRecord<S>& splat, R v_dx, R v_dy) {
    sums[kAbsX] += absolute(R(S(2) * splat.xx) * v_dx + R(splat.xy) * v_dy);
    sums[kAbsY] += absolute(R(splat.xy) * v_dx + R(S(2) * splat.yy) * v_dy);
}

template <bool kGeometry, bool kAbsgrad, typename A, typename R, typename S>
MQ_HD void add_gradient(A* sums, PixelGradient<R>& pixel, const SplatRecord<S>& splat, R dx, R dy, R alpha) {
    const PixelShare<R> share = pass_splat<kGeometry>(pixel, splat, alpha);
    const R v_dx = share.v * dx, v_dy = share.v * dy;
    sums[kV] += share.v, sums[kVDx] += v_dx, sums[kVDy] += v_dy;
    sums[kVDxDx] += v_dx * dx, sums[kVDxDy] += v_dx * dy, sums[kVDyDy] += v_dy * dy;
    add_weighted<kGeometry>(sums, pixel, share.weight);
    if constexpr (kAbsgrad) add_absolute(sums, splat, v_dx, v_dy);
}

template <typename S>
struct SplatGradient {
    S mean2d[2], conic[3], opacity, color[3], z, normal[3], abs_mean2d[2];
};

// d log2(alpha) / d mean_x = 2 xx dx + xy dy, and so on; the record's shape is scaled by log2(e), hence ln 2.
template <typename S>
MQ_HD SplatGradient<S> splat_gradient(const SplatRecord<S>& splat, const S* sums) {
    const S ln2 = S(kLn2), half = S(0.5), two = S(2);
    return {{ln2 * (two * splat.xx * sums[kVDx] + splat.xy * sums[kVDy]),
             ln2 * (splat.xy * sums[kVDx] + two * splat.yy * sums[kVDy])},
            {-half * sums[kVDxDx], -sums[kVDxDy], -half * sums[kVDyDy]},
            sums[kV] * splat.inverse_opacity,
            {sums[kWRed], sums[kWGreen], sums[kWBlue]},
            sums[kWZ],
            {sums[kWNormalX], sums[kWNormalY], sums[kWNormalZ]},
            {ln2 * sums[kAbsX], ln2 * sums[kAbsY]}};
}

}  // namespace maquette
