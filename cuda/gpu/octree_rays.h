// Rays through an octree on the GPU, a thread each: what every kernel is given, and the way from leaf to leaf. The
// maths is in math/octree.h; scene/ops/gpu/octree_render.py makes the arguments.
//
// A warp has the rays of 8 x 4 pixels, a block those of 16 x 8: they go through the same words and leaves.
#pragma once
#include "gpu/device.h"
#include "math/octree.h"

namespace maquette {

constexpr int kOctreeThreads = 128;
constexpr int kTileWidth = 16, kTileHeight = 8;

// As the kernels take them; MQ_OCTREE_SCENE puts them in order again.
#define MQ_OCTREE_PARAMETERS                                                                                           \
    const int *top, const int *nodes, int top_level, int lattice_level, int low_x, int low_y, int low_z, int high_x,   \
        int high_y, int high_z, float offset_x, float offset_y, float offset_z, float scale_x, float scale_y,          \
        float scale_z, const float *sigmas, const float *sh, const float *origins, const float *directions, float fx,  \
        float fy, float cx, float cy, float r00, float r01, float r02, float eye_x, float r10, float r11, float r12,   \
        float eye_y, float r20, float r21, float r22, float eye_z, int width, int rays, float stop, float least
#define MQ_OCTREE_SCENE                                                                                                \
    {                                                                                                                  \
        {top, nodes, top_level, lattice_level, {low_x, low_y, low_z}, {high_x, high_y, high_z}},                       \
            {{offset_x, offset_y, offset_z}, {scale_x, scale_y, scale_z}}, sigmas, sh, origins, directions, {fx, fy},  \
            {cx, cy}, {r00, r01, r02, r10, r11, r12, r20, r21, r22}, {eye_x, eye_y, eye_z}, width, rays, stop, least   \
    }

struct OctreeScene {
    OctreeIndex index;
    OctreeFrame<float> frame;
    const float* sigmas;   // [leaves]
    const float* sh;       // [leaves, 3 per basis function]
    const float *origins, *directions;  // [rays, 3]; null: the pixels of the camera
    float focal[2], center[2], rotation[9], eye[3];
    int width, rays;
    float stop, least;

    // The ray of this thread, none where it is not below `rays`.
    __device__ long long own_ray() const {
        if (origins) return (long long)blockIdx.x * kOctreeThreads + threadIdx.x;
        const int thread = int(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
        const int across = (width + kTileWidth - 1) / kTileWidth;
        const int x = int(blockIdx.x) % across * kTileWidth + warp % 2 * 8 + lane % 8;
        const int y = int(blockIdx.x) / across * kTileHeight + warp / 2 * 4 + lane / 8;
        return x < width ? (long long)y * width + x : rays;
    }

    __device__ void at(int ray, float* origin, float* direction) const {
        if (origins) {
#pragma unroll
            for (int axis = 0; axis < 3; ++axis) {
                origin[axis] = __ldg(origins + 3LL * ray + axis);
                direction[axis] = __ldg(directions + 3LL * ray + axis);
            }
            return;
        }
        const int y = ray / width, x = ray - y * width;
        const float u = (float(x) + 0.5f - center[0]) / focal[0], v = (float(y) + 0.5f - center[1]) / focal[1];
#pragma unroll
        for (int axis = 0; axis < 3; ++axis) {
            origin[axis] = eye[axis];
            direction[axis] = rotation[3 * axis] * u + rotation[3 * axis + 1] * v + rotation[3 * axis + 2];
        }
    }
};

// A leaf that a ray met: T_i alpha_i, T_(i+1), world length of the piece in it, where the piece begins and its length
// in units of the direction.
struct OctreeMet {
    int row;
    float weight, after, length, t, dt;
};

struct OctreeWalk {
    OctreeRay<float> ray;
    float light = 1.0f;
    bool inside;

    __device__ OctreeWalk(const OctreeScene& scene, const float* origin, const float* direction) {
        inside = octree_enter(scene.index, scene.frame, origin, direction, 0.0f, ray) &&
                 scene.index.low[0] < scene.index.high[0];
    }

    // The next leaf that takes light. Threads of a warp look for theirs together and then have one each.
    __device__ bool next(const OctreeScene& scene, OctreeMet& met) {
        while (inside) {
            const OctreeCell cell = octree_cell(scene.index, ray.at, ray.octant);
            met.t = ray.t;
            inside = octree_advance(scene.index, cell, ray);
            if (cell.row < 0) continue;
            const float sigma = __ldg(scene.sigmas + cell.row);
            met.dt = ray.t - met.t;
            if (!(sigma > scene.least) || !(met.dt > 0.0f)) continue;
            met.row = cell.row;
            met.length = met.dt * ray.length;
            const float pass = exp2_fast(fmaxf(sigma * met.length * -1.44269504f, -126.0f));
            met.weight = light * (1.0f - pass);
            met.after = light *= pass;
            inside = inside && !(light < scene.stop);
            return true;
        }
        return false;
    }
};

// What leaves show in one direction.
template <int kDegree>
struct OctreeLook {
    static constexpr int kBasis = sh_count(kDegree), kNumbers = 3 * kBasis;
    float basis[kBasis];

    __device__ explicit OctreeLook(const float* direction) {
        const Vec3<float> d = {direction[0], direction[1], direction[2]};
        const float inverse = 1.0f / sqrtf(fmaxf(dot(d, d), 1e-30f));
        sh_basis<kDegree>(inverse * d, basis);
    }

    // All numbers of a row are on their way before the first is used, four at a time where rows are whole multiples of
    // that (scene/ops/gpu/octree_render.py sees to it that the table is).
    __device__ Vec3<float> color(const float* sh, int row) const {
        float numbers[kNumbers];
        const float* from = sh + (long long)row * kNumbers;
        if constexpr (kNumbers % 4 == 0) {
#pragma unroll
            for (int i = 0; i < kNumbers; i += 4) {
                const float4 four = __ldg(reinterpret_cast<const float4*>(from + i));
                numbers[i] = four.x, numbers[i + 1] = four.y, numbers[i + 2] = four.z, numbers[i + 3] = four.w;
            }
        } else {
#pragma unroll
            for (int i = 0; i < kNumbers; ++i) numbers[i] = __ldg(from + i);
        }
        float logits[3] = {0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int i = 0; i < kNumbers; ++i) logits[i % 3] += basis[i / 3] * numbers[i];
        return {sigmoid_of(logits[0]), sigmoid_of(logits[1]), sigmoid_of(logits[2])};
    }

  private:
    __device__ static float sigmoid_of(float x) { return 1.0f / (1.0f + exp2_fast(fminf(x * -1.44269504f, 126.0f))); }
};

}  // namespace maquette
