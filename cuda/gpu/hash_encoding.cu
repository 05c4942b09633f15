// Features of places in a multiresolution hash grid, and their gradients by the table and by the places. The maths is
// in math/hash_grid.h.
//
// A thread takes a place at a level; neighbouring threads have neighbouring places, and blocks of one level run
// together, so that the level's rows stay in the L2 cache. Rows that many places share are summed by atomics on 64-bit
// integers, in units that leave room for the largest sum there can be: integers add up to the same bits in any order.
// A unit is below 2^-29 of the largest gradient for up to 2^31 places, and at least 2^-126. Sums become floats in a
// pass of their own.
#include "gpu/device.h"
#include "math/hash_grid.h"

namespace maquette {

constexpr int kThreads = 256;
constexpr int kSumBits = 62;  // of a sum, without its sign

// A row, or a level's numbers of a place, read and written at once.
template <int kFeatures>
struct alignas(4 * kFeatures > 16 ? 16 : 4 * kFeatures) Row {
    float v[kFeatures];
};

struct HashLevels {
    const int *cells, *first_rows;
    int count;
    __device__ HashLevel operator[](int level) const {
        const unsigned first = unsigned(__ldg(first_rows + level));
        return {__ldg(cells + level), first, unsigned(__ldg(first_rows + level + 1)) - first};
    }
};

__device__ inline Cell<float> cell_of(const float* points, long long i, int cells) {
    const float* p = points + 3 * i;
    return level_cell(__ldg(p), __ldg(p + 1), __ldg(p + 2), cells);
}

__device__ inline unsigned row_of(const Cell<float>& cell, int corner, const HashLevel& level, bool dense) {
    return dense ? corner_row<true>(cell, corner, level) : corner_row<false>(cell, corner, level);
}

template <int kFeatures>
__device__ inline void encode(const Row<kFeatures>* table, const HashLevels& levels, const float* points, int count,
                              Row<kFeatures>* out) {
    const long long i = (long long)blockIdx.x * kThreads + threadIdx.x;
    if (i >= count) return;
    const HashLevel level = levels[int(blockIdx.y)];
    const Cell<float> cell = cell_of(points, i, level.cells);
    const bool dense = stored_densely(level);
    Row<kFeatures> rows[8], sum = {};
#pragma unroll
    for (int corner = 0; corner < 8; ++corner) rows[corner] = table[row_of(cell, corner, level, dense)];
#pragma unroll
    for (int corner = 0; corner < 8; ++corner)
#pragma unroll
        for (int f = 0; f < kFeatures; ++f) sum.v[f] += corner_share(cell, corner) * rows[corner].v[f];
    out[i * levels.count + blockIdx.y] = sum;
}

// Units per 1.0, a power of two: the shares of a place sum to 1, so no sum passes count * peak < 2^kSumBits units.
// peak: the largest |gradient|. finite: false where it is none.
struct Units {
    float per_one;
    bool finite;
    __device__ Units(float peak, int count) {
        const int exponent = int(__float_as_uint(peak) >> 23 & 0xff);  // peak < 2^(exponent - 126)
        finite = exponent != 0xff;
        const int room = kSumBits - (32 - __clz(count)) - (exponent - 126);
        per_one = __uint_as_float(unsigned((room < 126 ? room : 126) + 127) << 23);
    }
};

template <int kFeatures>
__device__ inline void add_to_rows(const Row<kFeatures>* v_out, const float* peak, const HashLevels& levels,
                                   const float* points, int count, unsigned long long* sums) {
    const long long i = (long long)blockIdx.x * kThreads + threadIdx.x;
    const Units units(__ldg(peak), count);
    if (i >= count || !units.finite) return;
    const HashLevel level = levels[int(blockIdx.y)];
    const Row<kFeatures> v = v_out[i * levels.count + blockIdx.y];
    const Cell<float> cell = cell_of(points, i, level.cells);
    const bool dense = stored_densely(level);
#pragma unroll
    for (int corner = 0; corner < 8; ++corner) {
        unsigned long long* row = sums + (long long)row_of(cell, corner, level, dense) * kFeatures;
        const float share = corner_share(cell, corner) * units.per_one;
#pragma unroll
        for (int f = 0; f < kFeatures; ++f) atomicAdd(row + f, (unsigned long long)__float2ll_rn(share * v.v[f]));
    }
}

template <int kFeatures>
__device__ inline void slopes(const Row<kFeatures>* v_out, const Row<kFeatures>* table, const HashLevels& levels,
                              const float* points, int count, float* v_points) {
    const long long i = (long long)blockIdx.x * kThreads + threadIdx.x;
    if (i >= count) return;
    float sum[3] = {};
    for (int at = 0; at < levels.count; ++at) {
        const HashLevel level = levels[at];
        const Row<kFeatures> v = v_out[i * levels.count + at];
        const Cell<float> cell = cell_of(points, i, level.cells);
        const bool dense = stored_densely(level);
#pragma unroll
        for (int corner = 0; corner < 8; ++corner) {
            const Row<kFeatures> row = table[row_of(cell, corner, level, dense)];
            float along = 0.0f;
#pragma unroll
            for (int f = 0; f < kFeatures; ++f) along += row.v[f] * v.v[f];
#pragma unroll
            for (int axis = 0; axis < 3; ++axis) sum[axis] += corner_slope(cell, corner, axis, level.cells) * along;
        }
    }
#pragma unroll
    for (int axis = 0; axis < 3; ++axis)
        v_points[3 * i + axis] = within_unit(__ldg(points + 3 * i + axis)) ? sum[axis] : 0.0f;
}

template <int kFeatures>
__device__ inline const Row<kFeatures>* rows(const float* from) {
    return reinterpret_cast<const Row<kFeatures>*>(from);
}

}  // namespace maquette

