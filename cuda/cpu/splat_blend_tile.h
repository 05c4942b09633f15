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

    int column(int block, int pixel) const { return left + block % 4 * kBlock + pixel % kBlock; }
    int row(int block, int pixel) const { return top + block / 4 * kBlock + pixel / kBlock; }
    bool inside(int block, int pixel) const { return column(block, pixel) < width && row(block, pixel) < height; }
    std::int64_t offset(int block, int pixel) const {
        return std::int64_t(row(block, pixel)) * width + column(block, pixel);
    }
};

}  // namespace maquette
