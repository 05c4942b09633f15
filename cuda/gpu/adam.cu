// Adam in place, a thread per number: all rows, or those of a list. Maths: math/adam.h.
#include "gpu/device.h"
#include "math/adam.h"

using namespace maquette;

namespace {

constexpr int kThreads = 256;
constexpr int kListed = 64;  // rows of a list per block: a few numbers for each thread at any width

}  // namespace

MQ_KERNEL __launch_bounds__(kThreads) adam_dense(float* param, const float* grad, float* exp_avg, float* exp_avg_sq,
                                                 int rows, int width, float new1, float beta2, float new2, float rate,
                                                 float inv_root_bias, float eps) {
    const long long at = (long long)blockIdx.x * kThreads + threadIdx.x;
    if (at >= (long long)rows * width) return;
    const AdamStep<float> step = {new1, beta2, new2, rate, inv_root_bias, eps};
    float p = param[at], m = exp_avg[at], v = exp_avg_sq[at];
    adam_update(p, grad[at], m, v, step);
    param[at] = p, exp_avg[at] = m, exp_avg_sq[at] = v;
}

// ids: `listed` rows, each at most once; what lies outside [0, rows) is left out. compact: grad has a row per id.
MQ_KERNEL __launch_bounds__(kThreads) adam_listed(float* param, const float* grad, float* exp_avg, float* exp_avg_sq,
                                                  const int* ids, int listed, int compact, int rows, int width,
                                                  float new1, float beta2, float new2, float rate, float inv_root_bias,
                                                  float eps) {
    const AdamStep<float> step = {new1, beta2, new2, rate, inv_root_bias, eps};
    const int first = int(blockIdx.x) * kListed, here = min(kListed, listed - first);
    for (int i = int(threadIdx.x); i < here * width; i += kThreads) {
        const int place = i / width, row = ids[first + place], column = i - place * width;
        if (row < 0 || row >= rows) continue;
        const long long at = (long long)row * width + column;
        const long long from = compact ? (long long)(first + place) * width + column : at;
        float p = param[at], m = exp_avg[at], v = exp_avg_sq[at];
        adam_update(p, grad[from], m, v, step);
        param[at] = p, exp_avg[at] = m, exp_avg_sq[at] = v;
    }
}
