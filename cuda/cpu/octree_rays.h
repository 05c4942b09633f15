// What the octree kernels are given, packets of rays of an image or of a list, and the colours of leaves.
#pragma once
#include <cmath>
#include <cstdint>
#include <optional>

#include "cpu/bindings.h"
#include "cpu/octree_beams.h"
#include "cpu/octree_walk.h"

namespace maquette {

constexpr std::int64_t kTilesPerTask = 64;

// The rays of a pinhole camera through all pixel centres, or R given ones; see scene/ops/octree_render.py.
template <typename T>
struct OctreeRays {
    const T* origins = nullptr;  // [R, 3], or none: then the camera
    const T* directions = nullptr;
    OctreeCamera<T> camera;
    std::int64_t rays = 0;
    OctreeBeams<T>* beams = nullptr;  // of the camera, where drawn

    static constexpr int kTile = OctreePacket<T>::kTile, kTiles = OctreePacket<T>::kTiles;
    static constexpr int kRays = OctreePacket<T>::kRays;
    static constexpr int kTileWidth = kTile >= 8 ? 4 : kTile >= 4 ? 2 : 1, kTileHeight = kTile / kTileWidth;

    std::int64_t tiles_across() const { return (camera.width + kTileWidth - 1) / kTileWidth; }
    std::int64_t tiles() const {
        if (origins) return (rays + kTile - 1) / kTile;
        return tiles_across() * ((camera.height + kTileHeight - 1) / kTileHeight);
    }
    std::int64_t packets() const { return (tiles() + kTiles - 1) / kTiles; }

    // The rays of a packet and their numbers. Absent lanes of a tile repeat a ray of it.
    void fill(std::int64_t number, OctreePacket<T>& packet) const {
        std::fill_n(packet.ids, kRays, -1);
        for (int tile = 0; tile < kTiles; ++tile) {
            const std::int64_t n = number * kTiles + tile;
            packet.from[tile] = n >= tiles() ? T(1) : beams ? beams->from[n] : T(0);
            packet.to[tile] = n >= tiles() ? T(0) : beams ? beams->to[n] : T(3e38f);
            if (n >= tiles()) continue;
            const int first = tile * kTile, used = origins ? listed(n, first, packet) : seen(n, first, packet);
            if (packet.from[tile] > packet.to[tile]) continue;
            for (int lane = first + used; lane < first + kTile; ++lane)
                for (int axis = 0; axis < 3; ++axis) {
                    packet.origin[axis][lane] = packet.origin[axis][first];
                    packet.direction[axis][lane] = packet.direction[axis][first];
                }
        }
    }

  private:
    // A tile of the list into the lanes from `lane` on; how many rays there are.
    int listed(std::int64_t tile, int lane, OctreePacket<T>& packet) const {
        int used = 0;
        for (std::int64_t ray = tile * kTile; ray < rays && used < kTile; ++ray, ++used) {
            packet.ids[lane + used] = std::int32_t(ray);
            for (int axis = 0; axis < 3; ++axis) {
                packet.origin[axis][lane + used] = origins[3 * ray + axis];
                packet.direction[axis][lane + used] = directions[3 * ray + axis];
            }
        }
        return used;
    }

    // The same for a tile of the picture.
    int seen(std::int64_t tile, int lane, OctreePacket<T>& packet) const {
        const bool background = packet.from[lane / kTile] > packet.to[lane / kTile];  // nobody asks where it looks
        const std::int64_t left = tile % tiles_across() * kTileWidth, top = tile / tiles_across() * kTileHeight;
        int used = 0;
        for (std::int64_t y = top; y < top + kTileHeight && y < camera.height; ++y)
            for (std::int64_t x = left; x < left + kTileWidth && x < camera.width; ++x, ++used) {
                packet.ids[lane + used] = std::int32_t(y * camera.width + x);
                if (background) continue;
                const T u = (T(x) + T(0.5) - camera.center[0]) / camera.focal[0];
                const T v = (T(y) + T(0.5) - camera.center[1]) / camera.focal[1];
                const T* r = camera.rotation;
                for (int axis = 0; axis < 3; ++axis) {
                    packet.origin[axis][lane + used] = camera.eye[axis];
                    packet.direction[axis][lane + used] = r[3 * axis] * u + r[3 * axis + 1] * v + r[3 * axis + 2];
                }
            }
        return used;
    }
};

template <typename T>
struct OctreeScene {
    OctreeIndex index;
    OctreeBoxes boxes;
    OctreeFrame<T> frame;
    OctreeLeaves<T> leaves;
    OctreeRays<T> rays;
    OctreeLimits<T> limits;

