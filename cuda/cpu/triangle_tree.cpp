// Rays and points against the triangles of a mesh, through a tree of boxes (scene/ops/triangle_tree.py).
// Rays go in packets, one a lane; each packet and each point stands for itself, so the result does not depend on the
// number of threads.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "cpu/bindings.h"
#include "cpu/parallel.h"
#include "cpu/simd.h"
#include "math/triangle.h"

namespace nb = nanobind;

namespace maquette {
namespace {

constexpr int kDepth = 64;             // of the stack: two for each level are more than enough
constexpr std::int64_t kRays = 4096;   // per task
constexpr std::int64_t kPoints = 512;  // per task
constexpr float kFar = 3e38f;          // nothing was met yet
constexpr float kLeast = 1e-18f;       // of a direction's component, so that its inverse is a number
constexpr float kSlack = 1.0f + 4e-7f;  // for the rounding of where a ray leaves a box

// A complete binary tree: the children of node i are 2 i and 2 i + 1, the root is 1, the leaves are the second half.
struct Tree {
    const float* boxes;          // low x, y, z and high x, y, z of each node
    const std::int32_t* starts;  // of each leaf among the triangles, and their end
    const float* triangles;      // three corners each
    std::int64_t leaves;

    Vec3<float> corner(std::int64_t triangle, int which) const {
        const float* c = triangles + 9 * triangle + 3 * which;
        return {c[0], c[1], c[2]};
    }
};

using Boxes = Array<const float, nb::shape<-1, 6>>;
using Starts = Array<const std::int32_t, nb::shape<-1>>;
using Triangles = Array<const float, nb::shape<-1, 9>>;

Tree tree_of(const Boxes& boxes, const Starts& starts, const Triangles& triangles) {
    const std::int64_t leaves = std::int64_t(starts.shape(0)) - 1;
    if (leaves < 1 || std::int64_t(boxes.shape(0)) != 2 * leaves) throw nb::value_error("boxes must be [2 L, 6]");
    return {boxes.data(), starts.data(), triangles.data(), leaves};
}

constexpr std::int64_t kApart = 16;  // pieces that are halved side by side

// Orders a piece of the triangles, the `which`-th of so many equal ones, so that the pieces of its halves lie together:
// parted at the middle one along the longest side of the box of their centres.
struct Halving {
    const float* centres;
    std::int32_t* order;
    std::int64_t count;

    std::int64_t begin(std::int64_t which, std::int64_t pieces) const { return which * count / pieces; }

    void once(std::int64_t which, std::int64_t pieces) const {
        const std::int64_t first = begin(which, pieces), last = begin(which + 1, pieces);
        float low[3] = {kFar, kFar, kFar}, high[3] = {-kFar, -kFar, -kFar};
        for (std::int64_t i = first; i < last; ++i)
            for (int k = 0; k < 3; ++k) {
                low[k] = std::min(low[k], centres[3 * std::int64_t(order[i]) + k]);
                high[k] = std::max(high[k], centres[3 * std::int64_t(order[i]) + k]);
            }
        int longest = 0;
        for (int k = 1; k < 3; ++k)
            if (high[k] - low[k] > high[longest] - low[longest]) longest = k;
        const float* along = centres + longest;
        std::nth_element(order + first, order + begin(2 * which + 1, 2 * pieces), order + last,
                         [&](std::int32_t a, std::int32_t b) {
                             const float x = along[3 * std::int64_t(a)], y = along[3 * std::int64_t(b)];
                             return x < y || (x == y && a < b);
                         });
    }

