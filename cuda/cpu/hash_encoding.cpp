// Features of places in a multiresolution hash grid, and their gradients by the table and by the places.
//
// Rows and shares of the corners are found for many points side by side, then rows are read or added point by point.
// Levels share no rows: backward, a level is a task and adds its points in their order, so the bits do not depend on
// the number of threads.
#include <cstdint>

#include "cpu/bindings.h"
#include "cpu/parallel.h"
#include "math/hash_grid.h"

namespace nb = nanobind;

namespace maquette {
namespace {

constexpr int kBlock = 64;            // points whose corners are found at once
constexpr std::int64_t kGrain = 512;  // points per task: a level's rows stay in the cache from one to the next

template <typename T>
struct Places {
    T x[kBlock], y[kBlock], z[kBlock];
    int count;

    Places(const T* points, std::int64_t begin, std::int64_t end)
        : count(int(end - begin < kBlock ? end - begin : kBlock)) {
        for (int i = 0; i < kBlock; ++i) {
            const T* p = points + 3 * (begin + (i < count ? i : 0));
            x[i] = p[0], y[i] = p[1], z[i] = p[2];
        }
    }
};

template <typename T>
struct Corners {
    std::uint32_t rows[8][kBlock];
    T shares[8][kBlock];

    Corners(const Places<T>& places, const HashLevel& level) {
        if (stored_densely(level)) find<true>(places, level);
        else find<false>(places, level);
    }

  private:
    template <bool kDense>
    void find(const Places<T>& places, const HashLevel& level) {
        for (int i = 0; i < kBlock; ++i) {
            const Cell<T> cell = level_cell(places.x[i], places.y[i], places.z[i], level.cells);
            for (int corner = 0; corner < 8; ++corner) {
                rows[corner][i] = corner_row<kDense>(cell, corner, level);
                shares[corner][i] = corner_share(cell, corner);
            }
        }
    }
};

struct Levels {
    const std::int32_t *cells, *first_rows;
    int count;
    HashLevel operator[](int level) const {
        const std::uint32_t first = std::uint32_t(first_rows[level]);
        return {cells[level], first, std::uint32_t(first_rows[level + 1]) - first};
    }
};

template <int kFeatures, typename T>
void encode(const T* table, const Levels& levels, const T* points, std::int64_t count, T* out) {
    const std::int64_t width = std::int64_t(levels.count) * kFeatures;
    parallel_ranges(count, kGrain, [&](std::int64_t begin, std::int64_t end) {
        for (int level = 0; level < levels.count; ++level) {
            for (std::int64_t first = begin; first < end; first += kBlock) {
                const Places<T> places(points, first, end);
                const Corners<T> corners(places, levels[level]);
                T* to = out + first * width + level * kFeatures;
                for (int i = 0; i < places.count; ++i, to += width) {
                    T sum[kFeatures] = {};
                    for (int corner = 0; corner < 8; ++corner) {
                        const T* row = table + std::int64_t(corners.rows[corner][i]) * kFeatures;
                        for (int f = 0; f < kFeatures; ++f) sum[f] += corners.shares[corner][i] * row[f];
                    }
                    for (int f = 0; f < kFeatures; ++f) to[f] = sum[f];
                }
            }
        }
    });
}

template <int kFeatures, typename T>
void scatter(const T* v_out, const Levels& levels, const T* points, std::int64_t count, T* v_table) {
    const std::int64_t width = std::int64_t(levels.count) * kFeatures;
    parallel_tasks(levels.count, [&](std::int64_t level, int) {
        for (std::int64_t first = 0; first < count; first += kBlock) {
            const Places<T> places(points, first, count);
            const Corners<T> corners(places, levels[int(level)]);
            const T* from = v_out + first * width + level * kFeatures;
            for (int i = 0; i < places.count; ++i, from += width) {
                T v[kFeatures];
                for (int f = 0; f < kFeatures; ++f) v[f] = from[f];
                for (int corner = 0; corner < 8; ++corner) {
                    T* row = v_table + std::int64_t(corners.rows[corner][i]) * kFeatures;
                    for (int f = 0; f < kFeatures; ++f) row[f] += corners.shares[corner][i] * v[f];
                }
            }
        }
    });
}

template <bool kDense, int kFeatures, typename T>
void add_slopes(const T* table, const HashLevel& level, const T* point, const T* v, T* v_point) {
    const Cell<T> cell = level_cell(point[0], point[1], point[2], level.cells);
    for (int corner = 0; corner < 8; ++corner) {
        const T* row = table + std::int64_t(corner_row<kDense>(cell, corner, level)) * kFeatures;
        T along = 0;
        for (int f = 0; f < kFeatures; ++f) along += row[f] * v[f];
        for (int axis = 0; axis < 3; ++axis) v_point[axis] += corner_slope(cell, corner, axis, level.cells) * along;
    }
}

template <int kFeatures, typename T>
void slopes(const T* v_out, const T* table, const Levels& levels, const T* points, std::int64_t count, T* v_points) {
    const std::int64_t width = std::int64_t(levels.count) * kFeatures;
    parallel_ranges(count, kGrain, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const T* point = points + 3 * i;
            T sum[3] = {};
            for (int at = 0; at < levels.count; ++at) {
                const HashLevel level = levels[at];
                const T* v = v_out + i * width + at * kFeatures;
                if (stored_densely(level)) add_slopes<true, kFeatures>(table, level, point, v, sum);
                else add_slopes<false, kFeatures>(table, level, point, v, sum);
            }
            for (int axis = 0; axis < 3; ++axis) v_points[3 * i + axis] = within_unit(point[axis]) ? sum[axis] : T(0);
        }
    });
}

