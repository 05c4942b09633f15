// Adam in place, for all rows or for those of a list. Rows of consecutive ids are updated as one span of numbers.
#include <nanobind/stl/optional.h>

#include <cstdint>
#include <optional>

#include "cpu/bindings.h"
#include "cpu/parallel.h"
#include "math/adam.h"

namespace nb = nanobind;

namespace maquette {
namespace {

constexpr std::int64_t kGrain = 16384;  // numbers per task: 256 kB of float, a good share of one core's L2

template <typename T>
void update_span(T* __restrict param, const T* __restrict grad, T* __restrict exp_avg, T* __restrict exp_avg_sq,
                 std::int64_t count, const AdamStep<T>& step) {
#pragma GCC ivdep
    for (std::int64_t i = 0; i < count; ++i) adam_update(param[i], grad[i], exp_avg[i], exp_avg_sq[i], step);
}

template <typename T>
using Rows = Array<T, nb::shape<-1, -1>>;
using Ids = Array<const std::int32_t, nb::shape<-1>>;

// Ids that ascend name no row twice, so tasks cannot meet.
void check_ids(const std::int32_t* ids, std::int64_t count, std::int64_t rows) {
    std::int64_t last = -1;
    for (std::int64_t i = 0; i < count; ++i) {
        if (ids[i] <= last || ids[i] >= rows) throw nb::value_error("visible must ascend within [0, N)");
        last = ids[i];
    }
}

template <typename T>
void adam(Rows<T> param, Rows<const T> grad, std::optional<Ids> visible, Rows<T> exp_avg, Rows<T> exp_avg_sq,
          std::int64_t step, double lr, double beta1, double beta2, double eps) {
    const std::int64_t rows = param.shape(0), width = param.shape(1);
    const auto same_shape = [&](const auto& other) {
        return std::int64_t(other.shape(0)) == rows && std::int64_t(other.shape(1)) == width;
    };
    const std::int64_t seen = visible ? std::int64_t(visible->shape(0)) : rows;
    const bool compact = std::int64_t(grad.shape(0)) == seen;
    if (!same_shape(exp_avg) || !same_shape(exp_avg_sq) || std::int64_t(grad.shape(1)) != width ||
        !(compact || same_shape(grad)))
        throw nb::value_error("param, grad and moments must agree in shape");
    const std::int32_t* ids = visible ? visible->data() : nullptr;
    if (ids) check_ids(ids, seen, rows);
    const AdamStep<T> constants = adam_step<T>(step, lr, beta1, beta2, eps);

    nb::gil_scoped_release unlocked;
    const auto update_rows = [&](std::int64_t to, std::int64_t from, std::int64_t count) {
        update_span(param.data() + to * width, grad.data() + from * width, exp_avg.data() + to * width,
                    exp_avg_sq.data() + to * width, count * width, constants);
    };
    const std::int64_t grain = width ? (kGrain + width - 1) / width : kGrain;
    parallel_ranges(seen, grain, [&](std::int64_t begin, std::int64_t end) {
        if (!ids) return update_rows(begin, begin, end - begin);
        for (std::int64_t next; begin < end; begin = next) {
            for (next = begin + 1; next < end && ids[next] == ids[next - 1] + 1;) ++next;
            update_rows(ids[begin], compact ? begin : ids[begin], next - begin);
        }
    });
}

template <typename T>
void bind(nb::module_& m) {
    m.def("adam", &adam<T>, nb::arg("param").noconvert(), nb::arg("grad").noconvert(),
          nb::arg("visible").noconvert().none(), nb::arg("exp_avg").noconvert(), nb::arg("exp_avg_sq").noconvert(),
          nb::arg("step"), nb::arg("lr"), nb::arg("beta1"), nb::arg("beta2"), nb::arg("eps"),
          "One step of Adam in place over all rows, or over the rows named by `visible`.");
}

}  // namespace

void bind_adam(nb::module_& m) {
    bind<float>(m);
    bind<double>(m);
}

}  // namespace maquette