    void whole(std::int64_t which, std::int64_t pieces, std::int64_t leaves) const {
        if (pieces >= leaves) return;
        once(which, pieces);
        whole(2 * which, 2 * pieces, leaves);
        whole(2 * which + 1, 2 * pieces, leaves);
    }
};

void halve_triangles(Array<const float, nb::shape<-1, 3>> centres, std::int64_t leaves,
                     Array<std::int32_t, nb::shape<-1>> order) {
    const Halving halving{centres.data(), order.data(), std::int64_t(centres.shape(0))};
    if (order.shape(0) != centres.shape(0)) throw nb::value_error("order must be [F]");
    nb::gil_scoped_release release;
    for (std::int64_t i = 0; i < halving.count; ++i) halving.order[i] = std::int32_t(i);
    std::int64_t pieces = 1;
    for (; pieces < std::min(leaves, kApart); pieces *= 2)
        parallel_tasks(pieces, [&](std::int64_t which, int) { halving.once(which, pieces); });
    parallel_tasks(pieces, [&](std::int64_t which, int) { halving.whole(which, pieces, leaves); });
}

Vec3<Floats> spread(const Vec3<float>& v) { return {Floats(v.x), Floats(v.y), Floats(v.z)}; }

struct Packet {
    Vec3<Floats> origin, direction, inverse;
    Floats near_;                   // t of the nearest triangle so far; below 0 in lanes without a ray
    Vec3<Floats> weights;           // of its corners there
    std::int32_t triangle[Floats::count];

    void load(const float* origins, const float* directions, float reach, int used) {
        float o[3][Floats::count], d[3][Floats::count], inverse_d[3][Floats::count], t[Floats::count];
        for (int lane = 0; lane < Floats::count; ++lane) {
            const int from = std::min(lane, used - 1);
            for (int k = 0; k < 3; ++k) {
                o[k][lane] = origins[3 * from + k];
                d[k][lane] = directions[3 * from + k];
                const float enough = std::fabs(d[k][lane]) < kLeast ? std::copysign(kLeast, d[k][lane]) : d[k][lane];
                inverse_d[k][lane] = 1.0f / enough;
            }
            t[lane] = lane < used ? reach : -1.0f;
            triangle[lane] = -1;
        }
        origin = {Floats::load(o[0]), Floats::load(o[1]), Floats::load(o[2])};
        direction = {Floats::load(d[0]), Floats::load(d[1]), Floats::load(d[2])};
        inverse = {Floats::load(inverse_d[0]), Floats::load(inverse_d[1]), Floats::load(inverse_d[2])};
        near_ = Floats::load(t);
        weights = {Floats(0.0f), Floats(0.0f), Floats(0.0f)};
    }

    // Whether any ray enters the box before the nearest triangle that it has met.
    MQ_INLINE bool enters(const float* box) const {
        const Vec3<Floats> to_low = inverse * (spread({box[0], box[1], box[2]}) - origin);
        const Vec3<Floats> to_high = inverse * (spread({box[3], box[4], box[5]}) - origin);
        const Floats in = maximum(maximum(minimum(to_low.x, to_high.x), minimum(to_low.y, to_high.y)),
                                  maximum(minimum(to_low.z, to_high.z), Floats(0.0f)));
        const Floats out = minimum(minimum(maximum(to_low.x, to_high.x), maximum(to_low.y, to_high.y)),
                                   maximum(to_low.z, to_high.z));
        return any_at_least(minimum(out * Floats(kSlack), near_) - in, 0.0f);
    }

    MQ_INLINE void meet(const Tree& tree, std::int64_t index) {
        const Vec3<Floats> a = spread(tree.corner(index, 0)) - origin, b = spread(tree.corner(index, 1)) - origin,
                           c = spread(tree.corner(index, 2)) - origin;
        const LineThroughTriangle<Floats> line = line_through_triangle(a, b, c, direction);
        const Floats least = minimum(minimum(line.weights.x, line.weights.y), line.weights.z);
        const Floats most = maximum(maximum(line.weights.x, line.weights.y), line.weights.z);
        const Floats t = line.along / line.across;  // NaN in the triangle's plane: no hit
        const auto hit = both(both(at_least(maximum(least, -most), Floats(0.0f)), at_least(t, Floats(0.0f))),
                              below(t, near_));
        const Floats marks = choose(hit, Floats(1.0f), Floats(0.0f));
        if (!any_at_least(marks, 1.0f)) return;
        near_ = choose(hit, t, near_);
        weights.x = choose(hit, line.weights.x, weights.x);
        weights.y = choose(hit, line.weights.y, weights.y);
        weights.z = choose(hit, line.weights.z, weights.z);
        for (int lane = 0; lane < Floats::count; ++lane)
            if (marks[lane] > 0.0f) triangle[lane] = std::int32_t(index);
    }

