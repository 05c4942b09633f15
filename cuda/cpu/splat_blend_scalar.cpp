#include <algorithm>
#include <cmath>

#include "cpu/splat_blend.h"

namespace maquette {
namespace {

// Calls body(pixel offset, pixel centre x, y, first item, end item) for every pixel of the image.
template <typename S, typename Body>
void for_each_pixel(const SplatBins& bins, const Body& body) {
    for (int row = 0; row < bins.height(); ++row)
        for (int column = 0; column < bins.width(); ++column) {
            const int tile = row / kTile * bins.columns() + column / kTile;
            body(std::size_t(row) * bins.width() + column, S(column) + S(0.5), S(row) + S(0.5),
                 bins.tile_begin()[tile], bins.tile_begin()[tile + 1]);
        }
}

}  // namespace

template <typename S>
void ScalarSplatBlend<S>::forward(const SplatBins& bins, const BlendSplats<S>& splats, const S* background,
                                  const BlendImages<S>& images) {
    SplatRecord<S>* records = records_.resize(bins.count());
    for (std::int64_t rank = 0; rank < bins.count(); ++rank)
        set_record(records[rank], splats, bins.order()[rank]);
    for_each_pixel<S>(bins, [&](std::size_t at, S x, S y, std::uint32_t item, std::uint32_t end) {
        PixelSums<S> pixel{};
        pixel.light = pixel.transmittance = 1;
        for (; item < end; ++item) {
            const SplatRecord<S>& splat = records[bins.items()[item].rank];
            add_splat<true>(pixel, splat, std::exp2(log2_alpha(splat, splat.mean_x - x, splat.mean_y - y)));
        }
        const S sums[] = {pixel.red, pixel.green, pixel.blue};
        for (int k = 0; k < 3; ++k)
            images.rgb[3 * at + k] = sums[k] + (background ? pixel.transmittance * background[k] : S(0));
        images.alpha[at] = 1 - pixel.transmittance;
        if (!images.depth) return;
        images.depth[at] = pixel.z, images.median_depth[at] = pixel.median_depth;
        images.normal[3 * at] = pixel.normal_x, images.normal[3 * at + 1] = pixel.normal_y;
        images.normal[3 * at + 2] = pixel.normal_z;
    });
}

template <typename S>
void ScalarSplatBlend<S>::backward(const SplatBins& bins, const BlendImages<const S>& images,
                                   const BlendUpstream<S>& upstream, const BlendGradients<S>& gradients) {
    S* sums = sums_.resize(std::size_t(bins.count()) * kSplatSums);
    std::fill(sums, sums + std::size_t(bins.count()) * kSplatSums, S(0));
    for_each_pixel<S>(bins, [&](std::size_t at, S x, S y, std::uint32_t item, std::uint32_t end) {
        PixelGradient<S> pixel{};
        pixel.light = 1;
        pixel.v_red = upstream.rgb[3 * at], pixel.v_green = upstream.rgb[3 * at + 1];
        pixel.v_blue = upstream.rgb[3 * at + 2];
        for (int k = 0; k < 3; ++k) pixel.behind += upstream.rgb[3 * at + k] * images.rgb[3 * at + k];
        if (upstream.alpha) pixel.behind -= upstream.alpha[at] * (1 - images.alpha[at]);
        if (upstream.depth) {
            pixel.v_z = upstream.depth[at];
            pixel.behind += pixel.v_z * images.depth[at];
        }
        if (upstream.normal) {
            pixel.v_normal_x = upstream.normal[3 * at], pixel.v_normal_y = upstream.normal[3 * at + 1];
            pixel.v_normal_z = upstream.normal[3 * at + 2];
            for (int k = 0; k < 3; ++k) pixel.behind += upstream.normal[3 * at + k] * images.normal[3 * at + k];
        }
        for (; item < end; ++item) {
            const std::uint32_t rank = bins.items()[item].rank;
            const SplatRecord<S>& splat = records_[rank];
            const S dx = splat.mean_x - x, dy = splat.mean_y - y;
            add_gradient<true, true>(sums + std::size_t(rank) * kSplatSums, pixel, splat, dx, dy,
                                     std::exp2(log2_alpha(splat, dx, dy)));
        }
    });
    for (std::int64_t rank = 0; rank < bins.count(); ++rank)
        put_gradient(gradients, bins.order()[rank], records_[rank], sums + std::size_t(rank) * kSplatSums);
}

template <typename S>
void ScalarSplatBlend<S>::poison() {
    records_.poison(), sums_.poison();
}

template class ScalarSplatBlend<double>;

}  // namespace maquette
