// Where in depth the packets of a picture can meet leaves: the boxes of what the grid's cells hold, drawn into a small
// picture with a nearest and a farthest depth for each packet (beam optimisation, Laine and Karras, "Efficient Sparse
// Voxel Octrees", I3D 2010, who walk the octree with thick rays for it).
// A packet that no box covers is background at once; the others begin at the first content and end behind the last.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/buffer.h"
#include "cpu/parallel.h"
#include "math/octree.h"

namespace maquette {

// A pinhole camera; see OctreeRays. Directions have z = 1 before the rotation, so that t is z-depth.
template <typename T>
struct OctreeCamera {
    T focal[2], center[2], rotation[9], eye[3];
    std::int64_t width = 0, height = 0;
};

// Boxes [count, 6], first corner and last, of what the cells of the grid hold, in quarters of a cell.
struct OctreeBoxes {
    const std::int16_t* corners;
    std::int64_t count;
};

template <typename T>
class OctreeBeams {
  public:
    const T *from, *to;  // [packets] t between which leaves can lie; from > to where there are none

    void draw(const OctreeBoxes& boxes, const OctreeIndex& index, const OctreeFrame<T>& frame,
              const OctreeCamera<T>& camera, int tile_width, int tile_height) {
        const View view(index, frame, camera, tile_width, tile_height);
        const std::int64_t packets = view.across * view.down;
        const std::int64_t workers = std::max<std::int64_t>(1, std::min<std::int64_t>(threads(), boxes.count));
        T* nearest = from_.resize(std::size_t(workers * packets));
        T* farthest = to_.resize(std::size_t(workers * packets));
        std::vector<T> around(std::size_t(workers), T(-1));
        parallel_tasks(workers, [&](std::int64_t worker, int) {
            T *near = nearest + worker * packets, *far = farthest + worker * packets;
            std::fill_n(near, packets, T(3e38f)), std::fill_n(far, packets, T(0));
            const std::int64_t end = boxes.count * (worker + 1) / workers;
            for (std::int64_t i = boxes.count * worker / workers; i < end; ++i)
                view.box(boxes.corners + 6 * i, near, far, around[std::size_t(worker)]);
        });
        const T behind = *std::max_element(around.begin(), around.end());
        for (std::int64_t worker = 1; worker < workers; ++worker)
            for (std::int64_t i = 0; i < packets; ++i) {
                nearest[i] = std::min(nearest[i], nearest[worker * packets + i]);
                farthest[i] = std::max(farthest[i], farthest[worker * packets + i]);
            }
        if (behind >= T(0))
            for (std::int64_t i = 0; i < packets; ++i) nearest[i] = T(0), farthest[i] = std::max(farthest[i], behind);
        from = nearest, to = farthest;
    }

  private:
    static constexpr T kMargin = T(0.02f);  // of a cell, and of a pixel: what rounding may move

    // The middle of a box in the camera is linear in the sum of its corners, its half size in their difference.
    struct View {
        const OctreeCamera<T>& camera;
        std::int64_t across, down;
        T tile[2], base[3] = {}, step[3][3];  // step: half a quarter of a cell along each axis

        View(const OctreeIndex& index, const OctreeFrame<T>& frame, const OctreeCamera<T>& camera, int tile_width,
             int tile_height)
            : camera(camera),
              across((camera.width + tile_width - 1) / tile_width),
              down((camera.height + tile_height - 1) / tile_height),
              tile{T(tile_width), T(tile_height)} {
            const T unit = T(0.125) * T(1 << (index.lattice_level - index.top_level));
            for (int i = 0; i < 3; ++i)
                for (int axis = 0; axis < 3; ++axis) {
                    const T turned = camera.rotation[3 * axis + i], scale = frame.scale[axis];
                    base[i] -= turned * (frame.offset[axis] / scale + camera.eye[axis]);
                    step[i][axis] = turned * unit / scale;
                }
        }

        // The tile at `position`, within 0 and count; 0 for what is no number.
        static std::int64_t whole(T position, std::int64_t count) {
            return !(position > T(0)) ? 0 : position < T(count) ? std::int64_t(position) : count;
        }

        // Widens what the packets that see a box have; `around` becomes the depth of one that reaches behind the camera
        // and may cover anything.
        void box(const std::int16_t* corners, T* nearest, T* farthest, T& around) const {
            T at[3] = {base[0], base[1], base[2]}, half[3] = {};
            for (int axis = 0; axis < 3; ++axis) {
                const T middle = T(corners[axis] + corners[3 + axis]);
                const T size = T(corners[3 + axis] - corners[axis]) + T(8) * kMargin;
                for (int i = 0; i < 3; ++i) at[i] += middle * step[i][axis], half[i] += size * std::abs(step[i][axis]);
            }
            const T near = at[2] - half[2], far = at[2] + half[2];
            if (!(far > T(0))) return;
            if (near < T(1e-3f) * half[2]) {
                around = std::max(around, far);
                return;
            }
            std::int64_t first[2], last[2];
            for (int i = 0; i < 2; ++i) {
                const T low = at[i] - half[i], high = at[i] + half[i];
                const T left = camera.focal[i] * (low / (low < T(0) ? near : far)) + camera.center[i] - T(0.5);
                const T right = camera.focal[i] * (high / (high > T(0) ? near : far)) + camera.center[i] - T(0.5);
                const std::int64_t count = i ? down : across;
                first[i] = whole((left - kMargin) / tile[i], count);
                last[i] = whole((right + kMargin) / tile[i] + T(1), count);
            }
            for (std::int64_t v = first[1]; v < last[1]; ++v)
                for (std::int64_t i = v * across + first[0]; i < v * across + last[0]; ++i)
                    nearest[i] = std::min(nearest[i], near), farthest[i] = std::max(farthest[i], far);
        }
    };

    Buffer<T> from_, to_;
};

}  // namespace maquette
