// Which splats touch which tile, in depth order. The steps and what they hand on: scene/ops/gpu/splat_bin.py.
#include "gpu/block_sum.h"
#include "math/float_order.h"
#include "math/splat_tiles.h"

namespace maquette {

constexpr int kBinThreads = 256;
constexpr int kRowsAlone = 8;    // rows of tiles that a thread counts by itself; more are shared by its warp
constexpr int kPairsAlone = 16;  // pairs that a thread lists by itself

struct SplatShapes {
    const float *means2d, *conics, *opacities, *extents;

    __device__ bool ellipse(int i, int width, int height, Ellipse& e) const {
        return e.make(means2d + 2ll * i, conics + 3ll * i, opacities[i], extents + 2ll * i, width, height);
    }
};

__device__ inline int warp_total(int value) {
    for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
    return value;
}

// Where pairs are written.
struct PairList {
    int *tiles, *splats;
    int columns;

    __device__ void put(int slot, int row, int column, int splat) const {
        tiles[slot] = row * columns + column;
        splats[slot] = splat;
    }
};

__device__ inline void list_alone(const Ellipse& e, int splat, int first, int end, const PairList& list) {
    for (int row = e.first_row(); row <= e.last_row(); ++row) {
        const TileSpan span = tiles_of_row(e, row);
        for (int column = span.first; column <= span.last && first < end; ++column)
            list.put(first++, row, column, splat);
    }
}

// The warp takes 32 rows of tiles at a time, a lane each, and then their pairs, 32 at a time.
__device__ inline void list_by_warp(const Ellipse& e, int splat, int first, int end, const PairList& list) {
    const int lane = int(threadIdx.x) % kWarp;
    for (int top = e.first_row(); top <= e.last_row() && first < end; top += kWarp) {
        TileSpan span = {0, -1};
        if (top + lane <= e.last_row()) span = tiles_of_row(e, top + lane);
        const int through = int(warp_sum_through(unsigned(span.count())));
        const int total = __shfl_sync(kAllLanes, through, kWarp - 1);
        for (int begin = 0; begin < total; begin += kWarp) {
            const int pair = begin + lane;
            int owner = 0;  // rows that end at or before this pair: found by halving
            for (int step = kWarp / 2; step > 0; step /= 2)
                if (__shfl_sync(kAllLanes, through, owner + step - 1) <= pair) owner += step;
            const int row_end = __shfl_sync(kAllLanes, through, owner);
            const int last_column = __shfl_sync(kAllLanes, span.last, owner);
            if (pair < total && first + pair < end)
                list.put(first + pair, top + owner, last_column - (row_end - 1 - pair), splat);
        }
        first += total;
    }
}

// First place whose key is not less.
__device__ inline int lower_bound(const int* keys, int count, int key) {
    int begin = 0;
    while (count > 0) {
        const int half = count / 2;
        if (keys[begin + half] < key) begin += half + 1, count -= half + 1;
        else count = half;
    }
    return begin;
}

}  // namespace maquette

using namespace maquette;

// How many tiles each splat touches, and its depth as a sort key.
MQ_KERNEL __launch_bounds__(kBinThreads)
bin_count(const float* means2d, const float* conics, const float* opacities, const float* depths, const float* extents,
          int splats, int width, int height, int* counts, unsigned* depth_keys) {
    const int i = int(blockIdx.x * kBinThreads + threadIdx.x), lane = int(threadIdx.x) % kWarp;
    const SplatShapes shapes = {means2d, conics, opacities, extents};
    Ellipse e;
    const bool seen = i < splats && shapes.ellipse(i, width, height, e);
    const bool alone = seen && e.last_row() - e.first_row() < kRowsAlone;
    int count = 0;
    if (alone)
        for (int row = e.first_row(); row <= e.last_row(); ++row) count += tiles_of_row(e, row).count();
    for (unsigned large = __ballot_sync(kAllLanes, seen && !alone); large; large &= large - 1) {
        const int owner = __ffs(int(large)) - 1;
        Ellipse shared;
        shapes.ellipse(i - lane + owner, width, height, shared);
        int part = 0;
        for (int row = shared.first_row() + lane; row <= shared.last_row(); row += kWarp)
            part += tiles_of_row(shared, row).count();
        const int total = warp_total(part);
        if (lane == owner) count = total;
    }
    if (i >= splats) return;
    counts[i] = count;
    depth_keys[i] = float_order_bits(depths[i]);
}

// Lists the pairs of each splat, splats front to back, as far as there is room. first_by_rank: [splats] first slot of
// the splat of each rank. counts: in, pairs of each splat; out, those that were listed.
MQ_KERNEL __launch_bounds__(kBinThreads)
bin_list(const int* order, const int* first_by_rank, const float* means2d, const float* conics, const float* opacities,
         const float* extents, int splats, int width, int height, int capacity, int* counts, int* slot_first,
         int* tile_by_slot, int* splat_by_slot) {
    const int rank = int(blockIdx.x * kBinThreads + threadIdx.x);
    const SplatShapes shapes = {means2d, conics, opacities, extents};
    const PairList list = {tile_by_slot, splat_by_slot, (width + kTile - 1) / kTile};
    int splat = 0, first = 0, end = 0;
    if (rank < splats) {
        splat = order[rank];
        first = first_by_rank[rank] < capacity ? first_by_rank[rank] : capacity;
        end = counts[splat] < capacity - first ? first + counts[splat] : capacity;
        slot_first[splat] = first;
        counts[splat] = end - first;
    }
    Ellipse e;
    if (first < end && end - first <= kPairsAlone && shapes.ellipse(splat, width, height, e))
        list_alone(e, splat, first, end, list);
    for (unsigned large = __ballot_sync(kAllLanes, end - first > kPairsAlone); large; large &= large - 1) {
        const int owner = __ffs(int(large)) - 1;
        const int its_splat = __shfl_sync(kAllLanes, splat, owner), its_first = __shfl_sync(kAllLanes, first, owner);
        const int its_end = __shfl_sync(kAllLanes, end, owner);
        Ellipse shared;
        shapes.ellipse(its_splat, width, height, shared);
        list_by_warp(shared, its_splat, its_first, its_end, list);
    }
}

// After the sort by tile: where each tile's pairs begin, the splat of each pair, and whether there was room for all.
// state: total pairs (in), then whether any build found too little room and the largest total (in and out).
MQ_KERNEL __launch_bounds__(kBinThreads)
bin_finish(const int* pair_tile, const int* pair_slot, const int* splat_by_slot, int tiles, int capacity, int* state,
           int* tile_begin, int* pair_splat) {
    const long long i = (long long)(blockIdx.x) * kBinThreads + threadIdx.x;
    const int total = state[0], pairs = total < capacity ? total : capacity;
    if (i < pairs) pair_splat[i] = splat_by_slot[pair_slot[i]];
    if (i <= tiles) tile_begin[i] = lower_bound(pair_tile, pairs, int(i));
    if (i == 0) {
        if (total > capacity) state[1] = 1;
        if (total > state[2]) state[2] = total;
    }
}
