// Projection forward and backward. Forward: pieces of fixed size write their visible splats at the piece's own place,
// then the pieces close ranks. Backward: each visible splat owns its rows; the camera's gradient is summed per piece,
// then over pieces, so that no sum depends on the number of threads.
#include "cpu/splat_project.h"

#include <nanobind/stl/optional.h>

#include <cstring>
#include <optional>
#include <vector>

#include "cpu/bindings.h"
#include "cpu/parallel.h"

namespace maquette {
namespace {

// Rows of one batch: the last is repeated beyond the end.
template <typename L>
void fill_rows(std::int64_t first, std::int64_t end, std::int32_t* rows) {
    for (int lane = 0; lane < L::count; ++lane) rows[lane] = std::int32_t(first + lane < end ? first + lane : end - 1);
}

// Ellipses of the splats [begin, end): writes those that touch the image from row `begin` on, returns how many.
// harmonics: numbers of sh_rest that will be read for each of them.
template <typename T>
std::int64_t project_piece(const SplatArrays<T>& splats, const View<Batch<T>>& view, bool antialias, int harmonics,
                           std::int64_t begin, std::int64_t end, const ProjectedArrays<T>& out) {
    using L = Batch<T>;
    std::int64_t to = begin;
    std::int32_t rows[L::count];
    for (std::int64_t first = begin; first < end; first += L::count) {
        fill_rows<L>(first, end, rows);
        const Splat<L> s = gather_splats<L>(splats, rows);
        const Projection<L> p = project_splat(view, s, antialias);
        const Extent<L> extent = extent_of(p);
        const auto seen = is_seen(view, s, p, extent);
        const L fields[9] = {p.out.mean_x, p.out.mean_y, p.out.conic_xx, p.out.conic_xy, p.out.conic_yy,
                             p.out.opacity, p.out.depth, extent.x, extent.y};
        alignas(kVectorBytes) T lanes[9][L::count];
        for (int i = 0; i < 9; ++i) fields[i].store(lanes[i]);
        const int valid = int(end - first < L::count ? end - first : L::count);
        for (int lane = 0; lane < valid; ++lane) {
            if (!seen[lane]) continue;
            out.ids[to] = rows[lane];
            const T* sh = splats.sh_rest + std::int64_t(rows[lane]) * 3 * splats.rest;
            for (int i = 0; i < harmonics; i += 64 / int(sizeof(T))) __builtin_prefetch(sh + i);  // for shade_piece
            out.means2d[2 * to] = lanes[0][lane], out.means2d[2 * to + 1] = lanes[1][lane];
            for (int i = 0; i < 3; ++i) out.conics[3 * to + i] = lanes[2 + i][lane];
            out.opacities[to] = lanes[5][lane];
            out.depths[to] = lanes[6][lane];
            out.extents[2 * to] = lanes[7][lane], out.extents[2 * to + 1] = lanes[8][lane];
            ++to;
        }
    }
    return to - begin;
}

// Each array of `out`, as bytes and bytes per row.
struct Column {
    char* data;
    std::size_t row;
};

template <typename T>
int columns_of(const ProjectedArrays<T>& out, Column* columns) {
    int count = 0;
    columns[count++] = {reinterpret_cast<char*>(out.ids), sizeof(std::int32_t)};
    T* const data[7] = {out.means2d, out.conics, out.opacities, out.colors, out.depths, out.extents, out.normals};
    const int width[7] = {2, 3, 1, 3, 1, 2, 3};
    for (int i = 0; i < 7; ++i)
        if (data[i]) columns[count++] = {reinterpret_cast<char*>(data[i]), width[i] * sizeof(T)};
    return count;
}

// Colours and normals of `count` visible splats from row `begin` on; drops those whose colour is not a number.
template <int Degree, typename T>
std::int64_t shade_piece(const SplatArrays<T>& splats, const View<Batch<T>>& view, std::int64_t begin,
                         std::int64_t count, const ProjectedArrays<T>& out) {
    using L = Batch<T>;
    std::vector<bool> broken;
    std::int32_t rows[L::count], places[L::count];
    for (std::int64_t first = begin; first < begin + count; first += L::count) {
        const int valid = int(begin + count - first < L::count ? begin + count - first : L::count);
        for (int lane = 0; lane < L::count; ++lane) {
            places[lane] = std::int32_t(first + (lane < valid ? lane : valid - 1));
            rows[lane] = out.ids[places[lane]];
        }
        const Splat<L> s = gather_splats<L>(splats, rows);
        Coefficients<Degree, L> sh;
        gather_coefficients<Degree>(splats, rows, sh);
        const Sight<Degree, L> sight(view, s.mean);
        const Vec3<L> raw = sight.color(sh.values);
        const L zero(0), channels[3] = {raw.x, raw.y, raw.z};
        const L clamped[3] = {maximum(raw.x, zero), maximum(raw.y, zero), maximum(raw.z, zero)};
        scatter_rows<3>(out.colors, 3, places, valid, clamped);
        const auto good = finite(channels, 3);
        for (int lane = 0; lane < valid; ++lane) {
            if (good[lane]) continue;
            broken.resize(std::size_t(count));
            broken[std::size_t(first - begin + lane)] = true;
        }
        if (out.normals) {
            const L inverse_length = L(1) / sqrt(squared_length(s.quat));
            const Mat3<L> axes = rotation_of_unit(scaled(inverse_length, s.quat));
            const Vec3<L> n = normal_of(axes, s.log_scales, sight.from_camera).direction;
            const L normal[3] = {n.x, n.y, n.z};
            scatter_rows<3>(out.normals, 3, places, valid, normal);
        }
    }
    if (broken.empty()) return count;
    Column columns[8];
    const int arrays = columns_of(out, columns);
    std::int64_t kept = 0;
    for (std::int64_t i = 0; i < count; ++i) {
        if (broken[std::size_t(i)]) continue;
        for (int c = 0; c < arrays; ++c) {
            char* piece = columns[c].data + begin * columns[c].row;
            std::memmove(piece + kept * columns[c].row, piece + i * columns[c].row, columns[c].row);
        }
        ++kept;
    }
    return kept;
}

// Gradients by all N Gaussians, row-major; rows of splats that were not seen are left as they are.
template <typename T>
struct SplatGradientArrays {
    T *means, *quats, *log_scales, *opacity_logits, *sh_dc, *sh_rest;
};

template <int Degree, typename T>
void store_gradient(const BatchGradient<Degree, Batch<T>>& g, const std::int32_t* rows, int valid, int rest,
                    const SplatGradientArrays<T>& out) {
    using L = Batch<T>;
    const Splat<L>& s = g.splat;
    const L mean[3] = {s.mean.x, s.mean.y, s.mean.z}, quat[4] = {s.quat.w, s.quat.x, s.quat.y, s.quat.z},
            scales[3] = {s.log_scales.x, s.log_scales.y, s.log_scales.z};
    scatter_rows<3>(out.means, 3, rows, valid, mean);
    scatter_rows<4>(out.quats, 4, rows, valid, quat);
    scatter_rows<3>(out.log_scales, 3, rows, valid, scales);
    scatter_rows<1>(out.opacity_logits, 1, rows, valid, &s.opacity_logit);
    L sh[sh_count(Degree)][3];
    for (int k = 0; k < sh_count(Degree); ++k)
        sh[k][0] = g.basis[k] * g.color.x, sh[k][1] = g.basis[k] * g.color.y, sh[k][2] = g.basis[k] * g.color.z;
    scatter_rows<3>(out.sh_dc, 3, rows, valid, sh[0]);
    if constexpr (Degree > 0)
        scatter_rows<3 * (sh_count(Degree) - 1)>(out.sh_rest, 3 * rest, rows, valid, sh[1]);
}

template <typename T>
void project_splats_backward(const SplatArrays<T>& splats, const ProjectSettings<T>& settings, std::int64_t visible,
                             const std::int32_t* ids, const T* colors, const FootprintGradients<T>& v,
                             const SplatGradientArrays<T>& out, T* v_viewmat) {
    using L = Batch<T>;
    const View<L> view = make_view(settings);
    ViewPieces pieces(visible);
    with_degree(settings.degree, [&](auto degree) {
        constexpr int Degree = decltype(degree)::value;
        parallel_ranges(visible, kPiece, [&](std::int64_t begin, std::int64_t end) {
            ViewSum<L> sum;
            std::int32_t rows[L::count];
            Coefficients<Degree, L> sh;
            BatchGradient<Degree, L> gradient;
            for (std::int64_t first = begin; first < end; first += L::count) {
                const int valid = pick_rows<L>(ids, first, end, rows);
                const Splat<L> splat = gather_splats<L>(splats, rows);
                gather_coefficients<Degree>(splats, rows, sh);
                backward_batch<Degree>(view, splat, sh, v, colors, first, valid, settings.antialias, {}, gradient);
                store_gradient<Degree, T>(gradient, rows, valid, splats.rest, out);
                sum.add(gradient.view);
            }
            pieces.put(begin, sum);
        });
    });
    pieces.gradient(settings, v_viewmat);
}

}  // namespace

template <typename T>
std::int64_t project_splats(const SplatArrays<T>& splats, const ProjectSettings<T>& settings,
                            const ProjectedArrays<T>& out) {
    const View<Batch<T>> view = make_view(settings);
    std::vector<std::int64_t> counts(std::size_t((splats.count + kPiece - 1) / kPiece));
    with_degree(settings.degree, [&](auto degree) {
        parallel_ranges(splats.count, kPiece, [&](std::int64_t begin, std::int64_t end) {
            const int harmonics = 3 * (sh_count(settings.degree) - 1);
            const std::int64_t count = project_piece(splats, view, settings.antialias, harmonics, begin, end, out);
            counts[std::size_t(begin / kPiece)] =
                shade_piece<decltype(degree)::value>(splats, view, begin, count, out);
        });
    });
    Column columns[8];
    parallel_tasks(columns_of(out, columns), [&](std::int64_t c, int) {
        const Column& column = columns[c];
        std::int64_t to = 0;
        for (std::size_t piece = 0; piece < counts.size(); ++piece) {
            const std::int64_t from = std::int64_t(piece) * kPiece;
            if (from != to)
                std::memmove(column.data + to * column.row, column.data + from * column.row, counts[piece] * column.row);
            to += counts[piece];
        }
    });
    std::int64_t visible = 0;
    for (const std::int64_t count : counts) visible += count;
    return visible;
}

template std::int64_t project_splats<float>(const SplatArrays<float>&, const ProjectSettings<float>&,
                                            const ProjectedArrays<float>&);
template std::int64_t project_splats<double>(const SplatArrays<double>&, const ProjectSettings<double>&,
                                             const ProjectedArrays<double>&);

namespace {

namespace nb = nanobind;

template <typename T, nb::ssize_t... Shape>
using In = Array<const T, nb::shape<Shape...>>;
template <typename T, nb::ssize_t... Shape>
using Out = Array<T, nb::shape<Shape...>>;

// nanobind tries one after the other: a float32 and a float64 version of each function under one name.
template <typename T>
void register_for(nb::module_& m) {
    m.def("project_splats",
          [](In<T, -1, 3> means, In<T, -1, 4> quats, In<T, -1, 3> log_scales, In<T, -1> opacity_logits,
             In<T, -1, 3> sh_dc, In<T, -1, -1, 3> sh_rest, In<T, 4, 4> viewmat, double fx, double fy, double cx,
             double cy, int width, int height, double near, int degree, bool antialias, Out<std::int32_t, -1> ids,
             Out<T, -1, 2> means2d, Out<T, -1, 3> conics, Out<T, -1> opacities, Out<T, -1, 3> colors,
             Out<T, -1> depths, std::optional<Out<T, -1, 3>> normals, Out<T, -1, 2> extents) {
              const SplatArrays<T> splats = {means.data(),          quats.data(), log_scales.data(),
                                             opacity_logits.data(), sh_dc.data(), sh_rest.data(),
                                             std::int64_t(means.shape(0)), int(sh_rest.shape(1))};
              const ProjectSettings<T> settings = {viewmat.data(), fx,   fy,     cx,       cy, width,
                                                   height,         near, degree, antialias};
              const ProjectedArrays<T> out = {ids.data(),    means2d.data(), conics.data(),
                                              opacities.data(), colors.data(), depths.data(),
                                              normals ? normals->data() : nullptr, extents.data()};
              nb::gil_scoped_release unlocked;
              return project_splats<T>(splats, settings, out);
          });
    m.def("project_splats_backward",
          [](In<T, -1, 3> means, In<T, -1, 4> quats, In<T, -1, 3> log_scales, In<T, -1> opacity_logits,
             In<T, -1, 3> sh_dc, In<T, -1, -1, 3> sh_rest, In<T, 4, 4> viewmat, double fx, double fy, double cx,
             double cy, int width, int height, double near, int degree, bool antialias, In<std::int32_t, -1> ids,
             In<T, -1, 3> colors, In<T, -1, 2> v_means2d, In<T, -1, 3> v_conics, In<T, -1> v_opacities,
             In<T, -1, 3> v_colors, std::optional<In<T, -1>> v_depths, std::optional<In<T, -1, 3>> v_normals, Out<T, -1, 3> v_means,
             Out<T, -1, 4> v_quats, Out<T, -1, 3> v_log_scales, Out<T, -1> v_opacity_logits, Out<T, -1, 3> v_sh_dc,
             Out<T, -1, -1, 3> v_sh_rest, Out<T, 4, 4> v_viewmat) {
              const SplatArrays<T> splats = {means.data(),          quats.data(), log_scales.data(),
                                             opacity_logits.data(), sh_dc.data(), sh_rest.data(),
                                             std::int64_t(means.shape(0)), int(sh_rest.shape(1))};
              const ProjectSettings<T> settings = {viewmat.data(), fx,   fy,     cx,       cy, width,
                                                   height,         near, degree, antialias};
              const FootprintGradients<T> v = {v_means2d.data(), v_conics.data(), v_opacities.data(),
                                               v_colors.data(),  v_depths ? v_depths->data() : nullptr,
                                               v_normals ? v_normals->data() : nullptr};
              const SplatGradientArrays<T> out = {v_means.data(),          v_quats.data(), v_log_scales.data(),
                                                  v_opacity_logits.data(), v_sh_dc.data(), v_sh_rest.data()};
              nb::gil_scoped_release unlocked;
              project_splats_backward<T>(splats, settings, std::int64_t(ids.shape(0)), ids.data(), colors.data(), v,
                                         out, v_viewmat.data());
          });
}

}  // namespace

void bind_splat_project(nb::module_& m) {
    register_for<float>(m);
    register_for<double>(m);
}

}  // namespace maquette
