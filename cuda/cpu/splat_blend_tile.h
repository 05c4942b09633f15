// Pixels of a tile as the blending loops hold them: block by block, one plane of 16 floats per quantity.
#pragma once
#include <cstdint>

#include "cpu/simd.h"
#include "cpu/splat_bin.h"

namespace maquette {

constexpr int kParts = kBlockPixels / Floats::count;  // vectors per block

struct TileFrame {
    int left, top, width, height;
    alignas(64) float x[kTileBlocks][kBlockPixels], y[kTileBlocks][kBlockPixels];  // pixel centres

    TileFrame(const SplatBins& bins, int tile)
        : left(tile % bins.columns() * kTile), top(tile / bins.columns() * kTile), width(bins.width()),
          height(bins.height()) {
        for (int block = 0; block < kTileBlocks; ++block)
            for (int pixel = 0; pixel < kBlockPixels; ++pixel) {
                x[block][pixel] = float(column(block, pixel)) + 0.5f;
                y[block][pixel] = float(row(block, pixel)) + 0.5f;
            }
    }

    int rows() const { return height - top < kTile ? height - top : kTile; }
    int columns() const { return width - left < kTile ? width - left : kTile; }
    std::int64_t offset(int row) const { return std::int64_t(top + row) * width + left; }
    int column(int block, int pixel) const { return left + block % 4 * kBlock + pixel % kBlock; }
    int row(int block, int pixel) const { return top + block / 4 * kBlock + pixel / kBlock; }
    bool inside(int block, int pixel) const { return column(block, pixel) < width && row(block, pixel) < height; }
};

// A row of a tile's pixels across its four blocks, to and from planes [blocks][planes][16 pixels].
template <typename Planes>
MQ_INLINE void load_row(const Planes* planes, int plane, int row, float* values) {
    for (int block = 0; block < 4; ++block)
        std::memcpy(values + kBlock * block, planes[row / kBlock * 4 + block][plane] + row % kBlock * kBlock,
                    kBlock * sizeof(float));
}

template <typename Planes>
MQ_INLINE void store_row(Planes* planes, int plane, int row, const float* values) {
    for (int block = 0; block < 4; ++block)
        std::memcpy(planes[row / kBlock * 4 + block][plane] + row % kBlock * kBlock, values + kBlock * block,
                    kBlock * sizeof(float));
}

}  // namespace maquette
