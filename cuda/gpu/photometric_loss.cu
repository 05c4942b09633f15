// (1 - w) L1 + w (1 - SSIM) of two pictures with its gradient; definition as in cuda/cpu/photometric_loss.cpp.
//
// 1. loss_statistics: a block takes a tile of kWide x kTall pixels, loads it with a halo of the window's radius, blurs
//    along rows and then columns, and writes the derivatives of SSIM by the blurred moments (math/ssim.h).
// 2. loss_gradient: blurs those derivatives the same way and writes the gradient by the picture.
// 3. loss_totals: adds the sums of all tiles.
//
// Bytes per value: 8 read and 12 written by the first, 12 and 8 read and 4 written by the second; the rest stays in
// shared memory. A warp blurs along rows with a row to each lane and down columns with a column to each lane; odd row
// strides keep both free of bank conflicts. Each thread makes neighbouring outputs, which share most of what they read.
//
// Each tile's sums are made in a fixed order and kept apart until loss_totals adds them in a fixed order: a run repeats
// bit for bit. The count of valid pixels is a sum of integers, so that an atomic serves, and stays on the device.
#include "gpu/device.h"
#include "math/ssim.h"

namespace maquette {

constexpr int kRadius = 5, kTaps = 2 * kRadius + 1;                  // pixels
constexpr int kWide = 32, kTall = 16;                                // pixels of a tile
constexpr int kLoadWide = kWide + 2 * kRadius, kLoadTall = kTall + 2 * kRadius;
constexpr int kThreads = 256, kWarps = kThreads / kWarp;
constexpr int kAlong = kWide / kWarps, kDown = kTall / kWarps;       // outputs of a thread in the two blurs
static_assert(kLoadTall <= kWarp && kWide == kWarp, "a lane to each loaded row, a lane to each column");
static_assert(kAlong * kWarps == kWide && kDown * kWarps == kTall, "the warps share a tile evenly");

constexpr int kMaps = 3;  // derivatives by mx, E[x^2 + t^2], E[x t]
constexpr int kSumThreads = 256;

// Weight of a neighbour at `distance`: exp(-distance^2 / (2 1.5^2)) over the sum of all eleven.
__device__ inline float tap(int distance) {
    constexpr float weights[kRadius + 1] = {2.660117249e-01f, 2.130055377e-01f, 1.093606895e-01f,
                                            3.600077213e-02f, 7.598758135e-03f, 1.028380084e-03f};
    return weights[distance < 0 ? -distance : distance];
}

// Quantities blurred along rows, of the rows of a tile with its halo.
template <int kFields>
struct Rows {
    float at[kFields][kLoadTall][kWide + 1];
};

// out[f][j]: field f of tile row `row` + j, blurred down its column.
template <int kFields>
__device__ inline void blur_down(const Rows<kFields>& rows, int column, int row, float (&out)[kFields][kDown]) {
#pragma unroll
    for (int f = 0; f < kFields; ++f) {
#pragma unroll
        for (int j = 0; j < kDown; ++j) out[f][j] = 0.0f;
#pragma unroll
        for (int k = 0; k < kDown + 2 * kRadius; ++k) {
            const float value = rows.at[f][row + k][column];
#pragma unroll
            for (int j = 0; j < kDown; ++j)
                if (k >= j && k - j < kTaps) out[f][j] += tap(k - j - kRadius) * value;
        }
    }
}

struct Pictures {
    const float* image;         // [height, width, 3]
    const unsigned char* mask;  // [height, width], nonzero where valid; null: everywhere
    const float* exposure;      // [2, 3] gain and offset; null: none
    int width, height;

