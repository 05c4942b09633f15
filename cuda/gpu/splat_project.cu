// Projection forward and backward, a thread per splat. Maths: math/splat_project.h and math/splat_shade.h.
//
// Forward writes all N rows; what is not seen is a row of zeros at infinite depth, and its harmonics are never read.
// Backward takes the visible splats; the camera's gradient is summed per block and then over blocks, both in a fixed
// order, so that equal inputs give equal bits.
#include "gpu/device.h"
#include "gpu/splat_rows.h"

using namespace maquette;

namespace {

constexpr float kLeastExtent = 1e-30f;  // px; an extent of 0 says that the splat is not seen
constexpr int kSumColumns = 16;         // room of one block's sums: kViewSums and one more, so that rows align
constexpr int kSumParts = 8;            // of a block's splats, summed at once
constexpr int kSumThreads = 1024;       // of the one block that adds up all the others

}  // namespace

MQ_KERNEL __launch_bounds__(kSplats) project_dense(
    const float* means, const float* quats, const float* log_scales, const float* opacity_logits, const float* sh_dc,
    const float* sh_rest, int count, int rest, const float* viewmat, float fx, float fy, float cx, float cy, int width,
    int height, float near_z, int degree, int antialias, int* ids, float* means2d, float* conics, float* opacities,
    float* colors, float* depths, float* normals, float* extents) {
    __shared__ float harmonics[kSplats * kShared];
    __shared__ int rows[kSplats];
    const SplatPointers splats = {means, quats, log_scales, opacity_logits, sh_dc, sh_rest, rest};
    const View<float> view = View<float>::make(viewmat, fx, fy, cx, cy, width, height, near_z);
    const int row = int(blockIdx.x) * kSplats + int(threadIdx.x);

    Splat<float> splat = {};
    Footprint<float> out = {};
    Extent<float> extent = {};
    Vec3<float> normal = {}, color = {};
    bool seen = false;
    if (row < count) {
        splat = load_splat(splats, row);
        const Projection<float> p = project_splat(view, splat, antialias != 0);
        extent = extent_of(p);
        seen = is_seen(view, splat, p, extent);
        out = p.out;
        if (normals) normal = normal_of(p.axes, splat.log_scales, splat.mean - view.center).direction;
    }
    rows[threadIdx.x] = seen ? row : -1;
    __syncthreads();
    with_degree(degree, [&](auto constant) {
        constexpr int Degree = decltype(constant)::value;
        load_harmonics<Degree>(splats, rows, harmonics);
        __syncthreads();
        if (!seen) return;
        const Sight<Degree, float> sight(view, splat.mean);
        color = sight.color(harmonics_of(harmonics, int(threadIdx.x)));
    });
    if (row >= count) return;

    const float channels[3] = {color.x, color.y, color.z};
    seen = seen && finite(channels, 3);
    if (ids) ids[row] = row;
    means2d[2LL * row] = seen ? out.mean_x : 0.0f, means2d[2LL * row + 1] = seen ? out.mean_y : 0.0f;
    const Vec3<float> zero = {}, conic = {out.conic_xx, out.conic_xy, out.conic_yy};
    const Vec3<float> clamped = {maximum(color.x, 0.0f), maximum(color.y, 0.0f), maximum(color.z, 0.0f)};
    store3(conics, row, select(seen, conic, zero));
    opacities[row] = seen ? out.opacity : 0.0f;
    store3(colors, row, select(seen, clamped, zero));
    depths[row] = seen ? out.depth : __int_as_float(0x7f800000);  // infinity
    if (normals) store3(normals, row, select(seen, normal, zero));
    extents[2LL * row] = seen ? maximum(extent.x, kLeastExtent) : 0.0f;
    extents[2LL * row + 1] = seen ? maximum(extent.y, kLeastExtent) : 0.0f;
}

// Adds up what the block's splats say of the camera, in their order: 8 parts of 16 splats, then the parts.
__device__ inline void sum_view(float* shared, float* sums) {
    constexpr int part_size = kSplats / kSumParts;
    const int part = int(threadIdx.x) / kViewSums, column = int(threadIdx.x) - part * kViewSums;
    if (part < kSumParts) {
        float* first = shared + part * part_size * kShared + kView + column;
        float sum = 0;
        for (int i = 0; i < part_size; ++i) sum += first[i * kShared];
        *first = sum;
    }
    __syncthreads();
    if (threadIdx.x < kSumColumns) {
        float sum = 0;
        if (threadIdx.x < kViewSums)
            for (int i = 0; i < kSumParts; ++i) sum += shared[i * part_size * kShared + kView + int(threadIdx.x)];
        sums[kSumColumns * blockIdx.x + threadIdx.x] = sum;
    }
}

