// Gradients of an octree's leaves, their update, and how much light each leaf sends to the cameras.
//
// Two phases, with the same bits for any number of threads and no sum that two threads share. First the rays: each
// packet is walked, coloured and gone through backwards, and leaves one short record per ray and leaf (the gradient by
// the three logits and by sigma); the records of a task are sorted by ranges of leaves. Then the ranges: the leaves of
// one range fit a core's cache, where their records, in the order of the tasks, are spread over the basis functions
// and summed; the rows that were met go to the gradient, or straight through Adam into the leaf table.
#include <nanobind/stl/optional.h>

#include <vector>

#include "cpu/octree_rays.h"
#include "cpu/parallel.h"
#include "math/adam.h"

namespace nb = nanobind;

namespace maquette {
namespace {

// What one ray asks of one leaf.
template <typename T>
struct Record {
    std::int32_t row, ray;
    T logits[3], sigma;  // gradients
    T weight;
};

template <typename T>
struct TaskRecords {
    Buffer<Record<T>> sorted;
    std::vector<std::int32_t> begins;  // by range, and the end
    double loss = 0;
};

template <typename T>
struct Upstream {
    const T *v_rgb = nullptr, *v_last = nullptr;   // gradients by the pictures: [R, 3] and [R]
    const T *target = nullptr, *background = nullptr;  // or a photo [R, 3] and [3]: squared error summed over all
    T scale = T(1);
    T distortion = T(0);  // weight of the distortion loss (mip-NeRF 360, eq. 15) of each ray, over t
};

// Working memory of a thread in the first phase, and in the second.
template <typename T, int Degree>
struct Tracer {
    OctreePacket<T> packet;
    OctreeShade<T, Degree> shade;
    OctreeHits<T> hits;
    std::vector<Record<T>> records;
};
template <typename T>
struct Summer {
    Buffer<T> sums;
    std::vector<unsigned char> met;
};

enum class Wanted { kGradients, kWeights };

template <typename T>
class Records {
  public:
    std::vector<TaskRecords<T>> tasks;
    Buffer<T> basis;  // [rays, basis functions] of the rays that met something
    int range_bits = 0;
    std::int64_t ranges = 0;

    static constexpr int kRays = OctreePacket<T>::kRays;
    static constexpr std::int64_t kPerTask = kTilesPerTask / OctreePacket<T>::kTiles;  // packets

    void plan(OctreeScene<T>& scene) {
        scene.aim(beams_);
        for (range_bits = 6; range_bits < 10 && scene.leaves.count >> range_bits > 128;) ++range_bits;
        ranges = (scene.leaves.count + (std::int64_t(1) << range_bits) - 1) >> range_bits;
        tasks.resize(std::size_t((scene.rays.packets() + kPerTask - 1) / kPerTask));
    }

    // First phase.
    template <int Degree>
    void trace(OctreeScene<T>& scene, Wanted wanted, const Upstream<T>& up) {
        constexpr int kBasis = sh_count(Degree);
        plan(scene);
        const std::int64_t packets = scene.rays.packets();
        T* all_basis = basis.resize(std::size_t(scene.rays.rays * kBasis));
        std::vector<Tracer<T, Degree>> workers(static_cast<std::size_t>(threads()));
        parallel_tasks(std::int64_t(tasks.size()), [&](std::int64_t task, int which) {
            Tracer<T, Degree>& worker = workers[std::size_t(which)];
            OctreePacket<T>& packet = worker.packet;
            OctreeShade<T, Degree>& shade = worker.shade;
            OctreeHits<T>& hits = worker.hits;
            std::vector<Record<T>>& records = worker.records;
            const std::int32_t* ids = packet.ids;
            records.clear();
            double loss = 0;
            const std::int64_t end = std::min(packets, (task + 1) * kPerTask);
            for (std::int64_t number = task * kPerTask; number < end; ++number) {
                scene.rays.fill(number, packet);
                hits.count = 0;
                packet.walk(scene.index, scene.frame, scene.leaves, scene.limits, hits);
                if (wanted == Wanted::kWeights) {
                    for (std::int64_t i = 0; i < hits.count; ++i)
                        records.push_back({hits.row[i], ids[hits.lane[i]], {}, T(0), hits.weight[i]});
                    continue;
                }
                T sums[4 * kRays], v[4 * kRays], behind[kRays];
                if (hits.count) {
                    shade.look(packet);
                    shade.color(scene.leaves.sh, hits);
                    for (int lane = 0; lane < kRays; ++lane) {
                        if (ids[lane] < 0) continue;
                        T* of_ray = all_basis + std::int64_t(ids[lane]) * kBasis;
                        for (int k = 0; k < kBasis; ++k) of_ray[k] = shade.basis[k][lane];
                    }
                }
                shade.blend(hits, sums);
                for (int lane = 0; lane < kRays; ++lane)
                    if (ids[lane] >= 0)
                        loss += differentiate(up, ids[lane], packet.last[lane], sums + 4 * lane, v + 4 * lane,
                                              behind[lane]);
                backward(hits, ids, up.distortion, v, behind, records);
            }
            tasks[std::size_t(task)].loss = loss;
            sort(records, tasks[std::size_t(task)]);
        });
    }

