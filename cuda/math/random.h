// Random numbers by counting: the same key and counter give the same number on any thread, in any order, on any machine.
//
// Philox 4x32-10 of "Parallel Random Numbers: As Easy as 1, 2, 3" (Salmon et al., 2011), section 3.3; normal deviates
// by Box and Muller (1958).
#pragma once
#include "math/vec.h"

namespace maquette {

struct Random4 {
    unsigned x, y, z, w;
};

// Four random words of a counter under a 64-bit key.
MQ_HD Random4 philox(Random4 counter, unsigned key0, unsigned key1) {
    for (int round = 0; round < 10; ++round) {
        const unsigned long long a = 0xD2511F53ull * counter.x, b = 0xCD9E8D57ull * counter.z;
        counter = {unsigned(b >> 32) ^ counter.y ^ key0, unsigned(b), unsigned(a >> 32) ^ counter.w ^ key1, unsigned(a)};
        key0 += 0x9E3779B9u;  // the golden ratio, and sqrt(3) - 1 below: Weyl sequences
        key1 += 0xBB67AE85u;
    }
    return counter;
}

// A word of which every bit depends on every bit of `x`: Wellons' lowbias32, two products where philox takes twenty for
// four words. For rounding, where words must not repeat from step to step and nothing else is asked of them.
MQ_HD unsigned mixed(unsigned x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

// Midpoint of one of 2^23 equal parts of (0, 1): exact in a float, and never 0 or 1.
MQ_HD float uniform(unsigned word) { return (float(word >> 9) + 0.5f) * (1.0f / 8388608.0f); }

// Three independent normal deviates from four words; none exceeds sqrt(-2 log 2^-24) = 5.77.
MQ_HD Vec3<float> normal3(const Random4& word) {
    constexpr float two_pi = 6.283185307179586f;
    const float first = sqrtf(-2.0f * logf(uniform(word.x))), second = sqrtf(-2.0f * logf(uniform(word.z)));
    const float angle = two_pi * uniform(word.y);
    return {first * cosf(angle), first * sinf(angle), second * cosf(two_pi * uniform(word.w))};
}

}  // namespace maquette
