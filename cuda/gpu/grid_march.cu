// Rays through a density grid: what of it they see, packed; and the gradient by what was interpolated. The maths is in
// math/grid_density.h and math/ray_samples.h.
//
// A warp takes a ray and its lanes 32 samples in a row, which lie side by side in the grid: a block of them in free
// space costs a bit each and a vote, and the light before a sample is a product over the lanes below. Each ray is
// walked twice, to count and, when all know where theirs begin, to write. The same kernel does both: two that the
// compiler rounds differently could disagree about a sample at a threshold.
#include "gpu/device.h"
#include "math/grid_density.h"
#include "math/ray_samples.h"
#include "math/trilinear.h"

namespace maquette {

constexpr int kThreads = 128;  // four rays

struct DensityGrid {
    const float* density;           // [X, Y, Z]
    const float* shifts;            // [Z]
    const unsigned char* occupied;  // [X, Y, ceil(Z / 8)]
    GridSize size;

    __device__ bool holds(int x, int y, int z) const {
        const long long row = (long long)x * size.y + y;
        return __ldg(occupied + row * ((size.z + 7) / 8) + z / 8) >> (z % 8) & 1;
    }
};

struct RayPointers {
    const float *origins, *directions, *starts;
    const int* counts;
    const float* distances;  // null: straight
    int most;                // of them
    const float* affine;     // [2, 3] scale and offset
    float shell, spacing;
};

__device__ inline Vec3<float> vector_at(const float* from, int row) {
    const float* at = from + 3LL * row;
    return {at[0], at[1], at[2]};
}

// Which of 32 samples of a bent ray are taken: those in the inner cube, and of the others one per `spacing`. A lane has
// the contracted place of its sample; `last` and `since` go from block to block.
__device__ inline unsigned samples_apart(const Vec3<float>& bent, float spacing, Vec3<float>& last, float& since) {
    const Vec3<float> below = {__shfl_up_sync(kAllLanes, bent.x, 1), __shfl_up_sync(kAllLanes, bent.y, 1),
                               __shfl_up_sync(kAllLanes, bent.z, 1)};
    const Vec3<float> way = bent - (threadIdx.x % kWarp == 0 ? last : below);
    const float moved = sqrtf(dot(way, way));
    last = {__shfl_sync(kAllLanes, bent.x, kWarp - 1), __shfl_sync(kAllLanes, bent.y, kWarp - 1),
            __shfl_sync(kAllLanes, bent.z, kWarp - 1)};
    const float farthest = fmaxf(fmaxf(fabsf(bent.x), fabsf(bent.y)), fabsf(bent.z));
    const unsigned inner = __ballot_sync(kAllLanes, farthest <= 1.0f);
    if (inner == kAllLanes) return since = 0.0f, kAllLanes;
    unsigned taken = 0;
    for (int lane = 0; lane < kWarp; ++lane) {
        since += __shfl_sync(kAllLanes, moved, lane);
        if (!(inner >> lane & 1) && since <= spacing) continue;
        taken |= 1u << lane;
        since = 0.0f;
    }
    return taken;
}

// Calls visit(i, candidate, place) in blocks of 32 samples of which any is a candidate; a lane has sample i. Stops when
// visit says so. All lanes take the same way.
template <typename Visit>
__device__ inline void each_block(const DensityGrid& grid, const RayPointers& rays, int ray, const Visit& visit) {
    const int lane = int(threadIdx.x) % kWarp, count = rays.counts[ray];
    const Vec3<float> origin = vector_at(rays.origins, ray), direction = vector_at(rays.directions, ray);
    const float start = rays.starts[ray];
    Vec3<float> last = {0, 0, 0};
    float since = 0;
    for (int first = 0; first < count; first += kWarp) {
        const int i = first + lane;
        Vec3<float> place;
        bool candidate = i < count;
        if (rays.distances) {
            const float t = __ldg(rays.distances + (i < rays.most ? i : rays.most - 1));
            const Vec3<float> bent = contract(origin + t * direction, rays.shell);
            candidate = (samples_apart(bent, rays.spacing, last, since) >> lane & 1) && candidate;
            place = bent * vector_at(rays.affine, 0) + vector_at(rays.affine, 1);
        } else {
            place = origin + (start + float(i)) * direction;
        }
        int x, y, z;
        candidate = candidate && nearest_on_axis(place.x, grid.size.x, x) && nearest_on_axis(place.y, grid.size.y, y) &&
                    nearest_on_axis(place.z, grid.size.z, z) && grid.holds(x, y, z);
        if (__any_sync(kAllLanes, candidate) && !visit(i, candidate, place)) return;
    }
}

__device__ inline float between(float a, float b, float share) { return a + share * (b - a); }

// Density plus shift.
__device__ inline float raw_at(const DensityGrid& grid, const Vec3<float>& p) {
    const GridSize& size = grid.size;
    const Cell<float> cell = cell_at(p.x, p.y, p.z, size);
    const long long up_x = size.x > 1 ? (long long)size.y * size.z : 0;
    const int up_y = size.y > 1 ? size.z : 0, up_z = size.z > 1;
    const float* at = grid.density + ((long long)cell.x * size.y + cell.y) * size.z + cell.z;
    const auto along_z = [&](const float* from) { return between(__ldg(from), __ldg(from + up_z), cell.fz); };
    const float below = between(along_z(at), along_z(at + up_y), cell.fy);
    const float above = between(along_z(at + up_x), along_z(at + up_x + up_y), cell.fy);
    return between(below, above, cell.fx) + along_z(grid.shifts + cell.z);
}

// Product over this lane and those below it.
__device__ inline float warp_product_through(float value) {
    const int lane = int(threadIdx.x) % kWarp;
    for (int distance = 1; distance < kWarp; distance *= 2) {
        const float below = __shfl_up_sync(kAllLanes, value, distance);
        if (lane >= distance) value *= below;
    }
    return value;
}

// Sum over the lanes above this one.
__device__ inline float warp_sum_above(float value) {
    const int lane = int(threadIdx.x) % kWarp;
    float sum = value;
    for (int distance = 1; distance < kWarp; distance *= 2) {
        const float above = __shfl_down_sync(kAllLanes, sum, distance);
        if (lane + distance < kWarp) sum += above;
    }
    const float next = __shfl_down_sync(kAllLanes, sum, 1);
    return lane == kWarp - 1 ? 0.0f : next;
}

__device__ inline int count_below(unsigned lanes) {
    return __popc(lanes & ((1u << threadIdx.x % kWarp) - 1));
}

}  // namespace maquette

