// Colour of a sample from spherical harmonics per channel: sigmoid(sum over k of Y_k(direction) f_k).
#pragma once
#include "math/sh.h"

namespace maquette {

template <typename S>
MQ_HD S sigmoid(const S& x) {
    return S(1) / (S(1) + exp(-x));
}

// The sum, of one channel's coefficients.
template <int Degree, typename S>
MQ_HD S sh_logit(const S* basis, const S* coefficients) {
    S sum = basis[0] * coefficients[0];
    for (int k = 1; k < sh_count(Degree); ++k) sum = sum + basis[k] * coefficients[k];
    return sum;
}

// Gradient by the logit of a colour, from that by the colour.
template <typename S>
MQ_HD S sigmoid_backward(const S& color, const S& v_color) {
    return v_color * color * (S(1) - color);
}

}  // namespace maquette
