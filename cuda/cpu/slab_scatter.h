// Adding to the corners of cells from many samples at once, with the same bits for any number of threads.
//
// Samples are listed by slabs of `kPlanes` planes in x. A slab's samples are added one after the other, in their order;
// slabs with an even number side by side, then those with an odd one: a sample reaches one plane beyond its slab, so
// two of one parity never meet.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cpu/buffer.h"
#include "cpu/parallel.h"

namespace maquette {

class SlabScatter {
  public:
    // base_x(i): x of the lower corner of sample i's cell, in [0, planes).
    template <typename BaseX>
    void sort(std::int64_t count, int planes, const BaseX& base_x) {
        slabs_ = (planes + kPlanes - 1) / kPlanes;
        const std::int64_t pieces = (count + kPiece - 1) / kPiece;
        std::int32_t* fill = fill_.resize(std::size_t(pieces * slabs_ + 1));
        std::fill(fill, fill + pieces * slabs_, 0);
        parallel_ranges(count, kPiece, [&](std::int64_t begin, std::int64_t end) {
            std::int32_t* mine = fill + begin / kPiece * slabs_;
            for (std::int64_t i = begin; i < end; ++i) ++mine[base_x(i) / kPlanes];
        });
        std::int32_t* starts = starts_.resize(std::size_t(slabs_ + 1));
        std::int32_t total = 0;
        for (int slab = 0; slab < slabs_; ++slab) {
            starts[slab] = total;
            for (std::int64_t piece = 0; piece < pieces; ++piece) {
                const std::int32_t here = fill[piece * slabs_ + slab];
                fill[piece * slabs_ + slab] = total;
                total += here;
            }
        }
        starts[slabs_] = total;
        std::int32_t* order = order_.resize(std::size_t(count));
        parallel_ranges(count, kPiece, [&](std::int64_t begin, std::int64_t end) {
            std::int32_t* mine = fill + begin / kPiece * slabs_;
            for (std::int64_t i = begin; i < end; ++i) order[mine[base_x(i) / kPlanes]++] = std::int32_t(i);
        });
    }

    // Calls add(i) once for every sample.
    template <typename Add>
    void each(const Add& add) const {
        for (int parity = 0; parity < 2; ++parity)
            parallel_tasks((slabs_ + 1 - parity) / 2, [&](std::int64_t task, int) {
                const std::int64_t slab = 2 * task + parity;
                for (std::int32_t at = starts_[slab]; at < starts_[slab + 1]; ++at) add(order_[at]);
            });
    }

  private:
    static constexpr int kPlanes = 2;
    static constexpr std::int64_t kPiece = 8192;
    int slabs_ = 0;
    Buffer<std::int32_t> order_, starts_, fill_;
};

}  // namespace maquette
