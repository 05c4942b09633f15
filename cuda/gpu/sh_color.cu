// Colours of samples from spherical harmonics, forward and backward: a thread per channel of a sample.
#include "gpu/device.h"
#include "math/sh_color.h"

using namespace maquette;

namespace {

constexpr int kThreads = 256;
constexpr int kChannels = 3;

// features: [M, kChannels, (Degree + 1)^2].  rays: [M].  directions: [R, 3].
struct Samples {
    const float* features;
    const int* rays;
    const float* directions;
};

// The colour; leaves the basis.
template <int Degree>
__device__ float color_of(const Samples& samples, long long i, float* basis) {
    const float* d = samples.directions + 3LL * samples.rays[i / kChannels];
    sh_basis<Degree>(Vec3<float>{d[0], d[1], d[2]}, basis);
    return sigmoid(sh_logit<Degree>(basis, samples.features + i * sh_count(Degree)));
}

template <int Degree>
__device__ void forward(const Samples& samples, long long i, float* rgb) {
    float basis[sh_count(Degree)];
    rgb[i] = color_of<Degree>(samples, i, basis);
}

template <int Degree>
__device__ void backward(const Samples& samples, long long i, const float* v_rgb, float* v_features) {
    float basis[sh_count(Degree)];
    const float v = sigmoid_backward(color_of<Degree>(samples, i, basis), v_rgb[i]);
    for (int k = 0; k < sh_count(Degree); ++k) v_features[i * sh_count(Degree) + k] = v * basis[k];
}

}  // namespace

// rgb: [M, kChannels].
MQ_KERNEL __launch_bounds__(kThreads) sh_color(const float* features, const int* rays, const float* directions,
                                               int degree, int count, float* rgb) {
    const long long i = (long long)blockIdx.x * kThreads + threadIdx.x;
    if (i >= (long long)kChannels * count) return;
    const Samples samples = {features, rays, directions};
    if (degree == 0) forward<0>(samples, i, rgb);
    else if (degree == 1) forward<1>(samples, i, rgb);
    else if (degree == 2) forward<2>(samples, i, rgb);
    else forward<3>(samples, i, rgb);
}

MQ_KERNEL __launch_bounds__(kThreads)
    sh_color_backward(const float* features, const int* rays, const float* directions, int degree, int count,
                      const float* v_rgb, float* v_features) {
    const long long i = (long long)blockIdx.x * kThreads + threadIdx.x;
    if (i >= (long long)kChannels * count) return;
    const Samples samples = {features, rays, directions};
    if (degree == 0) backward<0>(samples, i, v_rgb, v_features);
    else if (degree == 1) backward<1>(samples, i, v_rgb, v_features);
    else if (degree == 2) backward<2>(samples, i, v_rgb, v_features);
    else backward<3>(samples, i, v_rgb, v_features);
}
