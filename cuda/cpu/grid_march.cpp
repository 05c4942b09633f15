// Rays through a density grid: what of it they see, packed; and the gradient by the grid.
//
// A ray is walked in blocks of as many samples as a vector has lanes. Samples in free space cost one bit; of the others
// density and alpha are found together. Only what is denser than `alpha_threshold` takes light, and only what adds more
// than `weight_threshold` to its pixel is handed out (DVGO's fast_color_thres).
#include <nanobind/stl/optional.h>

#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "cpu/bindings.h"
#include "cpu/lanes.h"
#include "cpu/parallel.h"
#include "cpu/slab_scatter.h"
#include "math/grid_density.h"
#include "math/ray_samples.h"
#include "math/trilinear.h"

namespace nb = nanobind;

namespace maquette {
namespace {

constexpr std::int64_t kRays = 64;  // per task

template <typename T>
struct Grid {
    const T* density;             // [X, Y, Z]
    const T* shifts;              // [Z], interpolated with the density and added to it
    const std::uint8_t* occupied;  // [X, Y, ceil(Z / 8)], a bit per voxel: whether what lies nearest to it may be dense
    GridSize size;

    int row_bytes() const { return (size.z + 7) / 8; }
    bool holds(int x, int y, int z) const {
        return occupied[(std::int64_t(x) * size.y + y) * row_bytes() + z / 8] >> (z % 8) & 1;
    }
};

// Sample i of a ray lies at origin + (start + i) direction; of a bent one at the contraction of
// origin + distances[i] direction, in the grid by `scale` and `offset`, and is left out where it moved less than
// `spacing` from the one before.
template <typename T>
struct Rays {
    const T *origins, *directions, *starts;
    const std::int32_t* counts;
    const T* distances;  // null: straight
    T scale[3], offset[3], shell, spacing;
};

// A sample that takes light.
template <typename T>
struct Kept {
    T x, y, z, raw, alpha, weight;
    std::int32_t step;
};

template <typename T>
struct Task {
    std::vector<Kept<T>> kept;
    std::int32_t counts[kRays], shown[kRays];  // kept, and handed out, of each ray
    std::int64_t total_shown;
};

template <typename T>
struct Thresholds {
    T interval, alpha, weight, stop;
};

template <typename T>
class Walk {
    using L = Lanes<T, kVectorBytes / int(sizeof(T))>;
    static constexpr int N = L::count;

  public:
    Walk(const Grid<T>& grid, const Rays<T>& rays, std::int64_t ray) : grid_(grid), rays_(rays) {
        for (int a = 0; a < 3; ++a) origin_[a] = rays.origins[3 * ray + a], direction_[a] = rays.directions[3 * ray + a];
        start_ = rays.starts[ray];
        for (int lane = 0; lane < N; ++lane) lanes_.v[lane] = T(lane);
    }

    // Calls visit(first, found) for each block with candidates; found: number of lanes listed in `which`, whose places
    // are x, y, z. Stops when visit says so.
    template <typename Visit>
    MQ_INLINE void each_block(int count, const Visit& visit) {
        for (int first = 0; first < count; first += N) {
            place_block(first);
            const int here = count - first < N ? count - first : N;
            int found = 0;
            for (int lane = 0; lane < here; ++lane) {
                const bool taken = !rays_.distances || apart(lane);
                int i, j, k;
                const bool inside = nearest_on_axis(x[lane], grid_.size.x, i) &&
                                    nearest_on_axis(y[lane], grid_.size.y, j) &&
                                    nearest_on_axis(z[lane], grid_.size.z, k);
                which[found] = lane;
                found += taken && inside && grid_.holds(i, j, k);
            }
            if (found && !visit(first, found)) return;
        }
    }

