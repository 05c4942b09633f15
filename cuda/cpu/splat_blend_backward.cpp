#include <algorithm>
#include <cstring>

#include "cpu/parallel.h"
#include "cpu/splat_blend.h"
#include "cpu/splat_blend_tile.h"

namespace maquette {
namespace {

constexpr int kPrefetch = 8;  // items ahead whose records are fetched
enum { kLight, kBehind, kRed, kGreen, kBlue, kZ, kNormalX, kNormalY, kNormalZ, kPlanes };

using Planes = float[kPlanes][kBlockPixels];

// Where a register does not hold a block, two parts of it are worked on in step.
constexpr int kAbreast = kParts == 1 ? 1 : 2;
using Pixels = Abreast<kAbreast>;

MQ_INLINE Pixels load(const float (&plane)[kBlockPixels], int part) {
    return Pixels::map([&](int i) { return Floats::load(plane + (part + i) * Floats::count); });
}

MQ_INLINE void store(const Pixels& values, float (&plane)[kBlockPixels], int part) {
    for (int i = 0; i < kAbreast; ++i) values.v[i].store(plane + (part + i) * Floats::count);
}

template <bool kGeometry>
MQ_INLINE PixelGradient<Pixels> load_pixels(const Planes& planes, int part) {
    PixelGradient<Pixels> pixels;
    pixels.light = load(planes[kLight], part), pixels.behind = load(planes[kBehind], part);
    pixels.v_red = load(planes[kRed], part), pixels.v_green = load(planes[kGreen], part);
    pixels.v_blue = load(planes[kBlue], part);
    if constexpr (kGeometry) {
        pixels.v_z = load(planes[kZ], part), pixels.v_normal_x = load(planes[kNormalX], part);
        pixels.v_normal_y = load(planes[kNormalY], part), pixels.v_normal_z = load(planes[kNormalZ], part);
    }
    return pixels;
}

// Reads a row of an image of kChannels and adds value * v to `behind`.
template <int kChannels>
MQ_INLINE void read_row(const float* v, const float* value, int columns, float (*channels)[kTile], float* behind) {
    float v_mixed[kChannels * kTile] = {}, mixed[kChannels * kTile] = {};
    std::memcpy(v_mixed, v, kChannels * columns * sizeof(float));
    std::memcpy(mixed, value, kChannels * columns * sizeof(float));
    for (int k = 0; k < kChannels; ++k)
        for (int i = 0; i < kTile; ++i) {
            channels[k][i] = v_mixed[kChannels * i + k];
            behind[i] += v_mixed[kChannels * i + k] * mixed[kChannels * i + k];
        }
}

// Upstream gradients of the tile's pixels, and what all of a pixel's light, the background's included, is worth:
// v_rgb . rgb + v_depth depth + v_normal . normal - v_alpha (1 - alpha). Off the image there is no light.
template <bool kGeometry>
void read_images(const TileFrame& frame, const BlendImages<const float>& images, const BlendUpstream<float>& upstream,
                 Planes* planes) {
    std::memset(planes, 0, sizeof(Planes) * kTileBlocks);
    const int columns = frame.columns();
    float channels[3][kTile], light[kTile] = {};
    std::fill(light, light + columns, 1.0f);
    for (int row = 0; row < frame.rows(); ++row) {
        const std::int64_t at = frame.offset(row);
        float behind[kTile] = {};
        read_row<3>(upstream.rgb + 3 * at, images.rgb + 3 * at, columns, channels, behind);
        for (int k = 0; k < 3; ++k) store_row(planes, kRed + k, row, channels[k]);
        if (kGeometry && upstream.depth) {
            read_row<1>(upstream.depth + at, images.depth + at, columns, channels, behind);
            store_row(planes, kZ, row, channels[0]);
        }
        if (kGeometry && upstream.normal) {
            read_row<3>(upstream.normal + 3 * at, images.normal + 3 * at, columns, channels, behind);
            for (int k = 0; k < 3; ++k) store_row(planes, kNormalX + k, row, channels[k]);
        }
        if (upstream.alpha)
            for (int i = 0; i < columns; ++i) behind[i] -= upstream.alpha[at + i] * (1.0f - images.alpha[at + i]);
        store_row(planes, kLight, row, light);
        store_row(planes, kBehind, row, behind);
    }
}

template <bool kGeometry, bool kAbsgrad>
constexpr int sum_count() {
    return kGeometry ? int(kWNormalZ) + 1 : kAbsgrad ? int(kAbsY) + 1 : int(kWBlue) + 1;
}

// Sums of one splat over the pixels of the blocks in `mask`, to its slot.
template <bool kGeometry, bool kAbsgrad>
MQ_INLINE void blend_blocks(const SplatRecord<float>& splat, std::uint32_t mask, const TileFrame& frame,
                            Planes* planes, float* slot) {
    constexpr int kSums = sum_count<kGeometry, kAbsgrad>();
    Floats sums[kSums];
    for (Floats& sum : sums) sum = Floats(0.0f);
    for (; mask; mask &= mask - 1) {
        const int block = __builtin_ctz(mask);
        for (int part = 0; part < kParts; part += kAbreast) {
            const Pixels dx = Pixels(splat.mean_x) - load(frame.x[block], part);
            const Pixels dy = Pixels(splat.mean_y) - load(frame.y[block], part);
            PixelGradient<Pixels> pixels = load_pixels<kGeometry>(planes[block], part);
            add_gradient<kGeometry, kAbsgrad>(sums, pixels, splat, dx, dy, exp2(log2_alpha(splat, dx, dy)));
            store(pixels.light, planes[block][kLight], part);
            store(pixels.behind, planes[block][kBehind], part);
        }
    }
    store_sums<kSums>(sums, slot);
}

// Depth order jumps about in the arrays.
void prefetch(const BlendGradients<float>& gradients, std::size_t i) {
    __builtin_prefetch(gradients.means2d + 2 * i, 1);
    __builtin_prefetch(gradients.conics + 3 * i, 1);
    __builtin_prefetch(gradients.opacities + i, 1);
    __builtin_prefetch(gradients.colors + 3 * i, 1);
}

}  // namespace

template <bool kGeometry, bool kAbsgrad>
void SplatBlend::backward_tile(const SplatBins& bins, int tile, const BlendImages<const float>& images,
                               const BlendUpstream<float>& upstream) {
    const TileFrame frame(bins, tile);
    alignas(64) Planes planes[kTileBlocks];
    read_images<kGeometry>(frame, images, upstream, planes);
    const std::uint32_t begin = bins.tile_begin()[tile], end = bins.tile_begin()[tile + 1];
    const std::uint32_t* block_end = block_end_.data() + std::size_t(tile) * kTileBlocks;
    std::uint32_t live = 0, next_end = 0;
    for (std::uint32_t i = begin; i < end; ++i) {
        if (i == begin || i >= next_end) {  // some block has stopped
            live = 0, next_end = end;
            for (int block = 0; block < kTileBlocks; ++block)
                if (i < block_end[block]) live |= 1u << block, next_end = std::min(next_end, block_end[block]);
        }
        if (i + kPrefetch < end) {
            __builtin_prefetch(&records_[bins.items()[i + kPrefetch].rank]);
            __builtin_prefetch(&slots_[std::size_t(bins.items()[i + kPrefetch].slot) * kSplatSums], 1);
        }
        const TileItem item = bins.items()[i];
        float* slot = slots_.data() + std::size_t(item.slot) * kSplatSums;
        if (item.mask & live)
            blend_blocks<kGeometry, kAbsgrad>(records_[item.rank], item.mask & live, frame, planes, slot);
        else
            std::memset(slot, 0, kSplatSums * sizeof slot[0]);
    }
}

// The pairs of a splat stand side by side and are summed in that order, whichever threads wrote them.
void SplatBlend::sum_slots(const SplatBins& bins, const BlendGradients<float>& gradients) {
    parallel_ranges(bins.count(), 2048, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t rank = begin; rank < end; ++rank) {
            if (rank + kPrefetch < end) prefetch(gradients, bins.order()[rank + kPrefetch]);
            Floats total[kSplatSums / Floats::count];
            for (Floats& part : total) part = Floats(0.0f);
            for (std::uint32_t slot = bins.slot_begin()[rank]; slot < bins.slot_begin()[rank + 1]; ++slot)
                for (int part = 0; part < kSplatSums / Floats::count; ++part)
                    total[part] += Floats::load(&slots_[std::size_t(slot) * kSplatSums + part * Floats::count]);
            float placed[kSplatSums], sums[kSplatSums];
            std::memcpy(placed, total, sizeof placed);
            for (int k = 0; k < kSplatSums; ++k) sums[k] = placed[sum_place(k)];
            put_gradient(gradients, bins.order()[rank], records_[rank], sums);
        }
    });
}

void SplatBlend::backward(const SplatBins& bins, const BlendImages<const float>& images,
                          const BlendUpstream<float>& upstream, const BlendGradients<float>& gradients) {
    slots_.resize(std::size_t(bins.pairs()) * kSplatSums);
    parallel_tasks(bins.tiles(), [&](std::int64_t task, int) {
        const int tile = int(bins.schedule()[task]);
        if (gradients.depths && gradients.abs_means2d) backward_tile<true, true>(bins, tile, images, upstream);
        else if (gradients.depths) backward_tile<true, false>(bins, tile, images, upstream);
        else if (gradients.abs_means2d) backward_tile<false, true>(bins, tile, images, upstream);
        else backward_tile<false, false>(bins, tile, images, upstream);
    });
    sum_slots(bins, gradients);
}

}  // namespace maquette
