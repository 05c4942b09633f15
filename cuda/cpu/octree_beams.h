// Where in depth the packets of a picture can meet leaves: the cells of the grid that hold something, drawn as boxes
// into a small picture with a nearest and a farthest depth for each packet (beam optimisation, Laine and Karras,
// "Efficient Sparse Voxel Octrees", I3D 2010, who walk the octree with thick rays for it).
// A packet that no cell covers is background at once; the others begin at the first content and end behind the last.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cpu/buffer.h"
#include "math/octree.h"

namespace maquette {

// A pinhole camera; see OctreeRays. Directions have z = 1 before the rotation, so that t is z-depth.
template <typename T>
struct OctreeCamera {
    T focal[2], center[2], rotation[9], eye[3];
    std::int64_t width = 0, height = 0;
};

template <typename T>
class OctreeBeams {
  public:
    const T *from, *to;  // [packets] t between which leaves can lie; from > to where there are none

    void draw(const OctreeIndex& index, const OctreeFrame<T>& frame, const OctreeCamera<T>& camera, int tile_width,
              int tile_height) {
        across_ = (camera.width + tile_width - 1) / tile_width;
        down_ = (camera.height + tile_height - 1) / tile_height;
        const std::size_t packets = std::size_t(across_ * down_);
        from = std::fill_n(from_.resize(packets), packets, kNever) - packets;
        to = std::fill_n(to_.resize(packets), packets, T(0)) - packets;
        const int cells = 1 << index.top_level, shift = index.lattice_level - index.top_level;
        // Position of a cell's middle in the camera, linear in its numbers, and what the box spans on each of its axes.
        T base[3] = {}, step[3][3], half[3] = {};
        for (int row = 0; row < 3; ++row)
            for (int axis = 0; axis < 3; ++axis) {
                const T turned = camera.rotation[3 * axis + row], side = T(1 << shift) / frame.scale[axis];
                const T first = (T(0.5) * T(1 << shift) - frame.offset[axis]) / frame.scale[axis] - camera.eye[axis];
                base[row] += turned * first;
                step[row][axis] = turned * side;
                half[row] += std::abs(step[row][axis]) * (T(0.5) + kMargin);
            }
        bool around = false;  // a cell reaches behind the camera: it may cover anything
        T farthest(0);
        for (int x = 0; x < cells; ++x)
            for (int y = 0; y < cells; ++y) {
                const int* row = index.top + ((std::int64_t(x) << index.top_level | y) << index.top_level);
                for (int z = 0; z < cells; ++z) {
                    if (row[z] >= kOctreeEmpty) continue;
                    T at[3];
                    for (int i = 0; i < 3; ++i)
                        at[i] = base[i] + T(x) * step[i][0] + T(y) * step[i][1] + T(z) * step[i][2];
                    const T near = at[2] - half[2], far = at[2] + half[2];
                    if (far <= T(0)) continue;
                    if (near < T(1e-3) * half[2]) {
                        around = true, farthest = std::max(farthest, far);
                        continue;
                    }
                    std::int64_t first[2], last[2];
                    const T inverse_near = T(1) / near, inverse_far = T(1) / far;
                    for (int i = 0; i < 2; ++i) {
                        const T low = at[i] - half[i], high = at[i] + half[i];
                        const T a = low * (low < T(0) ? inverse_near : inverse_far);
                        const T b = high * (high > T(0) ? inverse_near : inverse_far);
                        const T tile = T(i ? tile_height : tile_width), count = T(i ? down_ : across_);
                        const T offset = camera.center[i] - T(0.5);
                        const T left = (camera.focal[i] * a + offset - kMargin) / tile;
                        const T right = (camera.focal[i] * b + offset + kMargin) / tile;
                        first[i] = std::int64_t(std::clamp(left, T(0), count));
                        last[i] = std::int64_t(std::clamp(right + T(1), T(0), count));
                    }
                    for (std::int64_t v = first[1]; v < last[1]; ++v)
                        for (std::int64_t u = first[0]; u < last[0]; ++u) {
                            T &nearest = from_[std::size_t(v * across_ + u)], &end = to_[std::size_t(v * across_ + u)];
                            nearest = std::min(nearest, near), end = std::max(end, far);
                        }
                }
            }
        if (!around) return;
        for (std::size_t i = 0; i < packets; ++i) from_[i] = T(0), to_[i] = std::max(to_[i], farthest);
    }

  private:
    static constexpr T kNever = T(3e38f);
    static constexpr T kMargin = T(0.02f);  // of a cell, and of a pixel: what rounding may move
    Buffer<T> from_, to_;
    std::int64_t across_ = 0, down_ = 0;
};

}  // namespace maquette