    // Density plus shift at the listed lanes, in the order of `which`.
    MQ_INLINE L raw_of(int found) {
        alignas(kVectorBytes) T corners[8][N] = {}, fx[N] = {}, fy[N] = {}, fz[N] = {}, low[N] = {}, high[N] = {};
        const std::int64_t plane = std::int64_t(grid_.size.y) * grid_.size.z;
        const std::int64_t up_x = grid_.size.x > 1 ? plane : 0, up_y = grid_.size.y > 1 ? grid_.size.z : 0;
        const int up_z = grid_.size.z > 1;
        for (int n = 0; n < found; ++n) {
            const int lane = which[n];
            const Cell<T> cell = cell_at(x[lane], y[lane], z[lane], grid_.size);
            const T* at = grid_.density + (std::int64_t(cell.x) * grid_.size.y + cell.y) * grid_.size.z + cell.z;
            corners[0][n] = at[0], corners[1][n] = at[up_z];
            corners[2][n] = at[up_y], corners[3][n] = at[up_y + up_z];
            corners[4][n] = at[up_x], corners[5][n] = at[up_x + up_z];
            corners[6][n] = at[up_x + up_y], corners[7][n] = at[up_x + up_y + up_z];
            fx[n] = cell.fx, fy[n] = cell.fy, fz[n] = cell.fz;
            low[n] = grid_.shifts[cell.z], high[n] = grid_.shifts[cell.z + up_z];
        }
        const auto between = [](L a, L b, L share) { return a + share * (b - a); };
        const L sx = L::load(fx), sy = L::load(fy), sz = L::load(fz);
        L v[8];
        for (int corner = 0; corner < 8; ++corner) v[corner] = L::load(corners[corner]);
        const L below = between(between(v[0], v[1], sz), between(v[2], v[3], sz), sy);
        const L above = between(between(v[4], v[5], sz), between(v[6], v[7], sz), sy);
        return between(below, above, sx) + between(L::load(low), L::load(high), sz);
    }

    alignas(kVectorBytes) T x[N], y[N], z[N];
    int which[N + 1];

  private:
    MQ_INLINE void place_block(int first) {
        L t;
        if (rays_.distances) {
            alignas(kVectorBytes) T own[N];
            std::memcpy(own, rays_.distances + first, sizeof own);
            t = L::load(own);
        } else {
            t = L(start_ + T(first)) + lanes_;
        }
        Vec3<L> p = {L(origin_[0]) + t * L(direction_[0]), L(origin_[1]) + t * L(direction_[1]),
                     L(origin_[2]) + t * L(direction_[2])};
        if (rays_.distances) {
            p = contract(p, L(rays_.shell));
            p.x.store(bent_[0]), p.y.store(bent_[1]), p.z.store(bent_[2]);
            p = {p.x * L(rays_.scale[0]) + L(rays_.offset[0]), p.y * L(rays_.scale[1]) + L(rays_.offset[1]),
                 p.z * L(rays_.scale[2]) + L(rays_.offset[2])};
        }
        p.x.store(x), p.y.store(y), p.z.store(z);
    }

    // Samples of a bent ray crowd far out, where the contraction shrinks space: one is taken per `spacing`.
    bool apart(int lane) {
        T moved = 0, farthest = 0;
        for (int a = 0; a < 3; ++a) {
            const T place = bent_[a][lane], by = place - last_[a];
            moved += by * by, farthest = maximum(farthest, place < 0 ? -place : place), last_[a] = place;
        }
        since_ += __builtin_sqrt(moved);
        if (farthest <= T(1)) return since_ = 0, true;
        if (since_ <= rays_.spacing) return false;
        return since_ = 0, true;
    }

    const Grid<T>& grid_;
    const Rays<T>& rays_;
    T origin_[3], direction_[3], start_, last_[3] = {0, 0, 0}, since_ = 0;
    L lanes_;
    alignas(kVectorBytes) T bent_[3][N];
};

template <typename T>
class GridMarch {
    using L = Lanes<T, kVectorBytes / int(sizeof(T))>;
    template <typename N, nb::ssize_t... Shape>
    using In = Array<const N, nb::shape<Shape...>>;
    template <typename N, nb::ssize_t... Shape>
    using Out = Array<N, nb::shape<Shape...>>;

