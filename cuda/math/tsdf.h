// What one depth image says of one point in space: a truncated signed distance to the surface, and how surely.
//
// Curless and Levoy, 1996, with three departures. The distance is taken to the tangent plane of the pixel's surface, not
// along the view axis, so that a surface seen aslant is not pushed back. Behind the surface the weight falls to zero at
// the truncation (Bylow et al., 2013): what is not seen is hardly claimed, and thin walls survive. A pixel that sees
// nothing at all (depth infinite) still says that the space before it is free.
#pragma once

#include "math/vec.h"

namespace maquette {

// A depth image with what is known of each pixel. Row-major [height, width].
template <typename S>
struct DepthView {
    const S* depth;   // z of the surface; kFreeDepth or more: nothing there, the whole ray is free
    const S* slope;   // distance to the tangent plane per unit of z, |n . ray| with ray.z = 1
    const S* weight;  // >= 0; 0: no observation
    int width, height;
    S fx, fy, cx, cy;  // pixels, centres at +0.5
    Mat3<S> rotation;  // camera from world
    Vec3<S> translation;
};

constexpr double kFreeDepth = 1e30;

template <typename S>
struct Observation {
    S distance;  // in [-truncation, truncation], positive before the surface
    S weight;    // 0: this view says nothing of the point
};

// Depth and slope between the four pixels around (u, v) where all four are seen, else of the pixel it falls in: between
// a surface and what lies behind it there is nothing to interpolate. Far from the surface the pixel decides alone.
template <typename S>
MQ_HD Observation<S> observe(const DepthView<S>& view, const Vec3<S>& point, S truncation) {
    const Vec3<S> q = view.rotation * point + view.translation;
    if (!(q.z > S(1e-6))) return {S(0), S(0)};
    const S u = view.fx * q.x / q.z + view.cx, v = view.fy * q.y / q.z + view.cy;
    if (!(u >= S(0) && v >= S(0) && u < S(view.width) && v < S(view.height))) return {S(0), S(0)};
    int at = int(v) * view.width + int(u);
    S depth = view.depth[at], slope = view.slope[at];
    const S weight = view.weight[at];
    if (!(weight > S(0))) return {S(0), S(0)};
    const S rough = (depth - q.z) * slope;
    if (rough < S(-2) * truncation) return {S(0), S(0)};
    if (rough > S(2) * truncation) return {truncation, weight};
    const int left = int(floor(u - S(0.5))), top = int(floor(v - S(0.5)));
    if (left >= 0 && top >= 0 && left + 1 < view.width && top + 1 < view.height) {
        at = top * view.width + left;
        const int below = at + view.width;
        const S* d = view.depth;
        const S* w = view.weight;
        const S deepest = maximum(maximum(d[at], d[at + 1]), maximum(d[below], d[below + 1]));
        if (w[at] > S(0) && w[at + 1] > S(0) && w[below] > S(0) && w[below + 1] > S(0) && deepest < S(kFreeDepth)) {
            const S a = u - S(0.5) - S(left), b = v - S(0.5) - S(top);
            const S* s = view.slope;
            depth = (S(1) - b) * ((S(1) - a) * d[at] + a * d[at + 1]) + b * ((S(1) - a) * d[below] + a * d[below + 1]);
            slope = (S(1) - b) * ((S(1) - a) * s[at] + a * s[at + 1]) + b * ((S(1) - a) * s[below] + a * s[below + 1]);
        }
    }
    const S distance = (depth - q.z) * slope;
    if (!(distance > -truncation)) return {S(0), S(0)};  // also when a depth is not a number
    return {minimum(distance, truncation), weight * minimum(S(1), S(1) + distance / truncation)};
}

}  // namespace maquette
