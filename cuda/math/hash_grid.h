// Levels of a multiresolution hash encoding (Instant-NGP; Müller et al. 2022, section 3): which rows of a table the
// corners of a place's cell have.
#pragma once
#include "math/trilinear.h"

namespace maquette {

// cells: N_l, along an edge of the unit cube, whose vertices are numbered 0 to N_l.  first, rows: of the table.
// Every vertex has a row of its own where there are (N_l + 1)^3 rows; otherwise rows is a power of two.
struct HashLevel {
    int cells;
    unsigned first, rows;
};

MQ_HD bool stored_densely(const HashLevel& level) {
    const unsigned long long side = (unsigned long long)level.cells + 1;
    return side * side * side == level.rows;
}

// Row of a vertex; equation 4 with pi = (1, 2654435761, 805459861) where vertices share rows.
template <bool kDense>
MQ_HD unsigned hash_row(unsigned x, unsigned y, unsigned z, const HashLevel& level) {
    const unsigned side = unsigned(level.cells) + 1;
    if (kDense) return level.first + x + (y + z * side) * side;
    return level.first + ((x ^ (y * 2654435761u) ^ (z * 805459861u)) & (level.rows - 1));
}

// Row of a corner of a cell, bit 2, 1, 0 of `corner`: upper in x, y, z.
template <bool kDense, typename T>
MQ_HD unsigned corner_row(const Cell<T>& cell, int corner, const HashLevel& level) {
    return hash_row<kDense>(unsigned(cell.x + (corner >> 2 & 1)), unsigned(cell.y + (corner >> 1 & 1)),
                            unsigned(cell.z + (corner & 1)), level);
}

// The cell of a place in the unit cube; places outside count as its nearest face, NaN as 0.
template <typename T>
MQ_HD Cell<T> level_cell(T x, T y, T z, int cells) {
    const T scale = T(cells);
    return cell_at(x * scale, y * scale, z * scale, GridSize{cells + 1, cells + 1, cells + 1});
}

// Derivative of corner_share by the place in the unit cube along `axis`, for a place within.
template <typename T>
MQ_HD T corner_slope(const Cell<T>& cell, int corner, int axis, int cells) {
    const T x = corner & 4 ? cell.fx : T(1) - cell.fx, y = corner & 2 ? cell.fy : T(1) - cell.fy,
            z = corner & 1 ? cell.fz : T(1) - cell.fz;
    const T others = axis == 0 ? y * z : axis == 1 ? x * z : x * y;
    return (corner >> (2 - axis) & 1 ? others : -others) * T(cells);
}

template <typename T>
MQ_HD bool within_unit(T place) {
    return place >= T(0) && place <= T(1);
}

}  // namespace maquette
