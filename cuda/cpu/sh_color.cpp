// Colours of samples from spherical harmonics, forward and backward. The basis is made once for neighbours on one ray.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cpu/bindings.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "math/sh_color.h"

namespace nb = nanobind;

namespace maquette {
namespace {

constexpr std::int64_t kGrain = 2048;  // samples per task
constexpr int kChunk = 64;             // samples whose sigmoids are taken together
constexpr int kChannels = 3;

template <typename T>
struct Samples {
    const T* features;         // [M, kChannels, (Degree + 1)^2]
    const std::int32_t* rays;  // [M]
    const T* directions;       // [R, 3]
};

// Calls body(s, basis) for each sample.
template <int Degree, typename T, typename Body>
void with_basis(const Samples<T>& samples, std::int64_t begin, std::int64_t end, const Body& body) {
    for (std::int64_t s = begin; s < end;) {
        const std::int32_t ray = samples.rays[s];
        const T* d = samples.directions + 3 * std::int64_t(ray);
        T basis[sh_count(Degree)];
        sh_basis<Degree>(Vec3<T>{d[0], d[1], d[2]}, basis);
        do body(s, basis);
        while (++s < end && samples.rays[s] == ray);
    }
}

// Colours of at most kChunk samples into `colors`, which has room for that many.
template <int Degree, typename T>
void color_chunk(const Samples<T>& samples, std::int64_t begin, std::int64_t end, T* colors) {
    constexpr int kCount = sh_count(Degree);
    with_basis<Degree>(samples, begin, end, [&](std::int64_t s, const T* basis) {
        for (int c = 0; c < kChannels; ++c)
            colors[kChannels * (s - begin) + c] =
                sh_logit<Degree>(basis, samples.features + (kChannels * s + c) * kCount);
    });
    if constexpr (sizeof(T) == sizeof(float)) {
        for (int i = 0; i < kChannels * kChunk; i += Floats::count)
            sigmoid(Floats::load(colors + i)).store(colors + i);
    } else {
        for (int i = 0; i < kChannels * (end - begin); ++i) colors[i] = sigmoid(colors[i]);
    }
}

template <int Degree, typename T>
void forward(const Samples<T>& samples, std::int64_t count, T* rgb) {
    parallel_ranges(count, kGrain, [&](std::int64_t begin, std::int64_t end) {
        T colors[kChannels * kChunk] = {};
        for (; begin < end; begin += kChunk) {
            const std::int64_t stop = std::min(begin + kChunk, end);
            color_chunk<Degree>(samples, begin, stop, colors);
            std::copy_n(colors, kChannels * (stop - begin), rgb + kChannels * begin);
        }
    });
}

template <int Degree, typename T>
void backward(const Samples<T>& samples, std::int64_t count, const T* v_rgb, T* v_features) {
    constexpr int kCount = sh_count(Degree);
    parallel_ranges(count, kGrain, [&](std::int64_t begin, std::int64_t end) {
        T colors[kChannels * kChunk] = {};
        for (; begin < end; begin += kChunk) {
            const std::int64_t stop = std::min(begin + kChunk, end);
            color_chunk<Degree>(samples, begin, stop, colors);
            with_basis<Degree>(samples, begin, stop, [&](std::int64_t s, const T* basis) {
                for (int c = 0; c < kChannels; ++c) {
                    const T v = sigmoid_backward(colors[kChannels * (s - begin) + c], v_rgb[kChannels * s + c]);
                    T* __restrict to = v_features + (kChannels * s + c) * kCount;
                    for (int k = 0; k < kCount; ++k) to[k] = v * basis[k];
                }
            });
        }
    });
}

template <typename T>
using Features = Array<T, nb::shape<-1, -1>>;
using Rays = Array<const std::int32_t, nb::shape<-1>>;
template <typename T>
using Triples = Array<T, nb::shape<-1, 3>>;

// The degree; raises when shapes do not fit or a ray is not there.
template <typename T>
int checked(const Features<const T>& features, const Rays& rays, const Triples<const T>& directions,
            std::int64_t colors) {
    const std::int64_t count = features.shape(0);
    if (std::int64_t(rays.shape(0)) != count || colors != count)
        throw nb::value_error("features, rays and colours must agree in length");
    bool inside = true;
    for (std::int64_t s = 0; s < count; ++s) inside &= std::uint32_t(rays.data()[s]) < directions.shape(0);
    if (!inside) throw nb::value_error("rays must lie within [0, R)");
    for (int degree = 0; degree <= 3; ++degree)
        if (int(features.shape(1)) == kChannels * sh_count(degree)) return degree;
    throw nb::value_error("features must have 3, 12, 27 or 48 numbers");
}

template <typename T>
void sh_color(Features<const T> features, Rays rays, Triples<const T> directions, Triples<T> rgb) {
    const int degree = checked<T>(features, rays, directions, rgb.shape(0));
    const Samples<T> samples{features.data(), rays.data(), directions.data()};
    nb::gil_scoped_release unlocked;
    constexpr decltype(&forward<0, T>) kByDegree[] = {&forward<0, T>, &forward<1, T>, &forward<2, T>, &forward<3, T>};
    kByDegree[degree](samples, features.shape(0), rgb.data());
}

template <typename T>
void sh_color_backward(Features<const T> features, Rays rays, Triples<const T> directions, Triples<const T> v_rgb,
                       Features<T> v_features) {
    const int degree = checked<T>(features, rays, directions, v_rgb.shape(0));
    if (v_features.shape(0) != features.shape(0) || v_features.shape(1) != features.shape(1))
        throw nb::value_error("features and their gradient must agree in shape");
    const Samples<T> samples{features.data(), rays.data(), directions.data()};
    nb::gil_scoped_release unlocked;
    constexpr decltype(&backward<0, T>) kByDegree[] = {&backward<0, T>, &backward<1, T>, &backward<2, T>,
                                                       &backward<3, T>};
    kByDegree[degree](samples, features.shape(0), v_rgb.data(), v_features.data());
}

template <typename T>
void bind(nb::module_& m) {
    m.def("sh_color", &sh_color<T>, nb::arg("features").noconvert(), nb::arg("rays").noconvert(),
          nb::arg("directions").noconvert(), nb::arg("rgb").noconvert(), "Writes the colours of samples into rgb.");
    m.def("sh_color_backward", &sh_color_backward<T>, nb::arg("features").noconvert(), nb::arg("rays").noconvert(),
          nb::arg("directions").noconvert(), nb::arg("v_rgb").noconvert(), nb::arg("v_features").noconvert(),
          "Writes the gradient by the features.");
}

}  // namespace

void bind_sh_color(nb::module_& m) {
    bind<float>(m);
    bind<double>(m);
}

}  // namespace maquette