template <typename Call>
void with_features(int features, const Call& call) {
    switch (features) {
        case 1: return call(std::integral_constant<int, 1>());
        case 2: return call(std::integral_constant<int, 2>());
        case 4: return call(std::integral_constant<int, 4>());
        default: return call(std::integral_constant<int, 8>());
    }
}

template <typename T, nb::ssize_t... Shape>
using In = Array<const T, nb::shape<Shape...>>;
template <typename T, nb::ssize_t... Shape>
using Out = Array<T, nb::shape<Shape...>>;

// No row that a kernel may ask for lies outside a table of these sizes.
Levels checked(const In<std::int32_t, -1>& cells, const In<std::int32_t, -1>& first_rows, std::size_t rows,
               std::size_t features, std::size_t points, std::size_t results, std::size_t width) {
    const Levels levels = {cells.data(), first_rows.data(), int(cells.shape(0))};
    if (features != 1 && features != 2 && features != 4 && features != 8)
        throw nb::value_error("a row has 1, 2, 4 or 8 features");
    if (points != results || width != cells.shape(0) * features || first_rows.shape(0) != cells.shape(0) + 1)
        throw nb::value_error("points, results and levels must agree");
    if (levels.first_rows[0] != 0 || std::size_t(levels.first_rows[levels.count]) != rows)
        throw nb::value_error("levels must use all rows of the table");
    for (int i = 0; i < levels.count; ++i) {
        const HashLevel level = levels[i];
        const bool good = level.cells >= 1 && levels.first_rows[i + 1] > levels.first_rows[i];
        if (!good || !(stored_densely(level) || (level.rows & (level.rows - 1)) == 0))
            throw nb::value_error("a level has a cell or more, and a row for each vertex or a power of two of rows");
    }
    return levels;
}

template <typename T>
void hash_encode(In<T, -1, -1> table, In<std::int32_t, -1> cells, In<std::int32_t, -1> first_rows, In<T, -1, 3> points,
                 Out<T, -1, -1> out) {
    const int features = int(table.shape(1));
    const std::int64_t count = std::int64_t(points.shape(0));
    const Levels levels =
        checked(cells, first_rows, table.shape(0), table.shape(1), points.shape(0), out.shape(0), out.shape(1));
    nb::gil_scoped_release unlocked;
    with_features(features, [&](auto width) {
        encode<decltype(width)::value>(table.data(), levels, points.data(), count, out.data());
    });
}

template <typename T>
void hash_encode_backward(In<T, -1, -1> v_out, In<std::int32_t, -1> cells, In<std::int32_t, -1> first_rows,
                          In<T, -1, 3> points, Out<T, -1, -1> v_table) {
    const int features = int(v_table.shape(1));
    const std::int64_t count = std::int64_t(points.shape(0));
    const Levels levels =
        checked(cells, first_rows, v_table.shape(0), v_table.shape(1), points.shape(0), v_out.shape(0), v_out.shape(1));
    nb::gil_scoped_release unlocked;
    with_features(features, [&](auto width) {
        scatter<decltype(width)::value>(v_out.data(), levels, points.data(), count, v_table.data());
    });
}

template <typename T>
void hash_encode_slopes(In<T, -1, -1> v_out, In<T, -1, -1> table, In<std::int32_t, -1> cells,
                        In<std::int32_t, -1> first_rows, In<T, -1, 3> points, Out<T, -1, 3> v_points) {
    const int features = int(table.shape(1));
    const std::int64_t count = std::int64_t(points.shape(0));
    if (v_points.shape(0) != points.shape(0)) throw nb::value_error("points and their gradients must agree");
    const Levels levels =
        checked(cells, first_rows, table.shape(0), table.shape(1), points.shape(0), v_out.shape(0), v_out.shape(1));
    nb::gil_scoped_release unlocked;
    with_features(features, [&](auto width) {
        slopes<decltype(width)::value>(v_out.data(), table.data(), levels, points.data(), count, v_points.data());
    });
}

template <typename T>
void bind(nb::module_& m) {
    m.def("hash_encode", &hash_encode<T>, nb::arg("table").noconvert(), nb::arg("cells").noconvert(),
          nb::arg("first_rows").noconvert(), nb::arg("points").noconvert(), nb::arg("out").noconvert(),
          "Features of places, level by level.");
    m.def("hash_encode_backward", &hash_encode_backward<T>, nb::arg("v_out").noconvert(), nb::arg("cells").noconvert(),
          nb::arg("first_rows").noconvert(), nb::arg("points").noconvert(), nb::arg("v_table").noconvert(),
          "Adds the gradient by the table to v_table.");
    m.def("hash_encode_slopes", &hash_encode_slopes<T>, nb::arg("v_out").noconvert(), nb::arg("table").noconvert(),
          nb::arg("cells").noconvert(), nb::arg("first_rows").noconvert(), nb::arg("points").noconvert(),
          nb::arg("v_points").noconvert(), "The gradient by the places.");
}

}  // namespace

void bind_hash_encoding(nb::module_& m) {
    bind<float>(m);
    bind<double>(m);
}

}  // namespace maquette
