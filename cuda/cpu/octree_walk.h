// Rays through an octree on the CPU: a packet of rays side by side, one ray a lane, and the leaves that each met.
// float: as many rays as a register has lanes; double (for gradient checks): one.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cpu/buffer.h"
#include "cpu/simd.h"
#include "math/octree.h"

namespace maquette {

// Leaves met by the rays of a packet, those of one ray in order along it; kept in columns.
template <typename T>
struct OctreeHits {
    Buffer<std::int32_t> lane, row;
    Buffer<T> weight, after, length;  // T_i alpha_i, T_(i+1), world length of the piece of ray in the leaf
    Buffer<T> t, dt;                  // where the piece begins and how long it is, in units of the direction
    Buffer<T> color;                  // [hits, 4]: red, green, blue of the leaf, and nothing
    std::int64_t count = 0, room = 0;

    // Room for `more` hits and a register beyond.
    void reserve(std::int64_t more) {
        if (count + more <= room) return;
        const std::int64_t wanted = std::max<std::int64_t>(2 * room, count + more + 1024);
        grow(lane, wanted), grow(row, wanted), grow(weight, wanted), grow(after, wanted), grow(length, wanted);
        grow(t, wanted), grow(dt, wanted);
        room = wanted;
    }

  private:
    template <typename U>
    void grow(Buffer<U>& buffer, std::int64_t wanted) const {
        Buffer<U> larger;
        larger.resize(std::size_t(wanted));
        std::copy(buffer.data(), buffer.data() + count, larger.data());
        buffer = std::move(larger);
    }
};

// The numbers of the leaves, and what lies ahead of use.
template <typename T>
struct OctreeLeaves {
    const T* sigmas;  // [count]
    const T* sh;      // [count, numbers], numbers = 3 per basis function
    std::int64_t count;
    int numbers;

    MQ_INLINE void prefetch(std::int64_t row) const {
        const char* first = reinterpret_cast<const char*>(sh + row * numbers);
        const char* last = reinterpret_cast<const char*>(sh + row * numbers + numbers - 1);
        for (; first < last; first += 64) __builtin_prefetch(first);
        __builtin_prefetch(last);
    }
};

// How far and through what rays go.
template <typename T>
struct OctreeLimits {
    T stop;       // a ray ends when less light than this is left
    T least;      // leaves of at most this density are passed through
};

template <typename T>
struct OctreePacket;

template <>
struct OctreePacket<double> {
    static constexpr int kRays = 1;
    double origin[3][1], direction[3][1];
    double from = 0.0, to = 3e38;  // leaves lie between these t
    double last[1];