    double loss() const {
        double sum = 0;
        for (const auto& task : tasks) sum += task.loss;
        return sum;
    }

    // Second phase: body(row, sums) for the rows met; sums: [basis functions, 4] gradients by the coefficients, with
    // that by sigma in place 3, then the sum of weights and the largest.
    template <int Degree, typename Body>
    void collect(const OctreeScene<T>& scene, const Body& body) {
        constexpr int kBasis = sh_count(Degree), kRow = 4 * kBasis + 4;
        using Four = Lanes<T, 4>;
        std::vector<Summer<T>> workers(static_cast<std::size_t>(threads()));
        const std::int64_t size = std::int64_t(1) << range_bits;
        parallel_tasks(ranges, [&](std::int64_t range, int which) {
            Buffer<T>& sums = workers[std::size_t(which)].sums;
            std::vector<unsigned char>& met = workers[std::size_t(which)].met;
            sums.resize(std::size_t(size * kRow));
            met.assign(std::size_t(size), 0);
            const std::int64_t first = range << range_bits;
            for (const auto& task : tasks) {
                const std::int32_t end = task.begins[std::size_t(range) + 1];
                for (std::int32_t i = task.begins[std::size_t(range)]; i < end; ++i) {
                    const Record<T>& record = task.sorted[std::size_t(i)];
                    const std::int64_t local = record.row - first;
                    T* sum = sums.data() + local * kRow;
                    if (!met[std::size_t(local)]) {
                        met[std::size_t(local)] = 1;
                        std::fill(sum, sum + kRow, T(0));
                    }
                    const T* y = basis.data() + std::int64_t(record.ray) * kBasis;
                    Four g = Four::load(record.logits);  // three logits and sigma
                    const T sigma = g.v[3];
                    g.v[3] = T(0);
                    for (int k = 0; k < kBasis; ++k) (Four::load(sum + 4 * k) + Four(y[k]) * g).store(sum + 4 * k);
                    sum[3] += sigma;
                    sum[4 * kBasis] += record.weight;
                    sum[4 * kBasis + 1] = std::max(sum[4 * kBasis + 1], record.weight);
                }
            }
            const std::int64_t last = std::min(size, scene.leaves.count - first);
            for (std::int64_t local = 0; local < last; ++local)
                if (met[std::size_t(local)]) body(first + local, sums.data() + local * kRow);
        });
    }

  private:
    OctreeBeams<T> beams_;

    // Gradients by the ray's colour and by the light left at its end, and what it adds to the loss.
    static double differentiate(const Upstream<T>& up, std::int32_t ray, T last, const T* rgb, T* v, T& behind) {
        v[3] = T(0);
        if (!up.target) {
            for (int c = 0; c < 3; ++c) v[c] = up.v_rgb[3 * std::int64_t(ray) + c];
            behind = last * up.v_last[ray];
            return 0.0;
        }
        double loss = 0;
        behind = T(0);
        for (int c = 0; c < 3; ++c) {
            const T error = rgb[c] + last * up.background[c] - up.target[3 * std::int64_t(ray) + c];
            loss += double(error) * double(error);
            v[c] = up.scale * error;
            behind += last * up.background[c] * v[c];
        }
        return loss;
    }

