// MCMC's exploration noise (Kheradmand et al., 2024, eq. 8): a thread per splat, nothing listed and nothing waited for.
#include "gpu/device.h"
#include "math/quat.h"
#include "math/random.h"

using namespace maquette;

namespace {

constexpr float kFaint = 0.07f;  // the paper's sigmoid is below 2e-3 from here on: such splats rest
constexpr float kLeastSquaredLength = 1e-24f;

}  // namespace

// Moves the means [N, 3] of faint splats in place. The word drawn depends on seed, step and row alone.
MQ_KERNEL __launch_bounds__(256) add_position_noise(float* means, const float* quats, const float* log_scales,
                                                    const float* opacity_logits, int count, float strength,
                                                    int seed_low, int seed_high, int step) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    const float opacity = 1.0f / (1.0f + expf(-opacity_logits[i]));
    if (!(opacity < kFaint)) return;
    const long long three = 3ll * i, four = 4ll * i;
    const float weight = strength / (1.0f + expf(100.0f * (opacity - 0.005f)));
    const Random4 words = philox({unsigned(i), unsigned(step), 0u, 0u}, unsigned(seed_low), unsigned(seed_high));

    Quat<float> quat = {quats[four], quats[four + 1], quats[four + 2], quats[four + 3]};
    quat = scaled(1.0f / sqrtf(maximum(squared_length(quat), kLeastSquaredLength)), quat);
    const Mat3<float> rotation = rotation_of_unit(quat);
    const Vec3<float> scales = {expf(log_scales[three]), expf(log_scales[three + 1]), expf(log_scales[three + 2])};
    const Vec3<float> along = transpose(rotation) * (weight * normal3(words));
    const Vec3<float> moved = rotation * (scales * scales * along);  // covariance times noise
    means[three] += moved.x;
    means[three + 1] += moved.y;
    means[three + 2] += moved.z;
}