    // The child that the packet's first ray comes to first, by the axis along which the two lie farthest apart.
    int nearer(const float* boxes) const {
        float best = 0.0f;
        int first = 0;
        const float way[3] = {direction.x[0], direction.y[0], direction.z[0]};
        for (int k = 0; k < 3; ++k) {
            const float apart = (boxes[6 + k] + boxes[9 + k]) - (boxes[k] + boxes[3 + k]);
            if (std::fabs(apart) > best) best = std::fabs(apart), first = apart * way[k] < 0.0f;
        }
        return first;
    }

    void walk(const Tree& tree) {
        std::int64_t stack[kDepth];
        int height = 0;
        stack[height++] = 1;
        while (height) {
            const std::int64_t node = stack[--height];
            if (!enters(tree.boxes + 6 * node)) continue;
            if (node < tree.leaves) {
                const int first = nearer(tree.boxes + 12 * node);
                stack[height++] = 2 * node + 1 - first;
                stack[height++] = 2 * node + first;
                continue;
            }
            const std::int32_t* piece = tree.starts + (node - tree.leaves);
            for (std::int64_t index = piece[0]; index < piece[1]; ++index) meet(tree, index);
        }
    }
};

void cast_rays(Boxes boxes, Starts starts, Triangles triangles, Array<const float, nb::shape<-1, 3>> origins,
               Array<const float, nb::shape<-1, 3>> directions, float reach,
               Array<std::int32_t, nb::shape<-1>> which, Array<float, nb::shape<-1>> t, Array<float, nb::shape<-1, 3>> shares) {
    const Tree tree = tree_of(boxes, starts, triangles);
    const std::int64_t count = std::int64_t(origins.shape(0));
    const float *o = origins.data(), *d = directions.data();
    std::int32_t* to_which = which.data();
    float *to_t = t.data(), *to_shares = shares.data();
    nb::gil_scoped_release release;
    parallel_ranges(count, kRays, [&](std::int64_t begin, std::int64_t end) {
        Packet packet;
        for (std::int64_t ray = begin; ray < end; ray += Floats::count) {
            const int used = int(std::min<std::int64_t>(Floats::count, end - ray));
            packet.load(o + 3 * ray, d + 3 * ray, reach, used);
            packet.walk(tree);
            for (int lane = 0; lane < used; ++lane) {
                const bool hit = packet.triangle[lane] >= 0;
                const float w[3] = {packet.weights.x[lane], packet.weights.y[lane], packet.weights.z[lane]};
                const float sum = w[0] + w[1] + w[2];
                to_which[ray + lane] = packet.triangle[lane];
                to_t[ray + lane] = hit ? packet.near_[lane] : 0.0f;
                for (int k = 0; k < 3; ++k) to_shares[3 * (ray + lane) + k] = hit ? w[k] / sum : 0.0f;
            }
        }
    });
}

// Squared distance of a point to a box, 0 inside.
MQ_INLINE float squared_to_box(const Vec3<float>& p, const float* box) {
    const Vec3<float> low{box[0], box[1], box[2]}, high{box[3], box[4], box[5]};
    const float x = std::max({low.x - p.x, p.x - high.x, 0.0f}), y = std::max({low.y - p.y, p.y - high.y, 0.0f}),
                z = std::max({low.z - p.z, p.z - high.z, 0.0f});
    return x * x + y * y + z * z;
}

struct Nearest {
    float squared = kFar;
    std::int64_t triangle = -1;
    Vec3<float> shares{0.0f, 0.0f, 0.0f};

