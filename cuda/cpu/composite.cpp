// A byte picture with straight alpha over a background colour, as floats.
#include <cstdint>

#include "cpu/bindings.h"
#include "cpu/parallel.h"

namespace nb = nanobind;

namespace maquette {
namespace {

constexpr std::int64_t kGrain = 16384;  // pixels per task

void composite(Array<const std::uint8_t, nb::shape<-1, -1, 3>> rgb, Array<const std::uint8_t, nb::shape<-1, -1>> alpha,
               Array<const float, nb::shape<3>> background, Array<float, nb::shape<-1, -1, 3>> out) {
    const std::size_t height = rgb.shape(0), width = rgb.shape(1);
    if (alpha.shape(0) != height || alpha.shape(1) != width || out.shape(0) != height || out.shape(1) != width)
        throw nb::value_error("rgb, alpha and out must have one size");
    const std::uint8_t* __restrict colors = rgb.data();
    const std::uint8_t* __restrict shares = alpha.data();
    float* __restrict result = out.data();
    const float behind[3] = {background.data()[0], background.data()[1], background.data()[2]};
    nb::gil_scoped_release unlocked;
    parallel_ranges(std::int64_t(height * width), kGrain, [&](std::int64_t begin, std::int64_t end) {
#pragma GCC ivdep
        for (std::int64_t pixel = begin; pixel < end; ++pixel) {
            const float share = float(shares[pixel]) / 255.0f;
            for (int channel = 0; channel < 3; ++channel) {
                const std::int64_t i = 3 * pixel + channel;
                result[i] = float(colors[i]) / 255.0f * share + behind[channel] * (1.0f - share);
            }
        }
    });
}

}  // namespace

void bind_composite(nb::module_& m) {
    m.def("composite", &composite, nb::arg("rgb").noconvert(), nb::arg("alpha").noconvert(),
          nb::arg("background").noconvert(), nb::arg("out").noconvert(), "Writes rgb over background into out.");
}

}  // namespace maquette
