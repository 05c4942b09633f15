// Feature vectors of places in a grid, channel-last, of which only some voxels' rows are stored; and the gradient by the
// rows, or by a grid of one number per voxel. The maths is in math/trilinear.h.
//
// Forward: a thread takes a part of the channels of a place, four where rows allow it, and the threads beside it the
// others: blocks have a column per part and a row per place. Backward: samples are sorted by the cell they lie in, and a cell's samples are summed, in their order, before
// they are added to its eight corners. Cells of one parity in x, y and z share no corner: eight launches, one after
// the other, add without atomics, and the bits are always the same. A cell with very many samples does not hold up the
// others: its sum is made of those of 32 samples each, which are found side by side beforehand.
#include "gpu/device.h"
#include "math/trilinear.h"

namespace maquette {

constexpr int kThreads = 256;
constexpr int kPiece = 32;     // samples in a row in the sorted list
constexpr int kParities = 8;

// kWide numbers in a row; four are read and written at once, and must be aligned.
template <int kWide>
struct Part;
template <>
struct Part<1> {
    float v[1];
    __device__ static Part load(const float* from) { return {{*from}}; }
    __device__ void store(float* to) const { *to = v[0]; }
};
template <>
struct Part<4> {
    float v[4];
    __device__ static Part load(const float* from) {
        const float4 r = *reinterpret_cast<const float4*>(from);
        return {{r.x, r.y, r.z, r.w}};
    }
    __device__ void store(float* to) const { *reinterpret_cast<float4*>(to) = make_float4(v[0], v[1], v[2], v[3]); }
};

template <int kWide>
__device__ inline void add(Part<kWide>& sum, float share, const Part<kWide>& part) {
#pragma unroll
    for (int c = 0; c < kWide; ++c) sum.v[c] += share * part.v[c];
}

__device__ inline Cell<float> cell_of(const float* points, long long i, const GridSize& size) {
    const float* p = points + 3 * i;
    return cell_at(__ldg(p), __ldg(p + 1), __ldg(p + 2), size);
}

// The rows of a cell's corners, -1 where a voxel has none. rows: null when every voxel has its own.
__device__ inline void find_rows(const Cell<float>& cell, const int* rows, const GridSize& size, int* found) {
#pragma unroll
    for (int corner = 0; corner < 8; ++corner) {
        const long long voxel = corner_index(cell.x, cell.y, cell.z, corner, size);
        found[corner] = rows ? __ldg(rows + voxel) : int(voxel);
    }
}

// The place or sample of this thread, and the first channel of its part.
__device__ inline long long own_item() { return (long long)blockIdx.x * blockDim.y + threadIdx.y; }
template <int kWide>
__device__ inline int own_channel() {
    return int(threadIdx.x) * kWide;
}

template <int kWide>
__device__ inline void gather(const float* table, const int* rows, const GridSize& size, const float* points,
                              int count, int channels, float* out) {
    const long long place = own_item();
    const int first = own_channel<kWide>();
    if (place >= count) return;
    const Cell<float> cell = cell_of(points, place, size);
    int row[8];
    find_rows(cell, rows, size, row);
    Part<kWide> sum = {};
#pragma unroll
    for (int corner = 0; corner < 8; ++corner)
        if (row[corner] >= 0)
            add(sum, corner_share(cell, corner), Part<kWide>::load(table + (long long)row[corner] * channels + first));
    sum.store(out + place * channels + first);
}

// Cells by parity first, bits 2, 1, 0 of it: odd in x, y, z; cells of one parity in the order of the grid.
struct CellOrder {
    int half_y, half_z;
    unsigned cells;  // of a parity, at most
    __device__ explicit CellOrder(const GridSize& size)
        : half_y((size.y + 1) / 2), half_z((size.z + 1) / 2),
          cells(unsigned((size.x + 1) / 2) * unsigned(half_y) * unsigned(half_z)) {}
    __device__ unsigned key(const Cell<float>& c) const {
        const unsigned parity = unsigned((c.x & 1) << 2 | (c.y & 1) << 1 | (c.z & 1));
        return parity * cells + (unsigned(c.x / 2) * half_y + unsigned(c.y / 2)) * half_z + unsigned(c.z / 2);
    }
};

// What the samples of one cell add to its corners.
template <int kWide>
struct CornerSums {
    Part<kWide> of[8] = {};
};

struct SortedSamples {
    const unsigned *keys, *places;  // ascending keys, and which sample each is of
    int count;
    const float* points;  // [count, 3], of the samples as they were
    const float* v;       // [count, channels]
    int channels;
    GridSize size;
};

// Adds the samples from `at` to `end` in the sorted list, as long as they are of the cell that the first is of.
template <int kWide>
__device__ inline void add_samples(const SortedSamples& s, int at, int end, int first, CornerSums<kWide>& sums) {
    const unsigned key = s.keys[at];
    for (; at < end && s.keys[at] == key; ++at) {
        const long long sample = s.places[at];
        const Cell<float> cell = cell_of(s.points, sample, s.size);
        const Part<kWide> v = Part<kWide>::load(s.v + sample * s.channels + first);
#pragma unroll
        for (int corner = 0; corner < 8; ++corner) add(sums.of[corner], corner_share(cell, corner), v);
    }
}

// Sums of the samples that a piece begins with, where they belong to a cell that an earlier piece began. carried:
// [pieces, 8, channels], unwritten elsewhere.
template <int kWide>
__device__ inline void carry_pieces(const SortedSamples& s, float* carried) {
    const long long piece = own_item(), begin = piece * kPiece;
    const int first = own_channel<kWide>();
    if (begin >= s.count || piece == 0 || s.keys[begin - 1] != s.keys[begin]) return;
    const int end = s.count - begin < kPiece ? s.count : int(begin) + kPiece;
    CornerSums<kWide> sums;
    add_samples(s, int(begin), end, first, sums);
#pragma unroll
    for (int corner = 0; corner < 8; ++corner)
        sums.of[corner].store(carried + (piece * 8 + corner) * s.channels + first);
}

// Adds the samples of all cells of one parity to the rows of their corners. parity_begin: [9], where in the sorted list
// each parity begins. A thread takes a part of a sample that is the first of its cell, or several such.
template <int kWide>
__device__ inline void add_cells(const SortedSamples& s, const float* carried, const int* parity_begin, int parity,
                                 const int* rows, float* table) {
    const int end = parity_begin[parity + 1], first = own_channel<kWide>();
    const long long stride = (long long)gridDim.x * blockDim.y;
    for (long long at = parity_begin[parity] + own_item(); at < end; at += stride) {
        const unsigned key = s.keys[at];
        if (at > 0 && s.keys[at - 1] == key) continue;
        CornerSums<kWide> sums;
        long long piece = at / kPiece + 1;
        add_samples(s, int(at), piece * kPiece < s.count ? int(piece * kPiece) : s.count, first, sums);
        for (; piece * kPiece < s.count && s.keys[piece * kPiece] == key; ++piece)
#pragma unroll
            for (int corner = 0; corner < 8; ++corner)
                add(sums.of[corner], 1.0f,
                    Part<kWide>::load(carried + (piece * 8 + corner) * s.channels + first));
        int row[8];
        find_rows(cell_of(s.points, s.places[at], s.size), rows, s.size, row);
        // An axis of one plane has no upper corner: its share is 0, and its row would be the lower one's.
        if (s.size.x == 1) row[4] = row[5] = row[6] = row[7] = -1;
        if (s.size.y == 1) row[2] = row[3] = row[6] = row[7] = -1;
        if (s.size.z == 1) row[1] = row[3] = row[5] = row[7] = -1;
#pragma unroll
        for (int corner = 0; corner < 8; ++corner)
            if (row[corner] >= 0)
                add(sums.of[corner], 1.0f, Part<kWide>::load(table + (long long)row[corner] * s.channels + first));
#pragma unroll
        for (int corner = 0; corner < 8; ++corner)
            if (row[corner] >= 0) sums.of[corner].store(table + (long long)row[corner] * s.channels + first);
    }
}

}  // namespace maquette

