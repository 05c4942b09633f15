// N numbers side by side in one SIMD value, by the compilers' vector extension: the same text becomes SSE, AVX2,
// AVX-512 or NEON. Stands in for the scalar S of cuda/math.
#pragma once
#include <cstdint>
#include <type_traits>
#include <utility>

namespace maquette {

// Bytes of the widest register the build may use.
#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

#define MQ_INLINE inline __attribute__((always_inline))

template <typename T, int N>
struct Lanes {
    using Int = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
    typedef T Raw __attribute__((vector_size(sizeof(T) * N)));
    typedef Int Bits __attribute__((vector_size(sizeof(T) * N)));
    struct Mask {
        Bits m;  // all ones or all zeros per lane
        MQ_INLINE friend Mask operator&(Mask a, Mask b) { return {a.m & b.m}; }
        MQ_INLINE friend Mask operator|(Mask a, Mask b) { return {a.m | b.m}; }
        MQ_INLINE bool operator[](int lane) const { return m[lane] != 0; }
    };
    static constexpr int count = N;

    Raw v;

    Lanes() = default;
    MQ_INLINE Lanes(Raw raw) : v(raw) {}
    template <typename Number, typename = std::enable_if_t<std::is_arithmetic_v<Number>>>
    MQ_INLINE explicit Lanes(Number number) : v(T(number) - Raw{}) {}

    static MQ_INLINE Lanes load(const T* from) {
        Lanes a;
        __builtin_memcpy(&a.v, from, sizeof(Raw));
        return a;
    }
    MQ_INLINE void store(T* to) const { __builtin_memcpy(to, &v, sizeof(Raw)); }
    MQ_INLINE T operator[](int lane) const { return v[lane]; }

    MQ_INLINE friend Lanes operator+(Lanes a, Lanes b) { return a.v + b.v; }
    MQ_INLINE friend Lanes operator-(Lanes a, Lanes b) { return a.v - b.v; }
    MQ_INLINE friend Lanes operator*(Lanes a, Lanes b) { return a.v * b.v; }
    MQ_INLINE friend Lanes operator/(Lanes a, Lanes b) { return a.v / b.v; }
    MQ_INLINE friend Lanes operator-(Lanes a) { return -a.v; }
    MQ_INLINE Lanes& operator+=(Lanes a) { v += a.v; return *this; }
    MQ_INLINE Lanes& operator-=(Lanes a) { v -= a.v; return *this; }
    MQ_INLINE friend Mask operator<(Lanes a, Lanes b) { return {a.v < b.v}; }
    MQ_INLINE friend Mask operator>(Lanes a, Lanes b) { return {a.v > b.v}; }
    MQ_INLINE friend Mask operator<=(Lanes a, Lanes b) { return {a.v <= b.v}; }
    MQ_INLINE friend Mask operator>=(Lanes a, Lanes b) { return {a.v >= b.v}; }
    MQ_INLINE friend Mask operator==(Lanes a, Lanes b) { return {a.v == b.v}; }

    MQ_INLINE friend Lanes select(Mask choose, Lanes a, Lanes b) { return choose.m ? a.v : b.v; }
    MQ_INLINE friend Lanes minimum(Lanes a, Lanes b) { return a.v < b.v ? a.v : b.v; }
    MQ_INLINE friend Lanes maximum(Lanes a, Lanes b) { return a.v > b.v ? a.v : b.v; }
    MQ_INLINE friend Lanes sqrt(Lanes a) {
        Lanes r;
        for (int i = 0; i < N; ++i) {  // one instruction where errno is off
            if constexpr (sizeof(T) == 4) r.v[i] = __builtin_sqrtf(a.v[i]);
            else r.v[i] = __builtin_sqrt(a.v[i]);
        }
        return r;
    }
    MQ_INLINE friend Lanes exp(Lanes a) {
        if constexpr (sizeof(T) == 4) return exp_float(a);
        Lanes r;
        for (int i = 0; i < N; ++i) r.v[i] = __builtin_exp(a.v[i]);
        return r;
    }
    MQ_INLINE friend Lanes log(Lanes a) {
        if constexpr (sizeof(T) == 4) return log_float(a);
        Lanes r;
        for (int i = 0; i < N; ++i) r.v[i] = __builtin_log(a.v[i]);
        return r;
    }

