// Gradient of blending: sums of every (tile, splat) pair to its slot, then the slots of each splat in their order.
// No atomics: every slot is written once and read by one warp, so the same input gives the same bits.
#include "gpu/splat_blend_tile.h"

namespace maquette {

constexpr int kBackwardBatch = 64;          // splats in shared memory: 5 kB, and 12 or 16 kB of sums
constexpr int kGroups = kBackwardBatch / kWarp;
constexpr int kLongRow = 32;                // slots of a splat from which the warp sums them together

template <bool kGeometry, bool kAbsgrad>
constexpr int kSumCount = kGeometry ? int(kWNormalZ) + 1 : kAbsgrad ? int(kAbsY) + 1 : int(kWBlue) + 1;
template <bool kGeometry>
constexpr int kSlotQuads = kGeometry ? 4 : 3;  // float4s of a slot: room for all sums but the geometry's, or for all

// The lane, in a way that the compiler cannot work out anew at each use: its bits then become the five predicates of a
// fold by one instruction instead of three for each.
__device__ inline unsigned lane_kept() {
    unsigned lane = threadIdx.x % kWarp;
    asm("" : "+r"(lane));
    return lane;
}

// Sums each of kCount values over the lanes of the warp. A step hands half of what is left to the partner and takes over
// its share of the other half: kCount + 3 or so shuffles, where one value after the other takes five each.
// The lane for which fold_place gives k ends up with sum k.
template <int kCount, int kMask = kWarp / 2>
__device__ float fold(float* values, unsigned lane) {
    constexpr int kHalf = (kCount + 1) / 2;
    const bool upper = lane & kMask;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
        const float low = values[i], high = i + kHalf < kCount ? values[i + kHalf] : 0.0f;
        values[i] = (upper ? high : low) + __shfl_xor_sync(kAllLanes, upper ? low : high, kMask);
    }
    if constexpr (kMask > 1) return fold<kHalf, kMask / 2>(values, lane);
    else return values[0];
}

// Which of `count` sums this lane ends up with; -1: none.
__device__ inline int fold_place(int count) {
    int first = 0, kept = count;  // of the values still held, `kept` are sums and the rest is padding
    for (int mask = kWarp / 2; mask; mask /= 2) {
        const int half = (count + 1) / 2;
        if (threadIdx.x & mask) first += half, kept -= half;
        else kept = min(kept, half);
        count = half;
    }
    return kept > 0 ? first : -1;
}

struct BackwardImages {
    const float *rgb, *alpha, *depth, *normal, *v_rgb, *v_alpha, *v_depth, *v_normal;
};

// Upstream gradients of a pixel, and what all of its light, the background's included, is worth.
template <bool kGeometry>
__device__ PixelGradient<float> load_pixel(const BackwardImages& images, long long at) {
    PixelGradient<float> pixel = {};
    const float *v_rgb = images.v_rgb + 3 * at, *rgb = images.rgb + 3 * at;
    pixel.light = 1.0f;
    pixel.v_red = v_rgb[0], pixel.v_green = v_rgb[1], pixel.v_blue = v_rgb[2];
    pixel.behind = v_rgb[0] * rgb[0] + v_rgb[1] * rgb[1] + v_rgb[2] * rgb[2];
    if (images.v_alpha) pixel.behind -= images.v_alpha[at] * (1.0f - images.alpha[at]);
    if constexpr (kGeometry) {
        if (images.v_depth) {
            pixel.v_z = images.v_depth[at];
            pixel.behind += pixel.v_z * images.depth[at];
        }
        if (images.v_normal) {
            const float *v_normal = images.v_normal + 3 * at, *normal = images.normal + 3 * at;
            pixel.v_normal_x = v_normal[0], pixel.v_normal_y = v_normal[1], pixel.v_normal_z = v_normal[2];
            pixel.behind += v_normal[0] * normal[0] + v_normal[1] * normal[1] + v_normal[2] * normal[2];
        }
    }
    return pixel;
}

