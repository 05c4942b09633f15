// Structural similarity at one pixel, from moments blurred by its window.
//
// Wang et al., 2004, eq. 13, for pictures x and t in 0..1:
//   S = A1 A2 / (B1 B2),  A1 = 2 mx mt + C1,      A2 = 2 (E[x t] - mx mt) + C2,
//                         B1 = mx^2 + mt^2 + C1,  B2 = E[x^2 + t^2] - mx^2 - mt^2 + C2.
// Only the sum of the two variances is needed, so four blurs serve instead of five. Backward, with the window
// symmetric and D* = the derivative of S by a blurred quantity:
//   dS/dx = blur(Dmx) + 2 x blur(Dxx) + t blur(Dxt),   three more blurs.
#pragma once

#include "math/host_device.h"

namespace maquette {

template <typename S>
struct Similarity {
    S value;
    S by_mean, by_square, by_product;  // derivatives by mx, E[x^2 + t^2], E[x t]
};

template <typename S>
MQ_HD Similarity<S> similarity(S mx, S mt, S square, S product) {
    const S c1 = S(0.01 * 0.01), c2 = S(0.03 * 0.03);  // for a range of 1
    const S means = mx * mt, powers = mx * mx + mt * mt;
    const S a1 = S(2) * means + c1, a2 = S(2) * (product - means) + c2;
    const S b1 = powers + c1, b2 = square - powers + c2;
    const S inverse = S(1) / (b1 * b2);
    const S value = a1 * a2 * inverse;
    const S by_square = -value * b1 * inverse;  // - S / B2
    const S by_product = S(2) * a1 * inverse;
    const S by_mean =
        S(2) * mt * a2 * inverse - S(2) * mx * value * b2 * inverse - S(2) * mx * by_square - mt * by_product;
    return {value, by_mean, by_square, by_product};
}

}  // namespace maquette
