// Pictures of an octree. Maths: math/octree.h; scene/ops/octree_render.py says what goes in and out.
#include <nanobind/stl/optional.h>

#include <vector>

#include "cpu/octree_rays.h"
#include "cpu/parallel.h"

namespace nb = nanobind;

namespace maquette {
namespace {

constexpr double kLastLightSeen = 0.5;  // the median depth is where less than this is left

template <typename T>
struct Pictures {
    T *rgb, *last, *depth, *median;  // depth and median may be null
    const T* background;             // [3] what is behind, or null
    bool whole;                      // colours of rays that were ended early are raised to what they stand for
};

// Expected depth: mean of the middles of the pieces; 0 where nothing is met. Median: within the leaf, by its density.
template <typename T>
void measure(const OctreeHits<T>& hits, const std::int32_t* ids, const Pictures<T>& out) {
    constexpr int kRays = OctreePacket<T>::kRays;
    T weights[kRays] = {};
    for (int lane = 0; lane < kRays; ++lane)
        if (ids[lane] >= 0) out.depth[ids[lane]] = out.median[ids[lane]] = T(0);
    for (std::int64_t i = 0; i < hits.count; ++i) {
        const int lane = hits.lane[i], ray = ids[lane];
        const T weight = hits.weight[i], after = hits.after[i], before = after + weight;
        weights[lane] += weight;
        out.depth[ray] += weight * (hits.t[i] + T(0.5) * hits.dt[i]);
        if (before >= T(kLastLightSeen) && after < T(kLastLightSeen)) {
            const T share = after > T(0) ? std::log(before / T(kLastLightSeen)) / std::log(before / after) : T(0);
            out.median[ray] = hits.t[i] + std::min(share, T(1)) * hits.dt[i];
        }
    }
    for (int lane = 0; lane < kRays; ++lane)
        if (weights[lane] > T(0)) out.depth[ids[lane]] /= weights[lane];
}

template <typename T, int Degree>
void render(const OctreeScene<T>& scene, const Pictures<T>& out) {
    constexpr int kRays = OctreePacket<T>::kRays;
    const std::int64_t packets = scene.rays.packets(), per_task = kTilesPerTask / OctreePacket<T>::kTiles;
    struct Worker {
        OctreePacket<T> packet;
        OctreeShade<T, Degree> shade;
        OctreeHits<T> hits;
    };
    std::vector<Worker> workers(static_cast<std::size_t>(threads()));
    parallel_tasks((packets + per_task - 1) / per_task, [&](std::int64_t task, int worker) {
        auto& [packet, shade, hits] = workers[std::size_t(worker)];
        T sums[4 * kRays], behind[3] = {};
        if (out.background) std::copy(out.background, out.background + 3, behind);
        const std::int64_t end = std::min(packets, (task + 1) * per_task);
        for (std::int64_t number = task * per_task; number < end; ++number) {
            scene.rays.fill(number, packet);
            hits.count = 0;
            packet.walk(scene.index, scene.frame, scene.leaves, scene.limits, hits);
            if (hits.count) {
                shade.look(packet);
                shade.color(scene.leaves.sh, hits);
                shade.blend(hits, sums);
            } else {
                std::fill(sums, sums + 4 * kRays, T(0));
            }
            for (int lane = 0; lane < kRays; ++lane) {
                if (packet.ids[lane] < 0) continue;
                T last = packet.last[lane], gain(1);
                if (out.whole && last < scene.limits.stop) gain = T(1) / (T(1) - last), last = T(0);
                T* rgb = out.rgb + 3 * packet.ids[lane];
                for (int c = 0; c < 3; ++c) rgb[c] = gain * sums[4 * lane + c] + last * behind[c];
                out.last[packet.ids[lane]] = last;
            }
            if (out.depth) measure(hits, packet.ids, out);
        }
    });
}

template <typename T>
void octree_render(Numbers<const std::int32_t> top, Table<const std::int32_t> nodes, Table<const std::int16_t> boxes,
                   Numbers<const std::int32_t> shape, Numbers<const double> frame, Numbers<const T> sigmas,
                   Table<const T> sh, Maybe<Table<const T>> origins, Maybe<Table<const T>> directions,
                   Maybe<Numbers<const double>> camera, std::int64_t width, std::int64_t height, double stop,
                   double least, bool whole, Maybe<Numbers<const T>> background, Table<T> rgb, Numbers<T> last,
                   Maybe<Numbers<T>> depth, Maybe<Numbers<T>> median) {
    OctreeScene<T> scene = octree_scene<T>(top, nodes, boxes, shape, frame, sigmas, sh, origins, directions, camera,
                                           width, height, stop, least);
    const std::size_t rays = std::size_t(scene.rays.rays);
    if (background && background->shape(0) != 3) throw nb::value_error("background must be 3 numbers");
    if (rgb.shape(0) != rays || rgb.shape(1) != 3 || last.shape(0) != rays ||
        (depth && (!median || depth->shape(0) != rays || median->shape(0) != rays)))
        throw nb::value_error("the pictures must have a row per ray");
    const Pictures<T> out{rgb.data(), last.data(), depth ? depth->data() : nullptr, depth ? median->data() : nullptr,
                          background ? background->data() : nullptr, whole};
    nb::gil_scoped_release unlocked;
    OctreeBeams<T> beams;
    scene.aim(beams);
    with_degree(scene.leaves.numbers, [&](auto degree) { render<T, degree()>(scene, out); });
}

template <typename T>
void bind(nb::module_& m) {
    m.def("octree_render", &octree_render<T>, nb::arg("top").noconvert(), nb::arg("nodes").noconvert(),
          nb::arg("boxes").noconvert(), nb::arg("shape").noconvert(), nb::arg("frame").noconvert(),
          nb::arg("sigmas").noconvert(), nb::arg("sh").noconvert(), nb::arg("origins").noconvert().none(),
          nb::arg("directions").noconvert().none(), nb::arg("camera").noconvert().none(), nb::arg("width"),
          nb::arg("height"), nb::arg("stop"), nb::arg("least"), nb::arg("whole"),
          nb::arg("background").noconvert().none(), nb::arg("rgb").noconvert(), nb::arg("last").noconvert(),
          nb::arg("depth").noconvert().none(), nb::arg("median").noconvert().none(),
          "Colours, remaining light and depths of rays through an octree.");
}

}  // namespace

void bind_octree_render(nb::module_& m) {
    bind<float>(m);
    bind<double>(m);
}

}  // namespace maquette