    void walk(const OctreeIndex& index, const OctreeFrame<double>& frame, const OctreeLeaves<double>& leaves,
              const OctreeLimits<double>& limits, int used, OctreeHits<double>& hits) {
        last[0] = 1.0;
        OctreeRay<double> ray;
        const double o[3] = {origin[0][0], origin[1][0], origin[2][0]};
        const double d[3] = {direction[0][0], direction[1][0], direction[2][0]};
        if (!used || from > to || !octree_enter(index, frame, o, d, from, ray)) return;
        for (bool inside = true; inside && ray.t <= to;) {
            const OctreeCell cell = octree_cell(index, ray.at, ray.octant);
            const double entry = ray.t;
            inside = octree_advance(index, cell, ray);
            if (cell.row < 0) continue;
            const double sigma = leaves.sigmas[cell.row];
            if (!(sigma > limits.least) || !(ray.t > entry)) continue;
            const double length = (ray.t - entry) * ray.length, pass = exp(-sigma * length);
            hits.reserve(1);
            const std::int64_t i = hits.count++;
            hits.lane[i] = 0, hits.row[i] = cell.row, hits.length[i] = length, hits.t[i] = entry;
            hits.dt[i] = ray.t - entry, hits.weight[i] = last[0] * (1.0 - pass), hits.after[i] = last[0] *= pass;
            if (last[0] < limits.stop) return;
        }
    }
};

// Whole numbers and choices beside Floats.
using Ints = Floats::Bits;
#if defined(__AVX512F__)
using Choice = __mmask16;
MQ_INLINE Choice greater(Floats a, Floats b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ); }
MQ_INLINE Choice greater(Ints a, Ints b) { return _mm512_cmpgt_epi32_mask((__m512i)a, (__m512i)b); }
MQ_INLINE Choice equal(Ints a, Ints b) { return _mm512_cmpeq_epi32_mask((__m512i)a, (__m512i)b); }
MQ_INLINE Floats pick(Choice m, Floats a, Floats b) { return Floats((Floats::Raw)_mm512_mask_blend_ps(m, b.v, a.v)); }
MQ_INLINE Ints pick(Choice m, Ints a, Ints b) { return (Ints)_mm512_mask_blend_epi32(m, (__m512i)b, (__m512i)a); }
MQ_INLINE Ints gather(Choice m, const std::int32_t* from, Ints at, Ints other) {
    return (Ints)_mm512_mask_i32gather_epi32((__m512i)other, m, (__m512i)at, from, 4);
}
MQ_INLINE std::uint32_t bits(Choice m) { return m; }
MQ_INLINE Choice first_lanes(int count) { return Choice((1u << count) - 1); }
MQ_INLINE Choice nobody() { return 0; }
MQ_INLINE Choice without(Choice a, Choice b) { return Choice(a & ~b); }
MQ_INLINE void append(Choice m, Ints a, std::int32_t* to) {
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(m, (__m512i)a));  // a masked store is slow on Zen
}
MQ_INLINE void append(Choice m, Floats a, float* to) { _mm512_storeu_ps(to, _mm512_maskz_compress_ps(m, a.v)); }
#else
using Choice = Ints;
MQ_INLINE Choice greater(Floats a, Floats b) { return a.v > b.v; }
MQ_INLINE Choice greater(Ints a, Ints b) { return a > b; }
MQ_INLINE Choice equal(Ints a, Ints b) { return a == b; }
MQ_INLINE Floats pick(Choice m, Floats a, Floats b) { return Floats(m ? a.v : b.v); }
MQ_INLINE Ints pick(Choice m, Ints a, Ints b) { return m ? a : b; }
MQ_INLINE Ints gather(Choice m, const std::int32_t* from, Ints at, Ints other) {
    for (int i = 0; i < Floats::count; ++i)
        if (m[i]) other[i] = from[at[i]];
    return other;
}
MQ_INLINE std::uint32_t bits(Choice m) {
#if defined(__AVX2__)
    return std::uint32_t(_mm256_movemask_ps((__m256)m));
#else
    std::uint32_t found = 0;
    for (int i = 0; i < Floats::count; ++i) found |= std::uint32_t(m[i] & 1) << i;
    return found;
#endif
}
MQ_INLINE Choice first_lanes(int count) {
    Choice m;
    for (int i = 0; i < Floats::count; ++i) m[i] = i < count ? -1 : 0;
    return m;
}
MQ_INLINE Choice nobody() { return Choice{}; }
MQ_INLINE Choice without(Choice a, Choice b) { return a & ~b; }
template <typename Vector, typename Number>
MQ_INLINE void append(Choice m, Vector a, Number* to) {
    for (std::uint32_t left = bits(m); left; left &= left - 1) *to++ = a[__builtin_ctz(left)];
}
#endif
MQ_INLINE Ints whole(int number) { return number - Ints{}; }
MQ_INLINE Ints truncated(Floats a) { return __builtin_convertvector(a.v, Ints); }
MQ_INLINE Floats floats(Ints a) { return Floats(__builtin_convertvector(a, Floats::Raw)); }

template <>
struct OctreePacket<float> {
    static constexpr int kRays = Floats::count;
    float origin[3][kRays], direction[3][kRays];
    float from = 0.0f, to = 3e38f;  // leaves lie between these t
    float last[kRays];

