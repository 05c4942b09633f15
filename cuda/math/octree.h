// An octree of cubes with constant density and colour (PlenOctrees, Yu et al. 2021): how a ray goes from leaf to leaf,
// what a leaf shows, and the gradient. specs/recon.md, 2d.
//   A leaf has sigma per unit length of the world and K colour coefficients, coefficient-major (r, g, b of the first
//   basis function, then of the next). Colour = sigmoid(sum_k Y_k coefficient_k), density = max(0, sigma).
// Departure: no step of epsilon at a face. Cells are whole numbers; the cell behind a face is known exactly, so lengths
// of leaves add up to the ray and none is missed.
#pragma once
#include "math/sh.h"
#include "math/vec.h"

namespace maquette {

// Words of the table, as in scene/ops/octree_index.py: below 0 they name a node; with this bit set the cell is empty,
// else they hold a leaf's row and level.
constexpr int kOctreeEmpty = 1 << 30;
constexpr int kOctreeLevelBits = 5;

struct OctreeIndex {
    const int* top;    // [2^top_level] cubed
    const int* nodes;  // [N, 4, 4, 4]
    int top_level, lattice_level;
    int low[3], high[3];  // of all leaves, cells of the lattice
};

// A cube of cells [low, high) of the lattice; row < 0 where it is empty.
struct OctreeCell {
    int row;
    int low[3], high[3];
};

// Tables that no kernel writes to.
template <typename T>
MQ_HD T octree_read(const T* at) {
#ifdef __CUDA_ARCH__
    return __ldg(at);
#else
    return *at;
#endif
}

// How many empty cells an empty word promises in the octant of a ray: 1, 1, 2, 3, 4, 6, 8 or 12.
MQ_HD int octree_reach(int word, int octant) {
    const int code = word >> 3 * octant & 7;
    return (2 | (code & 1)) << (code >> 1) >> 1;
}

// The leaf or the empty cube at `at`. octant: bit 2, 1, 0 set where the ray goes up along x, y, z; an empty cube lies
// before a ray that goes that way.
MQ_HD OctreeCell octree_cell(const OctreeIndex& index, const int* at, int octant) {
    const int top = index.top_level;
    int shift = index.lattice_level - top;
    int word = octree_read(index.top + ((at[0] >> shift << 2 * top) | (at[1] >> shift << top) | (at[2] >> shift)));
    while (word < 0) {
        shift -= 2;
        const int place = (at[0] >> shift & 3) << 4 | (at[1] >> shift & 3) << 2 | (at[2] >> shift & 3);
        word = octree_read(index.nodes + ((long long)~word << 6) + place);
    }
    OctreeCell cell;
    const bool empty = word >= kOctreeEmpty;
    cell.row = empty ? -1 : word >> kOctreeLevelBits;
    if (empty) {
        const int reach = octree_reach(word, octant);
        for (int axis = 0; axis < 3; ++axis) {
            const int here = at[axis] >> shift;
            const bool up = octant >> (2 - axis) & 1;
            cell.low[axis] = (up ? here : here - reach + 1) * (1 << shift);
            cell.high[axis] = (up ? here + reach : here + 1) << shift;
        }
    } else {
        const int side = 1 << (index.lattice_level - (word & ((1 << kOctreeLevelBits) - 1)));
        for (int axis = 0; axis < 3; ++axis) {
            cell.low[axis] = at[axis] & -side;
            cell.high[axis] = cell.low[axis] + side;
        }
    }
    return cell;
}

// Coordinates of the lattice along a ray: origin + t d, t in units of the direction that came in.
template <typename S>
struct OctreeFrame {
    S offset[3], scale[3];  // lattice = offset + scale * world
};

template <typename S>
struct OctreeRay {
    S origin[3], d[3], inverse[3];
    S t;       // where the ray enters the cell `at`
    S length;  // of the direction in the world
    int at[3];
    int octant;
};

// Where the ray enters the box of all leaves, t >= from. False when it misses.
template <typename S>
MQ_HD bool octree_enter(const OctreeIndex& index, const OctreeFrame<S>& frame, const S* origin, const S* direction,
                        S from, OctreeRay<S>& ray) {
    S enter(from), leave(S(3e38f));
    ray.octant = 0;
    for (int axis = 0; axis < 3; ++axis) {
        ray.origin[axis] = frame.offset[axis] + frame.scale[axis] * origin[axis];
        const S d = frame.scale[axis] * direction[axis];
        ray.d[axis] = d < S(0) ? minimum(d, S(-1e-12f)) : maximum(d, S(1e-12f));  // no division by zero; t stays finite
        ray.inverse[axis] = S(1) / ray.d[axis];
        ray.octant = ray.octant << 1 | int(ray.d[axis] > S(0));
        const S a = (S(index.low[axis]) - ray.origin[axis]) * ray.inverse[axis];
        const S b = (S(index.high[axis]) - ray.origin[axis]) * ray.inverse[axis];
        enter = maximum(enter, minimum(a, b));
        leave = minimum(leave, maximum(a, b));
    }
    ray.t = enter;
    ray.length = sqrt(direction[0] * direction[0] + direction[1] * direction[1] + direction[2] * direction[2]);
    for (int axis = 0; axis < 3; ++axis) {
        const S at = ray.origin[axis] + enter * ray.d[axis];
        const S last = S(index.high[axis] - 1), first = S(index.low[axis]);
        ray.at[axis] = int(minimum(maximum(at, first), last));
    }
    return enter < leave;
}

// Goes on to the cell behind `cell`; t becomes where the ray leaves it. False when it has left the box.
template <typename S>
MQ_HD bool octree_advance(const OctreeIndex& index, const OctreeCell& cell, OctreeRay<S>& ray) {
    S out[3];
    for (int axis = 0; axis < 3; ++axis)
        out[axis] = (S(ray.d[axis] > S(0) ? cell.high[axis] : cell.low[axis]) - ray.origin[axis]) * ray.inverse[axis];
    ray.t = maximum(ray.t, minimum(out[0], minimum(out[1], out[2])));
    bool inside = true;
    for (int axis = 0; axis < 3; ++axis) {
        if (out[axis] > ray.t) {
            const S at = ray.origin[axis] + ray.t * ray.d[axis];
            ray.at[axis] = int(minimum(maximum(at, S(cell.low[axis])), S(cell.high[axis] - 1)));
        } else {  // where a number is none too, so that every ray comes to an end
            ray.at[axis] = ray.d[axis] > S(0) ? cell.high[axis] : cell.low[axis] - 1;
        }
        inside = inside && ray.at[axis] >= index.low[axis] && ray.at[axis] < index.high[axis];
    }
    return inside;
}

template <typename S>
MQ_HD S sigmoid(const S& x) {
    return S(1) / (S(1) + exp(-x));
}

}  // namespace maquette
