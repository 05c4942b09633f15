// What CUDA gives a kernel, for a host compiler: included before every .cu file that runs on the shim (launcher.py).
//
// Stricter than the hardware where it can be: a mask must name lanes that all arrive, barriers must be the same one for
// all threads, shared memory starts as NaN in every block, and a shuffle from a lane outside the mask gives NaN.
#pragma once
#include <cmath>
#include <math.h>

#include "fibers.h"

#define __global__ __attribute__((annotate_mq_kernel))
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// Only at the scope of a kernel that is no template: the section is what lets the shim spoil it between blocks.
#define __shared__ static __attribute__((section("mq_shared"), used))

using uint3 = mq_shim::Index;
using uint = unsigned;
using uchar = unsigned char;
#define threadIdx (mq_shim::current_thread)
#define blockIdx (mq_shim::current_block)
#define gridDim (mq_shim::current_grid_size)
#define blockDim (mq_shim::current_block_size)
constexpr int warpSize = 32;

#define MQ_VECTOR(type, base, bytes2, bytes4)                                        \
    struct alignas(bytes2) base##2 { type x, y; };                                   \
    struct alignas(bytes4) base##4 { type x, y, z, w; };                             \
    inline base##2 make_##base##2(type x, type y) { return {x, y}; }                 \
    inline base##4 make_##base##4(type x, type y, type z, type w) { return {x, y, z, w}; }
#define MQ_VECTOR3(type, base)                                                       \
    struct base##3 { type x, y, z; };                                                \
    inline base##3 make_##base##3(type x, type y, type z) { return {x, y, z}; }
MQ_VECTOR(float, float, 8, 16)
MQ_VECTOR(int, int, 8, 16)
MQ_VECTOR(unsigned, uint, 8, 16)
MQ_VECTOR(unsigned char, uchar, 2, 4)
MQ_VECTOR3(float, float)
MQ_VECTOR3(int, int)
MQ_VECTOR3(unsigned char, uchar)
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }

// Barriers and votes.
#define MQ_HERE int line = __builtin_LINE()
inline void __syncthreads(MQ_HERE) { mq_shim::meet(mq_shim::Op::block, "__syncthreads", line, 0, 0); }
inline int __syncthreads_count(int p, MQ_HERE) {
    return int(mq_shim::meet(mq_shim::Op::block, "__syncthreads_count", line, 0, p != 0));
}
inline int __syncthreads_or(int p, MQ_HERE) {
    return mq_shim::meet(mq_shim::Op::block, "__syncthreads_or", line, 0, p != 0) != 0;
}
inline int __syncthreads_and(int p, MQ_HERE) {
    return mq_shim::meet(mq_shim::Op::block, "__syncthreads_and", line, 0, p == 0) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, MQ_HERE) {
    mq_shim::meet(mq_shim::Op::warp, "__syncwarp", line, mask, 0);
}
inline unsigned __ballot_sync(unsigned mask, int p, MQ_HERE) {
    return unsigned(mq_shim::meet(mq_shim::Op::ballot, "__ballot_sync", line, mask, p != 0));
}
inline int __any_sync(unsigned mask, int p, MQ_HERE) { return __ballot_sync(mask, p, line) != 0; }
inline int __all_sync(unsigned mask, int p, MQ_HERE) { return __ballot_sync(mask, p, line) == mask; }
template <class T>
unsigned __match_any_sync(unsigned mask, T value, MQ_HERE) {
    std::uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    return unsigned(mq_shim::meet(mq_shim::Op::match, "__match_any_sync", line, mask, bits));
}

// Shuffles: within segments of `width` lanes; one that would leave its segment keeps its own value.
template <class T>
T mq_shuffle(const char* name, int line, unsigned mask, T value, int source) {
    std::uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    return mq_shim::unpack<T>(mq_shim::meet(mq_shim::Op::shuffle, name, line, mask, bits, source));
}
inline int mq_lane() { return mq_shim::number(*mq_shim::self.now) & 31; }
template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32, MQ_HERE) {
    return mq_shuffle("__shfl_sync", line, mask, value, (mq_lane() & -width) | (from & (width - 1)));
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, MQ_HERE) {
    const int from = mq_lane() - int(delta);
    return mq_shuffle("__shfl_up_sync", line, mask, value, from < (mq_lane() & -width) ? -1 : from);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, MQ_HERE) {
    const int from = mq_lane() + int(delta);
    return mq_shuffle("__shfl_down_sync", line, mask, value, from >= (mq_lane() & -width) + width ? -1 : from);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, MQ_HERE) {
    const int from = mq_lane() ^ lanes;
    return mq_shuffle("__shfl_xor_sync", line, mask, value, from >= (mq_lane() & -width) + width ? -1 : from);
}

inline void __threadfence() {}
inline void __threadfence_block() {}

// Atomics: fibers change places only at meetings. Integers only, because sums of floats would depend on the order.
template <class T>
struct MqSame {
    static_assert(std::is_integral_v<T>, "atomics on floats make results depend on the order of threads");
    using type = T;
};
template <class T, class F>
T mq_atomic(T* at, F change) {
    const T before = *at;
    *at = change(before);
    return before;
}
#define MQ_ATOMIC(name, expression)                                   \
    template <class T>                                                \
    T name(T* at, typename MqSame<T>::type v) {                       \
        return mq_atomic(at, [v](T b) { return T(expression); });     \
    }
MQ_ATOMIC(atomicAdd, b + v)
MQ_ATOMIC(atomicSub, b - v)
MQ_ATOMIC(atomicMax, b > v ? b : v)
MQ_ATOMIC(atomicMin, b < v ? b : v)
MQ_ATOMIC(atomicOr, b | v)
MQ_ATOMIC(atomicAnd, b & v)
MQ_ATOMIC(atomicXor, b ^ v)
MQ_ATOMIC(atomicExch, v)
template <class T>
T atomicCAS(T* at, typename MqSame<T>::type expected, typename MqSame<T>::type v) {
    return mq_atomic(at, [=](T b) { return b == expected ? v : b; });
}

// Bits.
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; ++i) y |= (x >> i & 1u) << (31 - i);
    return y;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((unsigned long long)a * b >> 32); }
inline float __int_as_float(int x) { return mq_shim::unpack<float>(unsigned(x)); }
inline float __uint_as_float(unsigned x) { return mq_shim::unpack<float>(x); }
inline unsigned __float_as_uint(float x) {
    unsigned bits;
    memcpy(&bits, &x, sizeof(bits));
    return bits;
}
inline int __float_as_int(float x) { return int(__float_as_uint(x)); }
template <class T>
T __ldg(const T* at) {
    return *at;
}
template <class T>
T __ldcs(const T* at) {
    return *at;
}
template <class T>
void __stcs(T* at, T value) {
    *at = value;
}

// Arithmetic.
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline int __float2int_rn(float x) { return int(nearbyintf(x)); }
inline int __float2int_rd(float x) { return int(floorf(x)); }
inline int __float2int_ru(float x) { return int(ceilf(x)); }
inline int __float2int_rz(float x) { return int(x); }
inline long long __float2ll_rn(float x) { return llrintf(x); }
inline float __int2float_rn(int x) { return float(x); }
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
inline float min(float a, float b) { return fminf(a, b); }
inline float max(float a, float b) { return fmaxf(a, b); }
