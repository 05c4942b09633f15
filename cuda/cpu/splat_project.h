// Projection of many Gaussians on the CPU: what the fused step calls and what Python calls.
#pragma once
#include <cstdint>
#include <vector>

#include "cpu/splat_batch.h"

namespace maquette {

template <typename T>
struct ProjectSettings {
    const T* viewmat;  // 16 numbers by rows
    double fx, fy, cx, cy;
    int width, height;
    double near;
    int degree;
    bool antialias;
};

// Splats per task. Fixed, so that sums per piece do not depend on the number of threads.
constexpr std::int64_t kPiece = 512;

template <typename T>
View<Batch<T>> make_view(const ProjectSettings<T>& s) {
    return View<Batch<T>>::make(s.viewmat, s.fx, s.fy, s.cx, s.cy, s.width, s.height, s.near);
}

// Room for N splats each; normals may be null.
template <typename T>
struct ProjectedArrays {
    std::int32_t* ids;
    T *means2d, *conics, *opacities, *colors, *depths, *normals, *extents;
};

// Writes the visible splats in ascending order and returns how many there are.
template <typename T>
std::int64_t project_splats(const SplatArrays<T>& splats, const ProjectSettings<T>& settings,
                            const ProjectedArrays<T>& out);

// The camera's gradient, lane by lane: rotation by rows, translation, centre.
template <typename L>
struct ViewSum {
    L values[15];

    ViewSum() {
        for (L& value : values) value = L(0);
    }
    MQ_INLINE void add(const ViewGradient<L>& g) {
        const L terms[15] = {g.rotation.r0.x, g.rotation.r0.y, g.rotation.r0.z, g.rotation.r1.x, g.rotation.r1.y,
                             g.rotation.r1.z, g.rotation.r2.x, g.rotation.r2.y, g.rotation.r2.z, g.translation.x,
                             g.translation.y, g.translation.z, g.center.x, g.center.y, g.center.z};
        for (int i = 0; i < 15; ++i) values[i] += terms[i];
    }
};

// The camera's gradient, piece by piece, added up in the pieces' order.
class ViewPieces {
public:
    explicit ViewPieces(std::int64_t splats) : sums_(std::size_t((splats + kPiece - 1) / kPiece)) {}

    template <typename L>
    void put(std::int64_t begin, const ViewSum<L>& sum) {
        for (int i = 0; i < 15; ++i) sums_[std::size_t(begin / kPiece)].values[i] = double(sum.values[i].sum());
    }

    // By the 16 numbers of viewmat; the centre is -rotation^T translation.
    template <typename T>
    void gradient(const ProjectSettings<T>& settings, T* v_viewmat) const {
        double sum[15] = {};
        for (const Sum& piece : sums_)
            for (int i = 0; i < 15; ++i) sum[i] += piece.values[i];
        for (int row = 0; row < 3; ++row) {
            double through_center = 0;
            for (int column = 0; column < 3; ++column) {
                const double translation = settings.viewmat[4 * row + 3], v_center = sum[12 + column];
                v_viewmat[4 * row + column] = T(sum[3 * row + column] - translation * v_center);
                through_center += double(settings.viewmat[4 * row + column]) * v_center;
            }
            v_viewmat[4 * row + 3] = T(sum[9 + row] - through_center);
        }
        for (int column = 0; column < 4; ++column) v_viewmat[12 + column] = T(0);
    }

private:
    struct Sum {
        double values[15];
    };
    std::vector<Sum> sums_;
};

}  // namespace maquette
