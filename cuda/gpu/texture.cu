// Texture baking: which face lies under each texel, what is in front of a camera, what each photo says of each texel,
// and one colour out of it. Maths in math/texture.h.
//
// A warp takes a triangle and its lanes the pixels of its box. Where several triangles meet in a pixel, the first of
// them, or the nearest depth, is kept by an atomic minimum: the same whatever the order. Samples: a thread per texel,
// photos one after the other.
#include "gpu/device.h"
#include "math/texture.h"

namespace maquette {

constexpr int kThreads = 256;  // eight triangles, or as many texels

// The triangle of this warp.
__device__ inline long long warp_index() { return ((long long)blockIdx.x * kThreads + threadIdx.x) / kWarp; }

// Calls visit(column, row, shares) for the pixel centres that a triangle covers, divided among the lanes.
template <typename Visit>
__device__ inline void scan(const Vec2<double>& a, const Vec2<double>& b, const Vec2<double>& c, int width, int height,
                            const Visit& visit) {
    const PixelBox box = pixel_box(a, b, c, width, 0, height);
    const int columns = box.right - box.left + 1;
    if (columns <= 0 || box.below < box.top) return;
    const long long pixels = (long long)columns * (box.below - box.top + 1);
    for (long long i = threadIdx.x % kWarp; i < pixels; i += kWarp) {
        const int row = box.top + int(i / columns), column = box.left + int(i % columns);
        const Shares<double> shares = shares_at(a, b, c, {column + 0.5, row + 0.5});
        if (shares.inside) visit(column, row, shares.of);
    }
}

}  // namespace maquette

using namespace maquette;

// triangles: [count, 3, 2] pixels.  faces: [height, width], the largest number before; the first face after.
MQ_KERNEL __launch_bounds__(kThreads)
    cover(const double* triangles, int count, int width, int height, unsigned* faces) {
    const long long f = warp_index();
    if (f >= count) return;
    const double* t = triangles + 6 * f;
    scan({t[0], t[1]}, {t[2], t[3]}, {t[4], t[5]}, width, height, [&](int column, int row, const Vec3<double>&) {
        atomicMin(&faces[(long long)row * width + column], unsigned(f));
    });
}

// lost: [count], 1 for triangles that did not get all of their pixels; zero before.
MQ_KERNEL __launch_bounds__(kThreads) cover_lost(const double* triangles, int count, int width, int height,
                                                 const unsigned* faces, unsigned char* lost) {
    const long long f = warp_index();
    if (f >= count) return;
    const double* t = triangles + 6 * f;
    bool other = false;
    scan({t[0], t[1]}, {t[2], t[3]}, {t[4], t[5]}, width, height, [&](int column, int row, const Vec3<double>&) {
        other = other || faces[(long long)row * width + column] != unsigned(f);
    });
    other = __any_sync(kAllLanes, other);
    if (other && threadIdx.x % kWarp == 0) lost[f] = 1;
}

// vertices: [.., 3].  faces: [count, 3].  viewmat: [4, 4] camera from world.  K: [3, 3].  near: [1].
// depth: [height, width], infinite before; the bits of the nearest z after. Those of positive floats order like them.
MQ_KERNEL __launch_bounds__(kThreads)
    mesh_depth(const double* vertices, const int* faces, int count, const double* viewmat, const double* K,
               const double* near, int width, int height, unsigned* depth) {
    const long long f = warp_index();
    if (f >= count) return;
    const double* m = viewmat;
    const Mat3<double> rotation{{m[0], m[1], m[2]}, {m[4], m[5], m[6]}, {m[8], m[9], m[10]}};
    const Vec3<double> translation{m[3], m[7], m[11]};
    Vec3<double> corner[3];
    for (int c = 0; c < 3; ++c) {
        const double* p = vertices + 3LL * faces[3 * f + c];
        corner[c] = rotation * Vec3<double>{p[0], p[1], p[2]} + translation;
    }
    Projected<double> pieces[2];
    const int made = project_clipped(corner, *near, K, pieces);
    for (int i = 0; i < made; ++i) {
        const Projected<double>& t = pieces[i];
        scan(t.at[0], t.at[1], t.at[2], width, height, [&](int column, int row, const Vec3<double>& share) {
            const float z = depth_at(t, share);
            if (z > 0.0f) atomicMin(&depth[(long long)row * width + column], __float_as_uint(z));
        });
    }
}

// points, normals: [count, 3].  rgb: [height, width, 3].  worth, depth: [height, width].
// weights, views: [count, keep].  colors: [count, keep, 3].
MQ_KERNEL __launch_bounds__(kThreads)
    gather_photo(const float* points, const float* normals, int count, const unsigned char* rgb, const float* worth,
                 const float* depth, int width, int height, const float* viewmat, const float* K, int view,
                 float tolerance, float grazing, int keep, float* weights, unsigned char* colors, short* views) {
    const long long t = (long long)blockIdx.x * kThreads + threadIdx.x;
    if (t >= count) return;
    const float* m = viewmat;
    const Mat3<float> rotation{{m[0], m[1], m[2]}, {m[4], m[5], m[6]}, {m[8], m[9], m[10]}};
    const Vec3<float> translation{m[3], m[7], m[11]};
    const PhotoPlanes<float> photo{rgb,
                                   worth,
                                   depth,
                                   width,
                                   height,
                                   K[0],
                                   K[4],
                                   K[2],
                                   K[5],
                                   rotation,
                                   translation,
                                   -1.0f * (transpose(rotation) * translation)};
    const float *p = points + 3 * t, *n = normals + 3 * t;
    const Sample<float> seen = sample_photo(photo, {p[0], p[1], p[2]}, {n[0], n[1], n[2]}, tolerance, grazing);
    keep_sample({weights + keep * t, colors + 3 * keep * t, views + keep * t, keep}, seen, view);
}

// gains, offsets: [photos, 3].  out: [count, 3], zero before.
MQ_KERNEL __launch_bounds__(kThreads)
    blend_texels(const float* weights, const unsigned char* colors, const short* views, int count, int keep,
                 const float* gains, const float* offsets, float power, float spread, float* out) {
    const long long t = (long long)blockIdx.x * kThreads + threadIdx.x;
    if (t >= count) return;
    blend_texel(weights + keep * t, colors + 3 * keep * t, views + keep * t, keep, gains, offsets, power, spread,
                out + 3 * t);
}