    __device__ bool has(int column, int row) const { return column >= 0 && column < width && row >= 0 && row < height; }
    __device__ long long pixel(int column, int row) const { return (long long)row * width + column; }
    __device__ bool valid(long long pixel) const { return !mask || mask[pixel]; }
    __device__ float exposed(float value, int channel) const {
        return exposure ? exposure[channel] * value + exposure[3 + channel] : value;
    }
};

__device__ inline float unit_range(float value) { return value; }
__device__ inline float unit_range(unsigned char value) { return float(value) / 255.0f; }

// values[i] summed over the block, in a fixed order; the first thread has the sums. `scratch` may be used again after
// the next barrier.
template <int kCount>
__device__ inline void add_block(float (&values)[kCount], float (&scratch)[kCount][kWarps], int thread) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
#pragma unroll
        for (int step = kWarp / 2; step > 0; step /= 2) values[i] += __shfl_down_sync(kAllLanes, values[i], step);
        if (thread % kWarp == 0) scratch[i][thread / kWarp] = values[i];
    }
    __syncthreads();
    if (thread == 0) {
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
            values[i] = 0.0f;
            for (int warp = 0; warp < kWarps; ++warp) values[i] += scratch[i][warp];
        }
    }
}

struct StatisticsTile {
    float x[kLoadTall][3 * kLoadWide + 1], t[kLoadTall][3 * kLoadWide + 1];  // channels interleaved, as in memory
    Rows<4> rows;                                                            // x, t, x^2 + t^2, x t
    float sums[3][kWarps];
};
static_assert(sizeof(StatisticsTile) <= 48 * 1024, "what a block may have on any card");

// x (after exposure) and t of a tile with its halo; zero outside the picture and where the mask says so.
template <typename Target>
__device__ inline void load_tile(const Pictures& p, const Target* target, int left, int top, int thread,
                                 StatisticsTile& tile) {
    for (int i = thread; i < kLoadTall * 3 * kLoadWide; i += kThreads) {
        const int row = i / (3 * kLoadWide), number = i % (3 * kLoadWide);
        const int column = left - kRadius + number / 3, line = top - kRadius + row, channel = number % 3;
        float x = 0.0f, t = 0.0f;
        if (p.has(column, line)) {
            const long long pixel = p.pixel(column, line);
            if (p.valid(pixel)) {  // else not even looked at: NaN may lie under the mask
                x = p.exposed(p.image[3 * pixel + channel], channel);
                t = unit_range(target[3 * pixel + channel]);
            }
        }
        tile.x[row][number] = x;
        tile.t[row][number] = t;
    }
}

// One channel of row `row`, kAlong columns from `column`, blurred along the row.
__device__ inline void blur_moments(StatisticsTile& tile, int channel, int row, int column) {
    float out[4][kAlong] = {};
#pragma unroll
    for (int k = 0; k < kAlong + 2 * kRadius; ++k) {
        const float x = tile.x[row][3 * (column + k) + channel], t = tile.t[row][3 * (column + k) + channel];
        const float moments[4] = {x, t, x * x + t * t, x * t};
#pragma unroll
        for (int j = 0; j < kAlong; ++j) {
            if (k < j || k - j >= kTaps) continue;
#pragma unroll
            for (int f = 0; f < 4; ++f) out[f][j] += tap(k - j - kRadius) * moments[f];
        }
    }
#pragma unroll
    for (int f = 0; f < 4; ++f)
#pragma unroll
        for (int j = 0; j < kAlong; ++j) tile.rows.at[f][row][column + j] = out[f][j];
}

