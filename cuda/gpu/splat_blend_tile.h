// How a block of threads walks the splats of a 16x16 tile: shared by splat_blend.cu and splat_blend_backward.cu.
//
// Each warp owns a sub-tile and each lane some pixels of it. The block stages a batch of splats in shared memory; a warp
// then tests 32 of them at once against its sub-tile, a lane each, and visits only those that touch it, in depth order.
#pragma once
#include "gpu/device.h"
#include "math/splat_blend.h"
#include "math/splat_tiles.h"

namespace maquette {

// A square sub-tile is missed by the most splats; two pixels a lane share dx and give the scheduler two chains.
constexpr int kSubWidth = 8, kSubHeight = 8;
constexpr int kPixels = kSubWidth * kSubHeight / kWarp;  // per lane, one below the other
constexpr int kRowStep = kWarp / kSubWidth;              // rows between them
constexpr int kWarps = kTile * kTile / (kSubWidth * kSubHeight);
constexpr int kBlendThreads = kWarps * kWarp;

// A record in shared memory is followed by 16 bytes of nothing: eight lanes that read a record each hit all 32 banks.
constexpr int kRecordQuads = 4, kStagedQuads = kRecordQuads + 1;

// The pixels of one lane.
struct LanePixels {
    int left, top;  // of the warp's sub-tile
    int column, row, width, height;

    __device__ LanePixels(int width, int height) : width(width), height(height) {
        const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
        left = blockIdx.x * kTile + warp % (kTile / kSubWidth) * kSubWidth;
        top = blockIdx.y * kTile + warp / (kTile / kSubWidth) * kSubHeight;
        column = left + lane % kSubWidth, row = top + lane / kSubWidth;
    }
    __device__ bool inside(int pixel) const { return column < width && row + pixel * kRowStep < height; }
    __device__ long long offset(int pixel) const { return (long long)(row + pixel * kRowStep) * width + column; }
    __device__ float x() const { return float(column) + 0.5f; }
    __device__ float y(int pixel) const { return float(row + pixel * kRowStep) + 0.5f; }
};

__device__ inline SplatRecord<float> load_record(const float4* quads) {
    const float4 a = quads[0], b = quads[1], c = quads[2], d = quads[3];
    return {a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w, c.x, c.y, c.z, c.w, d.x, d.y, {d.z, d.w}};
}

// Copies the records of `count` listed splats to shared memory, each by four neighbouring threads.
__device__ inline void stage_records(float4* staged, const float4* records, const int* listed, int count) {
    for (int i = threadIdx.x; i < count * kRecordQuads; i += kBlendThreads) {
        const int place = i / kRecordQuads, quad = i % kRecordQuads;
        staged[place * kStagedQuads + quad] = records[(long long)listed[place] * kRecordQuads + quad];
    }
}

// False only where alpha < 1/255 at every pixel centre of the warp's sub-tile. The quadratic is concave: where the mean
// is not inside, its maximum over the rectangle lies on an edge that faces the mean, at the top of the parabola there,
// where an ulp more or less of x or y changes next to nothing.
__device__ inline bool touches(const SplatRecord<float>& splat, const LanePixels& at) {
    const float right = splat.mean_x - float(at.left) - 0.5f, left = right - float(kSubWidth - 1);  // bounds of dx
    const float lower = splat.mean_y - float(at.top) - 0.5f, upper = lower - float(kSubHeight - 1);
    const float near_x = fminf(fmaxf(0.0f, left), right), near_y = fminf(fmaxf(0.0f, upper), lower);
    const float top_y = fminf(fmaxf(-0.5f * splat.xy * near_x * reciprocal(splat.yy), upper), lower);
    const float top_x = fminf(fmaxf(-0.5f * splat.xy * near_y * reciprocal(splat.xx), left), right);
    const float best = fmaxf(log2_alpha(splat, near_x, top_y), log2_alpha(splat, top_x, near_y));
    // Terms of either sign may cancel; what they round off is a small part of the largest of them.
    const float size = fabsf(splat.xx) * fmaxf(near_x * near_x, top_x * top_x) +
                       fabsf(splat.yy) * fmaxf(near_y * near_y, top_y * top_y);
    constexpr float kLog2MinAlpha = -7.99435344f;
    return !(best < kLog2MinAlpha - 0.01f - 4e-6f * size);  // a NaN is visited, and then adds nothing
}

// Mask of the splats first .. first + 31 of a staged batch of `count` that touch the warp's sub-tile.
__device__ inline unsigned touching(const float4* staged, int first, int count, const LanePixels& at) {
    const int place = first + threadIdx.x % kWarp;
    return __ballot_sync(kAllLanes, place < count && touches(load_record(staged + place * kStagedQuads), at));
}

// Whether light still reaches any pixel of the lane.
template <typename Pixel>
__device__ bool is_open(const Pixel (&pixels)[kPixels]) {
    bool open = false;
    for (const Pixel& pixel : pixels) open = open || pixel.light >= float(kMinTransmittance);
    return open;
}

}  // namespace maquette
