// Where the samples of a ray lie in the grid: evenly along a straight line, or along a line bent by the contraction of
// an unbounded scene (mip-NeRF 360, eq. 10, with DVGOv2's shell of thickness g and the L-infinity norm).
#pragma once
#include "math/vec.h"

namespace maquette {

// x -> x inside the unit cube, else x/|x| ((1 + g) - g/|x|): all of space inside a cube of half side 1 + g.
template <typename S>
MQ_HD Vec3<S> contract(const Vec3<S>& p, const S& shell) {
    const auto size = [](const S& a) { return select(a < S(0), -a, a); };
    const S norm = maximum(maximum(size(p.x), size(p.y)), size(p.z));
    const S inverse = S(1) / maximum(norm, S(1));
    const S factor = select(norm > S(1), inverse * ((S(1) + shell) - shell * inverse), S(1));
    return factor * p;
}

}  // namespace maquette
