// What every .cu file starts with. Kernels are extern "C" and take only pointers, int and float (scene/ops/gpu/launch.py).
//
// The same files run on the host in tests (tests/shim), where MQ_HOST_SHIM is defined and tests/shim/cuda_shim.h, which
// gives threadIdx, __syncthreads, warp shuffles and atomics a meaning there, has been included before this.
#pragma once
#include "math/host_device.h"

#define MQ_KERNEL extern "C" __global__ void

namespace maquette {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;

// 2^x to 2 ulp, the instruction that alpha is made with; 2^x underflows to 0.
#ifdef MQ_HOST_SHIM
inline float exp2_fast(float x) { return exp2f(x); }
#else
__device__ inline float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
#endif

}  // namespace maquette
