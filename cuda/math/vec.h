// Small vectors and the scalar functions that host, device and SIMD code share.
//
// Everything in cuda/math is templated on the scalar S: float and double on either side, and `Lanes` on the CPU
// (cuda/cpu/lanes.h), which brings its own select, minimum, maximum, sqrt, exp and log. No branches depend on an S:
// what is chosen is chosen by `select`, so that one text serves one splat and sixteen.
#pragma once

#include "math/host_device.h"

namespace maquette {

MQ_HD float select(bool choose, float a, float b) { return choose ? a : b; }
MQ_HD double select(bool choose, double a, double b) { return choose ? a : b; }
MQ_HD float minimum(float a, float b) { return a < b ? a : b; }
MQ_HD double minimum(double a, double b) { return a < b ? a : b; }
MQ_HD float maximum(float a, float b) { return a > b ? a : b; }
MQ_HD double maximum(double a, double b) { return a > b ? a : b; }

template <typename S>
struct Vec3 {
    S x, y, z;
};

template <typename S>
MQ_HD Vec3<S> operator+(const Vec3<S>& a, const Vec3<S>& b) {
    return {a.x + b.x, a.y + b.y, a.z + b.z};
}
template <typename S>
MQ_HD Vec3<S> operator-(const Vec3<S>& a, const Vec3<S>& b) {
    return {a.x - b.x, a.y - b.y, a.z - b.z};
}
template <typename S>
MQ_HD Vec3<S> operator*(const Vec3<S>& a, const Vec3<S>& b) {  // componentwise
    return {a.x * b.x, a.y * b.y, a.z * b.z};
}
template <typename S>
MQ_HD Vec3<S> operator*(const S& s, const Vec3<S>& a) {
    return {s * a.x, s * a.y, s * a.z};
}
template <typename S>
MQ_HD S dot(const Vec3<S>& a, const Vec3<S>& b) {
    return a.x * b.x + a.y * b.y + a.z * b.z;
}
template <typename S>
MQ_HD Vec3<S> cross(const Vec3<S>& a, const Vec3<S>& b) {
    return {a.y * b.z - a.z * b.y, a.z * b.x - a.x * b.z, a.x * b.y - a.y * b.x};
}
template <typename S, typename Mask>
MQ_HD Vec3<S> select(const Mask& choose, const Vec3<S>& a, const Vec3<S>& b) {
    return {select(choose, a.x, b.x), select(choose, a.y, b.y), select(choose, a.z, b.z)};
}

// A 3x3 matrix by rows.
template <typename S>
struct Mat3 {
    Vec3<S> r0, r1, r2;
};

template <typename S>
MQ_HD Vec3<S> operator*(const Mat3<S>& m, const Vec3<S>& v) {
    return {dot(m.r0, v), dot(m.r1, v), dot(m.r2, v)};
}
template <typename S>
MQ_HD Mat3<S> operator+(const Mat3<S>& a, const Mat3<S>& b) {
    return {a.r0 + b.r0, a.r1 + b.r1, a.r2 + b.r2};
}
template <typename S>
MQ_HD Mat3<S> transpose(const Mat3<S>& m) {
    return {{m.r0.x, m.r1.x, m.r2.x}, {m.r0.y, m.r1.y, m.r2.y}, {m.r0.z, m.r1.z, m.r2.z}};
}
template <typename S>
MQ_HD Mat3<S> operator*(const Mat3<S>& a, const Mat3<S>& b) {
    const Mat3<S> columns = transpose(b);
    return {columns * a.r0, columns * a.r1, columns * a.r2};
}
template <typename S>
MQ_HD Mat3<S> outer(const Vec3<S>& a, const Vec3<S>& b) {
    return {a.x * b, a.y * b, a.z * b};
}

// v_a of normalised = a / |a|, from the gradient by `normalised`.
template <typename S>
MQ_HD Vec3<S> normalize_backward(const Vec3<S>& normalised, const S& inverse_length, const Vec3<S>& v) {
    return inverse_length * (v - dot(normalised, v) * normalised);
}

}  // namespace maquette
