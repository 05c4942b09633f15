// Which splats touch which tile, in depth order; read by the blending kernels.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/radix_sort.h"
#include "math/splat_tiles.h"

namespace maquette {

constexpr int kBlock = 4;         // px, side of a block; a tile has 4 x 4 of them
constexpr int kTileBlocks = 16;
constexpr int kBlockPixels = 16;

// One splat in the list of one tile.
struct TileItem {
    std::uint32_t rank;  // place of the splat in the depth order
    std::uint32_t slot;  // place of the pair when pairs are listed splat by splat, for sums per splat
    std::uint32_t mask;  // bit 4 * row + column: the splat touches this block of the tile
};

struct SplatShapes {
    const float *means2d, *conics, *opacities, *depths, *extents;
    std::int64_t count;
};

class SplatBins {
  public:
    // Returns the number of (tile, splat) pairs.
    std::int64_t build(const SplatShapes& splats, int width, int height);

    int width() const { return width_; }
    int height() const { return height_; }
    int columns() const { return columns_; }
    int tiles() const { return columns_ * rows_; }
    std::int64_t count() const { return count_; }
    std::int64_t pairs() const { return pairs_; }

    const std::uint32_t* order() const { return order_.data(); }            // [count] splat of each rank
    const std::uint32_t* tile_begin() const { return tile_begin_.data(); }  // [tiles + 1] into items
    const TileItem* items() const { return items_.data(); }                 // [pairs]
    const std::uint32_t* slot_begin() const { return slot_begin_.data(); }  // [count + 1] by rank, into slots
    const std::uint32_t* schedule() const { return schedule_.data(); }      // [tiles] order in which to work

    void poison();

  private:
    struct Pair {
        std::uint32_t tile, rank, mask;
    };
    // Ranks are cut into a fixed number of chunks, so the lists do not depend on the number of threads.
    static constexpr int kChunks = 16;

    void list_chunk(const SplatShapes& splats, int chunk);
    void place_chunk(int chunk);
    void make_schedule();
    std::uint32_t chunk_begin(int chunk) const { return std::uint32_t(count_ * chunk / kChunks); }

    int width_ = 0, height_ = 0, columns_ = 0, rows_ = 0;
    std::int64_t count_ = 0, pairs_ = 0;
    RadixSort sort_;
    std::vector<Pair> chunk_pairs_[kChunks];
    Buffer<std::uint32_t> chunk_counts_;  // [kChunks, tiles], then where the chunk's pairs of the tile begin
    Buffer<std::uint32_t> order_, tile_begin_, slot_begin_, schedule_;
    Buffer<TileItem> items_;
};

}  // namespace maquette