using namespace maquette;

// kept_begin, shown_begin: [rays] where each ray's samples go; null: they are only counted, into kept_counts and
// shown_counts [rays]. Kept is what takes light, shown what adds more than `weight` to the pixel.
// kept_points: [kept, 3].  kept_raws, kept_alphas, kept_lights: [kept], the last before the sample.
// points: [shown, 3].  weights, steps, ray_of: [shown].  last: [rays].
// Eight blocks at once: left to itself, ptxas spills for a ninth on sm_120.
MQ_KERNEL __launch_bounds__(kThreads, 8)
march_rays(const float* density, const float* shifts, const unsigned char* occupied, int size_x, int size_y, int size_z,
           const float* origins, const float* directions, const float* starts, const int* counts,
           const float* distances, int most, const float* affine, float shell, float spacing, int rays,
           float interval, float alpha_threshold, float weight_threshold, float stop, const int* kept_begin,
           const int* shown_begin, int* kept_counts, int* shown_counts, float* kept_points, float* kept_raws, float* kept_alphas,
           float* kept_lights, float* points, float* weights, float* steps, int* ray_of, float* last) {
    const int lane = int(threadIdx.x) % kWarp;
    const long long warp = ((long long)blockIdx.x * kThreads + threadIdx.x) / kWarp;
    if (warp >= rays) return;
    const int ray = int(warp);
    const DensityGrid grid = {density, shifts, occupied, {size_x, size_y, size_z}};
    const RayPointers pointers = {origins, directions, starts, counts, distances, most, affine, shell, spacing};
    const float start = starts[ray];
    int kept = kept_begin ? kept_begin[ray] : 0, shown = kept_begin ? shown_begin[ray] : 0;
    float light = 1.0f;
    each_block(grid, pointers, ray, [&](int i, bool candidate, const Vec3<float>& place) {
        const float raw = candidate ? raw_at(grid, place) : 0.0f;
        const float alpha = candidate ? raw_to_alpha(raw, interval) : 0.0f;
        bool keeps = alpha > alpha_threshold;
        const float through = warp_product_through(keeps ? 1.0f - alpha : 1.0f);
        const float below = __shfl_up_sync(kAllLanes, through, 1);
        const float before = lane == 0 ? light : light * below, after = before * (1.0f - alpha);
        const unsigned dark = __ballot_sync(kAllLanes, keeps && after < stop);
        const int end = dark ? __ffs(int(dark)) : kWarp;  // lanes from here on see nothing
        keeps = keeps && lane < end;
        const float weight = before * alpha;
        const bool shows = keeps && weight > weight_threshold;
        const unsigned keeping = __ballot_sync(kAllLanes, keeps), showing = __ballot_sync(kAllLanes, shows);
        if (keeping) light = __shfl_sync(kAllLanes, after, kWarp - 1 - __clz(int(keeping)));
        if (kept_begin && keeps) {
            const long long to = kept + count_below(keeping);
            kept_points[3 * to] = place.x, kept_points[3 * to + 1] = place.y, kept_points[3 * to + 2] = place.z;
            kept_raws[to] = raw, kept_alphas[to] = alpha, kept_lights[to] = before;
        }
        if (kept_begin && shows) {
            const long long to = shown + count_below(showing);
            points[3 * to] = place.x, points[3 * to + 1] = place.y, points[3 * to + 2] = place.z;
            weights[to] = weight, steps[to] = start + float(i), ray_of[to] = ray;
        }
        kept += __popc(keeping), shown += __popc(showing);
        return dark == 0;
    });
    if (lane != 0) return;
    if (kept_begin) last[ray] = light;
    else kept_counts[ray] = kept, shown_counts[ray] = shown;
}

