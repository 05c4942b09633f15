// Total variation of a voxel grid, smoothed where neighbours are alike: the sum of Huber's function (delta 1) over all
// pairs of neighbours, as DVGO's code has it. Its gradient by a voxel is the sum of what each neighbour pulls.
#pragma once
#include "math/host_device.h"

namespace maquette {

template <typename T>
MQ_HD T variation_pull(T value, T neighbour) {
    const T apart = value - neighbour;
    return apart < T(-1) ? T(-1) : apart > T(1) ? T(1) : apart;  // NaN stays one
}

}  // namespace maquette
