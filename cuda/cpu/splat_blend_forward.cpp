#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/parallel.h"
#include "cpu/splat_blend.h"
#include "cpu/splat_blend_tile.h"

namespace maquette {
namespace {

constexpr int kChunk = 128;       // items whose records are copied side by side: 8 KB of the first-level cache
constexpr int kStopInterval = 8;  // items between two looks at whether a block still lets light through
constexpr int kAbreast = Floats::count == 16 ? 4 : 2;  // items whose alpha is computed in step, by number of registers
enum { kT, kRed, kGreen, kBlue, kZ, kNormalX, kNormalY, kNormalZ, kMedian, kPlanes };

using Planes = float[kPlanes][kBlockPixels];

template <bool kGeometry>
MQ_INLINE PixelSums<Floats> load_pixels(const Planes& planes, int part) {
    const auto plane = [&](int i) { return Floats::load(planes[i] + part * Floats::count); };
    PixelSums<Floats> pixels;
    pixels.light = pixels.transmittance = plane(kT);
    pixels.red = plane(kRed), pixels.green = plane(kGreen), pixels.blue = plane(kBlue);
    if constexpr (kGeometry) {
        pixels.z = plane(kZ), pixels.median_depth = plane(kMedian);
        pixels.normal_x = plane(kNormalX), pixels.normal_y = plane(kNormalY), pixels.normal_z = plane(kNormalZ);
    }
    return pixels;
}

template <bool kGeometry>
MQ_INLINE void store_pixels(const PixelSums<Floats>& pixels, Planes& planes, int part) {
    const auto put = [&](int i, Floats value) { value.store(planes[i] + part * Floats::count); };
    put(kT, pixels.transmittance), put(kRed, pixels.red), put(kGreen, pixels.green), put(kBlue, pixels.blue);
    if constexpr (kGeometry) {
        put(kZ, pixels.z), put(kMedian, pixels.median_depth);
        put(kNormalX, pixels.normal_x), put(kNormalY, pixels.normal_y), put(kNormalZ, pixels.normal_z);
    }
}

// The shapes of kAbreast records, for `log2_alpha`.
MQ_INLINE SplatRecord<Abreast<kAbreast>> shapes(const SplatRecord<float>* records, const std::uint32_t* list) {
    const auto each = [&](float SplatRecord<float>::*field) {
        return Abreast<kAbreast>::map([&](int i) { return Floats(records[list[i]].*field); });
    };
    using Record = SplatRecord<float>;
    SplatRecord<Abreast<kAbreast>> shapes;
    shapes.mean_x = each(&Record::mean_x), shapes.mean_y = each(&Record::mean_y);
    shapes.xx = each(&Record::xx), shapes.xy = each(&Record::xy), shapes.yy = each(&Record::yy);
    shapes.log2_opacity = each(&Record::log2_opacity);
    return shapes;
}

// Blends the listed records into Floats::count pixels held in registers. Returns how many records were visited: all, or
// fewer when no pixel lets light through any more. The list must go on for kAbreast - 1 transparent records.
template <bool kGeometry>
int blend_part(Planes& planes, int part, const SplatRecord<float>* records, const std::uint32_t* list, int count,
               const float* x, const float* y) {
    Abreast<kAbreast> px, py;
    for (Floats& one : px.v) one = Floats::load(x + part * Floats::count);
    for (Floats& one : py.v) one = Floats::load(y + part * Floats::count);
    PixelSums<Floats> pixels = load_pixels<kGeometry>(planes, part);
    for (int i = 0; i < count;) {
        // A stopped pixel must not fall into the slow denormal numbers while its neighbours go on.
        pixels.light = keep(at_least(pixels.light, Floats(float(kMinTransmittance))), pixels.light);
        if (!any_at_least(pixels.light, float(kMinTransmittance))) {
            store_pixels<kGeometry>(pixels, planes, part);
            return i;
        }
        for (const int pause = std::min(i + kStopInterval, count); i < pause; i += kAbreast) {
            const auto splats = shapes(records, list + i);
            const auto alphas = exp2(log2_alpha(splats, splats.mean_x - px, splats.mean_y - py));
            for (int k = 0; k < kAbreast; ++k) add_splat<kGeometry>(pixels, records[list[i + k]], alphas.v[k]);
        }
    }
    store_pixels<kGeometry>(pixels, planes, part);
    return count;
}

void write_row(float* image, const float (&channels)[3][kTile], int columns) {
    float mixed[3 * kTile];
    for (int i = 0; i < kTile; ++i)
        for (int k = 0; k < 3; ++k) mixed[3 * i + k] = channels[k][i];
    std::memcpy(image, mixed, 3 * columns * sizeof(float));
}

template <bool kGeometry>
void write_images(const TileFrame& frame, const Planes* planes, const float* background,
                  const BlendImages<float>& images) {
    float channels[3][kTile], values[kTile], transmittance[kTile];
    const std::size_t bytes = frame.columns() * sizeof(float);
    for (int row = 0; row < frame.rows(); ++row) {
        const std::int64_t at = frame.offset(row);
        load_row(planes, kT, row, transmittance);
        for (int k = 0; k < 3; ++k) {
            load_row(planes, kRed + k, row, channels[k]);
            for (int i = 0; i < kTile; ++i) channels[k][i] += transmittance[i] * background[k];
        }
        write_row(images.rgb + 3 * at, channels, frame.columns());
        for (int i = 0; i < kTile; ++i) values[i] = 1.0f - transmittance[i];
        std::memcpy(images.alpha + at, values, bytes);
        if constexpr (kGeometry) {
            load_row(planes, kZ, row, values);
            std::memcpy(images.depth + at, values, bytes);
            load_row(planes, kMedian, row, values);
            std::memcpy(images.median_depth + at, values, bytes);
            for (int k = 0; k < 3; ++k) load_row(planes, kNormalX + k, row, channels[k]);
            write_row(images.normal + 3 * at, channels, frame.columns());
        }
    }
}

}  // namespace

// Records in depth order: the lists of the tiles then read them with rising addresses, one cache line each.
void SplatBlend::pack(const SplatBins& bins, const BlendSplats<float>& splats) {
    SplatRecord<float>* records = records_.resize(bins.count());
    parallel_ranges(bins.count(), 2048, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t rank = begin; rank < end; ++rank) set_record(records[rank], splats, bins.order()[rank]);
    });
}

