// What the blending loops need beyond `Lanes`: full-width floats, 2^x, reciprocals, tests and sums over lanes.
// Intrinsics stand only where they were measured to win; the other branch is the same maths for every processor.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "cpu/lanes.h"

namespace maquette {

using Floats = Lanes<float, kVectorBytes / 4>;

// 2^x for x <= 127; x below -126 gives less than 2^-125. Relative error below 2e-7 (polynomial 7.5e-8, the rest
// rounding). NaN stays NaN, -inf gives less than 2^-125.
MQ_INLINE Floats exp2(Floats x) {
#if defined(__AVX512F__)
    const __m512 n = _mm512_maskz_roundscale_ps(0xffff, x.v, _MM_FROUND_TO_NEAREST_INT);
    const Floats f = Floats((Floats::Raw)_mm512_sub_ps(x.v, n));
#else
    x = maximum(x, Floats(-126.0f));
    const Floats magic(12582912.0f);  // 1.5 * 2^23: adding it rounds to the nearest whole number, found in the low bits
    const Floats shifted = x + magic;
    const Floats f = x - (shifted - magic);
#endif
    Floats p(1.3276471782e-3f);
    p = p * f + Floats(9.6755413328e-3f);
    p = p * f + Floats(5.5507132742e-2f);
    p = p * f + Floats(2.4022119724e-1f);
    p = p * f + Floats(6.9314696706e-1f);
    p = p * f + Floats(1.0f);
#if defined(__AVX512F__)
    return Floats((Floats::Raw)_mm512_maskz_scalef_ps(0xffff, p.v, n));
#else
    return Floats((Floats::Raw)((Floats::Bits)p.v + ((Floats::Bits)shifted.v << 23)));
#endif
}

// 1 / a for normal a, relative error below 3e-7.
MQ_INLINE Floats reciprocal(Floats a) {
#if defined(__AVX512F__)
    const Floats guess = Floats((Floats::Raw)_mm512_maskz_rcp14_ps(0xffff, a.v));
    return guess * (Floats(2.0f) - a * guess);
#else
    return Floats(1.0f) / a;
#endif
}

MQ_INLINE Floats absolute(Floats a) { return Floats((Floats::Raw)((Floats::Bits)a.v & 0x7fffffff)); }

// Choices between lanes. GCC turns `Lanes::Mask` under AVX-512 into twice the instructions that mask registers need.
#if defined(__AVX512F__)
struct LaneMask {
    __mmask16 m;
};
MQ_INLINE LaneMask at_least(Floats a, Floats b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
MQ_INLINE LaneMask below(Floats a, Floats b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
MQ_INLINE LaneMask both(LaneMask a, LaneMask b) { return {_kand_mask16(a.m, b.m)}; }
MQ_INLINE Floats choose(LaneMask mask, Floats a, Floats b) {
    return Floats((Floats::Raw)_mm512_mask_blend_ps(mask.m, b.v, a.v));
}
MQ_INLINE Floats keep(LaneMask mask, Floats a) { return Floats((Floats::Raw)_mm512_maskz_mov_ps(mask.m, a.v)); }
MQ_INLINE Floats at_most(Floats a, Floats bound) {
    return Floats((Floats::Raw)_mm512_maskz_min_ps(0xffff, a.v, bound.v));
}
#else
MQ_INLINE Floats::Mask at_least(Floats a, Floats b) { return a >= b; }
MQ_INLINE Floats::Mask below(Floats a, Floats b) { return a < b; }
MQ_INLINE Floats::Mask both(Floats::Mask a, Floats::Mask b) { return a & b; }
MQ_INLINE Floats choose(Floats::Mask mask, Floats a, Floats b) { return select(mask, a, b); }
MQ_INLINE Floats keep(Floats::Mask mask, Floats a) { return Floats((Floats::Raw)(mask.m & (Floats::Bits)a.v)); }
MQ_INLINE Floats at_most(Floats a, Floats bound) { return minimum(a, bound); }
#endif

// Whether any lane of a is at least b.
MQ_INLINE bool any_at_least(Floats a, float b) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(a.v, _mm512_set1_ps(b), _CMP_GE_OQ) != 0;
#elif defined(__AVX2__)
    return _mm256_movemask_ps(_mm256_cmp_ps(a.v, _mm256_set1_ps(b), _CMP_GE_OQ)) != 0;
#else
    const Floats::Bits at_least = a.v >= Floats(b).v;
    std::int32_t any = 0;
    for (int i = 0; i < Floats::count; ++i) any |= at_least[i];
    return any != 0;
#endif
}

// Appends to `list` the numbers i in [0, count) with bit `bit` of masks[i] set; returns how many. Both arrays must have
// room for a multiple of 16 entries.
inline int indices_with_bit(const std::uint32_t* masks, int count, int bit, std::uint32_t* list) {
    int found = 0;
#if defined(__AVX512F__)
    const __m512i wanted = _mm512_set1_epi32(1 << bit);
    __m512i index = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    for (int i = 0; i < count; i += 16, index = _mm512_add_epi32(index, _mm512_set1_epi32(16))) {
        const __mmask16 valid = i + 16 <= count ? 0xffff : (1u << (count - i)) - 1;
        const __mmask16 hit = _mm512_mask_test_epi32_mask(valid, _mm512_loadu_si512(masks + i), wanted);
        _mm512_storeu_si512(list + found, _mm512_maskz_compress_epi32(hit, index));
        found += __builtin_popcount(hit);
    }
#else
    for (int i = 0; i < count; ++i) {
        list[found] = std::uint32_t(i);
        found += masks[i] >> bit & 1;
    }
#endif
    return found;
}

namespace detail {

// From a = (a0 a1 ..), b = (b0 b1 ..) in pieces of `kPiece` lanes: (a0+a1, b0+b1, a2+a3, b2+b3, ..).
template <int kPiece, std::size_t... kLane>
MQ_INLINE Floats add_neighbours(Floats a, Floats b, std::index_sequence<kLane...>) {
    constexpr auto from = [](int lane, int which) {
        const int piece = lane / kPiece;
        return (piece % 2 ? Floats::count : 0) + (piece / 2 * 2 + which) * kPiece + lane % kPiece;
    };
    const Floats::Bits first = {from(kLane, 0)...}, second = {from(kLane, 1)...};
    return Floats(__builtin_shuffle(a.v, b.v, first) + __builtin_shuffle(a.v, b.v, second));
}

// Sums over lanes of vectors kFirst .. kFirst + kSpan - 1, each left in 1/kSpan of the lanes. Vectors from kCount on are
// not there: what stands in their lanes has no meaning.
template <int kFirst, int kSpan, int kCount>
MQ_INLINE Floats sum_tree(const Floats* vectors) {
    if constexpr (kSpan == 1) {
        return vectors[kFirst];
    } else {
        const Floats a = sum_tree<kFirst, kSpan / 2, kCount>(vectors);
        Floats b = a;
        if constexpr (kFirst + kSpan / 2 < kCount) b = sum_tree<kFirst + kSpan / 2, kSpan / 2, kCount>(vectors);
        return add_neighbours<Floats::count / kSpan>(a, b, std::make_index_sequence<Floats::count>());
    }
}

}  // namespace detail

// Writes the sum over lanes of vectors[k], k < kCount, to to[sum_place(k)]; `to` has room for 16.
template <int kCount, int kFirst = 0>
MQ_INLINE void store_sums(const Floats* vectors, float* to) {
    detail::sum_tree<kFirst, Floats::count, kCount>(vectors).store(to + kFirst);
    if constexpr (kFirst + Floats::count < kCount) store_sums<kCount, kFirst + Floats::count>(vectors, to);
}

// Neighbouring vectors are summed first, so that absent ones cost nothing; that leaves the sums in bit-reversed order.
constexpr int sum_place(int k) {
    int place = k / Floats::count * Floats::count;
    for (int bit = 1, value = Floats::count / 2; bit < Floats::count; bit *= 2, value /= 2)
        if (k & bit) place += value;
    return place;
}

}  // namespace maquette
