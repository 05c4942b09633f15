// Adds the gradient of total variation to that of a voxel grid, dense or kept as a table of rows. `values` is only read
// and each number of `grad` changed by one task. A neighbour that is not there is replaced by the voxel itself, which
// pulls nothing.
#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "cpu/any_nonzero.h"
#include "cpu/bindings.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"
#include "math/total_variation.h"

namespace nb = nanobind;

namespace maquette {
namespace {

constexpr std::int64_t kGrain = 16384;  // numbers per task, about
constexpr std::int64_t kChunk = 64;     // numbers that are skipped together where none was touched

// Adds to `count` gradients what six neighbours each pull. touched_only: to those that are not zero.
template <bool kTouchedOnly, typename T>
MQ_INLINE void pull_all(T* __restrict grad, const T* values, const T* const (&neighbours)[6], T scale,
                        std::int64_t count) {
    const T *a = neighbours[0], *b = neighbours[1], *c = neighbours[2], *d = neighbours[3], *e = neighbours[4],
            *f = neighbours[5];
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) {
        const T own = values[i];
        const T pull = variation_pull(own, a[i]) + variation_pull(own, b[i]) + variation_pull(own, c[i]) +
                       variation_pull(own, d[i]) + variation_pull(own, e[i]) + variation_pull(own, f[i]);
        const T sum = grad[i] + scale * pull;
        grad[i] = !kTouchedOnly || grad[i] != T(0) ? sum : grad[i];
    }
}

// One line along z of a dense grid, in chunks of which the untouched ones are skipped.
template <bool kTouchedOnly, typename T>
void line(T* grad, const T* values, std::int64_t size, const std::int64_t (&steps)[4], T scale) {
    for (std::int64_t begin = 0; begin < size; begin += kChunk) {
        const std::int64_t count = std::min(kChunk, size - begin);
        if (kTouchedOnly && !any_nonzero(grad + begin, count)) continue;
        const T* v = values + begin;
        T along[kChunk + 2];  // with a neighbour on each side
        along[0] = v[begin > 0 ? -1 : 0];
        std::copy_n(v, count, along + 1);
        along[count + 1] = v[begin + count < size ? count : count - 1];
        const T* const neighbours[6] = {v + steps[0], v + steps[1], v + steps[2], v + steps[3], along, along + 2};
        if (count == kChunk) pull_all<kTouchedOnly>(grad + begin, v, neighbours, scale, kChunk);
        else pull_all<kTouchedOnly>(grad + begin, v, neighbours, scale, count);
    }
}

template <bool kTouchedOnly, typename T>
void add_dense(T* grad, const T* values, const std::int64_t (&size)[3], T scale) {
    const std::int64_t down = size[1] * size[2], across = size[2];
    const std::int64_t grain = std::max<std::int64_t>(1, kGrain / size[2]);
    parallel_ranges(size[0] * size[1], grain, [&](std::int64_t l, std::int64_t to) {
        for (; l < to; ++l) {
            const std::int64_t x = l / size[1], y = l % size[1];
            const std::int64_t steps[4] = {x > 0 ? -down : 0, x + 1 < size[0] ? down : 0, y > 0 ? -across : 0,
                                           y + 1 < size[1] ? across : 0};
            line<kTouchedOnly>(grad + l * size[2], values + l * size[2], size[2], steps, scale);
        }
    });
}

// kWidth: channels where known at compile time, else 0.
template <int kWidth, bool kTouchedOnly, typename T>
void add_rows(T* grad, const T* values, std::int64_t count, std::int64_t channels, const std::int32_t* rows,
              const std::int64_t (&size)[3], const std::int32_t* cells, T scale) {
    const std::int64_t width = kWidth ? kWidth : channels;
    const std::int64_t down = size[1] * size[2], across = size[2];
    parallel_ranges(count, std::max<std::int64_t>(1, kGrain / width), [&](std::int64_t f, std::int64_t end) {
        for (; f < end; ++f) {
            T* own = grad + f * width;
            if (kTouchedOnly && !any_nonzero(own, width)) continue;
            const std::int64_t cell = cells[f], x = cell / down, y = cell / across % size[1], z = cell % across;
            const auto neighbour = [&](bool there, std::int64_t step) {
                const std::int64_t row = there ? rows[cell + step] : -1;
                return values + (row >= 0 && row < count ? row : f) * width;
            };
            const T* const neighbours[6] = {neighbour(x > 0, -down),   neighbour(x + 1 < size[0], down),
                                            neighbour(y > 0, -across), neighbour(y + 1 < size[1], across),
                                            neighbour(z > 0, -1),      neighbour(z + 1 < size[2], 1)};
            pull_all<kTouchedOnly>(own, values + f * width, neighbours, scale, width);
        }
    });
}

template <typename Call>
void with_width(std::int64_t width, const Call& call) {
    switch (width) {
        case 3: return call(std::integral_constant<int, 3>());
        case 9: return call(std::integral_constant<int, 9>());
        case 12: return call(std::integral_constant<int, 12>());
        default: return call(std::integral_constant<int, 0>());
    }
}

template <typename T>
void total_variation(Array<T, nb::shape<-1, -1, -1>> grad, Array<const T, nb::shape<-1, -1, -1>> values, double scale,
                     bool touched_only) {
    const std::int64_t size[3] = {std::int64_t(grad.shape(0)), std::int64_t(grad.shape(1)),
                                  std::int64_t(grad.shape(2))};
    for (int axis = 0; axis < 3; ++axis)
        if (std::int64_t(values.shape(axis)) != size[axis])
            throw nb::value_error("grad and values must have one shape");
    if (size[0] * size[1] * size[2] == 0) return;
    nb::gil_scoped_release unlocked;
    (touched_only ? add_dense<true, T> : add_dense<false, T>)(grad.data(), values.data(), size, T(scale));
}

template <typename T>
void total_variation_rows(Array<T, nb::shape<-1, -1>> grad, Array<const T, nb::shape<-1, -1>> values,
                          Array<const std::int32_t, nb::shape<-1, -1, -1>> rows,
                          Array<const std::int32_t, nb::shape<-1>> cells, double scale, bool touched_only) {
    const std::int64_t size[3] = {std::int64_t(rows.shape(0)), std::int64_t(rows.shape(1)),
                                  std::int64_t(rows.shape(2))};
    const std::int64_t count = std::int64_t(grad.shape(0)), width = std::int64_t(grad.shape(1));
    if (std::int64_t(values.shape(0)) != count || std::int64_t(values.shape(1)) != width ||
        std::int64_t(cells.shape(0)) != count)
        throw nb::value_error("grad and values must have one shape, and cells a number for each of their rows");
    for (std::int64_t f = 0; f < count; ++f)
        if (cells.data()[f] < 0 || cells.data()[f] >= size[0] * size[1] * size[2])
            throw nb::value_error("cells must lie within the grid of rows");
    if (count * width == 0) return;
    nb::gil_scoped_release unlocked;
    with_width(width, [&](auto fixed) {
        constexpr int kWidth = decltype(fixed)::value;
        const auto add = touched_only ? add_rows<kWidth, true, T> : add_rows<kWidth, false, T>;
        add(grad.data(), values.data(), count, width, rows.data(), size, cells.data(), T(scale));
    });
}

template <typename T>
void bind(nb::module_& m) {
    m.def("total_variation", &total_variation<T>, nb::arg("grad").noconvert(), nb::arg("values").noconvert(),
          nb::arg("scale"), nb::arg("touched_only"), "Adds scale times the gradient of total variation to grad.");
    m.def("total_variation_rows", &total_variation_rows<T>, nb::arg("grad").noconvert(), nb::arg("values").noconvert(),
          nb::arg("rows").noconvert(), nb::arg("cells").noconvert(), nb::arg("scale"), nb::arg("touched_only"),
          "The same of voxels that are rows of a table.");
}

}  // namespace

void bind_total_variation(nb::module_& m) {
    bind<float>(m);
    bind<double>(m);
}

}  // namespace maquette
