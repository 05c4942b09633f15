// Loss of a pixel that is composited from samples along its ray, with its gradients. Symbols: w_i, c_i, s_i weight,
// colour and place of a sample, T_end -> last, C = sum_i w_i c_i + T_end * background, C* -> target, R number of rays.
//   |C - C*|^2 / (3 R)  +  per_point / R  sum_i [w_i] |c_i - C*|^2        DVGO (2022), eq. 10 and 12; [w] is held fixed
//   + entropy / R  -(p log p + (1 - p) log(1 - p)),  p = T_end clamped    DVGO (2022), eq. 11
//   + distortion / R  (sum_ij w_i w_j |s_i - s_j| + h/3 sum_i w_i^2)      mip-NeRF 360 (2022), eq. 15; h -> interval
// The double sum is 2 sum_i w_i (s_i W_i - S_i), W and S the sums of w and w s over the samples before i, as in DVGOv2.
#pragma once
#include "math/host_device.h"

namespace maquette {

// Weights of the terms, divided by the number of rays (mse: by three times that).
template <typename T>
struct VolumeTerms {
    T mse, per_point, entropy, distortion;
    T interval;
};

// Sums over samples of one ray.
template <typename T>
struct RaySums {
    T color[3];       // w c
    T weight, place;  // w, w s
};

template <typename T>
MQ_HD void add_color(RaySums<T>& sums, T w, const T* c) {
    for (int k = 0; k < 3; ++k) sums.color[k] += w * c[k];
}

template <typename T>
MQ_HD void add_place(RaySums<T>& sums, T w, T s) {
    sums.weight += w;
    sums.place += w * s;
}

// What the pixel as a whole adds to the loss; mse is its share that is the squared error.
template <typename T>
struct PixelLoss {
    T rest, mse;
    T v_color[3];
    T v_last;
};

// color: the samples' sum, without background.
template <typename T>
MQ_HD PixelLoss<T> pixel_loss(const T* color, T last, const T* background, const T* target,
                              const VolumeTerms<T>& terms) {
    PixelLoss<T> p = {};
    for (int k = 0; k < 3; ++k) {
        const T off = color[k] + last * background[k] - target[k];
        p.mse += terms.mse * off * off;
        p.v_color[k] = T(2) * terms.mse * off;
        p.v_last += p.v_color[k] * background[k];
    }
    if (terms.entropy != T(0)) {
        const T low = T(1e-6), high = T(1) - low;
        const T clear = last < low ? low : last > high ? high : last;  // NaN stays one
        const T log_clear = log(clear), log_hit = log(T(1) - clear);
        p.rest = -terms.entropy * (clear * log_clear + (T(1) - clear) * log_hit);
        if (last >= low && last <= high) p.v_last += terms.entropy * (log_hit - log_clear);
    }
    return p;
}

// Writes the gradient by a sample's colour, adds that by its weight which comes through the pixel, and returns the loss
// of its own colour.
template <typename T>
MQ_HD T color_loss(T w, const T* c, const T* target, const PixelLoss<T>& pixel, const VolumeTerms<T>& terms, T* v_c,
                   T& v_w) {
    T apart = T(0);
    for (int k = 0; k < 3; ++k) {
        const T off = c[k] - target[k];
        apart += off * off;
        v_w += c[k] * pixel.v_color[k];
        v_c[k] = w * (pixel.v_color[k] + T(2) * terms.per_point * off);
    }
    return terms.per_point * w * apart;
}

// The same of the distortion. before: sums over the samples in front of this one; all: over the whole ray.
template <typename T>
MQ_HD T distortion_loss(T w, T s, const RaySums<T>& before, const RaySums<T>& all, const VolumeTerms<T>& terms,
                        T& v_w) {
    const T behind_weight = all.weight - before.weight - w, behind_place = all.place - before.place - w * s;
    const T third = terms.interval / T(3);
    v_w += T(2) * terms.distortion *
           (s * (before.weight - behind_weight) - (before.place - behind_place) + third * w);
    return terms.distortion * w * (T(2) * (s * before.weight - before.place) + third * w);
}

}  // namespace maquette
