// Front-to-back blending over the tiles of a SplatBins and its gradient, with workspaces that are kept between calls.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cpu/buffer.h"
#include "cpu/splat_bin.h"
#include "math/splat_blend.h"

namespace maquette {

// Pointers as scene/ops/splat_blend.py states them; those of the geometry are all null or all set.
template <typename S>
struct BlendSplats {
    const S *means2d, *conics, *opacities, *colors, *depths, *normals;
};

template <typename S>
struct BlendImages {
    S *rgb, *alpha, *depth, *normal, *median_depth;
};

// Upstream gradients; any but rgb may be null.
template <typename S>
struct BlendUpstream {
    const S *rgb, *alpha, *depth, *normal;
};

template <typename S>
struct BlendGradients {
    S *means2d, *conics, *opacities, *colors, *depths, *normals, *abs_means2d;
};

template <typename S>
void set_record(SplatRecord<S>& record, const BlendSplats<S>& splats, std::size_t i) {
    set_shape(record, splats.means2d + 2 * i, splats.conics + 3 * i, std::log2(splats.opacities[i]));
    const S* color = splats.colors + 3 * i;
    record.red = color[0], record.green = color[1], record.blue = color[2];
    record.inverse_opacity = S(1) / splats.opacities[i];
    const S none[3] = {0, 0, 0}, *normal = splats.normals ? splats.normals + 3 * i : none;
    record.z = splats.normals ? splats.depths[i] : S(0);
    record.normal_x = normal[0], record.normal_y = normal[1], record.normal_z = normal[2];
}

// Writes what the sums of splat i say to every gradient that is asked for.
template <typename S>
void put_gradient(const BlendGradients<S>& to, std::size_t i, const SplatRecord<S>& record, const S* sums) {
    const SplatGradient<S> gradient = splat_gradient(record, sums);
    to.opacities[i] = gradient.opacity;
    std::memcpy(to.means2d + 2 * i, gradient.mean2d, sizeof gradient.mean2d);
    std::memcpy(to.conics + 3 * i, gradient.conic, sizeof gradient.conic);
    std::memcpy(to.colors + 3 * i, gradient.color, sizeof gradient.color);
    if (to.depths) to.depths[i] = gradient.z;
    if (to.normals) std::memcpy(to.normals + 3 * i, gradient.normal, sizeof gradient.normal);
    if (to.abs_means2d) std::memcpy(to.abs_means2d + 2 * i, gradient.abs_mean2d, sizeof gradient.abs_mean2d);
}

// The fast one: float32, SIMD over the 16 pixels of a block.
class SplatBlend {
  public:
    void forward(const SplatBins& bins, const BlendSplats<float>& splats, const float* background,
                 const BlendImages<float>& images);
    void backward(const SplatBins& bins, const BlendImages<const float>& images, const BlendUpstream<float>& upstream,
                  const BlendGradients<float>& gradients);
    void poison();

  private:
    void pack(const SplatBins& bins, const BlendSplats<float>& splats);
    template <bool kGeometry>
    void forward_tile(const SplatBins& bins, int tile, const float* background, const BlendImages<float>& images);
    template <bool kGeometry, bool kAbsgrad>
    void backward_tile(const SplatBins& bins, int tile, const BlendImages<const float>& images,
                       const BlendUpstream<float>& upstream);
    void sum_slots(const SplatBins& bins, const BlendGradients<float>& gradients);

    Buffer<SplatRecord<float>> records_;   // [count] by rank
    Buffer<std::uint32_t> block_end_;      // [tiles, 16] item before which all pixels of the block stopped
    Buffer<float> slots_;                  // [pairs, 16] sums of one splat over the pixels of one tile
};

// The exact one: any scalar, one pixel at a time, one thread. It lets gradcheck see the same maths in float64.
template <typename S>
class ScalarSplatBlend {
  public:
    void forward(const SplatBins& bins, const BlendSplats<S>& splats, const S* background,
                 const BlendImages<S>& images);
    void backward(const SplatBins& bins, const BlendImages<const S>& images, const BlendUpstream<S>& upstream,
                  const BlendGradients<S>& gradients);
    void poison();

  private:
    Buffer<SplatRecord<S>> records_;
    Buffer<S> sums_;
};

}  // namespace maquette
