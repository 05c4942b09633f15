// Feature vectors of places in a grid, channel-last, of which only the rows that are ever met are stored; and the
// gradient by the rows.
#include <cstdint>

#include "cpu/bindings.h"
#include "cpu/parallel.h"
#include "cpu/slab_scatter.h"
#include "math/trilinear.h"

namespace nb = nanobind;

namespace maquette {
namespace {

constexpr std::int64_t kGrain = 512;  // points per task

// The row of each corner (-1: not stored, all zeros) and its share.
template <typename T>
struct Corners {
    std::int32_t rows[8];
    T shares[8];

    Corners(const T* point, const std::int32_t* rows_of_voxels, const GridSize& size) {
        const Cell<T> cell = cell_at(point[0], point[1], point[2], size);
        for (int corner = 0; corner < 8; ++corner) {
            rows[corner] = rows_of_voxels[corner_index(cell.x, cell.y, cell.z, corner, size)];
            shares[corner] = corner_share(cell, corner);
        }
    }
};

// kWidth: channels where known at compile time, else 0.
template <int kWidth, typename T>
void gather(const T* table, const std::int32_t* rows, const GridSize& size, const T* points, std::int64_t count,
            int channels, T* out) {
    const int width = kWidth ? kWidth : channels;
    parallel_ranges(count, kGrain, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t i = begin; i < end; ++i) {
            const Corners<T> corners(points + 3 * i, rows, size);
            T sum[kWidth ? kWidth : 256] = {};
            for (int corner = 0; corner < 8; ++corner) {
                if (corners.rows[corner] < 0) continue;
                const T* row = table + std::int64_t(corners.rows[corner]) * width;
                for (int c = 0; c < width; ++c) sum[c] += corners.shares[corner] * row[c];
            }
            for (int c = 0; c < width; ++c) out[i * width + c] = sum[c];
        }
    });
}

template <int kWidth, typename T>
void scatter(const T* v_out, const std::int32_t* rows, const GridSize& size, const T* points, std::int64_t count,
             int channels, T* v_table) {
    const int width = kWidth ? kWidth : channels;
    static thread_local SlabScatter order;
    order.sort(count, size.x, [&](std::int64_t i) {
        return cell_at(points[3 * i], points[3 * i + 1], points[3 * i + 2], size).x;
    });
    order.each([&](std::int64_t i) {
        const Corners<T> corners(points + 3 * i, rows, size);
        const T* __restrict v = v_out + i * width;
        for (int corner = 0; corner < 8; ++corner) {
            if (corners.rows[corner] < 0) continue;
            T* __restrict row = v_table + std::int64_t(corners.rows[corner]) * width;
            for (int c = 0; c < width; ++c) row[c] += corners.shares[corner] * v[c];
        }
    });
}

template <typename Call>
void with_width(int channels, const Call& call) {
    switch (channels) {
        case 3: return call(std::integral_constant<int, 3>());
        case 9: return call(std::integral_constant<int, 9>());
        case 12: return call(std::integral_constant<int, 12>());
        case 27: return call(std::integral_constant<int, 27>());
        case 48: return call(std::integral_constant<int, 48>());
        default: return call(std::integral_constant<int, 0>());
    }
}

template <typename T, nb::ssize_t... Shape>
using In = Array<const T, nb::shape<Shape...>>;
template <typename T, nb::ssize_t... Shape>
using Out = Array<T, nb::shape<Shape...>>;

void check(std::size_t channels, std::size_t points, std::size_t results, std::size_t result_channels) {
    if (channels != result_channels || points != results || channels > 256)
        throw nb::value_error("points and results must agree in number, channels in width, at most 256");
}

template <typename T>
void trilinear(In<T, -1, -1> table, In<std::int32_t, -1, -1, -1> rows, In<T, -1, 3> points, Out<T, -1, -1> out) {
    check(table.shape(1), points.shape(0), out.shape(0), out.shape(1));
    const GridSize size = {int(rows.shape(0)), int(rows.shape(1)), int(rows.shape(2))};
    nb::gil_scoped_release unlocked;
    with_width(int(table.shape(1)), [&](auto width) {
        gather<decltype(width)::value>(table.data(), rows.data(), size, points.data(), std::int64_t(points.shape(0)),
                                       int(table.shape(1)), out.data());
    });
}

template <typename T>
void trilinear_backward(In<T, -1, -1> v_out, In<std::int32_t, -1, -1, -1> rows, In<T, -1, 3> points,
                        Out<T, -1, -1> v_table) {
    check(v_table.shape(1), points.shape(0), v_out.shape(0), v_out.shape(1));
    const GridSize size = {int(rows.shape(0)), int(rows.shape(1)), int(rows.shape(2))};
    nb::gil_scoped_release unlocked;
    with_width(int(v_table.shape(1)), [&](auto width) {
        scatter<decltype(width)::value>(v_out.data(), rows.data(), size, points.data(), std::int64_t(points.shape(0)),
                                        int(v_table.shape(1)), v_table.data());
    });
}

template <typename T>
void bind(nb::module_& m) {
    m.def("trilinear", &trilinear<T>, nb::arg("table").noconvert(), nb::arg("rows").noconvert(),
          nb::arg("points").noconvert(), nb::arg("out").noconvert(), "Interpolates rows at points.");
    m.def("trilinear_backward", &trilinear_backward<T>, nb::arg("v_out").noconvert(), nb::arg("rows").noconvert(),
          nb::arg("points").noconvert(), nb::arg("v_table").noconvert(), "Adds the gradient by the rows to v_table.");
}

}  // namespace

void bind_trilinear(nb::module_& m) {
    bind<float>(m);
    bind<double>(m);
}

}  // namespace maquette
