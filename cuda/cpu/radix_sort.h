// Stable sort of (key, index) pairs by a 32-bit key, least significant digit first.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

#include "cpu/buffer.h"
#include "math/float_order.h"

namespace maquette {

class RadixSort {
  public:
    // Writes to `order` the indices 0 .. count - 1 by ascending keys[i], equal keys by ascending index.
    void sort_indices(const float* keys, std::uint32_t count, std::uint32_t* order) {
        std::uint64_t *from = pairs_.resize(count), *to = other_.resize(count);
        std::uint32_t least = ~0u, most = 0;
        for (std::uint32_t i = 0; i < count; ++i) {
            const std::uint32_t bits = float_order_bits(keys[i]);
            least = bits < least ? bits : least;
            most = bits > most ? bits : most;
            from[i] = std::uint64_t(bits) << 32 | i;
        }
        // Depths of one scene share their top bits: what they differ in mostly fits two digits of 13 bits, whose
        // counters stay in the first-level cache.
        int bits = 0;
        while (bits < 32 && (most - least) >> bits) ++bits;
        const int passes = count < 2 ? 0 : (bits + kMaxDigit - 1) / kMaxDigit;
        const int digit = passes ? (bits + passes - 1) / passes : 0;
        for (int pass = 0; pass < passes; ++pass) {
            scatter(from, to, count, least, pass * digit, digit);
            std::swap(from, to);
        }
        for (std::uint32_t i = 0; i < count; ++i) order[i] = std::uint32_t(from[i]);
    }

  private:
    static constexpr int kMaxDigit = 13;

    void scatter(const std::uint64_t* from, std::uint64_t* to, std::uint32_t count, std::uint32_t least, int shift,
                 int digit) {
        const std::uint32_t mask = (1u << digit) - 1;
        const auto bucket = [=](std::uint64_t pair) { return ((std::uint32_t(pair >> 32) - least) >> shift) & mask; };
        std::uint32_t place[1 << kMaxDigit];
        std::memset(place, 0, (std::size_t(mask) + 1) * sizeof place[0]);
        for (std::uint32_t i = 0; i < count; ++i) ++place[bucket(from[i])];
        std::uint32_t sum = 0;
        for (std::uint32_t i = 0; i <= mask; ++i) {
            const std::uint32_t here = place[i];
            place[i] = sum;
            sum += here;
        }
        for (std::uint32_t i = 0; i < count; ++i) to[place[bucket(from[i])]++] = from[i];
    }

    Buffer<std::uint64_t> pairs_, other_;
};

}  // namespace maquette