// Sums of a warp's pixels for the splats of a batch, and which splats it has sums for.
template <int kQuads>
struct BatchSums {
    float* sums;        // [kBackwardBatch, kWarps, 4 * kQuads], kRow to a splat
    unsigned* visited;  // [kGroups, kWarps]

    static constexpr int kRow = kWarps * 4 * kQuads;

    __device__ bool has(int place, int warp) const {
        return visited[place / kWarp * kWarps + warp] >> (place % kWarp) & 1;
    }

    // All threads: adds up the warps' parts of the first `count` splats and writes each slot.
    __device__ void write(float4* slots, const int* pair_slot, int count) const {
        for (int i = threadIdx.x; i < count * kQuads; i += kBlendThreads) {
            const int place = i / kQuads, quad = i % kQuads;
            float4 total = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
            for (int warp = 0; warp < kWarps; ++warp)
                if (has(place, warp)) {
                    const float4 part = ((const float4*)sums)[(place * kWarps + warp) * kQuads + quad];
                    total.x += part.x, total.y += part.y, total.z += part.z, total.w += part.w;
                }
            slots[(long long)pair_slot[place] * kQuads + quad] = total;
        }
    }
};

// Sums over the pixels of a lane. They stand in one column, so that dx multiplies what they add up to.
template <bool kGeometry, bool kAbsgrad>
__device__ void add_column(float* sums, PixelGradient<float> (&pixels)[kPixels], const SplatRecord<float>& splat,
                           float dx, const LanePixels& at, const float (&alpha)[kPixels]) {
#pragma unroll
    for (int p = 0; p < kPixels; ++p) {
        const PixelShare<float> share = pass_splat<kGeometry>(pixels[p], splat, alpha[p]);
        const float dy = splat.mean_y - at.y(p), v_dy = share.v * dy;
        sums[kV] += share.v, sums[kVDy] += v_dy, sums[kVDyDy] += v_dy * dy;
        add_weighted<kGeometry>(sums, pixels[p], share.weight);
        if constexpr (kAbsgrad) add_absolute(sums, splat, share.v * dx, v_dy);
    }
    sums[kVDx] = sums[kV] * dx, sums[kVDxDx] = sums[kVDx] * dx, sums[kVDxDy] = sums[kVDy] * dx;
}

// A warp's walk through a group of 32 staged splats; returns the mask of those that changed a pixel. own: which number
// of a splat's row in batch.sums this lane writes; -1: none.
template <bool kGeometry, bool kAbsgrad>
__device__ unsigned visit_group(const float4* staged, int first, int count, const LanePixels& at,
                                PixelGradient<float> (&pixels)[kPixels],
                                const BatchSums<kSlotQuads<kGeometry>>& batch, int own) {
    constexpr int kSums = kSumCount<kGeometry, kAbsgrad>;
    unsigned visited = 0;
    const unsigned lane = lane_kept();
    for (unsigned left = touching(staged, first, count, at); left; left &= left - 1) {
        const int bit = __ffs(left) - 1;
        const SplatRecord<float> splat = load_record(staged + (first + bit) * kStagedQuads);
        const float dx = splat.mean_x - at.x();
        float alpha[kPixels];
        bool seen = false;  // worked out without && and ||, which would be branches that part the lanes
#pragma unroll
        for (int p = 0; p < kPixels; ++p) {
            alpha[p] = exp2_fast(log2_alpha(splat, dx, splat.mean_y - at.y(p)));
            seen |= (alpha[p] >= float(kMinAlpha)) & (pixels[p].light >= float(kMinTransmittance));
        }
        if (!__any_sync(kAllLanes, seen)) continue;
        visited |= 1u << bit;
        float sums[kSplatSums] = {};
        add_column<kGeometry, kAbsgrad>(sums, pixels, splat, dx, at, alpha);
        const float total = fold<kSums>(sums, lane);
        if (own >= 0) batch.sums[(first + bit) * batch.kRow + own] = total;
    }
    return visited;
}

