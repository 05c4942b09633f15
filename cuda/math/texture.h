// Triangles over a grid of pixels, what one photo says of a point on a surface, and one colour out of several photos.
#pragma once

#include "math/vec.h"

namespace maquette {

template <typename S>
struct Vec2 {
    S x, y;
};

// a b, rounded. Which product of a sum of two is fused, and so not rounded, the GPU's compiler may decide anew at each
// call; `edge` needs the same bits from all of them.
#ifdef __CUDA_ARCH__
MQ_HD float product(float a, float b) { return __fmul_rn(a, b); }
MQ_HD double product(double a, double b) { return __dmul_rn(a, b); }
#else
template <typename S>
MQ_HD S product(S a, S b) {
    return a * b;
}
#endif

// Twice the signed area of a, b, p. Computed from the same end whichever way the edge runs, so that two triangles on
// the two sides of it get the same bits with opposite signs: no pixel on it is lost or taken twice.
template <typename S>
MQ_HD S edge(const Vec2<S>& a, const Vec2<S>& b, const Vec2<S>& p) {
    const bool swap = b.x < a.x || (b.x == a.x && b.y < a.y);
    const Vec2<S>&from = swap ? b : a, &to = swap ? a : b;
    const S area = product(to.x - from.x, p.y - from.y) - product(to.y - from.y, p.x - from.x);
    return swap ? -area : area;
}

// A pixel centre that lies on an edge belongs to the triangle for which the edge runs this way.
template <typename S>
MQ_HD bool owns(const Vec2<S>& a, const Vec2<S>& b) {
    return b.y < a.y || (b.y == a.y && b.x > a.x);
}

// Shares of the corners at p; `inside` when p is within a triangle of positive area, or on an edge that it owns.
template <typename S>
struct Shares {
    Vec3<S> of;
    bool inside;
};

template <typename S>
MQ_HD Shares<S> shares_at(const Vec2<S>& a, const Vec2<S>& b, const Vec2<S>& c, const Vec2<S>& p) {
    const S area = edge(a, b, c), x = edge(b, c, p), y = edge(c, a, p), z = edge(a, b, p);
    const bool inside = area > S(0) && (x > S(0) || (x == S(0) && owns(b, c))) &&
                        (y > S(0) || (y == S(0) && owns(c, a))) && (z > S(0) || (z == S(0) && owns(a, b)));
    return {{x / area, y / area, z / area}, inside};
}

// The pixels whose centres a triangle may cover, both ends included, within the rows [first, last).
struct PixelBox {
    int left, top, right, below;
};

template <typename S>
MQ_HD PixelBox pixel_box(const Vec2<S>& a, const Vec2<S>& b, const Vec2<S>& c, int width, int first, int last) {
    const S low_x = minimum(a.x, minimum(b.x, c.x)), high_x = maximum(a.x, maximum(b.x, c.x));
    const S low_y = minimum(a.y, minimum(b.y, c.y)), high_y = maximum(a.y, maximum(b.y, c.y));
    if (!(high_x >= S(0) && high_y >= S(first) && low_x <= S(width) && low_y <= S(last)))
        return {0, 0, -1, -1};  // also when not a number
    return {int(maximum(S(0), S(floor(low_x - S(0.5))))), int(maximum(S(first), S(floor(low_y - S(0.5))))),
            int(minimum(S(width - 1), high_x)), int(minimum(S(last - 1), high_y))};
}

// A triangle in the image, of positive area.
template <typename S>
struct Projected {
    Vec2<S> at[3];
    S inverse[3];  // 1 / z, which is linear over the image
    S low, high;   // rows
};

// z of the triangle where its corners have these shares.
template <typename S>
MQ_HD float depth_at(const Projected<S>& t, const Vec3<S>& share) {
    return float(S(1) / (share.x * t.inverse[0] + share.y * t.inverse[1] + share.z * t.inverse[2]));
}

// The piece of a triangle (in the camera's axes) before the near plane, as up to two triangles in pixels. K: by rows.
// Returns their number.
template <typename S>
MQ_HD int project_clipped(const Vec3<S>* corner, S near, const S* K, Projected<S>* out) {
    Vec3<S> kept[4];
    int count = 0, triangles = 0;
    for (int i = 0; i < 3; ++i) {
        const Vec3<S>&p = corner[i], &q = corner[(i + 1) % 3];
        if (p.z >= near) kept[count++] = p;
        if ((p.z >= near) != (q.z >= near)) kept[count++] = p + ((near - p.z) / (q.z - p.z)) * (q - p);
    }
    for (int i = 2; i < count; ++i) {
        Projected<S>& t = out[triangles++];
        const Vec3<S> three[3] = {kept[0], kept[i - 1], kept[i]};
        for (int k = 0; k < 3; ++k) {
            t.inverse[k] = S(1) / three[k].z;
            t.at[k] = {K[0] * three[k].x * t.inverse[k] + K[2], K[4] * three[k].y * t.inverse[k] + K[5]};
        }
        if (edge(t.at[0], t.at[1], t.at[2]) < S(0)) {  // both sides of a face hide what is behind
            const Vec2<S> place = t.at[1];
            const S inverse = t.inverse[1];
            t.at[1] = t.at[2], t.inverse[1] = t.inverse[2];
            t.at[2] = place, t.inverse[2] = inverse;
        }
        t.low = minimum(t.at[0].y, minimum(t.at[1].y, t.at[2].y));
        t.high = maximum(t.at[0].y, maximum(t.at[1].y, t.at[2].y));
    }
    return triangles;
}

// A photo with what is known of each of its pixels. Row-major [height, width].
template <typename S>
struct PhotoPlanes {
    const unsigned char* rgb;  // three bytes a pixel
    const S* worth;            // >= 0; 0: the pixel says nothing
    const S* depth;            // z of the mesh; 0: nothing there
    int width, height;
    S fx, fy, cx, cy;  // pixels, centres at +0.5
    Mat3<S> rotation;  // camera from world
    Vec3<S> translation;
    Vec3<S> centre;  // of projection, in the world
};

template <typename S>
struct Sample {
    Vec3<S> color;  // 0 to 255
    S weight;       // 0: the photo does not see the point
};

// Four pixels around a place in the image and their shares.
template <typename S>
struct Four {
    int at[4];
    S share[4];
};

// The colour of a surface point in one photo and how much it is worth: pixels that a unit of the surface covers there,
// worth * |f / z|^2 * cosine, and once more by the cosine for what lies on a surface seen aslant (gloss, errors of its
// shape). Nothing is said of a point that lies off the depth of the mesh by more than `tolerance` along its normal.
template <typename S>
MQ_HD Sample<S> sample_photo(const PhotoPlanes<S>& photo, const Vec3<S>& point, const Vec3<S>& normal, S tolerance,
                             S grazing) {
    const Sample<S> nothing{{S(0), S(0), S(0)}, S(0)};
    const Vec3<S> away = point - photo.centre;
    const S facing = -dot(away, normal);
    if (!(facing > S(0))) return nothing;
    const S cosine = facing / S(sqrt(dot(away, away)));
    if (!(cosine > grazing)) return nothing;
    const Vec3<S> q = photo.rotation * point + photo.translation;
    if (!(q.z > S(1e-6))) return nothing;
    const S x = photo.fx * q.x / q.z + photo.cx - S(0.5), y = photo.fy * q.y / q.z + photo.cy - S(0.5);
    if (!(x >= S(0) && y >= S(0) && x < S(photo.width - 1) && y < S(photo.height - 1))) return nothing;
    const int left = int(x), top = int(y);
    const S a = x - S(left), b = y - S(top);
    const int at = top * photo.width + left;
    const Four<S> four{{at, at + 1, at + photo.width, at + photo.width + 1},
                       {(S(1) - a) * (S(1) - b), a * (S(1) - b), (S(1) - a) * b, a * b}};
    S worth = S(0), inverse = S(0), depth_share = S(0);
    Vec3<S> color{S(0), S(0), S(0)};
    for (int i = 0; i < 4; ++i) {
        const S w = photo.worth[four.at[i]];
        if (!(w > S(0))) return nothing;
        worth = worth + four.share[i] * w;
        const S z = photo.depth[four.at[i]];
        if (z > S(0)) {  // 1/z is linear over the image of a plane
            inverse = inverse + four.share[i] / z;
            depth_share = depth_share + four.share[i];
        }
        const unsigned char* c = photo.rgb + 3 * four.at[i];
        color = color + four.share[i] * Vec3<S>{S(c[0]), S(c[1]), S(c[2])};
    }
    if (!(depth_share > S(0))) return nothing;
    const S off = (q.z - depth_share / inverse) * cosine;
    if (!(off < tolerance && off > -tolerance)) return nothing;
    return {color, worth * photo.fx * photo.fy / (q.z * q.z) * cosine * cosine};
}

// Colour of a texel from what up to `count` photos said of it. The one that the others agree with most stands in the
// middle; what deviates from it by more than about `spread` (0 to 255) counts for little, of the rest the best photo
// counts most: weight^power. color: as sampled and already compensated.
template <typename S>
MQ_HD Vec3<S> blend_samples(const Vec3<S>* color, const S* weight, int count, S power, S spread) {
    int middle = 0;
    S least = S(-1), best = S(0);
    for (int i = 0; i < count; ++i) {
        S sum = S(0);
        for (int j = 0; j < count; ++j) {
            const Vec3<S> d = color[i] - color[j];
            sum = sum + weight[j] * S(sqrt(dot(d, d)));
        }
        if (weight[i] > S(0) && (least < S(0) || sum < least)) {
            least = sum;
            middle = i;
        }
        best = maximum(best, weight[i]);
    }
    Vec3<S> sum{S(0), S(0), S(0)};
    S total = S(0);
    for (int i = 0; i < count; ++i) {
        if (!(weight[i] > S(0))) continue;
        const Vec3<S> d = color[i] - color[middle];
        const S w = S(pow(weight[i] / best, power)) * S(exp(S(-0.5) * dot(d, d) / (spread * spread)));
        sum = sum + w * color[i];
        total = total + w;
    }
    return (S(1) / maximum(total, S(1e-30))) * sum;
}

constexpr int kMostSamples = 16;  // of a texel

// The best samples of one texel, best first; `keep` of them, weight 0 for none.
struct TexelSamples {
    float* weights;
    unsigned char* colors;  // three bytes each
    short* views;
    int keep;
};

// Enters what photo `view` says, where it is among the best; of two alike, the photo that came first stays before.
MQ_HD void keep_sample(const TexelSamples& best, const Sample<float>& seen, int view) {
    int place = best.keep - 1;
    if (!(seen.weight > best.weights[place])) return;
    for (; place > 0 && seen.weight > best.weights[place - 1]; --place) {
        best.weights[place] = best.weights[place - 1];
        best.views[place] = best.views[place - 1];
        for (int i = 0; i < 3; ++i) best.colors[3 * place + i] = best.colors[3 * (place - 1) + i];
    }
    best.weights[place] = seen.weight;
    best.views[place] = short(view);
    const float tones[3] = {seen.color.x, seen.color.y, seen.color.z};
    for (int i = 0; i < 3; ++i)
        best.colors[3 * place + i] = (unsigned char)(minimum(maximum(tones[i] + 0.5f, 0.0f), 255.0f));
}

// Colour of a texel from its `keep` samples, each after its photo's gain and offset (three of each a photo), into
// out[0..2]; untouched where there is no sample.
MQ_HD void blend_texel(const float* weights, const unsigned char* colors, const short* views, int keep,
                       const float* gains, const float* offsets, float power, float spread, float* out) {
    Vec3<float> tones[kMostSamples];
    int seen = 0;
    for (; seen < keep && weights[seen] > 0.0f; ++seen) {
        const unsigned char* from = colors + 3 * seen;
        const float *g = gains + 3 * views[seen], *o = offsets + 3 * views[seen];
        tones[seen] = {g[0] * from[0] + o[0], g[1] * from[1] + o[1], g[2] * from[2] + o[2]};
    }
    if (!seen) return;
    const Vec3<float> color = blend_samples(tones, weights, seen, power, spread);
    out[0] = color.x, out[1] = color.y, out[2] = color.z;
}

}  // namespace maquette
