// Adds depth images to a truncated signed distance field kept in blocks of 8x8x8 voxels. Blocks are independent: each
// is updated by one thread, so the result does not depend on their number.
#include <cmath>
#include <cstdint>

#include "cpu/bindings.h"
#include "cpu/parallel.h"
#include "math/tsdf.h"

namespace nb = nanobind;

namespace maquette {
namespace {

constexpr int kSide = 8, kVoxels = kSide * kSide * kSide;

// Whether any voxel of the block can fall into the image, by the sphere around its corners.
template <typename S>
bool in_view(const DepthView<S>& view, const Vec3<S>& centre, S radius) {
    const Vec3<S> q = view.rotation * centre + view.translation;
    if (q.z + radius <= S(0)) return false;
    if (q.z <= radius) return true;  // around the camera: no cone to test
    const S reach = radius * S(1.5) / (q.z - radius);
    const S u = view.fx * q.x / q.z + view.cx, v = view.fy * q.y / q.z + view.cy;
    const S du = view.fx * reach * (S(1) + std::abs(q.x / q.z)), dv = view.fy * reach * (S(1) + std::abs(q.y / q.z));
    return u + du >= S(0) && u - du < S(view.width) && v + dv >= S(0) && v - dv < S(view.height);
}

template <typename S>
void integrate_block(const DepthView<S>& view, const Vec3<S>& corner, S voxel, S truncation, S* tsdf, S* weights) {
    const S half = S(0.5) * S(kSide - 1) * voxel;
    if (!in_view(view, corner + Vec3<S>{half, half, half}, half * S(1.7320509))) return;
    for (int i = 0; i < kVoxels; ++i) {
        const int x = i % kSide, y = i / kSide % kSide, z = i / (kSide * kSide);
        const Observation<S> seen = observe(view, corner + voxel * Vec3<S>{S(x), S(y), S(z)}, truncation);
        if (!(seen.weight > S(0))) continue;
        const S sum = weights[i] + seen.weight;
        tsdf[i] += (seen.distance - tsdf[i]) * (seen.weight / sum);
        weights[i] = sum;
    }
}

template <typename S>
void tsdf_integrate(Array<S, nb::shape<-1, kSide, kSide, kSide>> tsdf,
                    Array<S, nb::shape<-1, kSide, kSide, kSide>> weights,
                    Array<const std::int32_t, nb::shape<-1, 3>> blocks, Array<const S, nb::shape<-1, -1>> depth,
                    Array<const S, nb::shape<-1, -1>> slope, Array<const S, nb::shape<-1, -1>> weight,
                    Array<const S, nb::shape<4, 4>> viewmat, Array<const S, nb::shape<3, 3>> K, double voxel_size,
                    double truncation) {
    const S *m = viewmat.data(), *k = K.data();
    const DepthView<S> view{depth.data(),
                            slope.data(),
                            weight.data(),
                            int(depth.shape(1)),
                            int(depth.shape(0)),
                            k[0],
                            k[4],
                            k[2],
                            k[5],
                            {{m[0], m[1], m[2]}, {m[4], m[5], m[6]}, {m[8], m[9], m[10]}},
                            {m[3], m[7], m[11]}};
    S *values = tsdf.data(), *sums = weights.data();
    const std::int32_t* origins = blocks.data();
    const std::int64_t count = std::int64_t(blocks.shape(0));
    const S voxel = S(voxel_size);
    nb::gil_scoped_release release;
    parallel_ranges(count, 64, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t b = begin; b < end; ++b) {
            const std::int32_t* o = origins + 3 * b;
            const Vec3<S> corner = S(kSide) * voxel * Vec3<S>{S(o[0]), S(o[1]), S(o[2])};
            integrate_block(view, corner, voxel, S(truncation), values + kVoxels * b, sums + kVoxels * b);
        }
    });
}

}  // namespace

void bind_tsdf(nb::module_& m) {
    const auto add = [&m](auto integrate) {
        m.def("tsdf_integrate", integrate, nb::arg("tsdf").noconvert(), nb::arg("weights").noconvert(),
              nb::arg("blocks").noconvert(), nb::arg("depth").noconvert(), nb::arg("slope").noconvert(),
              nb::arg("weight").noconvert(), nb::arg("viewmat").noconvert(), nb::arg("K").noconvert(),
              nb::arg("voxel_size"), nb::arg("truncation"));
    };
    add(&tsdf_integrate<float>);
    add(&tsdf_integrate<double>);
}

}  // namespace maquette
