// What decides that a camera sees a Gaussian, and the colour it sees: spherical harmonics along the line of sight plus
// 0.5, held at zero (3DGS), with the gradient.
#pragma once
#include "math/sh.h"
#include "math/splat_project.h"

namespace maquette {

template <typename S>
MQ_HD auto finite(const S* values, int count) {
    S sum(0);
    for (int i = 0; i < count; ++i) sum = sum + values[i] * S(0);  // 0, or NaN from NaN and Inf
    return sum == S(0);
}

// Half width and height of the box outside which alpha is less than kAlphaMin, px.
template <typename S>
struct Extent {
    S x, y;
};

template <typename S>
MQ_HD Extent<S> extent_of(const Projection<S>& p) {
    const S reach = reach_of(p.out.opacity), blur(kBlur);
    return {reach * sqrt(p.plain_xx + blur), reach * sqrt(p.plain_yy + blur)};
}

// Whether a splat is drawn, as far as its colour does not matter: all numbers finite, in front, not too faint, and its
// box covers the centre of a pixel.
template <typename S>
MQ_HD auto is_seen(const View<S>& view, const Splat<S>& s, const Projection<S>& p, const Extent<S>& extent) {
    const S stored[11] = {s.mean.x,       s.mean.y,       s.mean.z,       s.quat.w,       s.quat.x, s.quat.y,
                          s.quat.z,       s.log_scales.x, s.log_scales.y, s.log_scales.z, s.opacity_logit};
    const S fields[10] = {p.out.mean_x, p.out.mean_y, p.out.conic_xx, p.out.conic_xy, p.out.conic_yy,
                          p.out.opacity, p.out.depth, extent.x, extent.y, p.det_plain};
    const S half(0.5);
    return finite(stored, 11) & finite(fields, 10) & (p.out.depth > view.near) &
           (squared_length(s.quat) > S(kLeastSquaredQuat)) & (p.out.opacity >= S(kAlphaMin)) &
           (p.out.mean_x + extent.x >= half) & (p.out.mean_y + extent.y >= half) &
           (p.out.mean_x - extent.x <= view.width - half) & (p.out.mean_y - extent.y <= view.height - half);
}

// The direction from which a splat is seen, and the basis functions there.
template <int Degree, typename S>
struct Sight {
    Vec3<S> from_camera, direction;
    S inverse_distance;
    S basis[sh_count(Degree)];

    MQ_HD Sight(const View<S>& view, const Vec3<S>& mean) {
        from_camera = mean - view.center;
        inverse_distance = S(1) / sqrt(dot(from_camera, from_camera));
        direction = inverse_distance * from_camera;
        sh_basis<Degree>(direction, basis);
    }

    // Before the clamp at zero; sh[k][channel] are the coefficients.
    template <typename Rows>
    MQ_HD Vec3<S> color(const Rows& sh) const {
        Vec3<S> sum = {S(0.5), S(0.5), S(0.5)};
        for (int k = 0; k < sh_count(Degree); ++k) {
            sum.x += basis[k] * sh[k][0];
            sum.y += basis[k] * sh[k][1];
            sum.z += basis[k] * sh[k][2];
        }
        return sum;
    }
};

// Gradient by the colour before the clamp, from the one by the colour after it.
template <typename S>
MQ_HD Vec3<S> clamp_backward(const Vec3<S>& color, const Vec3<S>& v) {
    const S zero(0);
    return {select(color.x > zero, v.x, zero), select(color.y > zero, v.y, zero), select(color.z > zero, v.z, zero)};
}

// Gradient by the mean through the direction of sight; v: by the colour before the clamp. The gradient of coefficient
// k, channel c is basis[k] * v[c].
template <int Degree, typename S, typename Rows>
MQ_HD Vec3<S> sight_backward(const Sight<Degree, S>& sight, const Rows& sh, const Vec3<S>& v) {
    S v_basis[sh_count(Degree)];
    for (int k = 0; k < sh_count(Degree); ++k) v_basis[k] = sh[k][0] * v.x + sh[k][1] * v.y + sh[k][2] * v.z;
    const Vec3<S> v_direction = sh_basis_backward<Degree>(sight.direction, v_basis);
    return normalize_backward(sight.direction, sight.inverse_distance, v_direction);
}

}  // namespace maquette
