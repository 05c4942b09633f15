// A quick look at gradients of which most are zero.
#pragma once
#include <cstdint>
#include <type_traits>

#include "cpu/lanes.h"

namespace maquette {

// Whether any of `count` numbers is not zero; NaN is not. A whole-number OR becomes SIMD, || of comparisons does not.
template <typename T>
MQ_INLINE bool any_nonzero(const T* numbers, std::int64_t count) {
    std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t> found = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        decltype(found) bits;
        __builtin_memcpy(&bits, numbers + i, sizeof bits);
        found |= bits;
    }
    return found << 1 != 0;  // without the sign
}

}  // namespace maquette
