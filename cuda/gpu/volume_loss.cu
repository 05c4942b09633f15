// Loss of composited pixels with its gradients by the samples, and compositing alone. Maths: math/volume_loss.h.
//
// A warp takes a ray and its lanes the samples, 32 at a time: once for the sums over the ray, once for the gradients;
// what the second time reads is still in the caches. Sums over samples in front come by shuffles, with what the rounds
// before left. Blocks keep their share of the loss apart until volume_loss_totals adds all in double and in a fixed
// order: a run repeats bit for bit.
#include "gpu/device.h"
#include "math/volume_loss.h"

namespace maquette {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;  // a warp per ray
constexpr int kSumThreads = 256;

struct Span {
    int begin, end;
};

// The samples of a ray, cut to those that there are.
__device__ inline Span samples_of(const int* offsets, int ray, int samples) {
    const int begin = min(max(offsets[ray], 0), samples);
    return {begin, min(max(offsets[ray + 1], begin), samples)};
}

// Sum over the warp, which every lane gets.
__device__ inline float warp_sum(float value) {
    for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kAllLanes, value, lanes);
    return value;
}

// Sum over the lanes below this one.
__device__ inline float sum_below(float value) {
    const int lane = int(threadIdx.x) % kWarp;
    for (int distance = 1; distance < kWarp; distance *= 2) {
        const float below = __shfl_up_sync(kAllLanes, value, distance);
        if (lane >= distance) value += below;
    }
    const float below = __shfl_up_sync(kAllLanes, value, 1);
    return lane == 0 ? 0.0f : below;
}

// Sums over a ray, in every lane. s may be null.
__device__ inline RaySums<float> sum_ray(const float* rgb, const float* weights, const float* s, const Span& span) {
    RaySums<float> sums = {};
    for (int i = span.begin + int(threadIdx.x) % kWarp; i < span.end; i += kWarp) {
        add_color(sums, weights[i], rgb + 3LL * i);
        if (s) add_place(sums, weights[i], s[i]);
    }
    for (float& channel : sums.color) channel = warp_sum(channel);
    if (s) sums.weight = warp_sum(sums.weight), sums.place = warp_sum(sums.place);
    return sums;
}

// What `value` of each warp's first lane sums to over the block, in the order of warps, for thread 0.
__device__ inline float block_sum(float value, float (&of_warps)[kWarps]) {
    if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = value;
    __syncthreads();
    float sum = 0.0f;
    for (int w = 0; w < kWarps; ++w) sum += of_warps[w];
    return sum;
}

// The sum of count numbers, in double and in a fixed order; all threads get it.
__device__ inline double add_all(const float* values, int count, double (&scratch)[kSumThreads]) {
    const int thread = threadIdx.x;
    double sum = 0.0;
    for (int i = thread; i < count; i += kSumThreads) sum += double(values[i]);
    scratch[thread] = sum;
    for (int step = kSumThreads / 2; step > 0; step /= 2) {
        __syncthreads();
        if (thread < step) scratch[thread] += scratch[thread + step];
    }
    __syncthreads();
    sum = scratch[0];
    __syncthreads();  // before the next sum overwrites it
    return sum;
}

}  // namespace maquette

using namespace maquette;

// Terms as VolumeTerms. s: null without distortion.  sums: [2, blocks], the squared error and the rest.
MQ_KERNEL __launch_bounds__(kThreads)
    volume_loss(const float* rgb, const float* weights, const float* s, const int* offsets, const float* last,
                const float* target, const float* background, int samples, int rays, float mse, float per_point,
                float entropy, float distortion, float interval, float* v_rgb, float* v_weights, float* v_last,
                float* sums) {
    __shared__ float of_warps[2][kWarps];
    const int lane = int(threadIdx.x) % kWarp;
    const long long warp = ((long long)blockIdx.x * kThreads + threadIdx.x) / kWarp;
    const VolumeTerms<float> terms = {mse, per_point, entropy, distortion, interval};
    float rest = 0.0f, squared = 0.0f;
    if (warp < rays) {  // the same for the whole warp
        const int ray = int(warp);
        const Span span = samples_of(offsets, ray, samples);
        const RaySums<float> all = sum_ray(rgb, weights, s, span);
        const float* wanted = target + 3LL * ray;
        const PixelLoss<float> pixel = pixel_loss(all.color, last[ray], background, wanted, terms);
        RaySums<float> before = {};
        for (int first = span.begin; first < span.end; first += kWarp) {
            const int i = first + lane;
            const bool here = i < span.end;
            const float w = here ? weights[i] : 0.0f, place = s && here ? s[i] : 0.0f;
            RaySums<float> mine = before;
            if (s) {
                mine.weight += sum_below(w);
                mine.place += sum_below(w * place);
            }
            if (here) {
                float v_w = 0.0f;
                rest += color_loss(w, rgb + 3LL * i, wanted, pixel, terms, v_rgb + 3LL * i, v_w);
                if (s) rest += distortion_loss(w, place, mine, all, terms, v_w);
                v_weights[i] = v_w;
            }
            if (s) {  // the last lane has met all of this round
                before.weight = __shfl_sync(kAllLanes, mine.weight + w, kWarp - 1);
                before.place = __shfl_sync(kAllLanes, mine.place + w * place, kWarp - 1);
            }
        }
        rest = warp_sum(rest) + pixel.rest;
        squared = pixel.mse;
        if (lane == 0) v_last[ray] = pixel.v_last;
    }
    squared = block_sum(squared, of_warps[0]);
    rest = block_sum(rest, of_warps[1]);
    if (threadIdx.x == 0) {
        sums[blockIdx.x] = squared;
        sums[gridDim.x + blockIdx.x] = rest;
    }
}

// One block. sums: [2, count] of volume_loss.
MQ_KERNEL __launch_bounds__(kSumThreads) volume_loss_totals(const float* sums, int count, float* loss, float* mse) {
    __shared__ double scratch[kSumThreads];
    const double squared = add_all(sums, count, scratch), rest = add_all(sums + count, count, scratch);
    if (threadIdx.x == 0) {
        *loss = float(squared + rest);
        *mse = float(squared);
    }
}

MQ_KERNEL __launch_bounds__(kThreads)
    composite_rays(const float* rgb, const float* weights, const int* offsets, const float* last,
                   const float* background, int samples, int rays, float* out) {
    const long long ray = ((long long)blockIdx.x * kThreads + threadIdx.x) / kWarp;
    if (ray >= rays) return;
    const RaySums<float> sums = sum_ray(rgb, weights, nullptr, samples_of(offsets, int(ray), samples));
    const int channel = int(threadIdx.x) % kWarp;
    if (channel < 3) {
        const float color = channel == 0 ? sums.color[0] : channel == 1 ? sums.color[1] : sums.color[2];
        out[3 * ray + channel] = color + last[ray] * background[channel];
    }
}