    // dL/dtau_i = T_(i+1) g_i - behind_i with behind_i = sum_(j>i) w_j g_j + T_end v.background (0.2 of the spec), where
    // g_i = dL/dw_i = v.c_i + distortion (2 sum_j w_j |m_i - m_j| + 2/3 w_i dt_i), m the middles of the pieces.
    static void backward(const OctreeHits<T>& hits, const std::int32_t* ids, T distortion, const T* v, T* behind,
                         std::vector<Record<T>>& records) {
        constexpr int kRays = OctreePacket<T>::kRays;
        T before[2][kRays] = {}, after[2][kRays] = {};  // sums of w and of w m of the hits on either side
        if (distortion != T(0))
            for (std::int64_t i = 0; i < hits.count; ++i) {
                before[0][hits.lane[i]] += hits.weight[i];
                before[1][hits.lane[i]] += hits.weight[i] * (hits.t[i] + T(0.5) * hits.dt[i]);
            }
        std::size_t at = records.size();
        records.resize(at + std::size_t(hits.count));
        for (std::int64_t i = hits.count - 1; i >= 0; --i, ++at) {
            const int lane = hits.lane[i];
            const T *g = v + 4 * lane, *c = hits.color.data() + 4 * i;
            const T weight = hits.weight[i], middle = hits.t[i] + T(0.5) * hits.dt[i];
            T seen = g[0] * c[0] + g[1] * c[1] + g[2] * c[2];
            if (distortion != T(0)) {
                before[0][lane] -= weight, before[1][lane] -= weight * middle;
                const T apart = middle * (before[0][lane] - after[0][lane]) - (before[1][lane] - after[1][lane]);
                seen += distortion * (T(2) * apart + T(2.0 / 3.0) * weight * hits.dt[i]);
                after[0][lane] += weight, after[1][lane] += weight * middle;
            }
            Record<T>& record = records[at];
            record.row = hits.row[i], record.ray = ids[lane];
            for (int k = 0; k < 3; ++k) record.logits[k] = weight * g[k] * c[k] * (T(1) - c[k]);
            record.sigma = hits.length[i] * (hits.after[i] * seen - behind[lane]);
            record.weight = weight;
            behind[lane] += weight * seen;
        }
    }