    void look(const Tree& tree, std::int64_t index, const Vec3<float>& p) {
        const PlaceOnTriangle<float> place =
            nearest_place(tree.corner(index, 0) - p, tree.corner(index, 1) - p, tree.corner(index, 2) - p);
        if (place.squared < squared) squared = place.squared, triangle = index, shares = place.shares;
    }

    void walk(const Tree& tree, const Vec3<float>& p) {
        struct Waiting {
            std::int64_t node;
            float squared;
        } stack[kDepth];
        int height = 0;
        stack[height++] = {1, squared_to_box(p, tree.boxes + 6)};
        while (height) {
            const Waiting next = stack[--height];
            if (!(next.squared < squared)) continue;
            if (next.node < tree.leaves) {
                const float* boxes = tree.boxes + 12 * next.node;
                const Waiting first{2 * next.node, squared_to_box(p, boxes)};
                const Waiting second{2 * next.node + 1, squared_to_box(p, boxes + 6)};
                stack[height++] = first.squared < second.squared ? second : first;
                stack[height++] = first.squared < second.squared ? first : second;
                continue;
            }
            const std::int32_t* piece = tree.starts + (next.node - tree.leaves);
            for (std::int64_t index = piece[0]; index < piece[1]; ++index) look(tree, index, p);
        }
    }
};

void nearest_on_triangles(Boxes boxes, Starts starts, Triangles triangles, Array<const float, nb::shape<-1, 3>> points,
                          Array<std::int32_t, nb::shape<-1>> which, Array<float, nb::shape<-1>> distances,
                          Array<float, nb::shape<-1, 3>> shares) {
    const Tree tree = tree_of(boxes, starts, triangles);
    const std::int64_t count = std::int64_t(points.shape(0));
    const float* p = points.data();
    std::int32_t* to_which = which.data();
    float *to_distance = distances.data(), *to_shares = shares.data();
    nb::gil_scoped_release release;
    parallel_ranges(count, kPoints, [&](std::int64_t begin, std::int64_t end) {
        std::int64_t last = -1;
        for (std::int64_t i = begin; i < end; ++i) {
            const Vec3<float> point{p[3 * i], p[3 * i + 1], p[3 * i + 2]};
            Nearest found;
            if (last >= 0) found.look(tree, last, point);  // points that follow one another are often neighbours
            found.walk(tree, point);
            last = found.triangle;
            to_which[i] = std::int32_t(found.triangle);
            to_distance[i] = std::sqrt(found.squared);
            to_shares[3 * i] = found.shares.x;
            to_shares[3 * i + 1] = found.shares.y;
            to_shares[3 * i + 2] = found.shares.z;
        }
    });
}

}  // namespace

void bind_triangle_tree(nb::module_& m) {
    m.def("halve_triangles", &halve_triangles, nb::arg("centres").noconvert(), nb::arg("leaves"),
          nb::arg("order").noconvert());
    m.def("cast_rays", &cast_rays, nb::arg("boxes").noconvert(), nb::arg("starts").noconvert(),
          nb::arg("triangles").noconvert(), nb::arg("origins").noconvert(), nb::arg("directions").noconvert(),
          nb::arg("reach"), nb::arg("which").noconvert(), nb::arg("t").noconvert(), nb::arg("shares").noconvert());
    m.def("nearest_on_triangles", &nearest_on_triangles, nb::arg("boxes").noconvert(), nb::arg("starts").noconvert(),
          nb::arg("triangles").noconvert(), nb::arg("points").noconvert(), nb::arg("which").noconvert(),
          nb::arg("distances").noconvert(), nb::arg("shares").noconvert());
}

}  // namespace maquette
