// The end of a training step in one pass over the splats: gradient of the projection, Adam, and the statistics that
// densification reads. No gradient by a parameter ever reaches memory.
//
// First a thread per splat works out its gradient, which stays in shared memory. Then the block walks the numbers of
// its rows, group by group, in the order in which they lie in memory, and moves each by Adam.
#include "gpu/device.h"
#include "gpu/splat_rows.h"
#include "math/adam.h"

using namespace maquette;

namespace {

// Adds one step of one splat to what densification sums up; see Statistics in scene/ops/splat_step.py.
__device__ inline void add_statistics(int row, int at, int width, int height, const float* v_score,
                                      const float* extents, float* score, int* seen, float* radius) {
    const float x = 0.5f * float(width) * v_score[2LL * at], y = 0.5f * float(height) * v_score[2LL * at + 1];
    score[row] += sqrtf(x * x + y * y);
    seen[row] += 1;
    radius[row] = maximum(radius[row], maximum(extents[2LL * at], extents[2LL * at + 1]));
}

// One parameter and its moments, for all Gaussians; `width` numbers per row. Moment: float, or unsigned short for the
// bits of bfloat16.
template <typename Moment>
struct Group {
    float* param;
    Moment *exp_avg, *exp_avg_sq;
    int width;
    float rate;  // already divided by Adam's first bias; 0 leaves parameter and moments alone
};

template <typename Moment>
struct Groups {
    Group<Moment> means, quats, log_scales, opacity_logits, sh_dc, sh_rest;
};

struct Adam {
    AdamStep<float> constants;
    unsigned step;
};

struct Shot {
    const float* viewmat;
    float fx, fy, cx, cy;
    int width, height;
    float near_z;
    int degree;
    bool antialias;
};

// Which of the block's splats were seen, and where they lie.
struct Seen {
    int at, row;      // this thread's: row of the footprints, and of the Gaussians or -1
    const int* rows;  // of all threads
};

// Adam on the first Width numbers of the block's rows. gradient(splat of the block, column)
//
// Each thread asks for a handful of numbers before it works on the first: the compiler may not, since what it writes
// could be what it reads next.
template <int Width, typename Moment, typename Gradient>
__device__ inline void update_group(const Group<Moment>& group, const Adam& adam, const int* rows,
                                    const Gradient& gradient) {
    constexpr int at_once = Width % 5 == 0 ? 5 : Width % 3 == 0 ? 3 : Width;
    if (group.rate == 0) return;
    AdamStep<float> step = adam.constants;
    step.rate = group.rate;
    for (int first = int(threadIdx.x); first < Width * kSplats; first += at_once * kSplats) {
        float p[at_once];
        Moment m[at_once], v[at_once];
        long long at[at_once];
#pragma unroll
        for (int j = 0; j < at_once; ++j) {
            const int i = first + j * kSplats, row = rows[i / Width];
            at[j] = row < 0 ? -1 : (long long)group.width * row + i % Width;
            if (row >= 0) p[j] = group.param[at[j]], m[j] = group.exp_avg[at[j]], v[j] = group.exp_avg_sq[at[j]];
        }
#pragma unroll
        for (int j = 0; j < at_once; ++j) {
            if (at[j] < 0) continue;
            const int i = first + j * kSplats;
            float average = wide(m[j]), square = wide(v[j]);
            adam_update(p[j], gradient(i / Width, i % Width), average, square, step);
            const unsigned word = rounding_word(unsigned(at[j]), adam.step);
            narrow(average, word & 0xffffu, m[j]), narrow(square, word >> 16, v[j]);
            group.param[at[j]] = p[j], group.exp_avg[at[j]] = m[j], group.exp_avg_sq[at[j]] = v[j];
        }
    }
}

template <typename Moment>
__device__ inline void update_block(float* shared, const Seen& seen, const Groups<Moment>& groups, const Adam& adam,
                                    const Pull& pull, const Shot& shot, const SplatPointers& splats,
                                    const float* colors, const FootprintPointers& v) {
    with_degree(shot.degree, [&](auto constant) {
        constexpr int Degree = decltype(constant)::value;
        load_harmonics<Degree>(splats, seen.rows, shared);
        __syncthreads();
        if (seen.row >= 0) {
            const View<float> view = View<float>::make(shot.viewmat, shot.fx, shot.fy, shot.cx, shot.cy, shot.width,
                                                       shot.height, shot.near_z);
            splat_backward<Degree>(view, load_splat(splats, seen.row), colors, v, seen.at, shot.antialias, pull, false,
                                   shared + kShared * int(threadIdx.x));
        }
        __syncthreads();
        if constexpr (Degree > 0)
            update_group<3 * (sh_count(Degree) - 1)>(groups.sh_rest, adam, seen.rows, [&](int splat, int column) {
                return harmonic_gradient(shared + kShared * splat, column + 3);
            });
    });
    const auto stored = [&](int offset) {
        return [=](int splat, int column) { return shared[kShared * splat + offset + column]; };
    };
    update_group<3>(groups.means, adam, seen.rows, stored(kMean));
    update_group<4>(groups.quats, adam, seen.rows, stored(kQuat));
    update_group<3>(groups.log_scales, adam, seen.rows, stored(kLogScales));
    update_group<1>(groups.opacity_logits, adam, seen.rows, stored(kLogit));
    update_group<3>(groups.sh_dc, adam, seen.rows, [&](int splat, int column) {
        return harmonic_gradient(shared + kShared * splat, column);
    });
}

}  // namespace