    // Lets the packets of a camera begin where leaves begin; `beams` must outlive the rays.
    void aim(OctreeBeams<T>& beams) {
        if (rays.camera.width == 0) return;
        beams.draw(boxes, index, frame, rays.camera, rays.kTileWidth, rays.kTileHeight);
        rays.beams = &beams;
    }
};

// exp2 and 1 / a of a register, and of one number.
MQ_INLINE Floats sigmoid_of(Floats x) {
    return reciprocal(Floats(1.0f) + exp2(minimum(x * Floats(-1.44269504f), Floats(126.0f))));
}

// Basis functions of the lanes' directions and colours of what they hit.
template <typename T, int Degree>
struct OctreeShade {
    static constexpr int kRays = OctreePacket<T>::kRays, kBasis = sh_count(Degree), kNumbers = 3 * kBasis;
    using Four = Lanes<T, 4>;
    T basis[kBasis][kRays];

    void look(const OctreePacket<T>& packet) {
        if constexpr (sizeof(T) == 4) {
            for (int tile = 0; tile < packet.kTiles; ++tile) {
                if (packet.from[tile] > packet.to[tile]) continue;
                const int first = tile * packet.kTile;
                Vec3<Floats> d{Floats::load(packet.direction[0] + first), Floats::load(packet.direction[1] + first),
                               Floats::load(packet.direction[2] + first)};
                const Floats inverse = Floats(1.0f) / sqrt(maximum(dot(d, d), Floats(1e-30f)));
                Floats b[kBasis];
                sh_basis<Degree>(inverse * d, b);
                for (int k = 0; k < kBasis; ++k) b[k].store(basis[k] + first);
            }
        } else {
            const Vec3<T> d{packet.direction[0][0], packet.direction[1][0], packet.direction[2][0]};
            const T inverse = T(1) / std::sqrt(std::max(dot(d, d), T(1e-30)));
            T b[kBasis];
            sh_basis<Degree>(inverse * d, b);
            for (int k = 0; k < kBasis; ++k) basis[k][0] = b[k];
        }
    }

    void color(const T* sh, OctreeHits<T>& hits) const {
        T* logits = hits.color.resize(std::size_t(4 * hits.count + 16));
        for (std::int64_t i = 0; i < hits.count; ++i) {
            const T* row = sh + std::int64_t(hits.row[i]) * kNumbers;
            const T* y = &basis[0][hits.lane[i]];
            // The fourth number belongs to the next coefficient; behind the last one the table may end.
            const T* tail = row + kNumbers - 3;
            Four sum = Four(y[(kBasis - 1) * kRays]) * Four(typename Four::Raw{tail[0], tail[1], tail[2], T(0)});
            for (int k = 0; k < kBasis - 1; ++k) sum += Four(y[k * kRays]) * Four::load(row + 3 * k);
            sum.store(logits + 4 * i);
        }
        if constexpr (sizeof(T) == 4) {
            for (std::int64_t i = 0; i < 4 * hits.count; i += Floats::count)
                sigmoid_of(Floats::load(logits + i)).store(logits + i);
        } else {
            for (std::int64_t i = 0; i < 4 * hits.count; ++i) logits[i] = sigmoid(logits[i]);
        }
    }