template <bool kGeometry>
void SplatBlend::forward_tile(const SplatBins& bins, int tile, const float* background,
                              const BlendImages<float>& images) {
    const TileFrame frame(bins, tile);
    alignas(64) Planes planes[kTileBlocks];
    alignas(64) SplatRecord<float> records[kChunk + 1];
    alignas(64) std::uint32_t masks[kChunk], list[kChunk + 16];
    records[kChunk] = {};
    records[kChunk].log2_opacity = -100.0f;  // transparent
    for (int block = 0; block < kTileBlocks; ++block)
        for (int plane = 0; plane < kPlanes; ++plane)
            for (int pixel = 0; pixel < kBlockPixels; ++pixel)
                planes[block][plane][pixel] = plane == kT && frame.inside(block, pixel) ? 1.0f : 0.0f;

    const std::uint32_t begin = bins.tile_begin()[tile], end = bins.tile_begin()[tile + 1];
    std::uint32_t* block_end = block_end_.data() + std::size_t(tile) * kTileBlocks;
    std::fill(block_end, block_end + kTileBlocks, end);
    std::uint32_t live = 0xffff;
    for (std::uint32_t chunk = begin; chunk < end && live; chunk += kChunk) {
        const int count = int(std::min<std::uint32_t>(end - chunk, kChunk));
        for (int i = 0; i < count; ++i) {
            records[i] = records_[bins.items()[chunk + i].rank];
            masks[i] = bins.items()[chunk + i].mask;
        }
        for (std::uint32_t left = live; left; left &= left - 1) {
            const int block = __builtin_ctz(left);
            const int listed = indices_with_bit(masks, count, block, list);
            std::fill(list + listed, list + listed + kAbreast - 1, kChunk);
            int visited = 0;
            for (int part = 0; part < kParts; ++part)
                visited = std::max(visited, blend_part<kGeometry>(planes[block], part, records, list, listed,
                                                                  frame.x[block], frame.y[block]));
            if (visited < listed) {
                live &= ~(1u << block);
                block_end[block] = chunk + list[visited];
            }
        }
    }
    write_images<kGeometry>(frame, planes, background, images);
}

void SplatBlend::forward(const SplatBins& bins, const BlendSplats<float>& splats, const float* background,
                         const BlendImages<float>& images) {
    pack(bins, splats);
    block_end_.resize(std::size_t(bins.tiles()) * kTileBlocks);
    const float black[3] = {0, 0, 0};
    const float* behind = background ? background : black;
    parallel_tasks(bins.tiles(), [&](std::int64_t task, int) {
        const int tile = int(bins.schedule()[task]);
        if (images.depth) forward_tile<true>(bins, tile, behind, images);
        else forward_tile<false>(bins, tile, behind, images);
    });
}

void SplatBlend::poison() {
    records_.poison(), block_end_.poison(), slots_.poison();
}

}  // namespace maquette
