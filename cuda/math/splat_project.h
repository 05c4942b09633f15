// A Gaussian as a camera sees it: the ellipse (EWA splatting), its opacity, and the gradient of all of it.
//
// Symbols (3DGS, eq. 5 and 6): W -> view.rotation, J -> the two rows fx/z (1, 0, -tan_x), fy/z (0, 1, -tan_y),
// R -> axes, S -> scales. Everything follows from the rows h0, h1 of J W R S: the covariance is h h^T + blur I, and its
// determinant is written as a sum of squares, so that a needle keeps its shape in float32.
#pragma once
#include "math/quat.h"
#include "math/vec.h"

namespace maquette {

constexpr double kBlur = 0.3;                  // px^2; a splat thinner than a pixel would flicker as the camera moves
constexpr double kAlphaMin = 1.0 / 255.0;      // less is not drawn
constexpr double kFrustumMargin = 0.3;         // of tan(fov/2), beyond the image, where J is held (3DGS: 1.3 tan(fov/2))
constexpr double kLeastSquaredQuat = 1e-24;    // shorter quaternions name no direction
constexpr double kLeastCompensation = 2.5e-5;  // Mip-Splatting's floor of det / det', under the root

template <typename S>
struct View {
    Mat3<S> rotation;     // camera from world
    Vec3<S> translation;
    Vec3<S> center;       // -rotation^T translation
    S fx, fy, cx, cy, width, height;
    S tan_x_min, tan_x_max, tan_y_min, tan_y_max;
    S near;

