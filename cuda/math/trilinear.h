// A place in a grid whose voxel centres lie at whole coordinates: the cell that holds it, and its corners' shares.
#pragma once
#include "math/host_device.h"

namespace maquette {

struct GridSize {
    int x, y, z;
};

template <typename T>
struct Cell {
    int x, y, z;   // the lower corner; always has a neighbour above where the grid has two planes or more
    T fx, fy, fz;  // 0 at the lower corner, 1 at the upper one
};

// One axis: places outside the grid count as its nearest face.
template <typename T>
MQ_HD void cell_axis(T place, int size, int& lower, T& share) {
    const T most = T(size - 1);
    T inside = place > T(0) ? place : T(0);  // NaN becomes 0
    inside = inside < most ? inside : most;
    lower = int(inside);
    if (lower > size - 2) lower = size - 2 > 0 ? size - 2 : 0;
    share = inside - T(lower);
}

template <typename T>
MQ_HD Cell<T> cell_at(T x, T y, T z, const GridSize& size) {
    Cell<T> cell;
    cell_axis(x, size.x, cell.x, cell.fx);
    cell_axis(y, size.y, cell.y, cell.fy);
    cell_axis(z, size.z, cell.z, cell.fz);
    return cell;
}

// One axis: the voxel nearest to a place, the upper one of two; false where the place lies beyond them all or is NaN.
template <typename T>
MQ_HD bool nearest_on_axis(T place, int size, int& index) {
    const T up = place + T(0.5);
    const bool inside = up >= T(0) && up < T(size);
    index = int(inside ? up : T(0));
    return inside;
}

// Linear index of a corner, bit 2, 1, 0 of `corner`: upper in x, y, z. A grid of one plane has only lower corners.
MQ_HD long long corner_index(int x, int y, int z, int corner, const GridSize& size) {
    const int i = x + (corner >> 2 & 1), j = y + (corner >> 1 & 1), k = z + (corner & 1);
    const int last_i = size.x - 1, last_j = size.y - 1, last_k = size.z - 1;
    return ((long long)(i < last_i ? i : last_i) * size.y + (j < last_j ? j : last_j)) * size.z +
           (k < last_k ? k : last_k);
}

template <typename T>
MQ_HD T corner_share(const Cell<T>& cell, int corner) {
    return (corner & 4 ? cell.fx : T(1) - cell.fx) * (corner & 2 ? cell.fy : T(1) - cell.fy) *
           (corner & 1 ? cell.fz : T(1) - cell.fz);
}

}  // namespace maquette
