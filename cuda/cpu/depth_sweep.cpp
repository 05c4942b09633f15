// Plane sweep around a known depth: each pixel is tried at a few depths, and windows around it are compared between the
// pictures. Bands of rows are independent, so the result does not depend on the number of threads.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include <nanobind/stl/vector.h>

#include "cpu/bindings.h"
#include "cpu/parallel.h"
#include "math/depth_sweep.h"

namespace nb = nanobind;

namespace maquette {
namespace {

constexpr int kBand = 24;  // rows of a task; the window's halo is computed anew for each

// Sums over a window of products of two pictures, first along rows, then down columns. NaN marks what is not seen and
// spreads to every window that touches it.
template <typename S>
struct Band {
    int width, rows, radius, padded;
    std::vector<S> a, b, across[5], total, seen;

    Band(int width, int radius) : width(width), rows(0), radius(radius), padded(width + 2 * radius) {
        const std::size_t cells = std::size_t(padded) * (kBand + 2 * radius);
        a.resize(cells);
        b.resize(cells);
        for (auto& sums : across) sums.resize(std::size_t(width) * (kBand + 2 * radius));
        total.resize(std::size_t(width) * kBand);
        seen.resize(std::size_t(width) * kBand);
    }
};

template <typename S>
struct Reference {
    const S *grey, *depth;
    int width, height;
};

template <typename S>
constexpr S kNothing = std::numeric_limits<S>::quiet_NaN();

// The rows [first - radius, first + rows + radius) of the reference into band.a, NaN around the picture.
template <typename S>
void copy_reference(const Reference<S>& reference, int first, Band<S>& band) {
    const int r = band.radius;
    for (int row = 0; row < band.rows + 2 * r; ++row) {
        S* out = band.a.data() + std::size_t(row) * band.padded;
        const int y = first + row - r;
        for (int i = 0; i < band.padded; ++i) out[i] = kNothing<S>;
        if (y < 0 || y >= reference.height) continue;
        for (int x = 0; x < band.width; ++x) out[x + r] = reference.grey[std::size_t(y) * band.width + x];
    }
}

// The same rows of a picture as the reference would show it, were each pixel at depth * scale; NaN where unseen.
template <typename S>
void warp(const Reference<S>& reference, const SweepView<S>& view, S scale, int first, Band<S>& band) {
    const int r = band.radius, last_x = view.width - 2, last_y = view.height - 2;
    const S right = S(view.width) - S(0.5), below = S(view.height) - S(0.5);
    for (int row = 0; row < band.rows + 2 * r; ++row) {
        S* out = band.b.data() + std::size_t(row) * band.padded;
        const int y = first + row - r;
        for (int i = 0; i < band.padded; ++i) out[i] = kNothing<S>;
        if (y < 0 || y >= reference.height) continue;
        const S* depth = reference.depth + std::size_t(y) * band.width;
        const Vec3<S> start = view.rays * Vec3<S>{S(0.5), S(y) + S(0.5), S(1)};
        const Vec3<S> step{view.rays.r0.x, view.rays.r1.x, view.rays.r2.x};
        for (int x = 0; x < band.width; ++x) {
            const S z = depth[x] * scale;
            const S px = view.origin.x + z * (start.x + S(x) * step.x);
            const S py = view.origin.y + z * (start.y + S(x) * step.y);
            const S pz = view.origin.z + z * (start.z + S(x) * step.z);
            const S share = S(1) / pz, u = px * share, v = py * share;
            const bool seen = z > S(0) && pz > S(0) && u >= S(0.5) && v >= S(0.5) && u <= right && v <= below;
            const S cu = (seen ? u : S(0.5)) - S(0.5), cv = (seen ? v : S(0.5)) - S(0.5);
            int left = int(cu), top = int(cv);
            left = left > last_x ? last_x : left;
            top = top > last_y ? last_y : top;
            const S fu = cu - S(left), fv = cv - S(top);
            const S* at = view.grey + std::size_t(top) * view.width + left;
            const S upper = at[0] + fu * (at[1] - at[0]);
            const S lower = at[view.width] + fu * (at[view.width + 1] - at[view.width]);
            out[x + r] = seen ? upper + fv * (lower - upper) : kNothing<S>;
        }
    }
}

// Sums along each row of band.a, band.b and their products into band.across.
template <typename S>
void sum_across(Band<S>& band, bool reference_too) {
    const int window = 2 * band.radius + 1;
    for (int row = 0; row < band.rows + 2 * band.radius; ++row) {
        const S* a = band.a.data() + std::size_t(row) * band.padded;
        const S* b = band.b.data() + std::size_t(row) * band.padded;
        S* out[5];
        for (int i = 0; i < 5; ++i) out[i] = band.across[i].data() + std::size_t(row) * band.width;
        if (reference_too)
            for (int x = 0; x < band.width; ++x) {
                S sum = S(0), squares = S(0);
                for (int k = 0; k < window; ++k) sum += a[x + k], squares += a[x + k] * a[x + k];
                out[0][x] = sum;
                out[1][x] = squares;
            }
        for (int x = 0; x < band.width; ++x) {
            S sum = S(0), squares = S(0), product = S(0);
            for (int k = 0; k < window; ++k) {
                sum += b[x + k];
                squares += b[x + k] * b[x + k];
                product += a[x + k] * b[x + k];
            }
            out[2][x] = sum;
            out[3][x] = squares;
            out[4][x] = product;
        }
    }
}

// Adds the correlations of all windows of the band, times how much the view sees of each pixel.
template <typename S>
void add_likeness(Band<S>& band, const S* sees, S noise) {
    const int window = 2 * band.radius + 1;
    const S count = S(window * window);
    for (int row = 0; row < band.rows; ++row) {
        const std::size_t start = std::size_t(row) * band.width;
        S *total = band.total.data() + start, *seen = band.seen.data() + start;
        const S* in[5];
        for (int i = 0; i < 5; ++i) in[i] = band.across[i].data() + start;
        for (int x = 0; x < band.width; ++x) {
            S sums[5] = {};
            for (int k = 0; k < window; ++k)
                for (int i = 0; i < 5; ++i) sums[i] += in[i][std::size_t(k) * band.width + x];
            const S alike = correlation(sums[0], sums[2], sums[1], sums[3], sums[4], count, noise);
            const bool whole = alike >= S(-2);  // not NaN: all of the window is seen
            total[x] += whole ? sees[start + x] * alike : S(0);
            seen[x] += whole ? sees[start + x] : S(0);
        }
    }
}

template <typename S>
void depth_sweep(Array<const S, nb::shape<-1, -1>> grey, Array<const S, nb::shape<-1, -1>> depth,
                 Array<const S, nb::shape<-1>> scales, std::vector<Array<const S, nb::shape<-1, -1>>> sources,
                 Array<const S, nb::shape<-1, 3, 4>> projections, Array<const S, nb::shape<-1, -1, -1>> sees, int radius,
                 double noise, Array<S, nb::shape<-1, -1, -1>> out) {
    const Reference<S> reference{grey.data(), depth.data(), int(grey.shape(1)), int(grey.shape(0))};
    std::vector<SweepView<S>> views;
    for (std::size_t i = 0; i < sources.size(); ++i) {
        const S* p = projections.data() + 12 * i;
        views.push_back({sources[i].data(), int(sources[i].shape(1)), int(sources[i].shape(0)),
                         {{p[0], p[1], p[2]}, {p[4], p[5], p[6]}, {p[8], p[9], p[10]}},
                         {p[3], p[7], p[11]}});
    }
    const S *tried = scales.data(), *visible = sees.data();
    const int count = int(scales.shape(0));
    S* values = out.data();
    const std::size_t pixels = std::size_t(reference.width) * reference.height;
    nb::gil_scoped_release release;
    parallel_ranges(reference.height, kBand, [&](std::int64_t begin, std::int64_t end) {
        Band<S> band(reference.width, radius);
        band.rows = int(end - begin);
        copy_reference(reference, int(begin), band);
        bool fresh = true;
        for (int i = 0; i < count; ++i) {
            std::fill(band.total.begin(), band.total.end(), S(0));
            std::fill(band.seen.begin(), band.seen.end(), S(0));
            for (std::size_t v = 0; v < views.size(); ++v) {
                warp(reference, views[v], tried[i], int(begin), band);
                sum_across(band, fresh);
                fresh = false;
                add_likeness(band, visible + v * pixels + std::size_t(begin) * reference.width, S(noise));
            }
            S* row = values + i * pixels + std::size_t(begin) * reference.width;
            for (std::size_t k = 0; k < std::size_t(band.rows) * reference.width; ++k)
                row[k] = band.seen[k] > S(0) ? band.total[k] / band.seen[k] : S(0);
        }
    });
}

}  // namespace

void bind_depth_sweep(nb::module_& m) {
    const auto add = [&m](auto sweep) {
        m.def("depth_sweep", sweep, nb::arg("grey").noconvert(), nb::arg("depth").noconvert(),
              nb::arg("scales").noconvert(), nb::arg("sources"), nb::arg("projections").noconvert(),
              nb::arg("sees").noconvert(), nb::arg("radius"), nb::arg("noise"), nb::arg("out").noconvert());
    };
    add(&depth_sweep<float>);
    add(&depth_sweep<double>);
}

}  // namespace maquette
