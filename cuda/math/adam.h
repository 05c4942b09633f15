// Adam (Kingma and Ba, 2015), algorithm 1, for one number: param, its gradient and its two moments.
//   m -> exp_avg, v -> exp_avg_sq, alpha -> lr.  Departure: none; the bias correction is folded into two factors that
//   are the same for all numbers of one step, as torch.optim.Adam does: eps is added after v_hat's root.
// Sparse use updates only what was seen; the step counted in the bias correction is the global one.
#pragma once
#include "math/host_device.h"
#include "math/random.h"

#ifndef __CUDACC_RTC__
#include <string.h>
#endif

namespace maquette {

template <typename T>
struct AdamStep {
    T new1, beta2, new2;  // 1 - beta1, beta2, 1 - beta2: the complements lose three digits when taken in float
    T rate;           // lr / (1 - beta1^step)
    T inv_root_bias;  // 1 / sqrt(1 - beta2^step)
    T eps;
};

// step >= 1 counts from the first update; lr in units of the parameter.
template <typename T>
MQ_HD AdamStep<T> adam_step(long long step, double lr, double beta1, double beta2, double eps) {
    const double bias1 = 1.0 - pow(beta1, static_cast<double>(step));
    const double bias2 = 1.0 - pow(beta2, static_cast<double>(step));
    return {T(1.0 - beta1), T(beta2), T(1.0 - beta2), T(lr / bias1), T(1.0 / sqrt(bias2)), T(eps)};
}

template <typename T>
MQ_HD void adam_update(T& param, T grad, T& exp_avg, T& exp_avg_sq, const AdamStep<T>& s) {
    exp_avg += s.new1 * (grad - exp_avg);
    exp_avg_sq = s.beta2 * exp_avg_sq + s.new2 * grad * grad;
    param -= s.rate * exp_avg / (sqrt(exp_avg_sq) * s.inv_root_bias + s.eps);
}

// Moments in 16 bits: bfloat16, the upper half of a float. v changes by a thousandth per step, less than half of what
// 8 bits can tell, so it would stand still if it were rounded to nearest. Both are rounded up with the chance that
// keeps their mean, by a word that depends on step and place alone: the same on any thread, and after a resume.
MQ_HD unsigned rounding_word(unsigned place, unsigned step) { return mixed(place ^ mixed(step)); }

MQ_HD float wide(float moment) { return moment; }
MQ_HD float wide(unsigned short moment) {
    const unsigned bits = unsigned(moment) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

// chance: 0 to 65535.
MQ_HD void narrow(float value, unsigned, float& moment) { moment = value; }
MQ_HD void narrow(float value, unsigned chance, unsigned short& moment) {
    unsigned bits;
    memcpy(&bits, &value, sizeof bits);
    moment = (unsigned short)((value == value ? bits + chance : bits | 0x400000u) >> 16);  // NaN stays one
}

}  // namespace maquette
