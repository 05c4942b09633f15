// The end of a training step in one pass over what the camera saw: gradient of the projection, Adam, and the
// statistics that densification reads. No gradient by a parameter ever reaches memory.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>
#include <tuple>

#include "cpu/bindings.h"
#include "cpu/parallel.h"
#include "cpu/splat_project.h"
#include "math/adam.h"

namespace maquette {
namespace {

using L = Batch<float>;

// One parameter of all Gaussians with its moments; `width` numbers per row. Moment: float, or unsigned short for the
// bits of bfloat16.
template <typename Moment>
struct Group {
    float* param;
    Moment *exp_avg, *exp_avg_sq;
    int width;
    AdamStep<float> step;
    unsigned count;  // of steps
    bool active;     // a rate of 0 leaves parameter and moments alone
};

AdamStep<L> in_lanes(const AdamStep<float>& s) {
    return {L(s.new1), L(s.beta2), L(s.new2), L(s.rate), L(s.inv_root_bias), L(s.eps)};
}

// Sums over steps since densification last looked: see scene/ops/splat_step.py.
struct StatisticsArrays {
    float* score;
    std::int32_t* seen;
    float* radius;
    const float *v_means2d, *extents;  // of the visible splats
};

template <typename Moment>
struct Update {
    Group<Moment> means, quats, log_scales, opacity_logits, sh_dc, sh_rest;
    Pull pull;
    StatisticsArrays statistics;
};

// The vector of numbers at one place of a parameter and its moments.
struct Span {
    L param, exp_avg, exp_avg_sq;