    // The same steps as octree_enter, octree_cell and octree_advance, for all lanes at once.
    void walk(const OctreeIndex& index, const OctreeFrame<float>& frame, const OctreeLeaves<float>& leaves,
              const OctreeLimits<float>& limits, int used, OctreeHits<float>& hits) {
        const Floats one(1.0f), zero(0.0f);
        if (from > to) {
            one.store(last);
            return;
        }
        Floats o[3], d[3], inverse[3], squares = zero, t(from), leave(to);
        Ints at[3], octant = whole(0);  // of the lane's direction, times 3
        Choice forward[3];
        for (int axis = 0; axis < 3; ++axis) {
            const Floats world = Floats::load(direction[axis]);
            o[axis] = Floats(frame.offset[axis]) + Floats(frame.scale[axis]) * Floats::load(origin[axis]);
            d[axis] = Floats(frame.scale[axis]) * world;
            squares += world * world;
            forward[axis] = greater(zero, d[axis]);
            d[axis] = pick(forward[axis], minimum(d[axis], Floats(-1e-12f)), maximum(d[axis], Floats(1e-12f)));
            forward[axis] = greater(d[axis], zero);
            octant = octant + pick(forward[axis], whole(12 >> axis), whole(0));
            inverse[axis] = one / d[axis];
            const Floats a = (Floats(float(index.low[axis])) - o[axis]) * inverse[axis];
            const Floats b = (Floats(float(index.high[axis])) - o[axis]) * inverse[axis];
            t = maximum(t, minimum(a, b));
            leave = minimum(leave, maximum(a, b));
        }
        const Floats ray_length = sqrt(squares);
        Choice active = greater(leave, t) & first_lanes(used);
        for (int axis = 0; axis < 3; ++axis) {
            const Floats where = o[axis] + t * d[axis];
            at[axis] = truncated(minimum(maximum(where, Floats(float(index.low[axis]))),
                                         Floats(float(index.high[axis] - 1))));
        }
        Floats light = one;
        Ints lanes;
        for (int i = 0; i < kRays; ++i) lanes[i] = i;
        const int shift0 = index.lattice_level - index.top_level, top = index.top_level;
        while (bits(active)) {
            // The word of each lane's cell.
            Ints word = whole(0);
            word = gather(active, index.top, (at[0] >> shift0 << 2 * top) | (at[1] >> shift0 << top) | at[2] >> shift0,
                          word);
            Ints shift = whole(shift0);
            Choice deeper = greater(whole(0), word);
            for (int finer = shift0 - 2; bits(deeper); finer -= 2) {
                const Ints place = (at[0] >> finer & 3) << 4 | (at[1] >> finer & 3) << 2 | (at[2] >> finer & 3);
                word = gather(deeper, index.nodes, (~word << 6) + place, word);
                shift = pick(deeper, whole(finer), shift);
                deeper = greater(whole(0), word);
            }
            // What a leaf covers, or how far the ray's octant is empty: `side` on the way forward, and `back` behind.
            const Choice leaf = greater(whole(kOctreeEmpty), word) & active;
            const Ints code = word >> octant & 7, row = word >> kOctreeLevelBits;
            const Ints cell = whole(1) << shift, reach = ((code & 1) | 2) << (code >> 1) >> 1 << shift;
            const Ints side = pick(leaf, whole(1) << ((index.lattice_level - word) & 31), cell);
            const Ints ahead = pick(leaf, side, reach), back = ahead - side;
            Floats out[3], nearest(3e38f);
            Ints low[3], high[3];
            for (int axis = 0; axis < 3; ++axis) {
                const Ints corner = at[axis] & -side;
                low[axis] = corner - pick(forward[axis], whole(0), back);
                high[axis] = corner + pick(forward[axis], ahead, side);
                out[axis] = (floats(pick(forward[axis], high[axis], low[axis])) - o[axis]) * inverse[axis];
                nearest = minimum(nearest, out[axis]);
            }
            const Floats entry = t;
            t = maximum(t, nearest);
            if (bits(leaf)) {
                const auto* sigmas = reinterpret_cast<const std::int32_t*>(leaves.sigmas);
                const Floats sigma((Floats::Raw)gather(leaf, sigmas, row, whole(0)));
                const Floats dt = t - entry;
                const Choice met = leaf & greater(sigma, Floats(limits.least)) & greater(dt, zero);
                if (const std::uint32_t hit = bits(met)) {
                    // Their colours are wanted when the packet is through.
                    for (std::uint32_t left = hit; left; left &= left - 1) leaves.prefetch(row[__builtin_ctz(left)]);
                    const Floats length = dt * ray_length;
                    const Floats pass = exp2(maximum(sigma * length * Floats(-1.44269504f), Floats(-126.0f)));
                    const Floats after = light * pass;
                    hits.reserve(2 * kRays);
                    const std::int64_t i = hits.count;
                    append(met, lanes, hits.lane.data() + i);
                    append(met, row, hits.row.data() + i);
                    append(met, light * (one - pass), hits.weight.data() + i);
                    append(met, after, hits.after.data() + i);
                    append(met, length, hits.length.data() + i);
                    append(met, entry, hits.t.data() + i);
                    append(met, dt, hits.dt.data() + i);
                    hits.count += __builtin_popcount(hit);
                    light = pick(met, after, light);
                    active = without(active, met & greater(Floats(limits.stop), light));
                }
            }
            active = active & greater(leave, t);
            // The cell behind the face, or where the ray stands on the other axes.
            for (int axis = 0; axis < 3; ++axis) {
                const Ints behind = pick(forward[axis], high[axis], low[axis] - 1);
                const Floats where = o[axis] + t * d[axis];
                const Ints beside = truncated(
                    minimum(maximum(where, floats(low[axis])), floats(high[axis] - 1)));
                at[axis] = pick(greater(out[axis], t), beside, behind);
                active = active & greater(at[axis], whole(index.low[axis] - 1)) &
                         greater(whole(index.high[axis]), at[axis]);
            }
        }
        light.store(last);
    }
};

}  // namespace maquette