template <typename Target>
__device__ inline void statistics(const Pictures& p, const Target* target, float* maps, float* sums, int* valid,
                                  StatisticsTile& tile) {
    const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
    const int left = blockIdx.x * kWide, top = blockIdx.y * kTall;
    const long long plane = (long long)p.width * p.height;
    load_tile(p, target, left, top, thread, tile);

    bool shown[kDown];
    for (int j = 0; j < kDown; ++j) {
        const int column = left + lane, row = top + kDown * warp + j;
        shown[j] = p.has(column, row) && p.valid(p.pixel(column, row));
    }
    float totals[3] = {0.0f, 0.0f, 0.0f};  // L1, SSIM, valid pixels
    for (int j = 0; j < kDown; ++j) totals[2] += shown[j] ? 1.0f : 0.0f;
    for (int channel = 0; channel < 3; ++channel) {
        __syncthreads();  // the tile is loaded; the rows of the channel before have been read
        if (lane < kLoadTall) blur_moments(tile, channel, lane, kAlong * warp);
        __syncthreads();
        float blurred[4][kDown];
        blur_down(tile.rows, lane, kDown * warp, blurred);
        for (int j = 0; j < kDown; ++j) {
            const int column = left + lane, row = top + kDown * warp + j;
            if (!p.has(column, row)) continue;
            Similarity<float> s{0.0f, 0.0f, 0.0f, 0.0f};
            if (shown[j]) {
                s = similarity(blurred[0][j], blurred[1][j], blurred[2][j], blurred[3][j]);
                const int at = 3 * (lane + kRadius) + channel, line = kDown * warp + j + kRadius;
                totals[0] += fabsf(tile.x[line][at] - tile.t[line][at]);
                totals[1] += s.value;
            }
            float* map = maps + kMaps * plane * channel + p.pixel(column, row);
            map[0] = s.by_mean;
            map[plane] = s.by_square;
            map[2 * plane] = s.by_product;
        }
    }
    add_block(totals, tile.sums, thread);
    if (thread == 0) {
        const int tiles = gridDim.x * gridDim.y, mine = blockIdx.y * gridDim.x + blockIdx.x;
        sums[mine] = totals[0];
        sums[tiles + mine] = totals[1];
        if (valid) atomicAdd(valid, int(totals[2]));
    }
}

struct GradientTile {
    float maps[kMaps][kLoadTall][kLoadWide + 1];
    Rows<kMaps> rows;
    float sums[6][kWarps];
};
static_assert(sizeof(GradientTile) <= 48 * 1024, "what a block may have on any card");

// The derivative maps of one channel, with a halo; zero outside the picture.
__device__ inline void load_maps(const Pictures& p, const float* maps, int left, int top, int thread,
                                 GradientTile& tile) {
    const long long plane = (long long)p.width * p.height;
    for (int i = thread; i < kLoadTall * kLoadWide; i += kThreads) {
        const int row = i / kLoadWide, column = i % kLoadWide;
        const bool there = p.has(left - kRadius + column, top - kRadius + row);
        const float* map = maps + (there ? p.pixel(left - kRadius + column, top - kRadius + row) : 0);
        for (int m = 0; m < kMaps; ++m) tile.maps[m][row][column] = there ? map[m * plane] : 0.0f;
    }
}

__device__ inline void blur_maps(GradientTile& tile, int row, int column) {
#pragma unroll
    for (int m = 0; m < kMaps; ++m) {
        float out[kAlong] = {};
#pragma unroll
        for (int k = 0; k < kAlong + 2 * kRadius; ++k) {
            const float value = tile.maps[m][row][column + k];
#pragma unroll
            for (int j = 0; j < kAlong; ++j)
                if (k >= j && k - j < kTaps) out[j] += tap(k - j - kRadius) * value;
        }
#pragma unroll
        for (int j = 0; j < kAlong; ++j) tile.rows.at[m][row][column + j] = out[j];
    }
}