  public:
    std::int64_t march(In<T, -1, -1, -1> density, In<T, -1> shifts, In<std::uint8_t, -1, -1, -1> occupied,
                       In<T, -1, 3> origins, In<T, -1, 3> directions, In<T, -1> starts, In<std::int32_t, -1> counts,
                       std::optional<In<T, -1>> distances, std::optional<In<T, 2, 3>> affine, double shell,
                       double spacing, double interval, double alpha_threshold, double weight_threshold, double stop) {
        const Grid<T> grid = grid_of(density, shifts, occupied);
        const Rays<T> rays = rays_of(origins, directions, starts, counts, distances, affine, shell, spacing);
        limits_ = {T(interval), T(alpha_threshold), T(weight_threshold), T(stop)};
        size_ = grid.size;
        count_ = std::int64_t(origins.shape(0));
        nb::gil_scoped_release unlocked;
        const std::int64_t tasks = (count_ + kRays - 1) / kRays;
        if (std::int64_t(tasks_.size()) < tasks) tasks_.resize(std::size_t(tasks));
        parallel_ranges(count_, kRays, [&](std::int64_t begin, std::int64_t end) {
            Task<T>& task = tasks_[std::size_t(begin / kRays)];
            task.kept.clear(), task.total_shown = 0;
            for (std::int64_t ray = begin; ray < end; ++ray) walk(grid, rays, ray, task, ray - begin);
        });
        std::int64_t total = 0;
        for (std::int64_t t = 0; t < tasks; ++t) total += tasks_[std::size_t(t)].total_shown;
        return total;
    }

    void emit(Out<T, -1, 3> points, Out<T, -1> weights, Out<T, -1> steps, Out<std::int32_t, -1> rays,
              Out<std::int32_t, -1> offsets, Out<T, -1> last, In<T, -1> starts) {
        if (std::int64_t(offsets.shape(0)) != count_ + 1 || std::int64_t(last.shape(0)) != count_ ||
            std::int64_t(starts.shape(0)) != count_)
            throw nb::value_error("offsets, last and starts must fit the rays that were marched");
        nb::gil_scoped_release unlocked;
        std::int64_t total = 0;
        for (std::int64_t begin = 0; begin < count_; begin += kRays) {
            const Task<T>& task = tasks_[std::size_t(begin / kRays)];
            for (std::int64_t ray = begin; ray < count_ && ray < begin + kRays; ++ray) {
                offsets.data()[ray] = std::int32_t(total);
                total += task.shown[ray - begin];
            }
        }
        offsets.data()[count_] = std::int32_t(total);
        parallel_ranges(count_, kRays, [&](std::int64_t begin, std::int64_t end) {
            const Task<T>& task = tasks_[std::size_t(begin / kRays)];
            const Kept<T>* kept = task.kept.data();
            for (std::int64_t ray = begin; ray < end; ++ray) {
                std::int64_t to = offsets.data()[ray];
                T light = 1;
                for (std::int32_t i = 0; i < task.counts[ray - begin]; ++i, ++kept) {
                    light *= T(1) - kept->alpha;
                    if (!(kept->weight > limits_.weight)) continue;
                    points.data()[3 * to] = kept->x, points.data()[3 * to + 1] = kept->y;
                    points.data()[3 * to + 2] = kept->z;
                    weights.data()[to] = kept->weight;
                    steps.data()[to] = starts.data()[ray] + T(kept->step);
                    rays.data()[to] = std::int32_t(ray);
                    ++to;
                }
                last.data()[ray] = light;
            }
        });
    }