    MQ_INLINE Span(const Group<float>& group, std::int64_t at)
        : param(L::load(group.param + at)),
          exp_avg(L::load(group.exp_avg + at)),
          exp_avg_sq(L::load(group.exp_avg_sq + at)) {}
    MQ_INLINE void update(const Group<float>& group, std::int64_t at, const float* gradient) {
        adam_update(param, L::load(gradient), exp_avg, exp_avg_sq, in_lanes(group.step));
        param.store(group.param + at), exp_avg.store(group.exp_avg + at), exp_avg_sq.store(group.exp_avg_sq + at);
    }
};

// One row of at least a vector's width, in place. The last vector overlaps the one before: it is read first, so that
// the numbers both hold are updated twice from the same start.
template <int Width>
MQ_INLINE void update_row(const Group<float>& group, std::int64_t at, const float* gradient) {
    constexpr int N = L::count;
    Span last(group, at + Width - N);
    for (int i = 0; i + N < Width; i += N) Span(group, at + i).update(group, at + i, gradient + i);
    last.update(group, at + Width - N, gradient + Width - N);
}

// Rows narrower than a vector, through a copy in which they follow each other.
template <int Width>
MQ_INLINE void update_copied(const Group<float>& group, const std::int32_t* rows, int valid, const float* gradient) {
    constexpr int N = L::count;
    float* const arrays[3] = {group.param, group.exp_avg, group.exp_avg_sq};
    alignas(kVectorBytes) float copies[3][Width * N];
    for (int a = 0; a < 3; ++a)
        for (int lane = 0; lane < N; ++lane)
            std::memcpy(copies[a] + lane * Width, arrays[a] + std::int64_t(rows[lane]) * group.width,
                        Width * sizeof(float));
    const Group<float> copied = {copies[0], copies[1], copies[2], Width, group.step, 0, true};
    for (int i = 0; i < Width * N; i += N) Span(copied, i).update(copied, i, gradient + i);
    for (int a = 0; a < 3; ++a)
        for (int lane = 0; lane < valid; ++lane)
            std::memcpy(arrays[a] + std::int64_t(rows[lane]) * group.width, copies[a] + lane * Width,
                        Width * sizeof(float));
}

// Adam on the first `Width` numbers of `valid` rows; gradient: [rows][Width].
template <int Width>
MQ_INLINE void update_group(const Group<float>& group, const std::int32_t* rows, int valid, const float* gradient) {
    constexpr int N = L::count;
    if (group.width == Width && valid == N && rows[N - 1] - rows[0] == N - 1) {
        const std::int64_t first = std::int64_t(rows[0]) * Width;
        for (int i = 0; i < Width * N; i += N) Span(group, first + i).update(group, first + i, gradient + i);
    } else if constexpr (Width >= N) {
        for (int lane = 0; lane < valid; ++lane)
            update_row<Width>(group, std::int64_t(rows[lane]) * group.width, gradient + lane * Width);
    } else {
        update_copied<Width>(group, rows, valid, gradient);
    }
}

// The same with moments of 16 bits, a number after the other for the compiler to put side by side.
template <int Width>
MQ_INLINE void update_group(const Group<unsigned short>& group, const std::int32_t* rows, int valid,
                            const float* gradient) {
    for (int lane = 0; lane < valid; ++lane) {
        const std::int64_t at = std::int64_t(rows[lane]) * group.width;
        float* __restrict param = group.param + at;
        unsigned short *__restrict exp_avg = group.exp_avg + at, *__restrict exp_avg_sq = group.exp_avg_sq + at;
#pragma GCC ivdep
        for (int i = 0; i < Width; ++i) {
            float average = wide(exp_avg[i]), square = wide(exp_avg_sq[i]);
            adam_update(param[i], gradient[lane * Width + i], average, square, group.step);
            const unsigned word = rounding_word(unsigned(at) + unsigned(i), group.count);
            narrow(average, word & 0xffffu, exp_avg[i]), narrow(square, word >> 16, exp_avg_sq[i]);
        }
    }
}

// The same from a gradient whose components lie in lanes.
template <int Width, typename Moment>
MQ_INLINE void update_lanes(const Group<Moment>& group, const std::int32_t* rows, int valid, const L* gradient) {
    if (!group.active) return;
    alignas(kVectorBytes) float by_row[Width * L::count];
    std::int32_t places[L::count];
    std::iota(places, places + L::count, 0);
    scatter_rows<Width>(by_row, Width, places, L::count, gradient);
    update_group<Width>(group, rows, valid, by_row);
}

template <int Degree, typename Moment>
void update_batch(const BatchGradient<Degree, L>& g, const Update<Moment>& update, const std::int32_t* rows,
                  int valid) {
    const Splat<L>& s = g.splat;
    const L mean[3] = {s.mean.x, s.mean.y, s.mean.z}, quat[4] = {s.quat.w, s.quat.x, s.quat.y, s.quat.z},
            scales[3] = {s.log_scales.x, s.log_scales.y, s.log_scales.z},
            dc[3] = {g.basis[0] * g.color.x, g.basis[0] * g.color.y, g.basis[0] * g.color.z};
    update_lanes<3>(update.means, rows, valid, mean);
    update_lanes<4>(update.quats, rows, valid, quat);
    update_lanes<3>(update.log_scales, rows, valid, scales);
    update_lanes<1>(update.opacity_logits, rows, valid, &s.opacity_logit);
    update_lanes<3>(update.sh_dc, rows, valid, dc);
    if constexpr (Degree > 0) {
        constexpr int count = sh_count(Degree) - 1;
        L rest[3 * count];
        for (int k = 0; k < count; ++k) {
            rest[3 * k] = g.basis[k + 1] * g.color.x;
            rest[3 * k + 1] = g.basis[k + 1] * g.color.y;
            rest[3 * k + 2] = g.basis[k + 1] * g.color.z;
        }
        update_lanes<3 * count>(update.sh_rest, rows, valid, rest);
    }
}

// Asks for the rows of a later batch: what the camera saw lies in rows with gaps, which defeat the processor's own
// guess, and eighteen arrays are more than it follows.
template <typename T>
MQ_INLINE void prefetch_rows(const T* array, int width, const std::int32_t* rows) {
    for (int lane = 0; lane < L::count; ++lane) {
        const T* row = array + std::int64_t(rows[lane]) * width;
        for (int i = 0; i < width; i += 64 / int(sizeof(T))) __builtin_prefetch(row + i);
    }
}

template <typename Moment>
MQ_INLINE void prefetch_rows(const Group<Moment>& group, const std::int32_t* rows) {
    prefetch_rows(group.param, group.width, rows);
    if (!group.active) return;
    prefetch_rows(group.exp_avg, group.width, rows);
    prefetch_rows(group.exp_avg_sq, group.width, rows);
}

void add_statistics(const StatisticsArrays& s, const std::int32_t* ids, std::int64_t begin, std::int64_t end,
                    const ProjectSettings<float>& settings) {
    const float half_width = 0.5f * float(settings.width), half_height = 0.5f * float(settings.height);
    for (std::int64_t i = begin; i < end; ++i) {
        const std::int32_t id = ids[i];
        const float x = half_width * s.v_means2d[2 * i], y = half_height * s.v_means2d[2 * i + 1];
        s.score[id] += std::sqrt(x * x + y * y);
        s.seen[id] += 1;
        s.radius[id] = maximum(s.radius[id], maximum(s.extents[2 * i], s.extents[2 * i + 1]));
    }
}

template <typename Moment>
void update_splats(const SplatArrays<float>& splats, const ProjectSettings<float>& settings, std::int64_t visible,
                   const std::int32_t* ids, const float* colors, const FootprintGradients<float>& v,
                   const Update<Moment>& update) {
    const View<L> view = make_view(settings);
    with_degree(settings.degree, [&](auto degree) {
        constexpr int Degree = decltype(degree)::value;
        parallel_ranges(visible, kPiece, [&](std::int64_t begin, std::int64_t end) {
            std::int32_t rows[L::count], next[L::count];
            Coefficients<Degree, L> sh;
            BatchGradient<Degree, L> gradient;
            for (std::int64_t first = begin; first < end; first += L::count) {
                const int valid = pick_rows<L>(ids, first, end, rows);
                pick_rows<L>(ids, first + L::count < end ? first + L::count : first, end, next);
                for (const Group<Moment>* group : {&update.means, &update.quats, &update.log_scales,
                                                   &update.opacity_logits, &update.sh_dc, &update.sh_rest})
                    prefetch_rows(*group, next);
                const Splat<L> splat = gather_splats<L>(splats, rows);
                gather_coefficients<Degree>(splats, rows, sh);
                backward_batch<Degree>(view, splat, sh, v, colors, first, valid, settings.antialias, update.pull,
                                       gradient);
                update_batch<Degree>(gradient, update, rows, valid);
            }
            add_statistics(update.statistics, ids, begin, end, settings);
        });
    });
}

namespace nb = nanobind;

template <typename T, nb::ssize_t... Shape>
using In = Array<const T, nb::shape<Shape...>>;
template <typename T, nb::ssize_t... Shape>
using Out = Array<T, nb::shape<Shape...>>;
// A parameter or a moment of each group, in the order of scene.gaussians.Gaussians.
template <typename T>
using Groups = std::tuple<Out<T, -1, 3>, Out<T, -1, 4>, Out<T, -1, 3>, Out<T, -1>, Out<T, -1, 3>, Out<T, -1, -1, 3>>;
using Rates = std::tuple<double, double, double, double, double, double>;

template <typename Moment>
struct Adam {
    Groups<float>* params;
    Groups<Moment> *exp_avg, *exp_avg_sq;
    const Rates* rates;
    std::int64_t step;
    double beta1, beta2, eps;