// ids: rows of the `visible` splats. sums: kSumColumns numbers per block, for sum_view_gradient.
MQ_KERNEL __launch_bounds__(kSplats) project_backward(
    const float* means, const float* quats, const float* log_scales, const float* opacity_logits, const float* sh_dc,
    const float* sh_rest, int rest, const float* viewmat, float fx, float fy, float cx, float cy, int width, int height,
    float near_z, int degree, int antialias, const int* ids, int visible, const float* colors, const float* v_means2d,
    const float* v_conics, const float* v_opacities, const float* v_colors, const float* v_depths,
    const float* v_normals, float* v_means, float* v_quats, float* v_log_scales, float* v_opacity_logits,
    float* v_sh_dc, float* v_sh_rest, float* sums) {
    __shared__ float shared[kSplats * kShared];
    __shared__ int rows[kSplats];
    const SplatPointers splats = {means, quats, log_scales, opacity_logits, sh_dc, sh_rest, rest};
    const FootprintPointers v = {v_means2d, v_conics, v_opacities, v_colors, v_depths, v_normals};
    const int at = int(blockIdx.x) * kSplats + int(threadIdx.x), row = at < visible ? ids[at] : -1;
    float* own = shared + kShared * int(threadIdx.x);
    rows[threadIdx.x] = row;
    __syncthreads();
    with_degree(degree, [&](auto constant) {
        constexpr int Degree = decltype(constant)::value;
        load_harmonics<Degree>(splats, rows, shared);
        __syncthreads();
        if (row >= 0) {
            const View<float> view = View<float>::make(viewmat, fx, fy, cx, cy, width, height, near_z);
            splat_backward<Degree>(view, load_splat(splats, row), colors, v, at, antialias != 0, {0, 0}, true, own);
        } else {
            for (int i = 0; i < kViewSums; ++i) own[kView + i] = 0;
        }
        __syncthreads();
        if constexpr (Degree > 0)
            walk_rows<3 * (sh_count(Degree) - 1)>(rows, [&](int splat, int to, int column) {
                v_sh_rest[3LL * rest * to + column] = harmonic_gradient(shared + kShared * splat, column + 3);
            });
    });
    const auto write = [&](auto width_of_row, float* to_rows, int offset) {
        constexpr int Width = decltype(width_of_row)::value;
        walk_rows<Width>(rows, [&](int splat, int to, int column) {
            to_rows[(long long)Width * to + column] = shared[kShared * splat + offset + column];
        });
    };
    write(Constant<3>(), v_means, kMean);
    write(Constant<4>(), v_quats, kQuat);
    write(Constant<3>(), v_log_scales, kLogScales);
    write(Constant<1>(), v_opacity_logits, kLogit);
    walk_rows<3>(rows, [&](int splat, int to, int column) {
        v_sh_dc[3LL * to + column] = harmonic_gradient(shared + kShared * splat, column);
    });
    sum_view(shared, sums);
}

// One block: v_viewmat from the sums of all blocks. The centre is -rotation^T translation.
MQ_KERNEL __launch_bounds__(kSumThreads) sum_view_gradient(const float* sums, int blocks, const float* viewmat,
                                                           float* v_viewmat) {
    constexpr int lines = kSumThreads / kSumColumns;
    __shared__ double shared[kSumThreads];
    const int column = int(threadIdx.x) % kSumColumns;
    double sum = 0;
    for (int block = int(threadIdx.x) / kSumColumns; block < blocks; block += lines)
        sum += sums[(long long)kSumColumns * block + column];
    shared[threadIdx.x] = sum;
    __syncthreads();
    for (int half = kSumThreads / 2; half >= kSumColumns; half /= 2) {
        if (int(threadIdx.x) < half) shared[threadIdx.x] += shared[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x >= 16) return;
    const int row = int(threadIdx.x) / 4, place = int(threadIdx.x) % 4;
    const double* v_center = shared + 12;
    double v = 0;
    if (row < 3 && place < 3) {
        v = shared[3 * row + place] - double(viewmat[4 * row + 3]) * v_center[place];
    } else if (row < 3) {
        v = shared[9 + row];
        for (int i = 0; i < 3; ++i) v -= double(viewmat[4 * row + i]) * v_center[i];
    }
    v_viewmat[threadIdx.x] = float(v);
}
