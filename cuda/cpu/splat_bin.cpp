#include "cpu/splat_bin.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "cpu/bindings.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"

namespace maquette {
namespace {

constexpr int kBandsPerTile = kTile / kBlock;
constexpr int kPrefetch = 16;  // splats ahead

constexpr int kStripBlocks = 32;  // block columns of a strip: one bit each

// The blocks of a strip that the ellipse touches, for Floats::count bands of four pixel rows at once.
struct BandMasks {
    std::uint32_t bits[Floats::count];  // bit i: block column strip * 32 + i

    void make(const Ellipse& e, int band, int strip) {
        const Floats top = Floats(float(band * kBlock)) + Floats(float(kBlock)) * lane_index();
        const Floats from_row = maximum(top, Floats(float(e.y0)));
        const Floats to_row = minimum(top + Floats(kBlock - 1.0f), Floats(float(e.y1)));
        const Floats low = maximum(from_row + Floats(0.5f - e.y), Floats(-e.ey));
        const Floats high = minimum(to_row + Floats(0.5f - e.y), Floats(e.ey));
        const Floats right = e.edge(low, high, 1.0f), left = e.edge(low, high, -1.0f);
        // Truncation is floor for what is >= 0, and one more than it is ceil but at whole numbers; the ellipse was
        // grown, so no pixel centre is lost there. What lies off the box is cut to it.
        const Floats begin(float(e.x0)), end(e.x1 + 1.0f);
        const Floats from = minimum(maximum(left + Floats(e.x + 0.5f), begin), end);
        const Floats to = minimum(maximum(right + Floats(e.x + 0.5f), begin), end);
        const Bits first_pixel = __builtin_convertvector(from.v, Bits);
        const Bits last_pixel = __builtin_convertvector(to.v, Bits) - 1;
        const Bits first = (first_pixel >> 2) - strip * kStripBlocks, last = (last_pixel >> 2) - strip * kStripBlocks;
        const Bits hit = (low <= high).m & (Bits)(first_pixel <= last_pixel) & (Bits)(last >= 0) &
                         (Bits)(first < kStripBlocks);
        const Bits bound_first = first > 0 ? first : Bits{}, most = Bits{} + (kStripBlocks - 1);
        const Bits bound_last = last < most ? last : most, one = Bits{} + 1;
        const Bits mask = hit & (((one + 1) << (bound_last & 31)) - (one << (bound_first & 31)));
        std::memcpy(bits, &mask, sizeof bits);
    }

  private:
    using Bits = Floats::Bits;