// With T_i the light before sample i and A_i = sum_{j > i} w_j v_j + T_end v_last:
//   dL/d raw_i = interval sigmoid(raw_i) (T_i (1 - alpha_i) v_i - A_i).
// kept_begin, shown_begin: [rays + 1].  v_weights: [shown].  v_last: [rays].  v_raws: [kept]. A ray's samples are taken
// from the last block to the first, so that A is a sum and nothing is subtracted.
MQ_KERNEL __launch_bounds__(kThreads)
march_backward(const int* kept_begin, const int* shown_begin, int rays, const float* kept_raws,
               const float* kept_alphas, const float* kept_lights, const float* v_weights, const float* v_last,
               float interval, float weight_threshold, float* v_raws) {
    const int lane = int(threadIdx.x) % kWarp;
    const long long warp = ((long long)blockIdx.x * kThreads + threadIdx.x) / kWarp;
    if (warp >= rays) return;
    const int ray = int(warp), begin = kept_begin[ray], end = kept_begin[ray + 1];
    if (begin == end) return;
    int shown = shown_begin[ray + 1];
    float behind = kept_lights[end - 1] * (1.0f - kept_alphas[end - 1]) * v_last[ray];
    for (int first = begin + (end - begin - 1) / kWarp * kWarp; first >= begin; first -= kWarp) {
        const int i = first + lane;
        const bool there = i < end;
        const float light = there ? kept_lights[i] : 0.0f, alpha = there ? kept_alphas[i] : 0.0f;
        const float weight = light * alpha;
        const bool shows = there && weight > weight_threshold;
        const unsigned showing = __ballot_sync(kAllLanes, shows);
        shown -= __popc(showing);
        const float v = shows ? v_weights[shown + count_below(showing)] : 0.0f, own = weight * v;
        const float after_this = warp_sum_above(own) + behind;
        if (there) v_raws[i] = interval * sigmoid(kept_raws[i]) * (light * (1.0f - alpha) * v - after_this);
        behind = __shfl_sync(kAllLanes, after_this + own, 0);
    }
}

// found: [rays], whether a ray meets an occupied voxel.
MQ_KERNEL __launch_bounds__(kThreads)
rays_hit(const unsigned char* occupied, int size_x, int size_y, int size_z, const float* origins,
         const float* directions, const float* starts, const int* counts, const float* distances, int most,
         const float* affine, float shell, float spacing, int rays, unsigned char* found) {
    const long long ray = ((long long)blockIdx.x * kThreads + threadIdx.x) / kWarp;
    if (ray >= rays) return;
    const DensityGrid grid = {nullptr, nullptr, occupied, {size_x, size_y, size_z}};
    const RayPointers pointers = {origins, directions, starts, counts, distances, most, affine, shell, spacing};
    bool hit = false;
    each_block(grid, pointers, int(ray), [&](int, bool, const Vec3<float>&) { return !(hit = true); });
    if (threadIdx.x % kWarp == 0) found[ray] = hit;
}
