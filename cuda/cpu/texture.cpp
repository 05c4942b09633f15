// Texture baking: which face lies under each texel, what is in front of a camera, what each photo says of each texel,
// and one colour out of it. Photos come one after the other; texels are independent, so the result does not depend on
// the number of threads.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "cpu/bindings.h"
#include "cpu/parallel.h"
#include "math/texture.h"

namespace nb = nanobind;

namespace maquette {
namespace {

constexpr std::int64_t kGrain = 8192;  // texels per task
constexpr int kBand = 64;              // rows per task

// Calls visit(column, row, shares) for the pixel centres that a triangle covers, within the rows [first, last).
template <typename Visit>
void scan(const Vec2<double>& a, const Vec2<double>& b, const Vec2<double>& c, int width, int first, int last,
          const Visit& visit) {
    const PixelBox box = pixel_box(a, b, c, width, first, last);
    for (int row = box.top; row <= box.below; ++row)
        for (int column = box.left; column <= box.right; ++column) {
            const Shares<double> shares = shares_at(a, b, c, {column + 0.5, row + 0.5});
            if (shares.inside) visit(column, row, shares.of);
        }
}

void cover(Array<const double, nb::shape<-1, 3, 2>> triangles, Array<std::int32_t, nb::shape<-1, -1>> faces,
           Array<std::uint8_t, nb::shape<-1>> lost) {
    if (lost.shape(0) != triangles.shape(0)) throw nb::value_error("lost must be [F]");
    const int height = int(faces.shape(0)), width = int(faces.shape(1)), count = int(triangles.shape(0));
    const double* corners = triangles.data();
    std::int32_t* under = faces.data();
    std::uint8_t* second = lost.data();
    nb::gil_scoped_release release;
    std::fill(under, under + std::size_t(height) * width, -1);
    for (int f = 0; f < count; ++f) {
        const double* t = corners + 6 * f;
        scan({t[0], t[1]}, {t[2], t[3]}, {t[4], t[5]}, width, 0, height, [&](int column, int row, const auto&) {
            std::int32_t& at = under[std::size_t(row) * width + column];
            if (at < 0)
                at = f;
            else
                second[f] = 1;
        });
    }
}

void mesh_depth(Array<const double, nb::shape<-1, 3>> vertices, Array<const std::int32_t, nb::shape<-1, 3>> faces,
                Array<const double, nb::shape<4, 4>> viewmat, Array<const double, nb::shape<3, 3>> K, double near,
                Array<float, nb::shape<-1, -1>> depth) {
    const int height = int(depth.shape(0)), width = int(depth.shape(1));
    const double *m = viewmat.data(), *k = K.data(), *v = vertices.data();
    const Mat3<double> rotation{{m[0], m[1], m[2]}, {m[4], m[5], m[6]}, {m[8], m[9], m[10]}};
    const Vec3<double> translation{m[3], m[7], m[11]};
    const std::int32_t* f = faces.data();
    const std::size_t count = faces.shape(0);
    float* nearest = depth.data();
    nb::gil_scoped_release release;
    std::vector<Projected<double>> triangles;
    triangles.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
        Vec3<double> corner[3];
        for (int c = 0; c < 3; ++c) {
            const double* p = v + 3 * std::size_t(f[3 * i + c]);
            corner[c] = rotation * Vec3<double>{p[0], p[1], p[2]} + translation;
        }
        Projected<double> pieces[2];
        const int made = project_clipped(corner, near, k, pieces);
        triangles.insert(triangles.end(), pieces, pieces + made);
    }
    parallel_ranges(height, kBand, [&](std::int64_t first, std::int64_t last) {
        std::fill(nearest + first * width, nearest + last * width, 0.0f);
        for (const Projected<double>& t : triangles) {
            if (t.high < double(first) || t.low > double(last)) continue;
            scan(t.at[0], t.at[1], t.at[2], width, int(first), int(last), [&](int column, int row, const auto& share) {
                float& at = nearest[std::size_t(row) * width + column];
                const float z = depth_at(t, share);
                if (at == 0.0f || z < at) at = z;
            });
        }
    });
}

void gather_photo(Array<const float, nb::shape<-1, 3>> points, Array<const float, nb::shape<-1, 3>> normals,
                  Array<const std::uint8_t, nb::shape<-1, -1, 3>> rgb, Array<const float, nb::shape<-1, -1>> worth,
                  Array<const float, nb::shape<-1, -1>> depth, Array<const float, nb::shape<4, 4>> viewmat,
                  Array<const float, nb::shape<3, 3>> K, int view, float tolerance, float grazing,
                  Array<float, nb::shape<-1, -1>> weights, Array<std::uint8_t, nb::shape<-1, -1, 3>> colors,
                  Array<std::int16_t, nb::shape<-1, -1>> views) {
    const std::int64_t count = std::int64_t(points.shape(0)), keep = std::int64_t(weights.shape(1));
    const float *m = viewmat.data(), *k = K.data();
    const Mat3<float> rotation{{m[0], m[1], m[2]}, {m[4], m[5], m[6]}, {m[8], m[9], m[10]}};
    const Vec3<float> translation{m[3], m[7], m[11]};
    const PhotoPlanes<float> photo{rgb.data(),
                                   worth.data(),
                                   depth.data(),
                                   int(rgb.shape(1)),
                                   int(rgb.shape(0)),
                                   k[0],
                                   k[4],
                                   k[2],
                                   k[5],
                                   rotation,
                                   translation,
                                   -1.0f * (transpose(rotation) * translation)};
    const float *places = points.data(), *up = normals.data();
    float* w = weights.data();
    std::uint8_t* c = colors.data();
    std::int16_t* ids = views.data();
    nb::gil_scoped_release release;
    parallel_ranges(count, kGrain, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; ++t) {
            const float *p = places + 3 * t, *n = up + 3 * t;
            const Sample<float> seen = sample_photo(photo, {p[0], p[1], p[2]}, {n[0], n[1], n[2]}, tolerance, grazing);
            keep_sample({w + keep * t, c + 3 * keep * t, ids + keep * t, int(keep)}, seen, view);
        }
    });
}