using namespace maquette;

// table: [rows, features].  cells: [levels].  first_rows: [levels + 1].  points: [count, 3].
// out, v_out: [count, levels, features].  sums: [rows, features], zeros at first.
// A row of blocks per level, but for slopes.
#define MQ_HASH_ENCODING(features)                                                                                    \
    MQ_KERNEL __launch_bounds__(kThreads)                                                                             \
    encode##features(const float* table, const int* cells, const int* first_rows, int levels, const float* points,    \
                     int count, float* out) {                                                                         \
        encode<features>(rows<features>(table), {cells, first_rows, levels}, points, count,                           \
                         reinterpret_cast<Row<features>*>(out));                                                      \
    }                                                                                                                 \
    MQ_KERNEL __launch_bounds__(kThreads)                                                                             \
    add_to_rows##features(const float* v_out, const float* peak, const int* cells, const int* first_rows, int levels, \
                          const float* points, int count, unsigned long long* sums) {                                 \
        add_to_rows<features>(rows<features>(v_out), peak, {cells, first_rows, levels}, points, count, sums);         \
    }                                                                                                                 \
    MQ_KERNEL __launch_bounds__(kThreads, 2)                                                                          \
    slopes##features(const float* v_out, const float* table, const int* cells, const int* first_rows, int levels,     \
                     const float* points, int count, float* v_points) {                                               \
        slopes<features>(rows<features>(v_out), rows<features>(table), {cells, first_rows, levels}, points, count,    \
                         v_points);                                                                                   \
    }
MQ_HASH_ENCODING(1)
MQ_HASH_ENCODING(2)
MQ_HASH_ENCODING(4)
MQ_HASH_ENCODING(8)

// Adds sums to v_table, both [numbers]; NaN to all where a gradient was no number.
MQ_KERNEL __launch_bounds__(kThreads)
add_sums(const long long* sums, const float* peak, int count, int numbers, float* v_table) {
    const long long i = (long long)blockIdx.x * kThreads + threadIdx.x;
    if (i >= numbers) return;
    const Units units(__ldg(peak), count);
    v_table[i] += units.finite ? float(sums[i]) / units.per_one : __uint_as_float(0x7fc00000u);
}