    void sort(const std::vector<Record<T>>& records, TaskRecords<T>& task) const {
        task.begins.assign(std::size_t(ranges) + 2, 0);
        for (const auto& record : records) ++task.begins[std::size_t(record.row >> range_bits) + 2];
        for (std::size_t i = 2; i < task.begins.size(); ++i) task.begins[i] += task.begins[i - 1];
        Record<T>* sorted = task.sorted.resize(records.size());
        for (const auto& record : records) sorted[task.begins[std::size_t(record.row >> range_bits) + 1]++] = record;
    }
};

template <typename T>
void run(Records<T>& records, OctreeScene<T>& scene, Wanted wanted, const Upstream<T>& up) {
    with_degree(scene.leaves.numbers, [&](auto degree) { records.template trace<degree()>(scene, wanted, up); });
}

// The gradient of a picture by the leaves, v_sigmas [leaves] and v_sh [leaves, numbers], written whole.
template <typename T>
void octree_backward(Numbers<const std::int32_t> top, Table<const std::int32_t> nodes, Table<const std::int16_t> boxes,
                     Numbers<const std::int32_t> shape, Numbers<const double> frame, Numbers<const T> sigmas,
                     Table<const T> sh, Maybe<Table<const T>> origins, Maybe<Table<const T>> directions,
                     Maybe<Numbers<const double>> camera, std::int64_t width, std::int64_t height, double stop,
                     double least, Table<const T> v_rgb, Numbers<const T> v_last, Numbers<T> v_sigmas, Table<T> v_sh) {
    OctreeScene<T> scene = octree_scene<T>(top, nodes, boxes, shape, frame, sigmas, sh, origins, directions, camera,
                                           width, height, stop, least);
    const std::size_t rays = std::size_t(scene.rays.rays);
    if (v_rgb.shape(0) != rays || v_rgb.shape(1) != 3 || v_last.shape(0) != rays ||
        v_sigmas.shape(0) != sigmas.shape(0) || v_sh.shape(0) != sh.shape(0) || v_sh.shape(1) != sh.shape(1))
        throw nb::value_error("gradients must have the shapes of what they belong to");
    nb::gil_scoped_release unlocked;
    Records<T> records;
    Upstream<T> up;
    up.v_rgb = v_rgb.data(), up.v_last = v_last.data();
    run(records, scene, Wanted::kGradients, up);
    std::fill(v_sigmas.data(), v_sigmas.data() + v_sigmas.size(), T(0));
    std::fill(v_sh.data(), v_sh.data() + v_sh.size(), T(0));
    with_degree(scene.leaves.numbers, [&](auto degree) {
        constexpr int kBasis = sh_count(degree());
        records.template collect<degree()>(scene, [&](std::int64_t row, const T* g) {
            T* to = v_sh.data() + row * 3 * kBasis;
            for (int k = 0; k < kBasis; ++k)
                for (int c = 0; c < 3; ++c) to[3 * k + c] = g[4 * k + c];
            v_sigmas.data()[row] = g[3];
        });
    });
}

// Adds each leaf's weights over all rays to sums [leaves] and raises maxima [leaves] to the largest.
template <typename T>
void octree_weights(Numbers<const std::int32_t> top, Table<const std::int32_t> nodes, Table<const std::int16_t> boxes,
                    Numbers<const std::int32_t> shape, Numbers<const double> frame, Numbers<const T> sigmas,
                    Table<const T> sh, Maybe<Table<const T>> origins, Maybe<Table<const T>> directions,
                    Maybe<Numbers<const double>> camera, std::int64_t width, std::int64_t height, double stop,
                    double least, Numbers<T> sums, Numbers<T> maxima) {
    OctreeScene<T> scene = octree_scene<T>(top, nodes, boxes, shape, frame, sigmas, sh, origins, directions, camera,
                                           width, height, stop, least);
    if (sums.shape(0) != sigmas.shape(0) || maxima.shape(0) != sigmas.shape(0))
        throw nb::value_error("sums and maxima must have a number per leaf");
    nb::gil_scoped_release unlocked;
    Records<T> records;
    run(records, scene, Wanted::kWeights, Upstream<T>());
    parallel_tasks(records.ranges, [&](std::int64_t range, int) {
        for (const auto& task : records.tasks)
            for (std::int32_t i = task.begins[std::size_t(range)]; i < task.begins[std::size_t(range) + 1]; ++i) {
                const Record<T>& record = task.sorted[std::size_t(i)];
                sums.data()[record.row] += record.weight;
                maxima.data()[record.row] = std::max(maxima.data()[record.row], record.weight);
            }
    });
}

// Parameters with their two moments, all of one shape.
struct Trained {
    float *param, *exp_avg, *exp_avg_sq;
    AdamStep<float> step;
};

// Trains leaves on one picture at a time; keeps its working memory.
class OctreeTrainer {
  public:
    // Sum of squared errors against target [R, 3] over background [3]; then one step of Adam on the rows met, down
    // the errors and `distortion` times each ray's distortion. The rows' weights in this picture are added to weights
    // [leaves], and maxima [leaves] raised to the largest. Densities stay at least at `floor`: at 0 they would see no
    // gradient any more.
    double step(Numbers<const std::int32_t> top, Table<const std::int32_t> nodes, Table<const std::int16_t> boxes,
                Numbers<const std::int32_t> shape, Numbers<const double> frame, Numbers<float> sigmas, Table<float> sh,
                Numbers<const double> camera, std::int64_t width, std::int64_t height, double stop, double least,
                Table<const float> target, Numbers<const float> background,
                Array<float, nb::shape<2, -1>> sigma_moments,
                Array<float, nb::shape<2, -1, -1>> sh_moments, Numbers<float> weights, Numbers<float> maxima,
                std::int64_t number, double lr_sigma, double lr_sh, double beta1, double beta2, double eps, float floor,
                float distortion) {
        OctreeScene<float> scene =
            octree_scene<float>(top, nodes, boxes, shape, frame, Numbers<const float>(sigmas), Table<const float>(sh),
                                std::nullopt, std::nullopt, camera, width, height, stop, least);
        if (target.shape(0) != std::size_t(scene.rays.rays) || target.shape(1) != 3 || background.shape(0) != 3 ||
            sigma_moments.shape(1) != sigmas.shape(0) || sh_moments.shape(1) != sh.shape(0) ||
            sh_moments.shape(2) != sh.shape(1) || weights.shape(0) != sigmas.shape(0) ||
            maxima.shape(0) != sigmas.shape(0))
            throw nb::value_error("target must have a row per pixel, background 3 numbers, moments the leaves' shape");
        nb::gil_scoped_release unlocked;
        Upstream<float> up;
        up.target = target.data(), up.background = background.data();
        up.scale = 2.0f, up.distortion = distortion;
        run(records_, scene, Wanted::kGradients, up);
        const Trained density{sigmas.data(), sigma_moments.data(), sigma_moments.data() + sigmas.size(),
                              adam_step<float>(number, lr_sigma, beta1, beta2, eps)};
        const Trained color{sh.data(), sh_moments.data(), sh_moments.data() + sh.size(),
                            adam_step<float>(number, lr_sh, beta1, beta2, eps)};
        with_degree(scene.leaves.numbers, [&](auto degree) {
            constexpr int kBasis = sh_count(degree()), kNumbers = 3 * kBasis;
            records_.collect<degree()>(scene, [&](std::int64_t row, const float* g) {
                float v[kNumbers];
                for (int k = 0; k < kBasis; ++k)
                    for (int c = 0; c < 3; ++c) v[3 * k + c] = g[4 * k + c];
                float *p = color.param + row * kNumbers, *m = color.exp_avg + row * kNumbers;
                float* s = color.exp_avg_sq + row * kNumbers;
#pragma GCC ivdep
                for (int i = 0; i < kNumbers; ++i) adam_update(p[i], v[i], m[i], s[i], color.step);
                adam_update(density.param[row], g[3], density.exp_avg[row], density.exp_avg_sq[row], density.step);
                density.param[row] = std::max(density.param[row], floor);
                weights.data()[row] += g[4 * kBasis];
                maxima.data()[row] = std::max(maxima.data()[row], g[4 * kBasis + 1]);
            });
        });
        return records_.loss();
    }