template <typename Target>
__device__ inline void gradient(const Pictures& p, const Target* target, const float* maps, const int* valid,
                                float ssim_weight, float* v_image, float* sums, GradientTile& tile) {
    const int thread = threadIdx.x, lane = thread % kWarp, warp = thread / kWarp;
    const int left = blockIdx.x * kWide, top = blockIdx.y * kTall;
    const long long plane = (long long)p.width * p.height;
    const float values = 3.0f * (valid ? float(*valid) : float(plane));
    const float over = values > 0.0f ? 1.0f / values : 0.0f;
    const float l1_scale = (1.0f - ssim_weight) * over, ssim_scale = ssim_weight * over;
    float by_exposure[6] = {};
    // Unrolled so that by_exposure stays in registers.
#pragma unroll
    for (int channel = 0; channel < 3; ++channel) {
        load_maps(p, maps + kMaps * plane * channel, left, top, thread, tile);
        __syncthreads();  // also: the rows of the channel before have been read
        if (lane < kLoadTall) blur_maps(tile, lane, kAlong * warp);
        __syncthreads();
        float blurred[kMaps][kDown];
        blur_down(tile.rows, lane, kDown * warp, blurred);
        for (int j = 0; j < kDown; ++j) {
            const int column = left + lane, row = top + kDown * warp + j;
            if (!p.has(column, row)) continue;
            const long long pixel = p.pixel(column, row), at = 3 * pixel + channel;
            float v = 0.0f;
            if (p.valid(pixel)) {
                const float value = p.image[at], x = p.exposed(value, channel), t = unit_range(target[at]), d = x - t;
                const float sign = d > 0.0f ? 1.0f : d < 0.0f ? -1.0f : d;  // d itself: 0, or a NaN that must be seen
                v = l1_scale * sign - ssim_scale * (blurred[0][j] + 2.0f * x * blurred[1][j] + t * blurred[2][j]);
                by_exposure[channel] += v * value;
                by_exposure[3 + channel] += v;
                if (p.exposure) v *= p.exposure[channel];
            }
            v_image[at] = v;
        }
    }
    if (!p.exposure) return;  // the same for all threads
    add_block(by_exposure, tile.sums, thread);
    if (thread == 0) {
        const int tiles = gridDim.x * gridDim.y, mine = blockIdx.y * gridDim.x + blockIdx.x;
        for (int i = 0; i < 6; ++i) sums[(2 + i) * tiles + mine] = by_exposure[i];
    }
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

// Grids of statistics and gradient: (columns of tiles, rows of tiles), blocks of kThreads.
// maps: [3 channels, kMaps, height, width].  sums: [8, tiles]: L1, SSIM, then by gain and by offset per channel.
// valid: zero before, the number of valid pixels after; null where mask is null.
MQ_KERNEL __launch_bounds__(kThreads)
    loss_statistics_floats(const float* image, const float* target, const unsigned char* mask, const float* exposure,
                           int width, int height, float* maps, float* sums, int* valid) {
    __shared__ StatisticsTile tile;
    statistics(Pictures{image, mask, exposure, width, height}, target, maps, sums, valid, tile);
}

MQ_KERNEL __launch_bounds__(kThreads)
    loss_statistics_bytes(const float* image, const unsigned char* target, const unsigned char* mask,
                          const float* exposure, int width, int height, float* maps, float* sums, int* valid) {
    __shared__ StatisticsTile tile;
    statistics(Pictures{image, mask, exposure, width, height}, target, maps, sums, valid, tile);
}

MQ_KERNEL __launch_bounds__(kThreads)
    loss_gradient_floats(const float* image, const float* target, const unsigned char* mask, const float* exposure,
                         int width, int height, const float* maps, const int* valid, float ssim_weight, float* v_image,
                         float* sums) {
    __shared__ GradientTile tile;
    gradient(Pictures{image, mask, exposure, width, height}, target, maps, valid, ssim_weight, v_image, sums, tile);
}

MQ_KERNEL __launch_bounds__(kThreads)
    loss_gradient_bytes(const float* image, const unsigned char* target, const unsigned char* mask,
                        const float* exposure, int width, int height, const float* maps, const int* valid,
                        float ssim_weight, float* v_image, float* sums) {
    __shared__ GradientTile tile;
    gradient(Pictures{image, mask, exposure, width, height}, target, maps, valid, ssim_weight, v_image, sums, tile);
}

// Block 0 makes the loss, block 1 + i the gradient by number i of the exposure; without exposure there is block 0 only.
MQ_KERNEL __launch_bounds__(kSumThreads)
    loss_totals(const float* sums, int tiles, const int* valid, float pixels, float ssim_weight, float* loss,
                float* v_exposure) {
    __shared__ double scratch[kSumThreads];
    if (blockIdx.x > 0) {
        const double sum = add_all(sums + (long long)(1 + blockIdx.x) * tiles, tiles, scratch);
        if (threadIdx.x == 0) v_exposure[blockIdx.x - 1] = float(sum);
        return;
    }
    const double l1 = add_all(sums, tiles, scratch), ssim = add_all(sums + tiles, tiles, scratch);
    const double values = 3.0 * (valid ? double(*valid) : double(pixels)), w = double(ssim_weight);
    if (threadIdx.x == 0) *loss = values > 0.0 ? float(((1.0 - w) * l1 - w * ssim) / values + w) : 0.0f;
}
