// Adam (Kingma and Ba, 2015), algorithm 1, for one number: param, its gradient and its two moments.
//   m -> exp_avg, v -> exp_avg_sq, alpha -> lr.  Departure: none; the bias correction is folded into two factors that
//   are the same for all numbers of one step, as torch.optim.Adam does: eps is added after v_hat's root.
// Sparse use updates only what was seen; the step counted in the bias correction is the global one.
#pragma once
#include "math/host_device.h"

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

}  // namespace maquette
