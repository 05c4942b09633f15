// MQ_HD marks functions that compile for the host and, through NVRTC, for the device.
#pragma once
#ifdef __CUDACC__
#define MQ_HD __host__ __device__ inline
#elif defined(__GNUC__)
#define MQ_HD inline __attribute__((always_inline))  // a call would pass SIMD values through memory
#else
#define MQ_HD inline
#endif

#ifndef __CUDACC_RTC__
#include <math.h>  // the overloads of sqrt, exp, ... for float and double; NVRTC has them built in
#endif
