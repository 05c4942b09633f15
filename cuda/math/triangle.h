// A triangle: where a ray meets it, and the place on it that is nearest to a point.
#pragma once

#include "math/vec.h"

namespace maquette {

// What a ray from the origin along `direction` has to do with the triangle a, b, c (already moved to the ray's origin).
// weights: of a, b and c, as yet without their common factor; all of one sign where the line meets the triangle.
// Each is a function of one side's ends that changes nothing but its sign when they are exchanged, bit for bit and with
// products fused or not: no ray passes between two triangles that share a side.
template <typename S>
struct LineThroughTriangle {
    Vec3<S> weights;
    S along, across;  // t = along / across in lengths of the direction; across = 0 in the triangle's plane
};

// Source: Embree's robust intersector (Wald et al. 2014): volumes by Pluecker coordinates of the sides.
template <typename S>
MQ_HD LineThroughTriangle<S> line_through_triangle(const Vec3<S>& a, const Vec3<S>& b, const Vec3<S>& c,
                                                   const Vec3<S>& direction) {
    const Vec3<S> ca = c - a, ab = a - b, bc = b - c;
    const Vec3<S> normal = cross(ab, ca);
    return {{dot(cross(bc, b + c), direction), dot(cross(ca, c + a), direction), dot(cross(ab, a + b), direction)},
            dot(a, normal),
            dot(direction, normal)};
}

// A place on a triangle: shares of its corners (none below 0, sum 1) and the squared distance of a point from it.
template <typename S>
struct PlaceOnTriangle {
    Vec3<S> shares;
    S squared;
};

// What is nearest to the origin on the side from p to q: the share of q there and the squared distance.
template <typename S>
MQ_HD void nearest_on_side(const Vec3<S>& p, const Vec3<S>& q, S& share, S& squared) {
    const Vec3<S> along = q - p;
    const S length = dot(along, along);
    share = length > S(0) ? minimum(maximum(-dot(p, along) / length, S(0)), S(1)) : S(0);
    const Vec3<S> there = p + share * along;
    squared = dot(there, there);
}

// The place on a triangle (moved, so that the point is the origin) that is nearest to the point: the nearest on its
// sides, or the foot of the perpendicular where that is nearer still. Whatever is rounded, the place lies on the
// triangle, also where it is but a line.
template <typename S>
MQ_HD PlaceOnTriangle<S> nearest_place(const Vec3<S>& a, const Vec3<S>& b, const Vec3<S>& c) {
    S t, squared;
    nearest_on_side(a, b, t, squared);
    PlaceOnTriangle<S> best{{S(1) - t, t, S(0)}, squared};
    nearest_on_side(b, c, t, squared);
    if (squared < best.squared) best = {{S(0), S(1) - t, t}, squared};
    nearest_on_side(c, a, t, squared);
    if (squared < best.squared) best = {{t, S(0), S(1) - t}, squared};
    const Vec3<S> normal = cross(b - a, c - a);
    const S u = dot(cross(b, c), normal), v = dot(cross(c, a), normal), w = dot(cross(a, b), normal);
    const S sum = u + v + w;
    if (u < S(0) || v < S(0) || w < S(0) || !(sum > S(0))) return best;
    const Vec3<S> shares{u / sum, v / sum, w / sum};
    const Vec3<S> foot = shares.x * a + shares.y * b + shares.z * c;
    squared = dot(foot, foot);
    return squared < best.squared ? PlaceOnTriangle<S>{shares, squared} : best;
}

}  // namespace maquette