template <bool kGeometry, bool kAbsgrad>
__device__ void blend_tile_backward(float4* staged, float* sums, unsigned* visited, const float4* records,
                                    const int* tile_begin, const int* pair_splat, const int* pair_slot,
                                    const BackwardImages& images, float4* slots, int width, int height) {
    constexpr int kQuads = kSlotQuads<kGeometry>;
    const LanePixels at(width, height);
    const BatchSums<kQuads> parts = {sums, visited};
    const int sum_place = fold_place(kSumCount<kGeometry, kAbsgrad>);
    const int own = sum_place < 0 ? -1 : int(threadIdx.x) / kWarp * 4 * kQuads + sum_place;  // in a splat's row
    PixelGradient<float> pixels[kPixels] = {};
#pragma unroll
    for (int p = 0; p < kPixels; ++p)
        if (at.inside(p)) pixels[p] = load_pixel<kGeometry>(images, at.offset(p));

    const int tile = blockIdx.y * gridDim.x + blockIdx.x, end = tile_begin[tile + 1];
    int batch = tile_begin[tile];
    for (; batch < end; batch += kBackwardBatch) {
        if (__syncthreads_count(is_open(pixels)) == 0) break;
        const int count = min(kBackwardBatch, end - batch);
        stage_records(staged, records, pair_splat + batch, count);
        __syncthreads();
        for (int group = 0; group < kGroups; ++group) {
            unsigned mask = 0;
            if (__any_sync(kAllLanes, is_open(pixels)))
                mask = visit_group<kGeometry, kAbsgrad>(staged, group * kWarp, count, at, pixels, parts, own);
            if (threadIdx.x % kWarp == 0) visited[group * kWarps + threadIdx.x / kWarp] = mask;
        }
        __syncthreads();
        parts.write(slots, pair_slot + batch, count);
    }
    for (int i = threadIdx.x; i < (end - batch) * kQuads; i += kBlendThreads)  // behind the last pixel's stop
        slots[(long long)pair_slot[batch + i / kQuads] * kQuads + i % kQuads] = {0.0f, 0.0f, 0.0f, 0.0f};
}

template <int kQuads>
__device__ void add_slot(float (&sums)[4 * kQuads], const float4* slots, long long slot) {
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
        const float4 part = slots[slot * kQuads + quad];
        sums[4 * quad] += part.x, sums[4 * quad + 1] += part.y;
        sums[4 * quad + 2] += part.z, sums[4 * quad + 3] += part.w;
    }
}

// Sums of a lane's splat over its slots begin .. end - 1: alone for a short row; a long row is summed by the whole warp,
// so that a splat across the whole image does not keep one thread busy while all others have ended.
template <int kQuads>
__device__ void sum_rows(float (&sums)[4 * kQuads], float* shared, const float4* slots, int begin, int end) {
    const bool is_long = end - begin > kLongRow;
    if (!is_long)
        for (int slot = begin; slot < end; ++slot) add_slot<kQuads>(sums, slots, slot);
    const int lane = lane_kept(), place = fold_place(4 * kQuads);
    for (unsigned left = __ballot_sync(kAllLanes, is_long); left; left &= left - 1) {
        const int owner = __ffs(left) - 1;
        const int from = __shfl_sync(kAllLanes, begin, owner), to = __shfl_sync(kAllLanes, end, owner);
        float parts[4 * kQuads] = {};
        for (int slot = from + lane; slot < to; slot += kWarp) add_slot<kQuads>(parts, slots, slot);
        const float total = fold<4 * kQuads>(parts, lane);
        if (place >= 0) shared[place] = total;
        __syncwarp();
        if (lane == owner)
#pragma unroll
            for (int k = 0; k < 4 * kQuads; ++k) sums[k] = shared[k];
        __syncwarp();
    }
}

struct BlendGradients {
    float *means2d, *conics, *opacities, *colors, *depths, *normals, *abs_means2d;
};