  private:
    Records<float> records_;
};

template <typename T>
void bind(nb::module_& m) {
    m.def("octree_backward", &octree_backward<T>, nb::arg("top").noconvert(), nb::arg("nodes").noconvert(),
          nb::arg("boxes").noconvert(), nb::arg("shape").noconvert(), nb::arg("frame").noconvert(),
          nb::arg("sigmas").noconvert(), nb::arg("sh").noconvert(), nb::arg("origins").noconvert().none(),
          nb::arg("directions").noconvert().none(), nb::arg("camera").noconvert().none(), nb::arg("width"),
          nb::arg("height"), nb::arg("stop"), nb::arg("least"),
          nb::arg("v_rgb").noconvert(), nb::arg("v_last").noconvert(), nb::arg("v_sigmas").noconvert(),
          nb::arg("v_sh").noconvert(),
          "Gradient of colours and remaining light by the leaf table.");
    m.def("octree_weights", &octree_weights<T>, nb::arg("top").noconvert(), nb::arg("nodes").noconvert(),
          nb::arg("boxes").noconvert(), nb::arg("shape").noconvert(), nb::arg("frame").noconvert(),
          nb::arg("sigmas").noconvert(), nb::arg("sh").noconvert(), nb::arg("origins").noconvert().none(),
          nb::arg("directions").noconvert().none(), nb::arg("camera").noconvert().none(), nb::arg("width"),
          nb::arg("height"), nb::arg("stop"), nb::arg("least"),
          nb::arg("sums").noconvert(), nb::arg("maxima").noconvert(), "Sum and maximum of each leaf's weights.");
}

}  // namespace

void bind_octree_train(nb::module_& m) {
    bind<float>(m);
    bind<double>(m);
    nb::class_<OctreeTrainer>(m, "OctreeTrainer", "Trains leaves on one picture at a time; keeps its working memory.")
        .def(nb::init<>())
        .def("step", &OctreeTrainer::step, nb::arg("top").noconvert(), nb::arg("nodes").noconvert(),
             nb::arg("boxes").noconvert(), nb::arg("shape").noconvert(), nb::arg("frame").noconvert(),
             nb::arg("sigmas").noconvert(), nb::arg("sh").noconvert(), nb::arg("camera").noconvert(), nb::arg("width"),
             nb::arg("height"), nb::arg("stop"), nb::arg("least"), nb::arg("target").noconvert(),
             nb::arg("background").noconvert(), nb::arg("sigma_moments").noconvert(), nb::arg("sh_moments").noconvert(),
             nb::arg("weights").noconvert(), nb::arg("maxima").noconvert(), nb::arg("number"), nb::arg("lr_sigma"),
             nb::arg("lr_sh"), nb::arg("beta1"), nb::arg("beta2"), nb::arg("eps"), nb::arg("floor"),
             nb::arg("distortion"));
}

}  // namespace maquette
