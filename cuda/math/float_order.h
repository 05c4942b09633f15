// Floats as sort keys.
#pragma once
#include "math/host_device.h"

#ifndef __CUDACC_RTC__
#include <string.h>
#endif

namespace maquette {

// Bits whose unsigned order is the order of the floats. -0 and 0 are one; a NaN comes last or first by its sign.
MQ_HD unsigned float_order_bits(float value) {
    value += 0.0f;
    unsigned bits;
    memcpy(&bits, &value, sizeof bits);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

}  // namespace maquette
