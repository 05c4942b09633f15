// Bindings of binning and blending. How to call them: scene/ops/splat_bin.py and scene/ops/splat_blend.py.
#include "cpu/splat_blend.h"

#include <cstring>
#include <memory>
#include <optional>
#include <stdexcept>

#include <nanobind/stl/optional.h>

#include "cpu/bindings.h"

namespace nb = nanobind;

namespace maquette {
namespace {

template <typename S>
using Vector = Array<S, nb::ndim<1>>;
template <typename S, int kColumns>
using Rows = Array<S, nb::shape<-1, kColumns>>;
template <typename S>
using Plane = Array<S, nb::ndim<2>>;
template <typename S>
using Image = Array<S, nb::shape<-1, -1, 3>>;
template <typename A>
using Maybe = std::optional<A>;

template <typename A>
auto pointer(const Maybe<A>& array) {
    return array ? array->data() : nullptr;
}

void require(bool holds, const char* message) {
    if (!holds) throw std::invalid_argument(message);
}

template <typename... Arrays>
bool have_rows(std::size_t count, const Arrays&... arrays) {
    return ((arrays.shape(0) == count) && ...);
}

template <typename A>
bool has_rows_if_given(std::size_t count, const Maybe<A>& array) {
    return !array || array->shape(0) == count;
}

template <typename A>
bool has_size(const SplatBins& bins, const A& image) {
    return image.shape(0) == std::size_t(bins.height()) && image.shape(1) == std::size_t(bins.width());
}

template <typename A>
bool has_size(const SplatBins& bins, const Maybe<A>& image) {
    return !image || has_size(bins, *image);
}

std::int64_t build(SplatBins& bins, Rows<const float, 2> means2d, Rows<const float, 3> conics,
                   Vector<const float> opacities, Vector<const float> depths, Rows<const float, 2> extents, int width,
                   int height) {
    const std::size_t count = means2d.shape(0);
    require(have_rows(count, conics, opacities, depths, extents), "all arrays must have one row per splat");
    const nb::gil_scoped_release release;
    return bins.build({means2d.data(), conics.data(), opacities.data(), depths.data(), extents.data(),
                       std::int64_t(count)}, width, height);
}

// A copy that Python owns, as int64.
template <typename Read>
nb::ndarray<nb::numpy, std::int64_t, nb::ndim<1>> copied(std::size_t count, const Read& read) {
    auto data = std::make_unique<std::int64_t[]>(count);
    for (std::size_t i = 0; i < count; ++i) data[i] = std::int64_t(read(i));
    nb::capsule owner(data.get(), [](void* p) noexcept { delete[] static_cast<std::int64_t*>(p); });
    return {data.release(), {count}, owner};
}

nb::tuple lists(const SplatBins& bins) {
    return nb::make_tuple(
        copied(bins.count(), [&](std::size_t i) { return bins.order()[i]; }),
        copied(bins.tiles() + 1, [&](std::size_t i) { return bins.tile_begin()[i]; }),
        copied(bins.pairs(), [&](std::size_t i) { return bins.order()[bins.items()[i].rank]; }),
        copied(bins.pairs(), [&](std::size_t i) { return bins.items()[i].mask; }));
}

template <typename Blend, typename S>
void forward(Blend& blend, const SplatBins& bins, Rows<const S, 2> means2d, Rows<const S, 3> conics,
             Vector<const S> opacities, Rows<const S, 3> colors, Maybe<Vector<const S>> depths,
             Maybe<Rows<const S, 3>> normals, Maybe<Array<const S, nb::shape<3>>> background, Image<S> rgb,
             Plane<S> alpha, Maybe<Plane<S>> depth, Maybe<Image<S>> normal, Maybe<Plane<S>> median_depth) {
    const std::size_t count = bins.count();
    require(have_rows(count, means2d, conics, opacities, colors) && has_rows_if_given(count, depths) &&
                has_rows_if_given(count, normals), "all arrays must have one row per binned splat");
    require(has_size(bins, rgb) && has_size(bins, alpha) && has_size(bins, depth) && has_size(bins, normal) &&
                has_size(bins, median_depth), "all images must have the size of the bins");
    const bool geometry = depths.has_value();
    require(normals.has_value() == geometry && depth.has_value() == geometry && normal.has_value() == geometry &&
                median_depth.has_value() == geometry,
            "depths, normals, depth, normal and median_depth must be given together");
    const nb::gil_scoped_release release;
    blend.forward(bins,
                  {means2d.data(), conics.data(), opacities.data(), colors.data(), pointer(depths), pointer(normals)},
                  pointer(background),
                  {rgb.data(), alpha.data(), pointer(depth), pointer(normal), pointer(median_depth)});
}

template <typename Blend, typename S>
void backward(Blend& blend, const SplatBins& bins, Image<const S> rgb, Plane<const S> alpha,
              Maybe<Plane<const S>> depth, Maybe<Image<const S>> normal, Image<const S> v_rgb,
              Maybe<Plane<const S>> v_alpha, Maybe<Plane<const S>> v_depth, Maybe<Image<const S>> v_normal,
              Rows<S, 2> v_means2d, Rows<S, 3> v_conics, Vector<S> v_opacities, Rows<S, 3> v_colors,
              Maybe<Vector<S>> v_depths, Maybe<Rows<S, 3>> v_normals, Maybe<Rows<S, 2>> abs_means2d) {
    const std::size_t count = bins.count();
    require(have_rows(count, v_means2d, v_conics, v_opacities, v_colors) && has_rows_if_given(count, v_depths) &&
                has_rows_if_given(count, v_normals) && has_rows_if_given(count, abs_means2d),
            "all gradients must have one row per binned splat");
    require(has_size(bins, rgb) && has_size(bins, alpha) && has_size(bins, depth) && has_size(bins, normal) &&
                has_size(bins, v_rgb) && has_size(bins, v_alpha) && has_size(bins, v_depth) && has_size(bins, v_normal),
            "all images must have the size of the bins");
    const bool geometry = v_depths.has_value();
    require(v_normals.has_value() == geometry, "v_depths and v_normals must be given together");
    require((!v_depth || (geometry && depth)) && (!v_normal || (geometry && normal)),
            "v_depth and v_normal need the forward's depth and normal, and v_depths and v_normals to write to");
    const nb::gil_scoped_release release;
    blend.backward(bins, {rgb.data(), alpha.data(), pointer(depth), pointer(normal), nullptr},
                   {v_rgb.data(), pointer(v_alpha), pointer(v_depth), pointer(v_normal)},
                   {v_means2d.data(), v_conics.data(), v_opacities.data(), v_colors.data(), pointer(v_depths),
                    pointer(v_normals), pointer(abs_means2d)});
}

// noconvert everywhere: a silent copy of an output would lose what is written to it.
template <typename Blend, typename S>
void bind_blend(nb::module_& m, const char* name) {
    const auto in = [](const char* argument) { return nb::arg(argument).noconvert(); };
    const auto maybe = [](const char* argument) { return nb::arg(argument).noconvert().none(); };
    nb::class_<Blend>(m, name)
        .def(nb::init<>())
        .def("forward", &forward<Blend, S>, in("bins"), in("means2d"), in("conics"), in("opacities"), in("colors"),
             maybe("depths"), maybe("normals"), maybe("background"), in("rgb"), in("alpha"), maybe("depth"),
             maybe("normal"), maybe("median_depth"))
        .def("backward", &backward<Blend, S>, in("bins"), in("rgb"), in("alpha"), maybe("depth"), maybe("normal"),
             in("v_rgb"), maybe("v_alpha"), maybe("v_depth"), maybe("v_normal"), in("v_means2d"), in("v_conics"),
             in("v_opacities"), in("v_colors"), maybe("v_depths"), maybe("v_normals"), maybe("abs_means2d"))
        .def("poison", &Blend::poison, "Fills the workspaces with NaN, for tests.");
}

}  // namespace

void bind_splat_blend(nb::module_& m) {
    const auto in = [](const char* argument) { return nb::arg(argument).noconvert(); };
    nb::class_<SplatBins>(m, "SplatBins")
        .def(nb::init<>())
        .def("build", &build, in("means2d"), in("conics"), in("opacities"), in("depths"), in("extents"),
             nb::arg("width"), nb::arg("height"))
        .def("lists", &lists, "order, tile_offsets, splats, block_masks: copies, int64.")
        .def_prop_ro("pairs", &SplatBins::pairs)
        .def("poison", &SplatBins::poison, "Fills the workspaces with NaN, for tests.");
    bind_blend<SplatBlend, float>(m, "SplatBlend");
    bind_blend<ScalarSplatBlend<double>, double>(m, "SplatBlendDouble");
}

}  // namespace maquette
