// A byte picture with straight alpha over a background colour, as floats: a thread per number of the result.
#include "gpu/device.h"

constexpr int kThreads = 256;

// rgb: [pixels, 3].  alpha: [pixels].  background: [3].  out: [pixels, 3].
MQ_KERNEL __launch_bounds__(kThreads)
    composite(const unsigned char* rgb, const unsigned char* alpha, const float* background, float* out, int pixels) {
    const long long i = (long long)blockIdx.x * kThreads + threadIdx.x;
    if (i >= 3LL * pixels) return;
    const float share = float(alpha[i / 3]) / 255.0f;
    out[i] = float(rgb[i]) / 255.0f * share + background[i % 3] * (1.0f - share);
}
