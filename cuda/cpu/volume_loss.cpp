// Loss of composited pixels with its gradients by the samples, and compositing alone. Rays are shared out in fixed
// ranges whose sums are added in order, in double.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "cpu/bindings.h"
#include "cpu/parallel.h"
#include "math/volume_loss.h"

namespace nb = nanobind;

namespace maquette {
namespace {

constexpr std::int64_t kGrain = 64;  // rays per task

struct LossSums {
    double rest = 0.0, mse = 0.0;
};

template <typename T>
struct Rays {
    const T *rgb, *weights, *s;  // s: null without distortion
    const std::int32_t* offsets;
    const T *last, *target, *background;
    VolumeTerms<T> terms;
    T *v_rgb, *v_weights, *v_last;

    template <bool kDistorted>
    LossSums ray(std::int64_t r) const {
        const std::int64_t begin = offsets[r], end = offsets[r + 1];
        RaySums<T> all = {}, before = {};
        for (std::int64_t i = begin; i < end; ++i) {
            add_color(all, weights[i], rgb + 3 * i);
            if constexpr (kDistorted) add_place(all, weights[i], s[i]);
        }
        const T* wanted = target + 3 * r;
        const PixelLoss<T> pixel = pixel_loss(all.color, last[r], background, wanted, terms);
        v_last[r] = pixel.v_last;
        LossSums sums = {double(pixel.rest), double(pixel.mse)};
        for (std::int64_t i = begin; i < end; ++i) {
            const T w = weights[i];
            T v_w = T(0);
            sums.rest += double(color_loss(w, rgb + 3 * i, wanted, pixel, terms, v_rgb + 3 * i, v_w));
            if constexpr (kDistorted) {
                sums.rest += double(distortion_loss(w, s[i], before, all, terms, v_w));
                add_place(before, w, s[i]);
            }
            v_weights[i] = v_w;
        }
        return sums;
    }
};

template <typename T, nb::ssize_t... Shape>
using In = Array<const T, nb::shape<Shape...>>;
template <typename T, nb::ssize_t... Shape>
using Out = Array<T, nb::shape<Shape...>>;

// Offsets that ascend from 0 to the number of samples name each sample once, so rays cannot meet.
void check_offsets(const In<std::int32_t, -1>& offsets, std::size_t rays, std::size_t samples) {
    const std::int32_t* at = offsets.data();
    bool good = offsets.shape(0) == rays + 1 && at[0] == 0 && std::size_t(at[rays]) == samples;
    for (std::size_t r = 0; good && r < rays; ++r) good = at[r] <= at[r + 1];
    if (!good) throw nb::value_error("offsets must ascend from 0 to the number of samples, one more than rays");
}

template <typename T>
std::pair<double, double> volume_loss(In<T, -1, 3> rgb, In<T, -1> weights, std::optional<In<T, -1>> s,
                                      In<std::int32_t, -1> offsets, In<T, -1> last, In<T, -1, 3> target,
                                      In<T, 3> background, double interval, double per_point, double entropy,
                                      double distortion, Out<T, -1, 3> v_rgb, Out<T, -1> v_weights, Out<T, -1> v_last) {
    const std::size_t samples = weights.shape(0), count = last.shape(0);
    if (rgb.shape(0) != samples || (s && s->shape(0) != samples) || target.shape(0) != count ||
        v_rgb.shape(0) != samples || v_weights.shape(0) != samples || v_last.shape(0) != count)
        throw nb::value_error("samples and rays must agree in number");
    check_offsets(offsets, count, samples);
    const double share = count ? 1.0 / double(count) : 0.0;
    const VolumeTerms<T> terms = {T(share / 3.0), T(per_point * share), T(entropy * share), T(distortion * share),
                                  T(interval)};
    const Rays<T> rays = {rgb.data(), weights.data(), s ? s->data() : nullptr, offsets.data(), last.data(),
                          target.data(), background.data(), terms, v_rgb.data(), v_weights.data(), v_last.data()};

    nb::gil_scoped_release unlocked;
    std::vector<LossSums> parts((count + kGrain - 1) / kGrain);
    parallel_ranges(std::int64_t(count), kGrain, [&](std::int64_t begin, std::int64_t end) {
        LossSums sums;
        for (std::int64_t r = begin; r < end; ++r) {
            const LossSums one = rays.s ? rays.template ray<true>(r) : rays.template ray<false>(r);
            sums.rest += one.rest;
            sums.mse += one.mse;
        }
        parts[std::size_t(begin / kGrain)] = sums;
    });
    LossSums total;
    for (const LossSums& part : parts) {
        total.rest += part.rest;
        total.mse += part.mse;
    }
    return {total.rest + total.mse, total.mse};
}

template <typename T>
void composite_rays(In<T, -1, 3> rgb, In<T, -1> weights, In<std::int32_t, -1> offsets, In<T, -1> last,
                    In<T, 3> background, Out<T, -1, 3> out) {
    const std::size_t samples = weights.shape(0), count = last.shape(0);
    if (rgb.shape(0) != samples || out.shape(0) != count)
        throw nb::value_error("samples and rays must agree in number");
    check_offsets(offsets, count, samples);
    nb::gil_scoped_release unlocked;
    parallel_ranges(std::int64_t(count), kGrain, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t r = begin; r < end; ++r) {
            RaySums<T> sums = {};
            for (std::int64_t i = offsets.data()[r]; i < offsets.data()[r + 1]; ++i)
                add_color(sums, weights.data()[i], rgb.data() + 3 * i);
            for (int k = 0; k < 3; ++k)
                out.data()[3 * r + k] = sums.color[k] + last.data()[r] * background.data()[k];
        }
    });
}

template <typename T>
void bind(nb::module_& m) {
    m.def("volume_loss", &volume_loss<T>, nb::arg("rgb").noconvert(), nb::arg("weights").noconvert(),
          nb::arg("s").noconvert().none(), nb::arg("offsets").noconvert(), nb::arg("last").noconvert(),
          nb::arg("target").noconvert(), nb::arg("background").noconvert(), nb::arg("interval"), nb::arg("per_point"),
          nb::arg("entropy"), nb::arg("distortion"), nb::arg("v_rgb").noconvert(), nb::arg("v_weights").noconvert(),
          nb::arg("v_last").noconvert(), "The loss and its part that is the mean squared error; writes the gradients.");
    m.def("composite_rays", &composite_rays<T>, nb::arg("rgb").noconvert(), nb::arg("weights").noconvert(),
          nb::arg("offsets").noconvert(), nb::arg("last").noconvert(), nb::arg("background").noconvert(),
          nb::arg("out").noconvert(), "Writes each ray's colour over the background into out.");
}

}  // namespace

void bind_volume_loss(nb::module_& m) {
    bind<float>(m);
    bind<double>(m);
}

}  // namespace maquette