    // With T_i the light before sample i and A_i = sum_{j > i} w_j v_j + T_end v_last:
    //   dL/d raw_i = interval sigmoid(raw_i) (T_i (1 - alpha_i) v_i - A_i).
    void backward(In<T, -1> v_weights, In<T, -1> v_last, Out<T, -1, -1, -1> v_density) {
        if (std::int64_t(v_last.shape(0)) != count_ || int(v_density.shape(0)) != size_.x ||
            int(v_density.shape(1)) != size_.y || int(v_density.shape(2)) != size_.z)
            throw nb::value_error("v_last and v_density must fit what was marched");
        nb::gil_scoped_release unlocked;
        const std::int64_t tasks = (count_ + kRays - 1) / kRays;
        std::int64_t total = 0, shown = 0;
        starts_.resize(std::size_t(tasks)), shown_starts_.resize(std::size_t(tasks));
        for (std::int64_t t = 0; t < tasks; ++t) {
            starts_[std::size_t(t)] = total, shown_starts_[std::size_t(t)] = shown;
            total += std::int64_t(tasks_[std::size_t(t)].kept.size()), shown += tasks_[std::size_t(t)].total_shown;
        }
        Entry* entries = entries_.resize(std::size_t(total));
        parallel_ranges(count_, kRays, [&](std::int64_t begin, std::int64_t end) {
            const std::size_t at = std::size_t(begin / kRays);
            const Task<T>& task = tasks_[at];
            std::int64_t first = 0, v = shown_starts_[at];
            for (std::int64_t ray = begin; ray < end; ++ray) {
                const std::int32_t n = task.counts[ray - begin];
                ray_backward(task.kept.data() + first, n, v_weights.data() + v, v_last.data()[ray],
                             entries + starts_[at] + first);
                first += n, v += task.shown[ray - begin];
            }
        });
        scatter_.sort(total, size_.x, [&](std::int64_t i) {
            return cell_at(entries[i].x, entries[i].y, entries[i].z, size_).x;
        });
        T* to = v_density.data();
        scatter_.each([&](std::int64_t i) {
            const Entry& e = entries[i];
            const Cell<T> cell = cell_at(e.x, e.y, e.z, size_);
            for (int corner = 0; corner < 8; ++corner)
                to[corner_index(cell.x, cell.y, cell.z, corner, size_)] += corner_share(cell, corner) * e.v;
        });
    }

    // Whether a ray meets an occupied voxel at all.
    static void hits(In<std::uint8_t, -1, -1, -1> occupied, int depth, In<T, -1, 3> origins, In<T, -1, 3> directions,
                     In<T, -1> starts, In<std::int32_t, -1> counts, std::optional<In<T, -1>> distances,
                     std::optional<In<T, 2, 3>> affine, double shell, double spacing, Out<bool, -1> found) {
        if (int(occupied.shape(2)) != (depth + 7) / 8 || found.shape(0) != origins.shape(0))
            throw nb::value_error("occupied must have a bit per voxel and found a place per ray");
        const Grid<T> grid = {nullptr, nullptr, occupied.data(),
                              {int(occupied.shape(0)), int(occupied.shape(1)), depth}};
        const Rays<T> rays = rays_of(origins, directions, starts, counts, distances, affine, shell, spacing);
        nb::gil_scoped_release unlocked;
        parallel_ranges(std::int64_t(origins.shape(0)), 1024, [&](std::int64_t begin, std::int64_t end) {
            for (std::int64_t ray = begin; ray < end; ++ray) {
                bool hit = false;
                Walk<T>(grid, rays, ray).each_block(rays.counts[ray], [&](int, int) { return !(hit = true); });
                found.data()[ray] = hit;
            }
        });
    }

  private:
    struct Entry {
        T x, y, z, v;
    };

    static Grid<T> grid_of(const In<T, -1, -1, -1>& density, const In<T, -1>& shifts,
                           const In<std::uint8_t, -1, -1, -1>& occupied) {
        const GridSize size = {int(density.shape(0)), int(density.shape(1)), int(density.shape(2))};
        if (int(shifts.shape(0)) != size.z || int(occupied.shape(0)) != size.x || int(occupied.shape(1)) != size.y ||
            int(occupied.shape(2)) != (size.z + 7) / 8)
            throw nb::value_error("shifts must have a value per plane and occupied a bit per voxel");
        return {density.data(), shifts.data(), occupied.data(), size};
    }

    static Rays<T> rays_of(const In<T, -1, 3>& origins, const In<T, -1, 3>& directions, const In<T, -1>& starts,
                           const In<std::int32_t, -1>& counts, const std::optional<In<T, -1>>& distances,
                           const std::optional<In<T, 2, 3>>& affine, double shell, double spacing) {
        const std::size_t count = origins.shape(0);
        if (directions.shape(0) != count || starts.shape(0) != count || counts.shape(0) != count ||
            distances.has_value() != affine.has_value())
            throw nb::value_error("rays must agree in number, and distances come with their affine map");
        Rays<T> rays = {origins.data(), directions.data(), starts.data(), counts.data(),
                        distances ? distances->data() : nullptr, {}, {}, T(shell), T(spacing)};
        for (std::size_t ray = 0; distances && ray < count; ++ray)  // whole vectors of distances are read
            if (std::size_t(counts.data()[ray]) + kVectorBytes / sizeof(T) > distances->shape(0))
                throw nb::value_error("distances must reach a vector beyond every ray's last sample");
        for (int a = 0; affine && a < 3; ++a) rays.scale[a] = affine->data()[a], rays.offset[a] = affine->data()[3 + a];
        return rays;
    }

