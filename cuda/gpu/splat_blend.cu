// Forward blending: records of the listed splats, then an image tile per block. Equations: scene/ops/splat_blend.py.
#include "gpu/splat_blend_tile.h"

namespace maquette {

constexpr int kForwardBatch = 128;  // splats in shared memory: 10 kB

template <bool kGeometry>
__device__ void blend_tile(float4* staged, const float4* records, const int* tile_begin, const int* pair_splat,
                           const float* background, float* rgb, float* alpha, float* depth, float* normal,
                           float* median_depth, int width, int height) {
    const LanePixels at(width, height);
    PixelSums<float> pixels[kPixels] = {};
#pragma unroll
    for (int p = 0; p < kPixels; ++p) pixels[p].light = pixels[p].transmittance = at.inside(p) ? 1.0f : 0.0f;

    const int tile = blockIdx.y * gridDim.x + blockIdx.x, end = tile_begin[tile + 1];
    for (int batch = tile_begin[tile]; batch < end; batch += kForwardBatch) {
        if (__syncthreads_count(is_open(pixels)) == 0) break;  // also: nobody reads the last batch any more
        const int count = min(kForwardBatch, end - batch);
        stage_records(staged, records, pair_splat + batch, count);
        __syncthreads();
        for (int first = 0; first < count && __any_sync(kAllLanes, is_open(pixels)); first += kWarp)
            for (unsigned left = touching(staged, first, count, at); left; left &= left - 1) {
                const SplatRecord<float> splat = load_record(staged + (first + __ffs(left) - 1) * kStagedQuads);
                const float dx = splat.mean_x - at.x();
#pragma unroll
                for (int p = 0; p < kPixels; ++p)
                    add_splat<kGeometry>(pixels[p], splat, exp2_fast(log2_alpha(splat, dx, splat.mean_y - at.y(p))));
            }
    }

    const float red = background ? background[0] : 0.0f, green = background ? background[1] : 0.0f;
    const float blue = background ? background[2] : 0.0f;
#pragma unroll
    for (int p = 0; p < kPixels; ++p) {
        if (!at.inside(p)) continue;
        const PixelSums<float>& pixel = pixels[p];
        const long long to = at.offset(p);
        rgb[3 * to] = pixel.red + pixel.transmittance * red;
        rgb[3 * to + 1] = pixel.green + pixel.transmittance * green;
        rgb[3 * to + 2] = pixel.blue + pixel.transmittance * blue;
        alpha[to] = 1.0f - pixel.transmittance;
        if constexpr (kGeometry) {
            depth[to] = pixel.z, median_depth[to] = pixel.median_depth;
            normal[3 * to] = pixel.normal_x, normal[3 * to + 1] = pixel.normal_y, normal[3 * to + 2] = pixel.normal_z;
        }
    }
}

}  // namespace maquette

using namespace maquette;

// One thread per splat. Splats without pairs are in no list: their records stay unwritten and are never read.
MQ_KERNEL __launch_bounds__(256)
pack_splats(const float* means2d, const float* conics, const float* opacities, const float* colors,
            const float* depths, const float* normals, const int* slot_count, float4* records, int count) {
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count || slot_count[i] == 0) return;
    SplatRecord<float> splat;
    set_shape(splat, means2d + 2 * i, conics + 3 * i, log2f(opacities[i]));
    float4* to = records + i * kRecordQuads;
    const float* color = colors + 3 * i;
    to[0] = {splat.mean_x, splat.mean_y, splat.xx, splat.xy};
    to[1] = {splat.yy, splat.log2_opacity, 1.0f / opacities[i], color[0]};
    to[2] = {color[1], color[2], normals ? depths[i] : 0.0f, normals ? normals[3 * i] : 0.0f};
    to[3] = {normals ? normals[3 * i + 1] : 0.0f, normals ? normals[3 * i + 2] : 0.0f, 0.0f, 0.0f};
}

// Grid: tiles across, tiles down.
MQ_KERNEL __launch_bounds__(kBlendThreads, 7)
blend(const float4* records, const int* tile_begin, const int* pair_splat, const float* background, float* rgb,
      float* alpha, int width, int height) {
    __shared__ float4 staged[kForwardBatch * kStagedQuads];
    blend_tile<false>(staged, records, tile_begin, pair_splat, background, rgb, alpha, nullptr, nullptr, nullptr, width,
                      height);
}

MQ_KERNEL __launch_bounds__(kBlendThreads, 7)
blend_geometry(const float4* records, const int* tile_begin, const int* pair_splat, const float* background,
               float* rgb, float* alpha, float* depth, float* normal, float* median_depth, int width, int height) {
    __shared__ float4 staged[kForwardBatch * kStagedQuads];
    blend_tile<true>(staged, records, tile_begin, pair_splat, background, rgb, alpha, depth, normal, median_depth,
                     width, height);
}
