// Rays through an octree on the CPU: a packet of rays side by side, one ray a lane, and the leaves that each met.
// float: four tiles of as many rays as a register has lanes; double (for gradient checks): one ray.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>

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
    static constexpr int kTile = 1, kTiles = 1, kRays = 1;
    double origin[3][1], direction[3][1];
    double from[1], to[1];  // leaves lie between these t; from > to: there are none
    std::int32_t ids[1];    // number of the ray
    double last[1];

    void walk(const OctreeIndex& index, const OctreeFrame<double>& frame, const OctreeLeaves<double>& leaves,
              const OctreeLimits<double>& limits, OctreeHits<double>& hits) {
        last[0] = 1.0;
        OctreeRay<double> ray;
        const double o[3] = {origin[0][0], origin[1][0], origin[2][0]};
        const double d[3] = {direction[0][0], direction[1][0], direction[2][0]};
        if (from[0] > to[0] || !octree_enter(index, frame, o, d, from[0], ray)) return;
        for (bool inside = true; inside && ray.t <= to[0];) {
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
#if defined(__AVX2__)
MQ_INLINE Ints gather(Choice m, const std::int32_t* from, Ints at, Ints other) {
    return (Ints)_mm256_mask_i32gather_epi32((__m256i)other, from, (__m256i)at, (__m256i)m, 4);
}
MQ_INLINE std::uint32_t bits(Choice m) { return std::uint32_t(_mm256_movemask_ps((__m256)m)); }

// The chosen lanes' numbers, first things first, for each choice of eight.
struct Chosen {
    alignas(32) std::int32_t lanes[256][8] = {};
    constexpr Chosen() {
        for (int choice = 0; choice < 256; ++choice)
            for (int lane = 0, place = 0; lane < 8; ++lane)
                if (choice >> lane & 1) lanes[choice][place++] = lane;
    }
};
inline constexpr Chosen kChosen;
template <typename Vector, typename Number>
MQ_INLINE void append(Choice m, Vector a, Number* to) {  // writes a whole register
    __m256 raw;
    static_assert(sizeof a == sizeof raw);
    std::memcpy(&raw, &a, sizeof raw);
    const __m256i order = _mm256_load_si256(reinterpret_cast<const __m256i*>(kChosen.lanes[bits(m)]));
    _mm256_storeu_ps(reinterpret_cast<float*>(to), _mm256_permutevar8x32_ps(raw, order));
}
#else
MQ_INLINE Ints gather(Choice m, const std::int32_t* from, Ints at, Ints other) {
    for (int i = 0; i < Floats::count; ++i)
        if (m[i]) other[i] = from[at[i]];
    return other;
}
MQ_INLINE std::uint32_t bits(Choice m) {
    std::uint32_t found = 0;
    for (int i = 0; i < Floats::count; ++i) found |= std::uint32_t(m[i] & 1) << i;
    return found;
}
template <typename Vector, typename Number>
MQ_INLINE void append(Choice m, Vector a, Number* to) {
    for (std::uint32_t left = bits(m); left; left &= left - 1) *to++ = a[__builtin_ctz(left)];
}
#endif
MQ_INLINE Choice nobody() { return Choice{}; }
MQ_INLINE Choice without(Choice a, Choice b) { return a & ~b; }
#endif
MQ_INLINE Ints whole(int number) { return number - Ints{}; }
MQ_INLINE Ints truncated(Floats a) { return __builtin_convertvector(a.v, Ints); }
MQ_INLINE Floats floats(Ints a) { return Floats(__builtin_convertvector(a, Floats::Raw)); }

// The rays of one register on their way: octree_enter, octree_cell and octree_advance for all lanes at once.
struct OctreeWay {
    Floats o[3], d[3], inverse[3], ray_length, t, leave, light, sigma;
    Ints at[3], octant, word, shift;  // octant: of the lane's direction, times 3
    Choice forward[3], active, leaf;

    bool goes_on() const { return bits(active); }

    // To the first cell of the lanes whose ids are not negative, between `from` and `to`.
    void enter(const OctreeIndex& index, const OctreeFrame<float>& frame, const float* const origin[3],
               const float* const direction[3], const std::int32_t* ids, float from, float to) {
        Floats squares(0.0f);
        t = Floats(from), leave = Floats(to), light = Floats(1.0f), sigma = Floats(0.0f), octant = whole(0);
        for (int axis = 0; axis < 3; ++axis) {
            const Floats world = Floats::load(direction[axis]);
            o[axis] = Floats(frame.offset[axis]) + Floats(frame.scale[axis]) * Floats::load(origin[axis]);
            d[axis] = Floats(frame.scale[axis]) * world;
            squares += world * world;
            forward[axis] = greater(Floats(0.0f), d[axis]);
            d[axis] = pick(forward[axis], minimum(d[axis], Floats(-1e-12f)), maximum(d[axis], Floats(1e-12f)));
            forward[axis] = greater(d[axis], Floats(0.0f));
            octant = octant + pick(forward[axis], whole(12 >> axis), whole(0));
            inverse[axis] = Floats(1.0f) / d[axis];
            const Floats a = (Floats(float(index.low[axis])) - o[axis]) * inverse[axis];
            const Floats b = (Floats(float(index.high[axis])) - o[axis]) * inverse[axis];
            t = maximum(t, minimum(a, b));
            leave = minimum(leave, maximum(a, b));
        }
        ray_length = sqrt(squares);
        Ints present;
        std::memcpy(&present, ids, sizeof present);
        active = greater(leave, t) & greater(present, whole(-1));
        for (int axis = 0; axis < 3; ++axis) {
            const Floats where = o[axis] + t * d[axis];
            at[axis] = truncated(minimum(maximum(where, Floats(float(index.low[axis]))),
                                         Floats(float(index.high[axis] - 1))));
        }
    }

    // The word of each lane's cell in the grid; those below zero name nodes.
    void look_up_grid(const OctreeIndex& index) {
        const int top = index.top_level, finer = index.lattice_level - top;
        shift = whole(finer);
        word = gather(active, index.top, (at[0] >> finer << 2 * top) | (at[1] >> finer << top) | at[2] >> finer,
                      whole(0));
    }

    // The words in the nodes that `word` names, whose cells have side 2^finer.
    void look_up_node(const OctreeIndex& index, int finer) {
        const Choice deeper = greater(whole(0), word);
        if (!bits(deeper)) return;
        const Ints place = (at[0] >> finer & 3) << 4 | (at[1] >> finer & 3) << 2 | (at[2] >> finer & 3);
        word = gather(deeper, index.nodes, (~word << 6) + place, word);
        shift = pick(deeper, whole(finer), shift);
    }

    void look_up_sigma(const float* sigmas) {
        leaf = greater(whole(kOctreeEmpty), word) & active;
        if (!bits(leaf)) return;
        const auto* numbers = reinterpret_cast<const std::int32_t*>(sigmas);
        sigma = Floats((Floats::Raw)gather(leaf, numbers, word >> kOctreeLevelBits, whole(0)));
    }

    // Through the leaf or as far as the ray's octant is empty, and into the next cell.
    void advance(const OctreeIndex& index, const OctreeLeaves<float>& leaves, const OctreeLimits<float>& limits,
                 Ints lanes, OctreeHits<float>& hits) {
        const Ints code = word >> octant & 7;
        const Ints cell = whole(1) << shift, reach = ((code & 1) | 2) << (code >> 1) >> 1 << shift;
        const Ints side = pick(leaf, whole(1) << ((index.lattice_level - word) & 31), cell);
        const Ints ahead = pick(leaf, side, reach), back = ahead - side;  // `side` on the way forward, `back` behind
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
        const Floats dt = t - entry;
        const Choice met = leaf & greater(sigma, Floats(limits.least)) & greater(dt, Floats(0.0f));
        if (bits(met)) meet(met, entry, dt, leaves, limits, lanes, hits);
        active = active & greater(leave, t);
        // The cell behind the face, or where the ray stands on the other axes.
        for (int axis = 0; axis < 3; ++axis) {
            const Ints behind = pick(forward[axis], high[axis], low[axis] - 1);
            const Floats where = o[axis] + t * d[axis];
            const Ints beside = truncated(minimum(maximum(where, floats(low[axis])), floats(high[axis] - 1)));
            at[axis] = pick(greater(out[axis], t), beside, behind);
            active = active & greater(at[axis], whole(index.low[axis] - 1)) &
                     greater(whole(index.high[axis]), at[axis]);
        }
    }

  private:
    void meet(Choice met, Floats entry, Floats dt, const OctreeLeaves<float>& leaves,
              const OctreeLimits<float>& limits, Ints lanes, OctreeHits<float>& hits) {
        const Ints row = word >> kOctreeLevelBits;
        const std::uint32_t hit = bits(met);
        // Their colours are wanted when the packet is through.
        for (std::uint32_t left = hit; left; left &= left - 1) leaves.prefetch(row[__builtin_ctz(left)]);
        const Floats length = dt * ray_length;
        const Floats pass = exp2(maximum(sigma * length * Floats(-1.44269504f), Floats(-126.0f)));
        const Floats after = light * pass;
        hits.reserve(2 * Floats::count);
        const std::int64_t i = hits.count;
        append(met, lanes, hits.lane.data() + i);
        append(met, row, hits.row.data() + i);
        append(met, light * (Floats(1.0f) - pass), hits.weight.data() + i);
        append(met, after, hits.after.data() + i);
        append(met, length, hits.length.data() + i);
        append(met, entry, hits.t.data() + i);
        append(met, dt, hits.dt.data() + i);
        hits.count += __builtin_popcount(hit);
        light = pick(met, after, light);
        active = without(active, met & greater(Floats(limits.stop), light));
    }
};

template <>
struct OctreePacket<float> {
    static constexpr int kTile = Floats::count, kTiles = 4, kRays = kTile * kTiles;
    float origin[3][kRays], direction[3][kRays];
    float from[kTiles], to[kTiles];  // leaves of a tile lie between these t; from > to: there are none
    std::int32_t ids[kRays];         // numbers of the rays, -1 where there is none
    float last[kRays];

    // The tiles go in step, so that one waits for memory while the others' words are on their way.
    void walk(const OctreeIndex& index, const OctreeFrame<float>& frame, const OctreeLeaves<float>& leaves,
              const OctreeLimits<float>& limits, OctreeHits<float>& hits) {
        OctreeWay ways[kTiles];
        int order[kTiles], count = 0;
        for (int tile = 0; tile < kTiles; ++tile) {
            const int first = tile * kTile;
            std::fill_n(last + first, kTile, 1.0f);
            if (from[tile] > to[tile]) continue;
            const float* const o[3] = {origin[0] + first, origin[1] + first, origin[2] + first};
            const float* const d[3] = {direction[0] + first, direction[1] + first, direction[2] + first};
            ways[tile].enter(index, frame, o, d, ids + first, from[tile], to[tile]);
            order[count++] = tile;
        }
        Ints lanes;
        for (int i = 0; i < kTile; ++i) lanes[i] = i;
        while (true) {
            int left = 0;
            for (int i = 0; i < count; ++i) {
                const int tile = order[i];
                if (ways[tile].goes_on())
                    order[left++] = tile;
                else
                    ways[tile].light.store(last + tile * kTile);
            }
            if (!(count = left)) return;
            for (int i = 0; i < count; ++i) ways[order[i]].look_up_grid(index);
            for (int finer = index.lattice_level - index.top_level - 2; finer >= 0; finer -= 2)
                for (int i = 0; i < count; ++i) ways[order[i]].look_up_node(index, finer);
            for (int i = 0; i < count; ++i) ways[order[i]].look_up_sigma(leaves.sigmas);
            for (int i = 0; i < count; ++i)
                ways[order[i]].advance(index, leaves, limits, lanes + whole(order[i] * kTile), hits);
        }
    }
};

}  // namespace maquette