    void walk(const Grid<T>& grid, const Rays<T>& rays, std::int64_t ray, Task<T>& task, std::int64_t place) {
        Walk<T> walk(grid, rays, ray);
        const std::size_t before = task.kept.size();
        T light = 1;
        std::int32_t shown = 0;
        walk.each_block(rays.counts[ray], [&](int first, int found) {
            alignas(kVectorBytes) T raws[L::count], alphas[L::count];
            const L raw = walk.raw_of(found);
            raw.store(raws), raw_to_alpha(raw, L(limits_.interval)).store(alphas);
            for (int n = 0; n < found; ++n) {
                if (!(alphas[n] > limits_.alpha)) continue;
                const int lane = walk.which[n];
                const T weight = light * alphas[n];
                task.kept.push_back({walk.x[lane], walk.y[lane], walk.z[lane], raws[n], alphas[n], weight, first + lane});
                shown += weight > limits_.weight;
                light *= T(1) - alphas[n];
                if (light < limits_.stop) return false;
            }
            return true;
        });
        task.counts[place] = std::int32_t(task.kept.size() - before);
        task.shown[place] = shown, task.total_shown += shown;
    }

    void ray_backward(const Kept<T>* kept, std::int32_t n, const T* v_weights, T v_last, Entry* entries) const {
        T light = 1, behind = 0;
        const T* v = v_weights;
        for (std::int32_t i = 0; i < n; ++i) {
            light *= T(1) - kept[i].alpha;
            if (kept[i].weight > limits_.weight) behind += kept[i].weight * *v++;
        }
        behind += light * v_last;
        light = 1, v = v_weights;
        for (std::int32_t i = 0; i < n; i += L::count) {
            const int here = n - i < L::count ? n - i : L::count;
            alignas(kVectorBytes) T slopes[L::count] = {};
            for (int k = 0; k < here; ++k) slopes[k] = kept[i + k].raw;
            (L(limits_.interval) * sigmoid(L::load(slopes))).store(slopes);
            for (int k = 0; k < here; ++k) {
                const Kept<T>& sample = kept[i + k];
                T own = 0;
                const T after = light * (T(1) - sample.alpha);
                if (sample.weight > limits_.weight) {
                    behind -= sample.weight * *v;
                    own = after * *v++;
                }
                entries[i + k] = {sample.x, sample.y, sample.z, slopes[k] * (own - behind)};
                light = after;
            }
        }
    }

    Thresholds<T> limits_{};
    GridSize size_{};
    std::int64_t count_ = 0;
    std::vector<Task<T>> tasks_;
    std::vector<std::int64_t> starts_, shown_starts_;
    Buffer<Entry> entries_;
    SlabScatter scatter_;
};

template <typename T>
void bind(nb::module_& m, const char* name, const char* hits) {
    using March = GridMarch<T>;
    nb::class_<March>(m, name)
        .def(nb::init<>())
        .def("march", &March::march, nb::arg("density").noconvert(), nb::arg("shifts").noconvert(),
             nb::arg("occupied").noconvert(), nb::arg("origins").noconvert(), nb::arg("directions").noconvert(),
             nb::arg("starts").noconvert(), nb::arg("counts").noconvert(), nb::arg("distances").noconvert().none(),
             nb::arg("affine").noconvert().none(), nb::arg("shell"), nb::arg("spacing"), nb::arg("interval"),
             nb::arg("alpha_threshold"), nb::arg("weight_threshold"), nb::arg("stop"),
             "Walks all rays and keeps what they see; returns the number of samples handed out by emit.")
        .def("emit", &March::emit, "Writes the packed samples of the last march.")
        .def("backward", &March::backward, "Adds the gradient by the density of the last march to v_density.");
    m.def(hits, &March::hits, "Whether each ray meets an occupied voxel.");
}

}  // namespace

void bind_grid_march(nb::module_& m) {
    bind<float>(m, "GridMarch", "grid_hits");
    bind<double>(m, "GridMarch64", "grid_hits64");
}

}  // namespace maquette
