// Pictures of an octree: a thread goes along a ray, colours each leaf it meets and sums. Maths: math/octree.h.
#include "gpu/octree_rays.h"

namespace maquette {

constexpr float kLastLightSeen = 0.5f;  // the median depth is where less than this is left

template <int kDegree>
__device__ inline void octree_render(const OctreeScene& scene, int whole, const float* background, float* rgb,
                                     float* last, float* depth, float* median) {
    const long long own = scene.own_ray();
    if (own >= scene.rays) return;
    const int id = int(own);
    float origin[3], direction[3];
    scene.at(id, origin, direction);
    OctreeWalk walk(scene, origin, direction);
    const OctreeLook<kDegree> look(direction);
    Vec3<float> sum = {0.0f, 0.0f, 0.0f};
    float weights = 0.0f, middle = 0.0f, half = 0.0f;
    OctreeMet met;
    while (walk.next(scene, met)) {
        sum = sum + met.weight * look.color(scene.sh, met.row);
        if (!depth) continue;
        const float before = met.after + met.weight;
        weights += met.weight;
        middle += met.weight * (met.t + 0.5f * met.dt);
        if (before >= kLastLightSeen && met.after < kLastLightSeen) {
            const float share =
                met.after > 0.0f ? logf(before / kLastLightSeen) / logf(before / met.after) : 0.0f;
            half = met.t + fminf(share, 1.0f) * met.dt;
        }
    }
    float left = walk.light, gain = 1.0f;
    if (whole && left < scene.stop) gain = 1.0f / (1.0f - left), left = 0.0f;
    float* const to = rgb + 3LL * id;
    to[0] = gain * sum.x, to[1] = gain * sum.y, to[2] = gain * sum.z;
    if (background)
        for (int c = 0; c < 3; ++c) to[c] += left * background[c];
    last[id] = left;
    if (depth) depth[id] = weights > 0.0f ? middle / weights : 0.0f, median[id] = half;
}

}  // namespace maquette

using namespace maquette;

// background: [3] what is behind, or null.  rgb: [rays, 3].  last, depth, median: [rays]; the last two may be null.  whole: rays that were ended early show their
// colour raised to what it stands for, and no light is left. So many blocks at once that a row's numbers have room:
// left to itself, ptxas spills for one more at degree 3.
#define MQ_OCTREE_RENDER(degree, blocks)                                                                              \
    MQ_KERNEL __launch_bounds__(kOctreeThreads, blocks)                                                               \
    octree_render_##degree(MQ_OCTREE_PARAMETERS, int whole, const float* background, float* rgb, float* last,         \
                           float* depth, float* median) {                                                             \
        octree_render<degree>(MQ_OCTREE_SCENE, whole, background, rgb, last, depth, median);                          \
    }
MQ_OCTREE_RENDER(0, 8)
MQ_OCTREE_RENDER(1, 8)
MQ_OCTREE_RENDER(2, 6)
MQ_OCTREE_RENDER(3, 5)
