// DVGO's density (Sun et al., 2022): a raw value is interpolated first and activated afterwards, so that one linear
// cell can hold a sharp surface.   alpha = 1 - exp(-softplus(raw) interval) = 1 - (1 + e^raw)^-interval.
//   raw: the grid's value plus its shift b.  interval: length of a step in voxels of the final grid, no unit.
#pragma once
#include "math/vec.h"

namespace maquette {

// log(1 + e^x). 1 + e loses e's digits where e is small; what was lost is known, u - 1 instead of e, and is put right.
template <typename S>
MQ_HD S softplus(const S& x) {
    const S e = exp(minimum(x, S(30))), u = S(1) + e;
    const S small = select(u > S(1), log(u) * (e / maximum(u - S(1), S(1e-30))), e);
    return select(x < S(20), small, x);  // NaN stays NaN
}

// 1 - e^-x for x >= 0, with all digits where x is small.
template <typename S>
MQ_HD S one_minus_exp(const S& x) {
    const S series = x * (S(1) - x * S(1.0 / 2) *
                                     (S(1) - x * S(1.0 / 3) *
                                                 (S(1) - x * S(1.0 / 4) * (S(1) - x * S(1.0 / 5) * (S(1) - x * S(1.0 / 6))))));
    return select(x < S(0.03), series, S(1) - exp(-x));
}

template <typename S>
MQ_HD S raw_to_alpha(const S& raw, const S& interval) {
    return one_minus_exp(softplus(raw) * interval);
}

// d softplus / d raw; d alpha / d raw is interval (1 - alpha) times this.
template <typename S>
MQ_HD S sigmoid(const S& x) {
    const S e = exp(-select(x < S(0), -x, x)), share = S(1) / (S(1) + e);
    return select(x < S(0), e * share, share);
}

}  // namespace maquette
