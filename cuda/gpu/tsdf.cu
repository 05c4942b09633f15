// Adds a depth image to a truncated signed distance field kept in blocks of 8x8x8 voxels: a thread per voxel, a block
// of threads per block of voxels. Voxels are independent, so nothing depends on the order. Neighbours along x, which
// are neighbours in memory, fall into neighbouring pixels; a voxel that the image does not see is not touched.
#include "gpu/device.h"
#include "math/tsdf.h"

namespace maquette {

constexpr int kSide = 8, kVoxels = kSide * kSide * kSide;

}  // namespace maquette

using namespace maquette;

// tsdf, weights: [gridDim.x, 8, 8, 8] by z, y, x.  blocks: [gridDim.x, 3].  depth, slope, weight: [height, width].
// viewmat: [4, 4] camera from world.  K: [3, 3].
MQ_KERNEL __launch_bounds__(kVoxels)
    tsdf_integrate(float* tsdf, float* weights, const int* blocks, const float* depth, const float* slope,
                   const float* weight, int width, int height, const float* viewmat, const float* K, float voxel_size,
                   float truncation) {
    const float* m = viewmat;
    const DepthView<float> view{depth,
                                slope,
                                weight,
                                width,
                                height,
                                K[0],
                                K[4],
                                K[2],
                                K[5],
                                {{m[0], m[1], m[2]}, {m[4], m[5], m[6]}, {m[8], m[9], m[10]}},
                                {m[3], m[7], m[11]}};
    const int voxel = threadIdx.x, x = voxel % kSide, y = voxel / kSide % kSide, z = voxel / (kSide * kSide);
    const int* origin = blocks + 3LL * blockIdx.x;
    const Vec3<float> corner =
        float(kSide) * voxel_size * Vec3<float>{float(origin[0]), float(origin[1]), float(origin[2])};
    const Vec3<float> point = corner + voxel_size * Vec3<float>{float(x), float(y), float(z)};
    const Observation<float> seen = observe(view, point, truncation);
    if (!(seen.weight > 0.0f)) return;
    const long long at = (long long)blockIdx.x * kVoxels + voxel;
    const float before = tsdf[at], sum = weights[at] + seen.weight;
    tsdf[at] = before + (seen.distance - before) * (seen.weight / sum);
    weights[at] = sum;
}
