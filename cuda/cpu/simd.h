// What the blending loops need beyond `Lanes`: full-width floats, 2^x, reciprocals, tests and sums over lanes.
// Intrinsics stand only where they were measured to win; the other branch is the same maths for every processor.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "cpu/lanes.h"

namespace maquette {

using Floats = Lanes<float, kVectorBytes / 4>;

// 2^x in two halves with a polynomial between them, so that `Abreast` can interleave the polynomials. `split_exponent`
// leaves x - n in [-0.5, 0.5], n whole; `join_exponent` gives p 2^n.
struct Exponent {
    Floats n;  // AVX-512: the whole number; else it stands in the low bits of a float, as adding 1.5 * 2^23 leaves it
};
MQ_INLINE Floats split_exponent(Floats x, Exponent& exponent) {
#if defined(__AVX512F__)
    exponent.n = Floats((Floats::Raw)_mm512_maskz_roundscale_ps(0xffff, x.v, _MM_FROUND_TO_NEAREST_INT));
    return x - exponent.n;
#else
    x = maximum(x, Floats(-126.0f));
    const Floats magic(12582912.0f);
    exponent.n = x + magic;
    return x - (exponent.n - magic);
#endif
}
MQ_INLINE Floats join_exponent(Floats p, const Exponent& exponent) {
#if defined(__AVX512F__)
    return Floats((Floats::Raw)_mm512_maskz_scalef_ps(0xffff, p.v, exponent.n.v));
#else
    return Floats((Floats::Raw)((Floats::Bits)p.v + ((Floats::Bits)exponent.n.v << 23)));
#endif
}

// 1 / a, relative error below 2^-14 or exact.
MQ_INLINE Floats reciprocal_guess(Floats a) {
#if defined(__AVX512F__)
    return Floats((Floats::Raw)_mm512_maskz_rcp14_ps(0xffff, a.v));
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

// kCount vectors worked on in step. The maths of a pixel is one long chain of dependent instructions, and a processor
// keeps only some hundred waiting ones: chains that may run at the same time must stand side by side in the program.
template <int kCount>
struct Abreast {
    struct Mask {
        decltype(at_least(Floats(), Floats())) m[kCount];
    };
    Floats v[kCount];

    Abreast() = default;
    template <typename Number, typename = std::enable_if_t<std::is_arithmetic_v<Number>>>
    MQ_INLINE explicit Abreast(Number number) {
        for (Floats& one : v) one = Floats(float(number));
    }

    template <typename Result = Abreast, typename Each>
    static MQ_INLINE Result map(const Each& each) {
        Result result;
        if constexpr (std::is_same_v<Result, Mask>)
            for (int i = 0; i < kCount; ++i) result.m[i] = each(i);
        else
            for (int i = 0; i < kCount; ++i) result.v[i] = each(i);
        return result;
    }

    MQ_INLINE friend Abreast operator+(Abreast a, Abreast b) { return map([&](int i) { return a.v[i] + b.v[i]; }); }
    MQ_INLINE friend Abreast operator-(Abreast a, Abreast b) { return map([&](int i) { return a.v[i] - b.v[i]; }); }
    MQ_INLINE friend Abreast operator*(Abreast a, Abreast b) { return map([&](int i) { return a.v[i] * b.v[i]; }); }
    MQ_INLINE Abreast& operator+=(Abreast a) { return *this = *this + a; }
    MQ_INLINE Abreast& operator-=(Abreast a) { return *this = *this - a; }
    MQ_INLINE friend Floats& operator+=(Floats& sum, Abreast a) {
        for (int i = 0; i < kCount; ++i) sum += a.v[i];
        return sum;
    }
    MQ_INLINE friend Abreast absolute(Abreast a) { return map([&](int i) { return absolute(a.v[i]); }); }
    MQ_INLINE friend Abreast reciprocal_guess(Abreast a) {
        return map([&](int i) { return reciprocal_guess(a.v[i]); });
    }
    MQ_INLINE friend Mask at_least(Abreast a, Abreast b) {
        return map<Mask>([&](int i) { return at_least(a.v[i], b.v[i]); });
    }
    MQ_INLINE friend Mask below(Abreast a, Abreast b) {
        return map<Mask>([&](int i) { return below(a.v[i], b.v[i]); });
    }
    MQ_INLINE friend Mask both(Mask a, Mask b) {
        return map<Mask>([&](int i) { return both(a.m[i], b.m[i]); });
    }
    MQ_INLINE friend Abreast keep(Mask mask, Abreast a) { return map([&](int i) { return keep(mask.m[i], a.v[i]); }); }
    MQ_INLINE friend Abreast at_most(Abreast a, Abreast bound) {
        return map([&](int i) { return at_most(a.v[i], bound.v[i]); });
    }
    struct Exponents {
        Exponent each[kCount];
    };
    MQ_INLINE friend Abreast split_exponent(Abreast x, Exponents& n) {
        return map([&](int i) { return split_exponent(x.v[i], n.each[i]); });
    }
    MQ_INLINE friend Abreast join_exponent(Abreast p, const Exponents& n) {
        return map([&](int i) { return join_exponent(p.v[i], n.each[i]); });
    }
};

template <typename R>
struct ExponentOf {
    using type = typename R::Exponents;
};
template <>
struct ExponentOf<Floats> {
    using type = Exponent;
};

// 2^x for x <= 127; x below -126 gives less than 2^-125. Relative error below 2e-7 (polynomial 7.5e-8, the rest
// rounding). NaN stays NaN.
template <typename R>
MQ_INLINE R exp2(R x) {
    typename ExponentOf<R>::type n;
    const R f = split_exponent(x, n);
    R p(1.3276471782e-3f);
    p = p * f + R(9.6755413328e-3f);
    p = p * f + R(5.5507132742e-2f);
    p = p * f + R(2.4022119724e-1f);
    p = p * f + R(6.9314696706e-1f);
    p = p * f + R(1.0f);
    return join_exponent(p, n);
}

// 1 / a for normal a, relative error below 3e-7.
template <typename R>
MQ_INLINE R reciprocal(R a) {
    const R guess = reciprocal_guess(a);
#if defined(__AVX512F__)
    return guess * (R(2.0f) - a * guess);
#else
    return guess;
#endif
}

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

// Sums over lanes of vectors kFirst .. kFirst + kSpan - 1, each left in 1/kSpan of the lanes. Vectors from kCount on
// are not there: what stands in their lanes has no meaning.
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