    // Sums of weight times colour by lane, [kRays, 4].
    void blend(const OctreeHits<T>& hits, T* sums) const {
        std::fill(sums, sums + 4 * kRays, T(0));
        for (std::int64_t i = 0; i < hits.count; ++i) {
            T* sum = sums + 4 * hits.lane[i];
            (Four::load(sum) + Four(hits.weight[i]) * Four::load(hits.color.data() + 4 * i)).store(sum);
        }
    }
};

// Calls body(std::integral_constant<int, degree>) for leaves with so many colour numbers; `octree_scene` checks them.
template <typename Body>
void with_degree(int numbers, const Body& body) {
    if (numbers == 3) body(std::integral_constant<int, 0>());
    if (numbers == 12) body(std::integral_constant<int, 1>());
    if (numbers == 27) body(std::integral_constant<int, 2>());
    if (numbers == 48) body(std::integral_constant<int, 3>());
}

template <typename T>
using Table = Array<T, nanobind::shape<-1, -1>>;
template <typename T>
using Numbers = Array<T, nanobind::shape<-1>>;
template <typename T>
using Maybe = std::optional<T>;

// What Python passes for every octree kernel, checked.
template <typename T>
OctreeScene<T> octree_scene(const Numbers<const std::int32_t>& top, const Table<const std::int32_t>& nodes,
                            const Table<const std::int16_t>& boxes, const Numbers<const std::int32_t>& shape,
                            const Numbers<const double>& frame, const Numbers<const T>& sigmas,
                            const Table<const T>& sh, const Maybe<Table<const T>>& origins,
                            const Maybe<Table<const T>>& directions,
                            const Maybe<Numbers<const double>>& camera, std::int64_t width, std::int64_t height,
                            double stop, double least) {
    OctreeScene<T> scene;
    if (shape.shape(0) != 8 || frame.shape(0) != 6 || nodes.shape(1) != 64 || boxes.shape(1) != 6)
        throw nanobind::value_error("shape must have 8 numbers, frame 6, nodes 64 a row and boxes 6");
    const std::int32_t* s = shape.data();
    scene.boxes = {boxes.data(), std::int64_t(boxes.shape(0))};
    scene.index = {top.data(), nodes.data(), s[0], s[1], {s[2], s[3], s[4]}, {s[5], s[6], s[7]}};
    if (s[0] < 0 || s[0] > 10 || s[1] < s[0] || s[1] > 16 || top.shape(0) != std::size_t(1) << 3 * s[0])
        throw nanobind::value_error("top must be a grid of 2^top_level cells a side");
    const double cells = std::ldexp(1.0, s[1]);
    for (int axis = 0; axis < 3; ++axis) {
        scene.frame.offset[axis] = T(frame.data()[axis] * cells);
        scene.frame.scale[axis] = T(frame.data()[3 + axis] * cells);
    }
    scene.leaves = {sigmas.data(), sh.data(), std::int64_t(sigmas.shape(0)), int(sh.shape(1))};
    const int numbers = scene.leaves.numbers;
    if (sh.shape(0) != sigmas.shape(0) || (numbers != 3 && numbers != 12 && numbers != 27 && numbers != 48))
        throw nanobind::value_error("sh must have a row of 3, 12, 27 or 48 numbers per sigma");
    scene.limits = {T(stop), T(least)};
    OctreeRays<T>& rays = scene.rays;
    if (origins && directions) {
        if (origins->shape(1) != 3 || directions->shape(1) != 3 || origins->shape(0) != directions->shape(0))
            throw nanobind::value_error("origins and directions must be [R, 3]");
        rays.origins = origins->data(), rays.directions = directions->data();
        rays.rays = std::int64_t(origins->shape(0));
    } else if (camera && camera->shape(0) == 16) {
        const double* c = camera->data();  // fx, fy, cx, cy, then c2w by rows
        OctreeCamera<T>& to = rays.camera;
        to.focal[0] = T(c[0]), to.focal[1] = T(c[1]), to.center[0] = T(c[2]), to.center[1] = T(c[3]);
        for (int row = 0; row < 3; ++row) {
            for (int column = 0; column < 3; ++column) to.rotation[3 * row + column] = T(c[4 + 4 * row + column]);
            to.eye[row] = T(c[4 + 4 * row + 3]);
        }
        to.width = width, to.height = height, rays.rays = width * height;
    } else {
        throw nanobind::value_error("expected origins and directions, or a camera of 16 numbers");
    }
    return scene;
}

}  // namespace maquette