void blend_texels(Array<const float, nb::shape<-1, -1>> weights, Array<const std::uint8_t, nb::shape<-1, -1, 3>> colors,
                  Array<const std::int16_t, nb::shape<-1, -1>> views, Array<const float, nb::shape<-1, 3>> gains,
                  Array<const float, nb::shape<-1, 3>> offsets, float power, float spread,
                  Array<float, nb::shape<-1, 3>> out) {
    const std::int64_t count = std::int64_t(weights.shape(0));
    const int keep = int(weights.shape(1));
    if (keep > kMostSamples) throw nb::value_error("more samples a texel than the kernel takes");
    const float *w = weights.data(), *gain = gains.data(), *offset = offsets.data();
    const std::uint8_t* c = colors.data();
    const std::int16_t* ids = views.data();
    float* result = out.data();
    nb::gil_scoped_release release;
    parallel_ranges(count, kGrain, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t t = begin; t < end; ++t)
            blend_texel(w + keep * t, c + 3 * keep * t, ids + keep * t, keep, gain, offset, power, spread,
                        result + 3 * t);
    });
}

}  // namespace

void bind_texture(nb::module_& m) {
    m.def("cover", &cover, nb::arg("triangles").noconvert(), nb::arg("faces").noconvert(), nb::arg("lost").noconvert());
    m.def("mesh_depth", &mesh_depth, nb::arg("vertices").noconvert(), nb::arg("faces").noconvert(),
          nb::arg("viewmat").noconvert(), nb::arg("K").noconvert(), nb::arg("near"), nb::arg("depth").noconvert());
    m.def("gather_photo", &gather_photo, nb::arg("points").noconvert(), nb::arg("normals").noconvert(),
          nb::arg("rgb").noconvert(), nb::arg("worth").noconvert(), nb::arg("depth").noconvert(),
          nb::arg("viewmat").noconvert(), nb::arg("K").noconvert(), nb::arg("view"), nb::arg("tolerance"),
          nb::arg("grazing"), nb::arg("weights").noconvert(), nb::arg("colors").noconvert(),
          nb::arg("views").noconvert());
    m.def("blend_texels", &blend_texels, nb::arg("weights").noconvert(), nb::arg("colors").noconvert(),
          nb::arg("views").noconvert(), nb::arg("gains").noconvert(), nb::arg("offsets").noconvert(), nb::arg("power"),
          nb::arg("spread"), nb::arg("out").noconvert());
}

}  // namespace maquette
