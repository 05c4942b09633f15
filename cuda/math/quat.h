// Rotations from quaternions (w, x, y, z) of any length, with the gradient.
#pragma once
#include "math/vec.h"

namespace maquette {

template <typename S>
struct Quat {
    S w, x, y, z;
};

template <typename S>
MQ_HD S squared_length(const Quat<S>& q) {
    return q.w * q.w + q.x * q.x + q.y * q.y + q.z * q.z;
}

template <typename S>
MQ_HD Quat<S> scaled(const S& s, const Quat<S>& q) {
    return {s * q.w, s * q.x, s * q.y, s * q.z};
}

// Rotation matrix of a unit quaternion; its columns are the turned axes.
template <typename S>
MQ_HD Mat3<S> rotation_of_unit(const Quat<S>& q) {
    const S one(1), two(2);
    return {{one - two * (q.y * q.y + q.z * q.z), two * (q.x * q.y - q.w * q.z), two * (q.x * q.z + q.w * q.y)},
            {two * (q.x * q.y + q.w * q.z), one - two * (q.x * q.x + q.z * q.z), two * (q.y * q.z - q.w * q.x)},
            {two * (q.x * q.z - q.w * q.y), two * (q.y * q.z + q.w * q.x), one - two * (q.x * q.x + q.y * q.y)}};
}

// Gradient by the quaternion before normalisation; `q` is the unit one and `v` the gradient by its rotation matrix.
template <typename S>
MQ_HD Quat<S> rotation_backward(const Quat<S>& q, const S& inverse_length, const Mat3<S>& v) {
    const S two(2);
    const Quat<S> g = {
        two * (q.x * (v.r2.y - v.r1.z) + q.y * (v.r0.z - v.r2.x) + q.z * (v.r1.x - v.r0.y)),
        two * (q.y * (v.r0.y + v.r1.x) + q.z * (v.r0.z + v.r2.x) + q.w * (v.r2.y - v.r1.z) -
               two * q.x * (v.r1.y + v.r2.z)),
        two * (q.x * (v.r0.y + v.r1.x) + q.z * (v.r1.z + v.r2.y) + q.w * (v.r0.z - v.r2.x) -
               two * q.y * (v.r0.x + v.r2.z)),
        two * (q.x * (v.r0.z + v.r2.x) + q.y * (v.r1.z + v.r2.y) + q.w * (v.r1.x - v.r0.y) -
               two * q.z * (v.r0.x + v.r1.y)),
    };
    const S along = q.w * g.w + q.x * g.x + q.y * g.y + q.z * g.z;
    return {inverse_length * (g.w - along * q.w), inverse_length * (g.x - along * q.x),
            inverse_length * (g.y - along * q.y), inverse_length * (g.z - along * q.z)};
}

}  // namespace maquette
