// Adam in place on the numbers whose gradient is not zero. Maths: math/adam.h. Where few are, the gradients are all
// that is read; a thread has the reads of four of them on their way at once.
#include "gpu/device.h"
#include "math/adam.h"

namespace maquette {

constexpr int kThreads = 256, kEach = 4;  // numbers of a thread

}  // namespace maquette

using namespace maquette;

// All arrays but rates: [voxels, width].  rates: [voxels], or null for 1.  clear: gradients are zeros afterwards.
MQ_KERNEL __launch_bounds__(kThreads)
    masked_adam(float* param, float* grad, float* exp_avg, float* exp_avg_sq, const float* rates, int voxels, int width,
                int clear, float new1, float beta2, float new2, float rate, float inv_root_bias, float eps) {
    const long long first = (long long)blockIdx.x * (kEach * kThreads) + threadIdx.x, count = (long long)voxels * width;
    float gradients[kEach];
#pragma unroll
    for (int k = 0; k < kEach; ++k) gradients[k] = first + k * kThreads < count ? grad[first + k * kThreads] : 0.0f;
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
        const float g = gradients[k];
        if (g == 0.0f) continue;  // a NaN is none
        const long long at = first + k * kThreads;
        if (clear) grad[at] = 0.0f;
        const float own = rates ? rates[at / width] : 1.0f;
        if (own == 0.0f) continue;
        const AdamStep<float> step = {new1, beta2, new2, rate * own, inv_root_bias, eps};
        float p = param[at], m = exp_avg[at], v = exp_avg_sq[at];
        adam_update(p, g, m, v, step);
        param[at] = p, exp_avg[at] = m, exp_avg_sq[at] = v;
    }
}
