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

// One parameter and its moments, for all Gaussians; `width` numbers per row.
struct Group {
    float *param, *exp_avg, *exp_avg_sq;
    int width;
};

// Adam on the first Width numbers of the block's rows. gradient(splat of the block, column)
//
// Each thread asks for a handful of numbers before it works on the first: the compiler may not, since what it writes
// could be what it reads next.
template <int Width, typename Gradient>
__device__ inline void update_group(const Group& group, AdamStep<float> step, float rate, const int* rows,
                                    const Gradient& gradient) {
    constexpr int at_once = Width % 5 == 0 ? 5 : Width % 3 == 0 ? 3 : Width;
    if (rate == 0) return;  // leaves parameter and moments alone
    step.rate = rate;
    for (int first = int(threadIdx.x); first < Width * kSplats; first += at_once * kSplats) {
        float p[at_once], m[at_once], v[at_once];
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
            adam_update(p[j], gradient(i / Width, i % Width), m[j], v[j], step);
            group.param[at[j]] = p[j], group.exp_avg[at[j]] = m[j], group.exp_avg_sq[at[j]] = v[j];
        }
    }
}

}  // namespace

// ids: rows of the Gaussians to which the `visible` rows of the other arrays belong; null when they are the same rows.
// A row whose extents are 0 was not seen and is left alone. *_rate: already divided by Adam's first bias.
MQ_KERNEL __launch_bounds__(kSplats, 5) update_splats(
    float* means, float* quats, float* log_scales, float* opacity_logits, float* sh_dc, float* sh_rest, float* means_m,
    float* quats_m, float* log_scales_m, float* opacity_logits_m, float* sh_dc_m, float* sh_rest_m, float* means_v,
    float* quats_v, float* log_scales_v, float* opacity_logits_v, float* sh_dc_v, float* sh_rest_v, int rest,
    float means_rate, float quats_rate, float log_scales_rate, float opacity_logits_rate, float sh_dc_rate,
    float sh_rest_rate, float new1, float beta2, float new2, float inv_root_bias, float eps, float opacity_pull,
    float scale_pull, const float* viewmat, float fx, float fy, float cx, float cy, int width, int height, float near_z,
    int degree, int antialias, const int* ids, int visible, const float* colors, const float* extents,
    const float* v_means2d, const float* v_conics, const float* v_opacities, const float* v_colors,
    const float* v_depths, const float* v_normals, const float* v_score, float* score, int* seen, float* radius) {
    __shared__ float shared[kSplats * kShared];
    __shared__ int rows[kSplats];
    const SplatPointers splats = {means, quats, log_scales, opacity_logits, sh_dc, sh_rest, rest};
    const FootprintPointers v = {v_means2d, v_conics, v_opacities, v_colors, v_depths, v_normals};
    const int at = int(blockIdx.x) * kSplats + int(threadIdx.x);
    int row = -1;
    if (at < visible && extents[2LL * at] > 0) row = ids ? ids[at] : at;
    rows[threadIdx.x] = row;
    if (row >= 0) add_statistics(row, at, width, height, v_score, extents, score, seen, radius);
    __syncthreads();

    const AdamStep<float> step = {new1, beta2, new2, 0.0f, inv_root_bias, eps};
    with_degree(degree, [&](auto constant) {
        constexpr int Degree = decltype(constant)::value;
        load_harmonics<Degree>(splats, rows, shared);
        __syncthreads();
        if (row >= 0) {
            const View<float> view = View<float>::make(viewmat, fx, fy, cx, cy, width, height, near_z);
            splat_backward<Degree>(view, load_splat(splats, row), colors, v, at, antialias != 0,
                                   {opacity_pull, scale_pull}, false, shared + kShared * int(threadIdx.x));
        }
        __syncthreads();
        if constexpr (Degree > 0)
            update_group<3 * (sh_count(Degree) - 1)>(
                {sh_rest, sh_rest_m, sh_rest_v, 3 * rest}, step, sh_rest_rate, rows, [&](int splat, int column) {
                    return harmonic_gradient(shared + kShared * splat, column + 3);
                });
    });
    const auto stored = [&](int offset) {
        return [=](int splat, int column) { return shared[kShared * splat + offset + column]; };
    };
    update_group<3>({means, means_m, means_v, 3}, step, means_rate, rows, stored(kMean));
    update_group<4>({quats, quats_m, quats_v, 4}, step, quats_rate, rows, stored(kQuat));
    update_group<3>({log_scales, log_scales_m, log_scales_v, 3}, step, log_scales_rate, rows, stored(kLogScales));
    update_group<1>({opacity_logits, opacity_logits_m, opacity_logits_v, 1}, step, opacity_logits_rate, rows,
                    stored(kLogit));
    update_group<3>({sh_dc, sh_dc_m, sh_dc_v, 3}, step, sh_dc_rate, rows, [&](int splat, int column) {
        return harmonic_gradient(shared + kShared * splat, column);
    });
}