    // viewmat: 16 numbers by rows. Number: double on the host; float on a GPU, where a double costs 64 times as much.
    template <typename T, typename Number>
    static MQ_HD View make(const T* m, Number fx, Number fy, Number cx, Number cy, int width, int height,
                           Number near) {
        View view;
        view.rotation = {{S(m[0]), S(m[1]), S(m[2])}, {S(m[4]), S(m[5]), S(m[6])}, {S(m[8]), S(m[9]), S(m[10])}};
        view.translation = {S(m[3]), S(m[7]), S(m[11])};
        view.center = S(-1) * (transpose(view.rotation) * view.translation);
        view.fx = S(fx), view.fy = S(fy), view.cx = S(cx), view.cy = S(cy);
        view.width = S(width), view.height = S(height);
        const Number margin(kFrustumMargin * 0.5), margin_x = margin * width / fx, margin_y = margin * height / fy;
        view.tan_x_min = S(-cx / fx - margin_x), view.tan_x_max = S((width - cx) / fx + margin_x);
        view.tan_y_min = S(-cy / fy - margin_y), view.tan_y_max = S((height - cy) / fy + margin_y);
        view.near = S(near);
        return view;
    }
};

// What a Gaussian stores, colour aside.
template <typename S>
struct Splat {
    Vec3<S> mean;
    Quat<S> quat;
    Vec3<S> log_scales;
    S opacity_logit;
};

// What the next stages see of it, colour aside. Gradients have the same form.
template <typename S>
struct Footprint {
    S mean_x, mean_y;                  // px
    S conic_xx, conic_xy, conic_yy;    // inverse covariance, px^-2
    S opacity;                         // after compensation
    S depth;                           // camera z
};

// A projection with everything its gradient needs.
template <typename S>
struct Projection {
    Footprint<S> out;
    Vec3<S> in_camera;
    S inverse_z, tan_x, tan_y;  // tangents as held
    Quat<S> quat;               // unit
    S inverse_quat_length;
    Mat3<S> axes, axes_in_camera;  // columns: the splat's axes
    Vec3<S> scales, h0, h1;
    S plain_xx, plain_xy, plain_yy, det_plain, inverse_det;
    S sigmoid, compensation;
};

template <typename S>
MQ_HD Projection<S> project_splat(const View<S>& view, const Splat<S>& splat, bool antialias) {
    Projection<S> p;
    p.in_camera = view.rotation * splat.mean + view.translation;
    p.inverse_z = S(1) / p.in_camera.z;
    const S tan_x = p.in_camera.x * p.inverse_z, tan_y = p.in_camera.y * p.inverse_z;
    p.tan_x = minimum(maximum(tan_x, view.tan_x_min), view.tan_x_max);
    p.tan_y = minimum(maximum(tan_y, view.tan_y_min), view.tan_y_max);

    p.inverse_quat_length = S(1) / sqrt(squared_length(splat.quat));
    p.quat = scaled(p.inverse_quat_length, splat.quat);
    p.axes = rotation_of_unit(p.quat);
    p.axes_in_camera = view.rotation * p.axes;
    p.scales = {exp(splat.log_scales.x), exp(splat.log_scales.y), exp(splat.log_scales.z)};
    const Mat3<S>& b = p.axes_in_camera;
    p.h0 = (view.fx * p.inverse_z) * (p.scales * (b.r0 - p.tan_x * b.r2));
    p.h1 = (view.fy * p.inverse_z) * (p.scales * (b.r1 - p.tan_y * b.r2));
    p.plain_xx = dot(p.h0, p.h0), p.plain_xy = dot(p.h0, p.h1), p.plain_yy = dot(p.h1, p.h1);
    const Vec3<S> minors = cross(p.h0, p.h1);
    p.det_plain = dot(minors, minors);  // Cauchy-Binet: never negative
    const S blur(kBlur);
    const S det = p.det_plain + blur * (p.plain_xx + p.plain_yy) + blur * blur;
    p.inverse_det = S(1) / det;

    p.sigmoid = S(1) / (S(1) + exp(-splat.opacity_logit));
    p.compensation = S(1);
    if (antialias) p.compensation = sqrt(maximum(p.det_plain * p.inverse_det, S(kLeastCompensation)));

    p.out.mean_x = view.fx * tan_x + view.cx, p.out.mean_y = view.fy * tan_y + view.cy;
    p.out.conic_xx = (p.plain_yy + blur) * p.inverse_det;
    p.out.conic_xy = -(p.plain_xy * p.inverse_det);
    p.out.conic_yy = (p.plain_xx + blur) * p.inverse_det;
    p.out.opacity = p.sigmoid * p.compensation;
    p.out.depth = p.in_camera.z;
    return p;
}

// How many standard deviations of the ellipse are drawn: where alpha falls to kAlphaMin.
template <typename S>
MQ_HD S reach_of(const S& opacity) {
    return sqrt(S(2) * log(maximum(opacity * S(1.0 / kAlphaMin), S(1))));
}

// The shortest axis in the world, turned to the camera; `sign` and `which` are what the gradient needs.
template <typename S>
struct Normal {
    Vec3<S> direction, which;  // which: 1 at the shortest axis, else 0
    S sign;
};

template <typename S>
MQ_HD Normal<S> normal_of(const Mat3<S>& axes, const Vec3<S>& log_scales, const Vec3<S>& from_camera) {
    const Vec3<S> s = log_scales;
    const S zero(0), one(1);
    Normal<S> n;
    n.which.x = select(s.x <= s.y, select(s.x <= s.z, one, zero), zero);
    n.which.y = (one - n.which.x) * select(s.y <= s.z, one, zero);
    n.which.z = one - n.which.x - n.which.y;
    const Vec3<S> axis = axes * n.which;
    n.sign = select(dot(axis, from_camera) > zero, S(-1), one);
    n.direction = n.sign * axis;
    return n;
}

// Gradient by the view; `center` is kept apart until all splats are summed.
template <typename S>
struct ViewGradient {
    Mat3<S> rotation;
    Vec3<S> translation, center;
};

// Gradient of a splat's parameters from that of its footprint and of its axes (normals), colour aside.
// v_in_camera and v_rotation (camera from world) are the camera's share.
template <typename S>
struct SplatGradient {
    Splat<S> splat;
    Vec3<S> in_camera;
    Mat3<S> rotation;
};

template <typename S>
MQ_HD SplatGradient<S> project_splat_backward(const View<S>& view, const Splat<S>& splat, const Projection<S>& p,
                                              const Footprint<S>& v, const Mat3<S>& v_axes, bool antialias) {
    SplatGradient<S> g;
    const S two(2), zero(0), one(1), half(0.5), blur(kBlur);

    // Covariance: G = -C V C with the conic C and V = [[v_xx, v_xy / 2], [v_xy / 2, v_yy]].
    const S a = p.out.conic_xx, b = p.out.conic_xy, c = p.out.conic_yy;
    const S off = half * v.conic_xy;
    const S x00 = v.conic_xx * a + off * b, x01 = v.conic_xx * b + off * c;
    const S x10 = off * a + v.conic_yy * b, x11 = off * b + v.conic_yy * c;
    S v_xx = -(a * x00 + b * x10);
    S v_xy = -two * (a * x01 + b * x11);
    S v_yy = -(b * x01 + c * x11);

    // Opacity: sigmoid(logit) * compensation.
    g.splat.opacity_logit = v.opacity * p.compensation * p.sigmoid * (one - p.sigmoid);
    if (antialias) {
        const S ratio = p.det_plain * p.inverse_det;
        const S v_ratio =
            select(ratio > S(kLeastCompensation), v.opacity * p.sigmoid * half / p.compensation, zero) * p.inverse_det;
        v_xx = v_xx + v_ratio * (p.plain_yy - ratio * (p.plain_yy + blur));
        v_yy = v_yy + v_ratio * (p.plain_xx - ratio * (p.plain_xx + blur));
        v_xy = v_xy - v_ratio * two * p.plain_xy * (one - ratio);
    }

    // The rows of J W R S.
    const Vec3<S> v_h0 = (two * v_xx) * p.h0 + v_xy * p.h1;
    const Vec3<S> v_h1 = (two * v_yy) * p.h1 + v_xy * p.h0;
    g.splat.log_scales = v_h0 * p.h0 + v_h1 * p.h1;
    const Vec3<S> u0 = (view.fx * p.inverse_z) * (p.scales * v_h0);
    const Vec3<S> u1 = (view.fy * p.inverse_z) * (p.scales * v_h1);
    const Mat3<S> v_axes_in_camera = {u0, u1, S(-1) * (p.tan_x * u0 + p.tan_y * u1)};
    const S v_tan_x = -dot(u0, p.axes_in_camera.r2), v_tan_y = -dot(u1, p.axes_in_camera.r2);

    // Where the tangent is held at the margin, J no longer depends on it; the centre of the splat still does.
    const S tan_x = p.in_camera.x * p.inverse_z, tan_y = p.in_camera.y * p.inverse_z;
    const S free_x = select((tan_x > view.tan_x_min) & (tan_x < view.tan_x_max), v_tan_x, zero) + v.mean_x * view.fx;
    const S free_y = select((tan_y > view.tan_y_min) & (tan_y < view.tan_y_max), v_tan_y, zero) + v.mean_y * view.fy;
    g.in_camera.x = free_x * p.inverse_z;
    g.in_camera.y = free_y * p.inverse_z;
    const Vec3<S>& v_log = g.splat.log_scales;  // their sum is also -z times the gradient by z through fx / z, fy / z
    g.in_camera.z = v.depth - p.inverse_z * (free_x * tan_x + free_y * tan_y + v_log.x + v_log.y + v_log.z);

    g.rotation = v_axes_in_camera * transpose(p.axes) + outer(g.in_camera, splat.mean);
    g.splat.mean = transpose(view.rotation) * g.in_camera;
    g.splat.quat =
        rotation_backward(p.quat, p.inverse_quat_length, transpose(view.rotation) * v_axes_in_camera + v_axes);
    return g;
}

}  // namespace maquette