// ids: rows of the Gaussians to which the `visible` rows of the other arrays belong; null when they are the same rows.
// A row whose extents are 0 was not seen and is left alone. *_rate: already divided by Adam's first bias.
#define MQ_UPDATE_SPLATS(name, Moment)                                                                                 \
    MQ_KERNEL __launch_bounds__(kSplats, 5) name(                                                                      \
        float* means, float* quats, float* log_scales, float* opacity_logits, float* sh_dc, float* sh_rest,            \
        Moment* means_m, Moment* quats_m, Moment* log_scales_m, Moment* opacity_logits_m, Moment* sh_dc_m,             \
        Moment* sh_rest_m, Moment* means_v, Moment* quats_v, Moment* log_scales_v, Moment* opacity_logits_v,           \
        Moment* sh_dc_v, Moment* sh_rest_v, int rest, float means_rate, float quats_rate, float log_scales_rate,       \
        float opacity_logits_rate, float sh_dc_rate, float sh_rest_rate, float new1, float beta2, float new2,          \
        float inv_root_bias, float eps, int step, float opacity_pull, float scale_pull, const float* viewmat,          \
        float fx, float fy, float cx, float cy, int width, int height, float near_z, int degree, int antialias,        \
        const int* ids, int visible, const float* colors, const float* extents, const float* v_means2d,                \
        const float* v_conics, const float* v_opacities, const float* v_colors, const float* v_depths,                 \
        const float* v_normals, const float* v_score, float* score, int* seen, float* radius) {                        \
        __shared__ float shared[kSplats * kShared];                                                                    \
        __shared__ int rows[kSplats];                                                                                  \
        const int at = int(blockIdx.x) * kSplats + int(threadIdx.x);                                                   \
        int row = -1;                                                                                                  \
        if (at < visible && extents[2LL * at] > 0) row = ids ? ids[at] : at;                                           \
        rows[threadIdx.x] = row;                                                                                       \
        if (row >= 0) add_statistics(row, at, width, height, v_score, extents, score, seen, radius);                   \
        __syncthreads();                                                                                               \
        update_block<Moment>(shared, {at, row, rows},                                                                  \
                             {{means, means_m, means_v, 3, means_rate},                                                \
                              {quats, quats_m, quats_v, 4, quats_rate},                                                \
                              {log_scales, log_scales_m, log_scales_v, 3, log_scales_rate},                            \
                              {opacity_logits, opacity_logits_m, opacity_logits_v, 1, opacity_logits_rate},            \
                              {sh_dc, sh_dc_m, sh_dc_v, 3, sh_dc_rate},                                                \
                              {sh_rest, sh_rest_m, sh_rest_v, 3 * rest, sh_rest_rate}},                                \
                             {{new1, beta2, new2, 0.0f, inv_root_bias, eps}, unsigned(step)},                          \
                             {opacity_pull, scale_pull},                                                               \
                             {viewmat, fx, fy, cx, cy, width, height, near_z, degree, antialias != 0},                 \
                             {means, quats, log_scales, opacity_logits, sh_dc, sh_rest, rest}, colors,                 \
                             {v_means2d, v_conics, v_opacities, v_colors, v_depths, v_normals});                       \
    }

MQ_UPDATE_SPLATS(update_splats, float)
MQ_UPDATE_SPLATS(update_splats_bfloat16, unsigned short)