    static Floats lane_index() {
        alignas(64) float index[Floats::count];
        for (int i = 0; i < Floats::count; ++i) index[i] = float(i);
        return Floats::load(index);
    }
};

bool make(Ellipse& e, const SplatShapes& splats, std::uint32_t i, int width, int height) {
    return e.make(splats.means2d + 2 * i, splats.conics + 3 * i, splats.opacities[i], splats.extents + 2 * i, width,
                  height);
}

// Depth order jumps about in the arrays.
void prefetch(const SplatShapes& splats, std::uint32_t i) {
    __builtin_prefetch(splats.means2d + 2 * i);
    __builtin_prefetch(splats.conics + 3 * i);
    __builtin_prefetch(splats.opacities + i);
    __builtin_prefetch(splats.extents + 2 * i);
}

}  // namespace

void SplatBins::list_chunk(const SplatShapes& splats, int chunk) {
    std::vector<Pair>& pairs = chunk_pairs_[chunk];
    std::uint32_t* counts = chunk_counts_.data() + std::size_t(chunk) * tiles();
    std::memset(counts, 0, std::size_t(tiles()) * sizeof counts[0]);
    pairs.clear();
    Ellipse ellipse;
    BandMasks masks;
    for (std::uint32_t rank = chunk_begin(chunk); rank < chunk_begin(chunk + 1); ++rank) {
        slot_begin_[rank] = std::uint32_t(pairs.size());  // within the chunk, for now
        if (rank + kPrefetch < count_) prefetch(splats, order_[rank + kPrefetch]);
        if (!make(ellipse, splats, order_[rank], width_, height_)) continue;
        const int first_row = ellipse.first_row(), last_row = ellipse.last_row();
        const int first_strip = ellipse.x0 / (kStripBlocks * kBlock), last_strip = ellipse.x1 / (kStripBlocks * kBlock);
        for (int strip = first_strip; strip <= last_strip; ++strip)
            for (int row = first_row; row <= last_row; ++row) {
                const int lane = (row - first_row) * kBandsPerTile % Floats::count;
                if (lane == 0) masks.make(ellipse, row * kBandsPerTile, strip);
                std::uint32_t a = masks.bits[lane], b = masks.bits[lane + 1], c = masks.bits[lane + 2],
                              d = masks.bits[lane + 3];
                std::uint32_t tile = std::uint32_t(row * columns_ + strip * kStripBlocks / 4);
                for (; a | b | c | d; a >>= 4, b >>= 4, c >>= 4, d >>= 4, ++tile) {
                    const std::uint32_t mask = (a & 15) | (b & 15) << 4 | (c & 15) << 8 | (d & 15) << 12;
                    if (!mask) continue;
                    pairs.push_back({tile, rank, mask});
                    ++counts[tile];
                }
            }
    }
}

void SplatBins::place_chunk(int chunk) {
    std::uint32_t* places = chunk_counts_.data() + std::size_t(chunk) * tiles();
    std::uint32_t slot = 0;
    for (int before = 0; before < chunk; ++before) slot += std::uint32_t(chunk_pairs_[before].size());
    for (std::uint32_t rank = chunk_begin(chunk); rank < chunk_begin(chunk + 1); ++rank) slot_begin_[rank] += slot;
    for (const Pair& pair : chunk_pairs_[chunk]) items_[places[pair.tile]++] = {pair.rank, slot++, pair.mask};
}

// Row by row, so that neighbouring tiles find the records of the splats they share in the cache; but lists much longer
// than the mean first, so that no thread is left alone with one at the end.
void SplatBins::make_schedule() {
    const std::uint32_t *begin = tile_begin_.data(), heavy = std::uint32_t(4 * pairs_ / tiles());
    std::uint32_t* next = schedule_.resize(tiles());
    for (const bool wanted : {true, false})
        for (int tile = 0; tile < tiles(); ++tile)
            if ((begin[tile + 1] - begin[tile] > heavy) == wanted) *next++ = std::uint32_t(tile);
}

std::int64_t SplatBins::build(const SplatShapes& splats, int width, int height) {
    if (width < 1 || height < 1 || width > 1 << 16 || height > 1 << 16)
        throw std::invalid_argument("image sides must be between 1 and 65536 pixels");
    if (splats.count >= std::int64_t(1) << 31) throw std::invalid_argument("at most 2^31 splats can be binned at once");
    width_ = width, height_ = height;
    columns_ = (width + kTile - 1) / kTile, rows_ = (height + kTile - 1) / kTile;
    count_ = splats.count;
    sort_.sort_indices(splats.depths, std::uint32_t(count_), order_.resize(count_));
    slot_begin_.resize(count_ + 1);
    chunk_counts_.resize(std::size_t(kChunks) * tiles());
    parallel_tasks(kChunks, [&](std::int64_t chunk, int) { list_chunk(splats, int(chunk)); });

    pairs_ = 0;
    for (const auto& pairs : chunk_pairs_) pairs_ += std::int64_t(pairs.size());
    if (pairs_ >= std::numeric_limits<std::uint32_t>::max())
        throw std::length_error("more than 2^32 pairs of tile and splat; render a smaller image or fewer splats");
    slot_begin_[count_] = std::uint32_t(pairs_);
    items_.resize(pairs_);
    std::uint32_t place = 0, *begin = tile_begin_.resize(tiles() + 1);
    for (int tile = 0; tile < tiles(); ++tile) {
        begin[tile] = place;
        for (int chunk = 0; chunk < kChunks; ++chunk) {
            std::uint32_t& entry = chunk_counts_[std::size_t(chunk) * tiles() + tile];
            const std::uint32_t here = entry;
            entry = place;
            place += here;
        }
    }
    begin[tiles()] = place;
    parallel_tasks(kChunks, [&](std::int64_t chunk, int) { place_chunk(int(chunk)); });
    make_schedule();
    return pairs_;
}

void SplatBins::poison() {
    chunk_counts_.poison(), order_.poison(), tile_begin_.poison(), slot_begin_.poison(), schedule_.poison();
    items_.poison();
}

}  // namespace maquette