template <bool kGeometry>
__device__ void splat_gradients(float* shared, const float4* records, const float4* slots, const int* slot_first,
                                const int* slot_count, const BlendGradients& to, int count, int capacity) {
    constexpr int kQuads = kSlotQuads<kGeometry>;
    const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const int pairs = i < count ? slot_count[i] : 0, first = pairs ? slot_first[i] : 0;
    // Pairs beyond the room were dropped; their slots are not there.
    const int begin = min(first, capacity), end = pairs < capacity - begin ? begin + pairs : capacity;
    float sums[kSplatSums] = {}, rows[4 * kQuads] = {};
    sum_rows<kQuads>(rows, shared + threadIdx.x / kWarp * kSplatSums, slots, begin, pairs ? end : begin);
    if (i >= count) return;
#pragma unroll
    for (int k = 0; k < 4 * kQuads; ++k) sums[k] = rows[k];
    SplatGradient<float> v = {};
    if (pairs) v = splat_gradient(load_record(records + i * kRecordQuads), sums);
    to.opacities[i] = v.opacity;
    to.means2d[2 * i] = v.mean2d[0], to.means2d[2 * i + 1] = v.mean2d[1];
    for (int k = 0; k < 3; ++k) to.conics[3 * i + k] = v.conic[k], to.colors[3 * i + k] = v.color[k];
    if constexpr (kGeometry) {
        to.depths[i] = v.z;
        for (int k = 0; k < 3; ++k) to.normals[3 * i + k] = v.normal[k];
    }
    if (to.abs_means2d) to.abs_means2d[2 * i] = v.abs_mean2d[0], to.abs_means2d[2 * i + 1] = v.abs_mean2d[1];
}

}  // namespace maquette

using namespace maquette;

// Grid: tiles across, tiles down. One kernel for each set of sums that may be asked for.
#define MQ_BLEND_BACKWARD(name, geometry, absgrad)                                                                     \
    MQ_KERNEL __launch_bounds__(kBlendThreads, geometry ? 5 : 7)                                                       \
    name(const float4* records, const int* tile_begin, const int* pair_splat, const int* pair_slot, const float* rgb,  \
         const float* alpha, const float* depth, const float* normal, const float* v_rgb, const float* v_alpha,        \
         const float* v_depth, const float* v_normal, float4* slots, int width, int height) {                          \
        __shared__ float4 staged[kBackwardBatch * kStagedQuads], sums[kBackwardBatch * kWarps * kSlotQuads<geometry>]; \
        __shared__ unsigned visited[kGroups * kWarps];                                                                 \
        blend_tile_backward<geometry, absgrad>(staged, (float*)sums, visited, records, tile_begin, pair_splat,         \
                                               pair_slot,                                                              \
                                               {rgb, alpha, depth, normal, v_rgb, v_alpha, v_depth, v_normal}, slots,  \
                                               width, height);                                                         \
    }

MQ_BLEND_BACKWARD(blend_backward, false, false)
MQ_BLEND_BACKWARD(blend_backward_absgrad, false, true)
MQ_BLEND_BACKWARD(blend_backward_geometry, true, false)
MQ_BLEND_BACKWARD(blend_backward_geometry_absgrad, true, true)

constexpr int kSumThreads = 256;

// One thread per splat; every element of the gradients is written.
MQ_KERNEL __launch_bounds__(kSumThreads)
sum_slots(const float4* records, const float4* slots, const int* slot_first, const int* slot_count, float* v_means2d,
          float* v_conics, float* v_opacities, float* v_colors, float* abs_means2d, int count, int capacity) {
    __shared__ float shared[kSumThreads / kWarp * kSplatSums];
    splat_gradients<false>(shared, records, slots, slot_first, slot_count,
                           {v_means2d, v_conics, v_opacities, v_colors, nullptr, nullptr, abs_means2d}, count,
                           capacity);
}

MQ_KERNEL __launch_bounds__(kSumThreads)
sum_slots_geometry(const float4* records, const float4* slots, const int* slot_first, const int* slot_count,
                   float* v_means2d, float* v_conics, float* v_opacities, float* v_colors, float* v_depths,
                   float* v_normals, float* abs_means2d, int count, int capacity) {
    __shared__ float shared[kSumThreads / kWarp * kSplatSums];
    splat_gradients<true>(shared, records, slots, slot_first, slot_count,
                          {v_means2d, v_conics, v_opacities, v_colors, v_depths, v_normals, abs_means2d}, count,
                          capacity);
}
