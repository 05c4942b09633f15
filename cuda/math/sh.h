// Real spherical harmonics to degree 3 (order, signs and constants of 3DGS; specs/recon.md, 0.3) and their gradient.
#pragma once
#include "math/vec.h"

namespace maquette {

constexpr double kSh0 = 0.28209479177387814;
constexpr double kSh1 = 0.4886025119029199;
constexpr double kSh2[5] = {1.0925484305920792, -1.0925484305920792, 0.31539156525252005, -1.0925484305920792,
                            0.5462742152960396};
constexpr double kSh3[7] = {-0.5900435899266435, 2.890611442640554, -0.4570457994644658, 0.3731763325901154,
                            -0.4570457994644658, 1.445305721320277, -0.5900435899266435};

MQ_HD constexpr int sh_count(int degree) { return (degree + 1) * (degree + 1); }

// Fills b[0 .. (Degree + 1)^2) for a unit direction.
template <int Degree, typename S>
MQ_HD void sh_basis(const Vec3<S>& d, S* b) {
    const S x = d.x, y = d.y, z = d.z;
    b[0] = S(kSh0);
    if constexpr (Degree >= 1) {
        b[1] = S(-kSh1) * y;
        b[2] = S(kSh1) * z;
        b[3] = S(-kSh1) * x;
    }
    if constexpr (Degree >= 2) {
        const S xx = x * x, yy = y * y, zz = z * z;
        b[4] = S(kSh2[0]) * x * y;
        b[5] = S(kSh2[1]) * y * z;
        b[6] = S(kSh2[2]) * (S(2) * zz - xx - yy);
        b[7] = S(kSh2[3]) * x * z;
        b[8] = S(kSh2[4]) * (xx - yy);
        if constexpr (Degree >= 3) {
            b[9] = S(kSh3[0]) * y * (S(3) * xx - yy);
            b[10] = S(kSh3[1]) * x * y * z;
            b[11] = S(kSh3[2]) * y * (S(4) * zz - xx - yy);
            b[12] = S(kSh3[3]) * z * (S(2) * zz - S(3) * (xx + yy));
            b[13] = S(kSh3[4]) * x * (S(4) * zz - xx - yy);
            b[14] = S(kSh3[5]) * z * (xx - yy);
            b[15] = S(kSh3[6]) * x * (xx - S(3) * yy);
        }
    }
}

// Gradient by the direction, from the gradient v[0 .. (Degree + 1)^2) by the basis values.
template <int Degree, typename S>
MQ_HD Vec3<S> sh_basis_backward(const Vec3<S>& d, const S* v) {
    const S x = d.x, y = d.y, z = d.z;
    Vec3<S> g = {S(0), S(0), S(0)};
    if constexpr (Degree >= 1) g = {S(-kSh1) * v[3], S(-kSh1) * v[1], S(kSh1) * v[2]};
    if constexpr (Degree >= 2) {
        const S v4 = S(kSh2[0]) * v[4], v5 = S(kSh2[1]) * v[5], v6 = S(2 * kSh2[2]) * v[6], v7 = S(kSh2[3]) * v[7],
                v8 = S(2 * kSh2[4]) * v[8];
        g.x = g.x + v4 * y + v7 * z + (v8 - v6) * x;
        g.y = g.y + v4 * x + v5 * z - (v8 + v6) * y;
        g.z = g.z + v5 * y + v7 * x + S(2) * v6 * z;
    }
    if constexpr (Degree >= 3) {
        const S xx = x * x, yy = y * y, zz = z * z;
        const S v9 = S(3 * kSh3[0]) * v[9], v10 = S(kSh3[1]) * v[10], v11 = S(kSh3[2]) * v[11],
                v12 = S(3 * kSh3[3]) * v[12], v13 = S(kSh3[4]) * v[13], v14 = S(kSh3[5]) * v[14],
                v15 = S(3 * kSh3[6]) * v[15];
        const S two(2), three(3), four(4), eight(8);
        g.x = g.x + two * v9 * x * y + v10 * y * z - two * v11 * x * y - two * v12 * x * z +
              v13 * (four * zz - three * xx - yy) + two * v14 * x * z + v15 * (xx - yy);
        g.y = g.y + v9 * (xx - yy) + v10 * x * z + v11 * (four * zz - xx - three * yy) - two * v12 * y * z -
              two * v13 * x * y - two * v14 * y * z - two * v15 * x * y;
        g.z = g.z + v10 * x * y + eight * v11 * y * z + v12 * (two * zz - xx - yy) + eight * v13 * x * z +
              v14 * (xx - yy);
    }
    return g;
}

}  // namespace maquette
