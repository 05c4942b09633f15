// Where a pixel at some depth lies in another picture, and how alike two windows are.
#pragma once

#include "math/vec.h"

namespace maquette {

// A grey picture and its camera seen from the reference camera: pixel (u, v) with depth z of the reference lies at
// z * (rays * (u, v, 1)) + origin, homogeneous pixels of this picture. Centres at +0.5.
template <typename S>
struct SweepView {
    const S* grey;  // [height, width]
    int width, height;
    Mat3<S> rays;    // K_source R K_reference^-1
    Vec3<S> origin;  // K_source t
};

// Regularised normalised cross-correlation from sums over `count` pixels: `noise` is the variance below which a window
// counts as blank, so that two blank ones are not alike but unknown.
template <typename S>
MQ_HD S correlation(S a, S b, S aa, S bb, S ab, S count, S noise) {
    const S share = S(1) / count;
    const S mean_a = a * share, mean_b = b * share;
    const S var_a = aa * share - mean_a * mean_a, var_b = bb * share - mean_b * mean_b;
    const S cov = ab * share - mean_a * mean_b;
    const S floor_a = var_a > S(0) ? var_a : S(0), floor_b = var_b > S(0) ? var_b : S(0);
    return cov / sqrt((floor_a + noise) * (floor_b + noise));
}

}  // namespace maquette
