// Which pixels and tiles a projected splat can touch: the region alpha >= 1/255, a little grown. Shared by the binning
// of both backends; what is asked of each is in scene/ops/splat_bin.py.
#pragma once
#include "math/vec.h"

namespace maquette {

constexpr int kTile = 16;  // px, side of a tile

// a b + c. On the device it is rounded once, in so many words: left to the compiler, two kernels could round the same
// expression differently, and the tiles counted would not be the tiles listed.
template <typename R> MQ_HD R product_sum(R a, R b, R c) { return a * b + c; }
#if defined(__CUDACC__) || defined(MQ_HOST_SHIM)
MQ_HD float product_sum(float a, float b, float c) { return fmaf(a, b, c); }
#endif

// The ellipse xx dx^2 + 2 xy dx dy + yy dy^2 <= t, t = 2 ln(255 opacity), grown so that rounding never loses a pixel.
// On the line dy it spans dx = slope dy +- half_row sqrt(1 - (dy / ey)^2).
struct Ellipse {
    float x, y, ex, ey;      // centre and half extents, px
    float inverse_ey;
    float slope, half_row;   // see above
    float dy_right;          // where dx is largest; smallest at -dy_right
    int x0, x1, y0, y1;      // pixels whose centres lie in the box, cut to the image

    // False when it touches no pixel, or is no ellipse (NaN included).
    MQ_HD bool make(const float* mean2d, const float* conic, float opacity, const float* extent, int width,
                    int height) {
        const float t = 2.0f * log(255.0f * opacity);
        const float xx = conic[0], xy = conic[1], yy = conic[2], sum = t + xx + xy + yy;
        const bool finite = sum - sum == 0.0f;
        if (!(t >= 0.0f && xx > 0.0f && yy > 0.0f && xx * yy > 0.0f && finite)) return false;
        x = mean2d[0], y = mean2d[1];
        ex = grown(extent[0]), ey = grown(extent[1]);
        inverse_ey = 1.0f / ey;
        const float inverse_xx = 1.0f / xx;
        slope = -xy * inverse_xx;
        half_row = grown(sqrt(t * inverse_xx));
        dy_right = -xy / yy * ex;
        return inside(x, ex, width, x0, x1) && inside(y, ey, height, y0, y1);
    }

    MQ_HD int first_row() const { return y0 / kTile; }  // of tiles
    MQ_HD int last_row() const { return y1 / kTile; }

    // Largest (side 1) or smallest (side -1) dx of the ellipse within low <= dy <= high.
    template <typename R>
    MQ_HD R edge(R low, R high, float side) const {
        const R dy = minimum(maximum(R(side * dy_right), low), high);
        const R part = dy * R(inverse_ey);
        const R root = sqrt(maximum(product_sum(-part, part, R(1.0f)), R(0.0f)));
        return product_sum(R(slope), dy, R(side * half_row) * root);
    }

  private:
    static MQ_HD float grown(float length) { return product_sum(length, 1.0001f, 0.01f); }

    // Pixels of [0, size) with centres in centre +- half; false when there is none or a number is NaN.
    static MQ_HD bool inside(float centre, float half, int size, int& first, int& last) {
        const float begin = centre - half, end = centre + half;
        const float from = maximum(begin - 0.5f, 0.0f), to = minimum(end - 0.5f, float(size - 1));
        if (!(from <= to) || begin != begin || end != end) return false;
        first = int(ceil(from)), last = int(floor(to));
        return first <= last;
    }
};

// Columns of tiles, first to last; none when last < first.
struct TileSpan {
    int first, last;
    MQ_HD int count() const { return last < first ? 0 : last - first + 1; }
};

// The tiles of one row of tiles that the ellipse enters. A tile that it enters between pixel centres may be among them.
MQ_HD TileSpan tiles_of_row(const Ellipse& e, int row) {
    const float from_row = maximum(float(row * kTile), float(e.y0));
    const float to_row = minimum(float(row * kTile + kTile - 1), float(e.y1));
    const float low = maximum(from_row + (0.5f - e.y), -e.ey), high = minimum(to_row + (0.5f - e.y), e.ey);
    if (!(low <= high)) return {0, -1};
    // Truncation is floor for what is >= 0, and one more than it is ceil but at whole numbers; the ellipse was grown,
    // so no pixel centre is lost there. What lies off the box is cut to it.
    const float begin = float(e.x0), end = float(e.x1 + 1);
    const float left = e.edge(low, high, -1.0f) + (e.x + 0.5f), right = e.edge(low, high, 1.0f) + (e.x + 0.5f);
    const int first_pixel = int(minimum(maximum(left, begin), end));
    const int last_pixel = int(minimum(maximum(right, begin), end)) - 1;
    if (last_pixel < first_pixel) return {0, -1};
    return {first_pixel / kTile, last_pixel / kTile};
}

}  // namespace maquette