    template <std::size_t I>
    Group<Moment> group() const {
        auto &param = std::get<I>(*params), &first = std::get<I>(*exp_avg), &second = std::get<I>(*exp_avg_sq);
        if (first.size() != param.size() || second.size() != param.size() ||
            param.shape(0) != std::get<0>(*params).shape(0))
            throw nb::value_error("parameters and moments must agree in shape");
        return {param.data(), first.data(), second.data(),
                int(param.shape(0) ? param.size() / param.shape(0) : 0),
                adam_step<float>(step, std::get<I>(*rates), beta1, beta2, eps),
                unsigned(step & 0x7fffffff),
                std::get<I>(*rates) != 0};
    }
};

template <typename Moment>
void update(Groups<float> params, Groups<Moment> exp_avg, Groups<Moment> exp_avg_sq, Rates rates, double beta1,
            double beta2, double eps, std::int64_t step, double opacity_pull, double scale_pull,
            In<float, 4, 4> viewmat, double fx, double fy, double cx, double cy, int width, int height, double near, int degree, bool antialias,
            In<std::int32_t, -1> ids, In<float, -1, 3> colors, In<float, -1, 2> extents, In<float, -1, 2> v_means2d,
            In<float, -1, 3> v_conics, In<float, -1> v_opacities, In<float, -1, 3> v_colors,
            std::optional<In<float, -1>> v_depths, std::optional<In<float, -1, 3>> v_normals,
            In<float, -1, 2> v_score, Out<float, -1> score,
            Out<std::int32_t, -1> seen, Out<float, -1> radius) {
    const Adam<Moment> adam = {&params, &exp_avg, &exp_avg_sq, &rates, step, beta1, beta2, eps};
    const Update<Moment> to = {adam.template group<0>(), adam.template group<1>(), adam.template group<2>(),
                               adam.template group<3>(), adam.template group<4>(), adam.template group<5>(),
                               {opacity_pull, scale_pull},
                               {score.data(), seen.data(), radius.data(), v_score.data(), extents.data()}};
    const std::int64_t count = std::int64_t(std::get<0>(params).shape(0)), visible = std::int64_t(ids.shape(0));
    if (std::int64_t(score.size()) != count || std::int64_t(seen.size()) != count ||
        std::int64_t(radius.size()) != count)
        throw nb::value_error("statistics must have one number per Gaussian");
    if (visible && (ids.data()[0] < 0 || ids.data()[visible - 1] >= count))
        throw nb::value_error("ids must lie within the Gaussians");
    const SplatArrays<float> splats = {to.means.param,  to.quats.param,   to.log_scales.param, to.opacity_logits.param,
                                       to.sh_dc.param, to.sh_rest.param, count,               to.sh_rest.width / 3};
    const ProjectSettings<float> settings = {viewmat.data(), fx, fy, cx, cy, width, height, near, degree, antialias};
    const FootprintGradients<float> v = {v_means2d.data(), v_conics.data(), v_opacities.data(),
                                         v_colors.data(),  v_depths ? v_depths->data() : nullptr,
                                         v_normals ? v_normals->data() : nullptr};
    nb::gil_scoped_release unlocked;
    update_splats(splats, settings, visible, ids.data(), colors.data(), v, to);
}

}  // namespace

void bind_splat_update(nb::module_& m) {
    const char* about = "Gradient of the projection, sparse Adam and densification statistics in one pass; in place.";
    m.def("update_splats", &update<float>, about);
    m.def("update_splats", &update<unsigned short>, about);  // moments as the bits of bfloat16
}

}  // namespace maquette