    // Turns an N x N block of numbers, one row per value, into its transpose: exchanges ever smaller squares.
    static MQ_INLINE void transpose(Lanes* rows) { transpose_squares<N / 2>(rows); }

    // Sum over the lanes, always in the same order.
    MQ_INLINE T sum() const {
        T total = 0;
        for (int i = 0; i < N; ++i) total += v[i];
        return total;
    }

private:
    template <int Side>
    static MQ_INLINE void transpose_squares(Lanes* rows) {
        for (int i = 0; i < N; ++i) {
            if (i & Side) continue;
            const Raw a = rows[i].v, b = rows[i + Side].v;
            rows[i].v = pick<Side>(a, b, std::make_integer_sequence<int, N>());
            rows[i + Side].v = pick<-Side>(a, b, std::make_integer_sequence<int, N>());
        }
        if constexpr (Side > 1) transpose_squares<Side / 2>(rows);
    }

    // Lanes whose number has the bit Side come from b (Side > 0: from Side lanes before) or from b itself, the others
    // from a itself or (Side < 0) from Side lanes behind.
    template <int Side, int... I>
    static MQ_INLINE Raw pick(Raw a, Raw b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
        return __builtin_shufflevector(a, b, source<Side>(I)...);
#else
        return __builtin_shuffle(a, b, Bits{source<Side>(I)...});
#endif
    }
    template <int Side>
    static constexpr int source(int i) {
        if constexpr (Side > 0) return i & Side ? N + i - Side : i;
        else return i & -Side ? N + i : i - Side;
    }

    // Cephes' expf: 2 ulp on [-87, 88], held at the ends outside. NaN stays NaN.
    static MQ_INLINE Lanes exp_float(Lanes a) {
        const Lanes x = select(a < Lanes(-87.0), Lanes(-87.0), select(a > Lanes(88.0), Lanes(88.0), a));
        const Lanes magic(12582912.0);  // 1.5 * 2^23: adding it rounds to the nearest whole number
        const Lanes n = (x * Lanes(1.44269504088896341) + magic) - magic;
        const Lanes f = (x - n * Lanes(0.693359375)) - n * Lanes(-2.12194440e-4);
        Lanes p(1.9875691500e-4);
        p = p * f + Lanes(1.3981999507e-3);
        p = p * f + Lanes(8.3334519073e-3);
        p = p * f + Lanes(4.1665795894e-2);
        p = p * f + Lanes(1.6666665459e-1);
        p = p * f + Lanes(5.0000001201e-1);
        p = p * f * f + f + Lanes(1);
        return p * Lanes((Raw)((__builtin_convertvector(n.v, Bits) + 127) << 23));
    }

    // Cephes' logf: 2 ulp on normal positive numbers; nothing else may come in.
    static MQ_INLINE Lanes log_float(Lanes a) {
        const Bits bits = (Bits)a.v;
        const Lanes half_to_one((Raw)((bits & 0x7fffff) | 0x3f000000));
        const Mask low = half_to_one < Lanes(0.707106781186547524);
        const Lanes e =
            Lanes(__builtin_convertvector((bits >> 23) - 126, Raw)) - select(low, Lanes(1), Lanes(0));
        const Lanes m = half_to_one + select(low, half_to_one, Lanes(0)) - Lanes(1);
        const Lanes z = m * m;
        Lanes p(7.0376836292e-2);
        p = p * m + Lanes(-1.1514610310e-1);
        p = p * m + Lanes(1.1676998740e-1);
        p = p * m + Lanes(-1.2420140846e-1);
        p = p * m + Lanes(1.4249322787e-1);
        p = p * m + Lanes(-1.6668057665e-1);
        p = p * m + Lanes(2.0000714765e-1);
        p = p * m + Lanes(-2.4999993993e-1);
        p = p * m + Lanes(3.3333331174e-1);
        return m - Lanes(0.5) * z + p * m * z + e * Lanes(0.693147180559945309);
    }
};

}  // namespace maquette
