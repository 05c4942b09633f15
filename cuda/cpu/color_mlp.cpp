// The colour network on samples of rays, forward and backward; the maths is in color_mlp.h.
//
// The samples are cut into at most kPieces pieces by a rule that knows only their number. Each piece has gradients of
// the weights of its own, which are summed in the order of the pieces: the same bits for any number of threads.
#include <nanobind/stl/tuple.h>

#include <cstdint>
#include <tuple>

#include "cpu/bindings.h"
#include "cpu/color_mlp.h"
#include "cpu/parallel.h"

namespace nb = nanobind;

namespace maquette {
namespace {

using namespace color_mlp;

constexpr std::int64_t kPieces = 32;  // their gradients take 3 MB for layers of 128
constexpr std::int64_t kGrain = 4096;  // numbers of the gradients per task of their sum

template <typename T>
using Rows = Array<T, nb::shape<-1, -1>>;
template <typename T>
using Row = Array<T, nb::shape<-1>>;
using Colors = Array<const float, nb::shape<-1, kColors>>;
using WeightArrays = std::tuple<Rows<const float>, Row<const float>, Rows<const float>, Row<const float>,
                                Rows<const float>, Row<const float>>;
using GradientArrays = std::tuple<Rows<float>, Row<float>, Rows<float>, Row<float>, Rows<float>, Row<float>>;

struct Sizes {
    std::int64_t samples;
    int features, view, hidden;
};

template <typename Arrays>
void check_layers(const Arrays& layers, const Sizes& sizes) {
    const auto& [w1, b1, w2, b2, w3, b3] = layers;
    const auto is = [](const auto& matrix, int rows, int columns) {
        return int(matrix.shape(0)) == rows && int(matrix.shape(1)) == columns;
    };
    const int hidden = sizes.hidden;
    if (!is(w1, hidden, sizes.features + sizes.view) || int(b1.shape(0)) != hidden || !is(w2, hidden, hidden) ||
        int(b2.shape(0)) != hidden || !is(w3, kColors, hidden) || int(b3.shape(0)) != kColors)
        throw nb::value_error("the layers must fit each other, the features and the view");
}

Sizes checked(const WeightArrays& weights, const Rows<const float>& features, const Row<const std::int32_t>& rays,
              const Rows<const float>& view) {
    const Sizes sizes{std::int64_t(features.shape(0)), int(features.shape(1)), int(view.shape(1)),
                      int(std::get<0>(weights).shape(0))};
    check_layers(weights, sizes);
    if (sizes.features < kColors) throw nb::value_error("features begin with three numbers of the colour itself");
    if (sizes.hidden != 64 && sizes.hidden != 128) throw nb::value_error("hidden layers have 64 or 128 numbers");
    if (std::int64_t(rays.shape(0)) != sizes.samples) throw nb::value_error("features and rays must agree in length");
    const std::uint32_t count = std::uint32_t(view.shape(0));
    bool inside = true;
    for (std::int64_t s = 0; s < sizes.samples; ++s) inside &= std::uint32_t(rays.data()[s]) < count;
    if (!inside) throw nb::value_error("rays must lie within [0, R)");
    return sizes;
}

Weights pointers(const WeightArrays& weights) {
    const auto& [w1, b1, w2, b2, w3, b3] = weights;
    return {w1.data(), b1.data(), w2.data(), b2.data(), w3.data(), b3.data()};
}

// Calls body(piece, begin, end) for whole panels of samples, the last panel excepted.
template <typename Body>
void for_pieces(std::int64_t samples, const Body& body) {
    const std::int64_t panels = (samples + kPanel - 1) / kPanel, pieces = std::min(panels, kPieces);
    parallel_tasks(pieces, [&](std::int64_t piece, int) {
        body(piece, piece * panels / pieces * kPanel, std::min((piece + 1) * panels / pieces * kPanel, samples));
    });
}

template <int kHidden>
void forward(const Weights& weights, const Samples& samples, const Sizes& sizes, float* rgb) {
    const Network<kHidden> network(weights, sizes.features, sizes.view);
    for_pieces(sizes.samples, [&](std::int64_t, std::int64_t begin, std::int64_t end) {
        Panel<kHidden> panel(network, samples);
        for (; begin < end; begin += kPanel)
            panel.forward(begin, int(std::min<std::int64_t>(kPanel, end - begin)), rgb);
    });
}

template <int kHidden>
void write_gradients(const Layers<kHidden>& sums, const Gradients& to) {
    const int features = sums.features, view = sums.view, stride = Layers<kHidden>::kStride;
    for (int h = 0; h < kHidden; ++h) {
        float* row = to.w1 + std::size_t(h) * (features + view);
        for (int c = 0; c < features; ++c) row[c] = sums.first[c * stride + h];
        for (int e = 0; e < view; ++e) row[features + e] = sums.sight[e * stride + h];
        to.b1[h] = sums.sight[view * stride + h];
        std::copy_n(sums.second + h * stride, kHidden, to.w2 + h * kHidden);
    }
    std::copy_n(sums.bias2, kHidden, to.b2);
    std::copy_n(sums.third, kColors * kHidden, to.w3);
    std::copy_n(sums.bias3, kColors, to.b3);
}

template <int kHidden>
void backward(const Weights& weights, const Samples& samples, const Sizes& sizes, const float* rgb, const float* v_rgb,
              float* v_features, const Gradients& to) {
    const Network<kHidden> network(weights, sizes.features, sizes.view);
    Layers<kHidden> sums = network.layers;
    const std::int64_t numbers = padded(int(sums.numbers()), kLanes);
    Buffer<float> memory;
    float* partial = memory.resize(std::size_t(kPieces * numbers));
    std::fill_n(partial, numbers, 0.0f);  // without samples there is no piece
    for_pieces(sizes.samples, [&](std::int64_t piece, std::int64_t begin, std::int64_t end) {
        Layers<kHidden> own = network.layers;
        own.place(partial + piece * numbers);
        std::fill_n(partial + piece * numbers, numbers, 0.0f);
        Panel<kHidden> panel(network, samples);
        for (; begin < end; begin += kPanel)
            panel.backward(begin, int(std::min<std::int64_t>(kPanel, end - begin)), rgb, v_rgb, v_features, own);
    });
    const std::int64_t pieces = std::min((sizes.samples + kPanel - 1) / kPanel, kPieces);
    parallel_ranges(numbers, kGrain, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t piece = 1; piece < pieces; ++piece) {
            const float* more = partial + piece * numbers;
#pragma GCC ivdep
            for (std::int64_t i = begin; i < end; ++i) partial[i] += more[i];
        }
    });
    sums.place(partial);
    write_gradients(sums, to);
}