using namespace maquette;

// table: [F, channels].  rows: [X, Y, Z].  points: [count, 3].  out: [count, channels].
#define MQ_GATHER(name, wide)                                                                                         \
    MQ_KERNEL __launch_bounds__(kThreads)                                                                             \
    name(const float* table, const int* rows, int size_x, int size_y, int size_z, const float* points, int count,     \
         int channels, float* out) {                                                                                  \
        gather<wide>(table, rows, {size_x, size_y, size_z}, points, count, channels, out);                            \
    }
MQ_GATHER(gather_rows, 1)
MQ_GATHER(gather_rows4, 4)

// keys: [count] of the cells that points lie in, for the sort.
MQ_KERNEL __launch_bounds__(kThreads)
cell_keys(const float* points, int count, int size_x, int size_y, int size_z, unsigned* keys) {
    const long long i = (long long)blockIdx.x * kThreads + threadIdx.x;
    const GridSize size = {size_x, size_y, size_z};
    if (i < count) keys[i] = CellOrder(size).key(cell_of(points, i, size));
}

// parity_begin: [9], for kernel add_to_corners. One block.
MQ_KERNEL __launch_bounds__(kWarp)
find_parities(const unsigned* keys, int count, int size_x, int size_y, int size_z, int* parity_begin) {
    if (threadIdx.x > kParities) return;
    const unsigned key = threadIdx.x * CellOrder({size_x, size_y, size_z}).cells;
    int begin = 0;
    for (int left = count; left > 0;) {
        const int half = left / 2;
        if (keys[begin + half] < key) begin += half + 1, left -= half + 1;
        else left = half;
    }
    parity_begin[threadIdx.x] = begin;
}

#define MQ_ADD_TO_CORNERS(suffix, wide)                                                                               \
    MQ_KERNEL __launch_bounds__(kThreads)                                                                             \
    sum_carried##suffix(const unsigned* keys, const unsigned* places, int count, const float* points, const float* v, \
                        int channels, int size_x, int size_y, int size_z, float* carried) {                           \
        carry_pieces<wide>({keys, places, count, points, v, channels, {size_x, size_y, size_z}}, carried);             \
    }                                                                                                                 \
    MQ_KERNEL __launch_bounds__(kThreads)                                                                             \
    add_to_corners##suffix(const unsigned* keys, const unsigned* places, int count, const float* points,              \
                           const float* v, int channels, int size_x, int size_y, int size_z, const float* carried,    \
                           const int* parity_begin, int parity, const int* rows, float* table) {                      \
        add_cells<wide>({keys, places, count, points, v, channels, {size_x, size_y, size_z}}, carried, parity_begin,  \
                        parity, rows, table);                                                                         \
    }
MQ_ADD_TO_CORNERS(, 1)
MQ_ADD_TO_CORNERS(4, 4)
