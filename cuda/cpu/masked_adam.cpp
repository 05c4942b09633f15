// Adam in place on the numbers whose gradient is not zero. Where few are, a step costs one read of the gradients: of a
// block, the registers that hold one that is not zero are listed first, and while one is updated the values and moments
// of the next ones are on their way from memory.
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "cpu/any_nonzero.h"
#include "cpu/bindings.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"
#include "math/adam.h"

namespace nb = nanobind;

namespace maquette {
namespace {

constexpr std::int64_t kGrain = 65536;  // numbers per task
constexpr int kBlock = 8192;            // numbers whose registers are listed at once: they stay in L1
constexpr int kAhead = 8;               // registers

template <typename T>
constexpr int kWide = kVectorBytes / int(sizeof(T));

// Appends to `list` where the registers of numbers begin that are not all zeros; returns how many. count <= kBlock; the
// last register may be a part of one.
template <typename T>
int list_touched(const T* grad, int count, std::int32_t* list) {
    constexpr int kSkip = 8 * kWide<T>;
    int listed = 0;
    for (int begin = 0; begin < count; begin += kSkip) {
        const int end = std::min(begin + kSkip, count), whole = end - (end - begin) % kWide<T>;
        if (end - begin == kSkip && !any_nonzero(grad + begin, kSkip)) continue;
        for (int at = begin; at < whole; at += kWide<T>) {  // without branches, which nobody could foresee
            list[listed] = at;
            listed += any_nonzero(grad + at, kWide<T>);
        }
        if (whole < end && any_nonzero(grad + whole, end - whole)) list[listed++] = whole;
    }
    return listed;
}

// Rates of the numbers of a grid of voxels, `width` numbers each.
template <typename T>
struct Rates {
    const T* of_voxels;  // null: 1 for all
    std::int64_t width;

    Lanes<T, kWide<T>> at(std::int64_t first, int count) const {
        T rates[kWide<T>] = {};
        std::int64_t voxel = first / width, column = first % width;
        for (int i = 0; i < count; ++i) {
            rates[i] = of_voxels[voxel];
            if (++column == width) column = 0, ++voxel;
        }
        return Lanes<T, kWide<T>>::load(rates);
    }
};

template <typename T>
struct State {
    T *param, *grad, *exp_avg, *exp_avg_sq;
    Rates<T> rates;
    bool clear;
    AdamStep<Lanes<T, kWide<T>>> step;

    void update_block(std::int64_t first, int count) const {
        std::int32_t list[kBlock / kWide<T> + 1];
        const int listed = list_touched(grad + first, count, list);
        for (int i = 0; i < listed; ++i) {
            const std::int64_t next = first + list[std::min(i + kAhead, listed - 1)];
            for (const T* array : {param, exp_avg, exp_avg_sq}) __builtin_prefetch(array + next, 1);
            update(first + list[i], std::min(kWide<T>, count - list[i]));
        }
    }

private:
    // Up to kWide numbers from `first` on.
    void update(std::int64_t first, int count) const {
        using L = Lanes<T, kWide<T>>;
        if (count == kWide<T>) return update(L::load(grad + first), param + first, exp_avg + first, exp_avg_sq + first,
                                             grad + first, first, count);
        T p[kWide<T>] = {}, g[kWide<T>] = {}, m[kWide<T>] = {}, v[kWide<T>] = {};
        const auto each = [&](const auto& copy) {
            copy(param + first, p), copy(grad + first, g), copy(exp_avg + first, m), copy(exp_avg_sq + first, v);
        };
        each([&](const T* whole, T* part) { std::copy_n(whole, count, part); });
        update(L::load(g), p, m, v, g, first, count);
        each([&](T* whole, const T* part) { std::copy_n(part, count, whole); });
    }

    MQ_INLINE void update(Lanes<T, kWide<T>> g, T* p_at, T* m_at, T* v_at, T* g_at, std::int64_t first,
                          int count) const {
        using L = Lanes<T, kWide<T>>;
        typename L::Mask rests = g == L(0);  // a NaN does not
        L p = L::load(p_at), m = L::load(m_at), v = L::load(v_at);
        const L old_p = p, old_m = m, old_v = v;
        AdamStep<L> of_lanes = step;
        if (rates.of_voxels) {
            const L rate = rates.at(first, count);
            rests = rests | (rate == L(0));
            of_lanes.rate = of_lanes.rate * rate;
        }
        adam_update(p, g, m, v, of_lanes);
        select(rests, old_p, p).store(p_at);
        select(rests, old_m, m).store(m_at);
        select(rests, old_v, v).store(v_at);
        if (clear) L(0).store(g_at);
    }
};

template <typename T>
using Numbers = Array<T, nb::shape<-1>>;

template <typename T>
void masked_adam(Numbers<T> param, Numbers<T> grad, Numbers<T> exp_avg, Numbers<T> exp_avg_sq,
                 std::optional<Numbers<const T>> rates, std::int64_t step, double lr, double beta1, double beta2,
                 double eps, bool clear) {
    const std::int64_t count = std::int64_t(param.shape(0)), voxels = rates ? std::int64_t(rates->shape(0)) : count;
    for (const auto* other : {&grad, &exp_avg, &exp_avg_sq})
        if (std::int64_t(other->shape(0)) != count)
            throw nb::value_error("param, grad and moments must agree in number");
    if (count == 0) return;
    if (voxels == 0 || count % voxels) throw nb::value_error("each voxel must have as many numbers");
    const State<T> state = {param.data(), grad.data(), exp_avg.data(), exp_avg_sq.data(),
                            {rates ? rates->data() : nullptr, count / voxels}, clear,
                            adam_step<Lanes<T, kWide<T>>>(step, lr, beta1, beta2, eps)};
    nb::gil_scoped_release unlocked;
    parallel_ranges(count, kGrain, [&](std::int64_t at, std::int64_t end) {
        for (; at < end; at += kBlock) state.update_block(at, int(std::min<std::int64_t>(kBlock, end - at)));
    });
}

template <typename T>
void bind(nb::module_& m) {
    m.def("masked_adam", &masked_adam<T>, nb::arg("param").noconvert(), nb::arg("grad").noconvert(),
          nb::arg("exp_avg").noconvert(), nb::arg("exp_avg_sq").noconvert(), nb::arg("rates").noconvert().none(),
          nb::arg("step"), nb::arg("lr"), nb::arg("beta1"), nb::arg("beta2"), nb::arg("eps"), nb::arg("clear"),
          "One step of Adam in place where the gradient is not zero, which it is afterwards with `clear`.");
}

}  // namespace

void bind_masked_adam(nb::module_& m) {
    bind<float>(m);
    bind<double>(m);
}

}  // namespace maquette