void color_mlp_forward(WeightArrays weights, Rows<const float> features, Row<const std::int32_t> rays,
                       Rows<const float> view, Array<float, nb::shape<-1, kColors>> rgb) {
    const Sizes sizes = checked(weights, features, rays, view);
    if (std::int64_t(rgb.shape(0)) != sizes.samples) throw nb::value_error("features and rgb must agree in length");
    const Samples samples{features.data(), rays.data(), view.data()};
    nb::gil_scoped_release unlocked;
    const auto run = sizes.hidden == 64 ? &forward<64> : &forward<128>;
    run(pointers(weights), samples, sizes, rgb.data());
}

void color_mlp_backward(WeightArrays weights, Rows<const float> features, Row<const std::int32_t> rays,
                        Rows<const float> view, Colors rgb, Colors v_rgb, Rows<float> v_features,
                        GradientArrays v_weights) {
    const Sizes sizes = checked(weights, features, rays, view);
    check_layers(v_weights, sizes);
    if (std::int64_t(rgb.shape(0)) != sizes.samples || std::int64_t(v_rgb.shape(0)) != sizes.samples ||
        std::int64_t(v_features.shape(0)) != sizes.samples || int(v_features.shape(1)) != sizes.features)
        throw nb::value_error("rgb, its gradient and that of the features must agree in shape");
    const Samples samples{features.data(), rays.data(), view.data()};
    const auto& [w1, b1, w2, b2, w3, b3] = v_weights;
    const Gradients to{w1.data(), b1.data(), w2.data(), b2.data(), w3.data(), b3.data()};
    nb::gil_scoped_release unlocked;
    const auto run = sizes.hidden == 64 ? &backward<64> : &backward<128>;
    run(pointers(weights), samples, sizes, rgb.data(), v_rgb.data(), v_features.data(), to);
}

}  // namespace

void bind_color_mlp(nb::module_& m) {
    m.def("color_mlp", &color_mlp_forward, nb::arg("weights").noconvert(), nb::arg("features").noconvert(),
          nb::arg("rays").noconvert(), nb::arg("view").noconvert(), nb::arg("rgb").noconvert(),
          "Writes the colours of samples into rgb.");
    m.def("color_mlp_backward", &color_mlp_backward, nb::arg("weights").noconvert(), nb::arg("features").noconvert(),
          nb::arg("rays").noconvert(), nb::arg("view").noconvert(), nb::arg("rgb").noconvert(),
          nb::arg("v_rgb").noconvert(), nb::arg("v_features").noconvert(), nb::arg("v_weights").noconvert(),
          "Writes the gradients by features and weights, from the colours and the gradient by them.");
}

}  // namespace maquette
