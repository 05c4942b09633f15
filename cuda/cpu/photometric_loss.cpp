// (1 - w) L1 + w (1 - SSIM) of two pictures, with its gradient, in one pass over the rows.
//
// SSIM as in math/ssim.h, with an 11-tap Gaussian window, sigma 1.5, zeros outside the picture as in 3DGS: four blurs
// of the pictures, then three of the derivatives.
//
// A band of rows is worked on from top to bottom: input row r is blurred along the row, statistics follow for row
// r - 5, the gradient for row r - 10; only the last rows of each stage are kept. Channels stay interleaved: a step of
// one pixel is a step of three numbers. Rows are taken kRows at a time, so that the vertical blur loads each kept row
// once for kRows outputs. Sums are kept per row and added in the order of the rows: neither the number of threads nor
// the split into bands can change a bit.
#include <nanobind/stl/optional.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

#include "cpu/bindings.h"
#include "cpu/parallel.h"
#include "math/ssim.h"

namespace nb = nanobind;

namespace maquette {
namespace {

constexpr int kRadius = 5, kTaps = 2 * kRadius + 1;  // pixels
constexpr int kRows = 4;                             // rows per step; bands start at multiples of it
constexpr int kRing = 16;                            // kept rows: at least 2 kRadius + kRows, a power of two
constexpr int kPad = 3 * kRadius;                    // zeros on both sides of a row
constexpr int kLanes = 48;                           // a multiple of the channels and of the widest vector
static_assert(kRing >= 2 * kRadius + kRows && (kRing & (kRing - 1)) == 0, "the ring holds what a step reads");

template <typename T>
struct Window {
    T tap[kRadius + 1];  // tap[k] weighs the two neighbours at distance k

    Window() {
        double weights[kRadius + 1], sum = 0;
        for (int k = 0; k <= kRadius; ++k) {
            weights[k] = std::exp(-k * k / (2 * 1.5 * 1.5));
            sum += k == 0 ? weights[k] : 2 * weights[k];
        }
        for (int k = 0; k <= kRadius; ++k) tap[k] = T(weights[k] / sum);
    }
};

template <typename T, typename Target>
struct Problem {
    int width, height, stride;  // stride: numbers in a padded row, a multiple of kLanes
    const T* image;
    const Target* target;
    const std::uint8_t* mask;  // may be null
    const T* exposure;         // [2, 3] gain and offset; may be null
    T* v_image;
    T l1_scale, ssim_scale;  // weights over the number of valid values
};

// Sums of one row; exposure holds the gradients by gain and by offset, per channel.
struct RowSums {
    double l1 = 0, ssim = 0, exposure[6] = {};
};

template <typename T>
T unit_range(T value) {
    return value;
}
template <typename T>
T unit_range(std::uint8_t value) {
    return T(value) / T(255);
}

// dst[i] = sum_k tap[|k|] src[i + 3 k]; src has kPad readable numbers on both sides.
template <typename T>
void blur_along(const Window<T>& window, const T* __restrict src, T* __restrict dst, int count) {
    const T w0 = window.tap[0], w1 = window.tap[1], w2 = window.tap[2], w3 = window.tap[3], w4 = window.tap[4],
            w5 = window.tap[5];
#pragma GCC ivdep
    for (int i = 0; i < count; ++i) {
        T sum = w0 * src[i];
        sum += w1 * (src[i - 3] + src[i + 3]);
        sum += w2 * (src[i - 6] + src[i + 6]);
        sum += w3 * (src[i - 9] + src[i + 9]);
        sum += w4 * (src[i - 12] + src[i + 12]);
        sum += w5 * (src[i - 15] + src[i + 15]);
        dst[i] = sum;
    }
}

// The last kRing rows of one quantity, blurred along the row.
template <typename T>
struct Ring {
    T* rows = nullptr;
    int stride = 0;

    T* row(int y) const { return rows + static_cast<std::ptrdiff_t>(y & (kRing - 1)) * stride; }

    // dst[j] = the window over rows y + j - 5 .. y + j + 5, for j in [0, kRows); dst rows follow each other.
    void blur_across(const Window<T>& window, int y, T* __restrict dst) const {
        constexpr int kReads = 2 * kRadius + kRows;
        const T* src[kReads];
        for (int k = 0; k < kReads; ++k) src[k] = row(y - kRadius + k);
        T w[kRadius + 1];
        for (int k = 0; k <= kRadius; ++k) w[k] = window.tap[k];
#pragma GCC ivdep
        for (int i = 0; i < stride; ++i) {
            T a[kReads];
#pragma GCC unroll 14
            for (int k = 0; k < kReads; ++k) a[k] = src[k][i];
#pragma GCC unroll 4
            for (int j = 0; j < kRows; ++j) {
                T sum = w[0] * a[j + kRadius];
#pragma GCC unroll 5
                for (int k = 1; k <= kRadius; ++k) sum += w[k] * (a[j + kRadius - k] + a[j + kRadius + k]);
                dst[j * stride + i] = sum;
            }
        }
    }
};

// Adds `values` by lane, in a fixed order that does not depend on the vector length.
template <typename T>
void add_lanes(const T* __restrict values, int count, T (&lanes)[kLanes]) {
    for (int i = 0; i < count; i += kLanes)
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += values[i + lane];
}

template <typename T>
double total(const T* __restrict values, int count) {
    T lanes[kLanes] = {};
    add_lanes(values, count, lanes);
    double sum = 0;
    for (const T lane : lanes) sum += lane;
    return sum;
}

// One worker's scratch memory, kept between calls.
template <typename T>
class Scratch {
  public:
    // For rows of `count` numbers. What an earlier picture left in the rings is only read into rows that are dropped.
    void resize(int count, int stride) {
        if (count == count_) return;
        count_ = count;
        const int padded = stride + 2 * kPad;
        const std::size_t numbers =
            7 * std::size_t(kRing) * stride + std::size_t(4 + 3) * padded + (7 * std::size_t(kRows) + 5) * stride;
        memory_.assign(numbers, T(0));
        T* free = memory_.data();
        const auto take = [&](std::size_t count) { return std::exchange(free, free + count); };
        for (auto& ring : forward) ring = {take(std::size_t(kRing) * stride), stride};
        for (auto& ring : backward) ring = {take(std::size_t(kRing) * stride), stride};
        for (auto& row : blurred) row = take(std::size_t(kRows) * stride);
        for (auto& row : input) row = take(padded) + kPad;
        for (auto& row : partial) row = take(padded) + kPad;
        for (T** row : {&gain, &offset, &valid, &first, &second}) *row = take(stride);
    }

    Ring<T> forward[4];   // x, y, x^2 + y^2, x y
    Ring<T> backward[3];  // D by mx, E[xx], E[xy]
    T* blurred[7];        // kRows rows each, after both blurs
    T* input[4];          // padded with zeros
    T* partial[3];        // padded with zeros
    T *gain, *offset, *valid, *first, *second;

  private:
    std::vector<T> memory_;
    int count_ = -1;
};

template <typename T, typename Target>
class Band {
  public:
    Band(const Problem<T, Target>& problem, const Window<T>& window, Scratch<T>& scratch, RowSums* sums)
        : p_(problem), window_(window), s_(scratch), sums_(sums), count_(3 * problem.width) {
        s_.resize(count_, p_.stride);
        for (int i = 0; p_.exposure && i < count_; ++i) {
            s_.gain[i] = p_.exposure[i % 3];
            s_.offset[i] = p_.exposure[3 + i % 3];
        }
    }

    // Gradient and sums of rows [begin, end); begin is a multiple of kRows, and so is the lead of 12 rows, so that a
    // row has the same place in its step whatever the bands are.
    void run(int begin, int end) {
        for (int y = begin - 2 * kRadius - 2; y < end + 2 * kRadius; y += kRows) {
            for (int row = y; row < y + kRows; ++row) blur_input(row);
            if (y + kRows <= begin) continue;
            statistics(y - kRadius, begin, end);
            if (y + kRows > begin + 2 * kRadius) gradient(y - 2 * kRadius, begin, end);
        }
    }

  private:
    bool inside(int y) const { return y >= 0 && y < p_.height; }

    // x (after exposure) and y of row y into the first two arrays; zero where the mask says so.
    void load(int y, T* __restrict x, T* __restrict t) {
        const T* __restrict image = p_.image + std::ptrdiff_t(y) * count_;
        const Target* __restrict target = p_.target + std::ptrdiff_t(y) * count_;
        for (int i = 0; i < count_; ++i) t[i] = unit_range<T>(target[i]);
        if (p_.exposure) {
            const T *__restrict gain = s_.gain, *__restrict offset = s_.offset;
            for (int i = 0; i < count_; ++i) x[i] = gain[i] * image[i] + offset[i];
        } else {
            std::copy(image, image + count_, x);
        }
        if (p_.mask) {
            const T* __restrict valid = mask_row(y);
            for (int i = 0; i < count_; ++i) {
                x[i] = valid[i] != 0 ? x[i] : T(0);  // a choice, not a product: NaN may lie under the mask
                t[i] = valid[i] != 0 ? t[i] : T(0);
            }
        }
    }

    const T* mask_row(int y) {
        const std::uint8_t* mask = p_.mask + std::ptrdiff_t(y) * p_.width;
        for (int x = 0; x < p_.width; ++x)
            s_.valid[3 * x] = s_.valid[3 * x + 1] = s_.valid[3 * x + 2] = mask[x] ? T(1) : T(0);
        return s_.valid;
    }

    void blur_input(int y) {
        if (!inside(y)) {
            for (const auto& ring : s_.forward) std::fill_n(ring.row(y), p_.stride, T(0));
            return;
        }
        T *__restrict x = s_.input[0], *__restrict t = s_.input[1], *__restrict squares = s_.input[2],
                      *__restrict product = s_.input[3];
        load(y, x, t);
        for (int i = 0; i < count_; ++i) {
            squares[i] = x[i] * x[i] + t[i] * t[i];
            product[i] = x[i] * t[i];
        }
        for (int q = 0; q < 4; ++q) blur_along(window_, s_.input[q], s_.forward[q].row(y), count_);
    }

    // SSIM of rows [y, y + kRows) and its derivatives by the blurred quantities, themselves blurred along the row.
    void statistics(int y, int begin, int end) {
        for (int q = 0; q < 4; ++q) s_.forward[q].blur_across(window_, y, s_.blurred[q]);
        for (int j = 0; j < kRows; ++j) {
            if (!inside(y + j)) {
                for (const auto& ring : s_.backward) std::fill_n(ring.row(y + j), p_.stride, T(0));
                continue;
            }
            similarity(j);
            if (p_.mask) {
                const T* __restrict valid = mask_row(y + j);
                for (T* __restrict values : {s_.first, s_.partial[0], s_.partial[1], s_.partial[2]})
                    for (int i = 0; i < count_; ++i) values[i] = valid[i] != 0 ? values[i] : T(0);
            }
            if (y + j >= begin && y + j < end) sums_[y + j].ssim = total(s_.first, p_.stride);
            for (int q = 0; q < 3; ++q) blur_along(window_, s_.partial[q], s_.backward[q].row(y + j), count_);
        }
    }

    // Row j of the blurred quantities: S into `first`, its derivatives into `partial`.
    void similarity(int j) {
        const std::ptrdiff_t at = std::ptrdiff_t(j) * p_.stride;
        const T *__restrict bx = s_.blurred[0] + at, *__restrict bt = s_.blurred[1] + at,
                           *__restrict bs = s_.blurred[2] + at, *__restrict bp = s_.blurred[3] + at;
        T *__restrict ssim = s_.first, *__restrict d_mean = s_.partial[0], *__restrict d_square = s_.partial[1],
                     *__restrict d_product = s_.partial[2];
#pragma GCC ivdep
        for (int i = 0; i < count_; ++i) {
            const Similarity<T> here = maquette::similarity(bx[i], bt[i], bs[i], bp[i]);
            ssim[i] = here.value;
            d_mean[i] = here.by_mean;
            d_square[i] = here.by_square;
            d_product[i] = here.by_product;
        }
    }

    void gradient(int y, int begin, int end) {
        for (int q = 0; q < 3; ++q) s_.backward[q].blur_across(window_, y, s_.blurred[4 + q]);
        for (int row = std::max(y, begin); row < std::min(y + kRows, end); ++row) gradient_row(row, row - y);
    }

    void gradient_row(int y, int j) {
        T *__restrict x = s_.input[0], *__restrict t = s_.input[1], *__restrict error = s_.first;
        load(y, x, t);
        const std::ptrdiff_t at = std::ptrdiff_t(j) * p_.stride;
        const T *__restrict by_mean = s_.blurred[4] + at, *__restrict by_square = s_.blurred[5] + at,
                           *__restrict by_product = s_.blurred[6] + at;
        T* __restrict v_image = p_.v_image + std::ptrdiff_t(y) * count_;
        const T l1_scale = p_.l1_scale, ssim_scale = p_.ssim_scale;
#pragma GCC ivdep
        for (int i = 0; i < count_; ++i) {
            const T d = x[i] - t[i];
            error[i] = std::abs(d);
            const T sign = d > 0 ? T(1) : d < 0 ? T(-1) : d;  // d itself: 0, or a NaN that must be seen
            v_image[i] = l1_scale * sign - ssim_scale * (by_mean[i] + 2 * x[i] * by_square[i] + t[i] * by_product[i]);
        }
        sums_[y].l1 = total(error, p_.stride);
        if (p_.mask) {
            const T* __restrict valid = mask_row(y);
            for (int i = 0; i < count_; ++i) v_image[i] = valid[i] != 0 ? v_image[i] : T(0);
        }
        if (p_.exposure) exposure_row(y, v_image);
    }

    // From the gradient by the exposed picture to those by gain, by offset and by the picture.
    void exposure_row(int y, T* __restrict v_image) {
        const T *__restrict image = p_.image + std::ptrdiff_t(y) * count_, *__restrict gain = s_.gain;
        T *__restrict by_gain = s_.first, *__restrict by_offset = s_.second;
        for (int i = 0; i < count_; ++i) {
            by_offset[i] = v_image[i];
            by_gain[i] = v_image[i] != 0 ? v_image[i] * image[i] : T(0);  // under the mask the picture may be NaN
            v_image[i] *= gain[i];
        }
        T lanes[2][kLanes] = {};
        add_lanes(by_gain, p_.stride, lanes[0]);
        add_lanes(by_offset, p_.stride, lanes[1]);
        for (int k = 0; k < 2; ++k)
            for (int lane = 0; lane < kLanes; ++lane) sums_[y].exposure[3 * k + lane % 3] += lanes[k][lane];
    }

    const Problem<T, Target>& p_;
    const Window<T>& window_;
    Scratch<T>& s_;
    RowSums* sums_;
    const int count_;
};

template <typename T, typename Target>
double solve(const Problem<T, Target>& problem, double ssim_weight, std::int64_t valid, T* v_exposure) {
    static const Window<T> window;
    static thread_local std::vector<RowSums> sums;  // of the calling thread; kept between calls
    sums.assign(problem.height, {});
    RowSums* const rows = sums.data();
    // One band per thread: each costs about 14 rows of repeated work, which shorter bands would pay more often.
    const int share = (problem.height + threads() - 1) / threads();
    const int band = std::max(4 * kRows, (share + kRows - 1) / kRows * kRows);
    parallel_ranges(problem.height, band, [&](std::int64_t begin, std::int64_t end) {
        static thread_local Scratch<T> scratch;
        Band<T, Target>(problem, window, scratch, rows).run(int(begin), int(end));
    });
    RowSums all;
    for (const RowSums& row : sums) {
        all.l1 += row.l1;
        all.ssim += row.ssim;
        for (int k = 0; k < 6; ++k) all.exposure[k] += row.exposure[k];
    }
    for (int k = 0; v_exposure && k < 6; ++k) v_exposure[k] = T(all.exposure[k]);
    if (valid == 0) return 0;
    return ((1 - ssim_weight) * all.l1 - ssim_weight * all.ssim) / double(valid) + ssim_weight;
}

template <typename T>
using Picture = Array<T, nb::shape<-1, -1, 3>>;
using Mask = Array<const std::uint8_t, nb::shape<-1, -1>>;
template <typename T>
using Exposure = Array<T, nb::shape<2, 3>>;

template <typename T, typename Target>
double photometric_loss(Picture<const T> image, Picture<const Target> target, std::optional<Mask> mask,
                        std::optional<Exposure<const T>> exposure, double ssim_weight, Picture<T> v_image,
                        std::optional<Exposure<T>> v_exposure) {
    const std::size_t height = image.shape(0), width = image.shape(1);
    const auto same_size = [&](const auto& other) { return other.shape(0) == height && other.shape(1) == width; };
    if (!same_size(target) || !same_size(v_image) || (mask && !same_size(*mask)))
        throw nb::value_error("image, target, mask and v_image must have one size");
    if (exposure.has_value() != v_exposure.has_value())
        throw nb::value_error("exposure and v_exposure come together");
    nb::gil_scoped_release unlocked;
    std::int64_t pixels = std::int64_t(height) * std::int64_t(width);
    if (mask) pixels -= std::count(mask->data(), mask->data() + pixels, std::uint8_t(0));
    const std::int64_t valid = 3 * pixels;
    const double over = valid ? 1.0 / double(valid) : 0.0;
    const int stride = (3 * int(width) + kLanes - 1) / kLanes * kLanes;
    const Problem<T, Target> problem{int(width),
                                     int(height),
                                     stride,
                                     image.data(),
                                     target.data(),
                                     mask ? mask->data() : nullptr,
                                     exposure ? exposure->data() : nullptr,
                                     v_image.data(),
                                     T((1 - ssim_weight) * over),
                                     T(ssim_weight * over)};
    return solve(problem, ssim_weight, valid, v_exposure ? v_exposure->data() : nullptr);
}

template <typename T, typename Target>
void bind(nb::module_& m) {
    m.def("photometric_loss", &photometric_loss<T, Target>, nb::arg("image").noconvert(),
          nb::arg("target").noconvert(), nb::arg("mask").noconvert().none(), nb::arg("exposure").noconvert().none(),
          nb::arg("ssim_weight"), nb::arg("v_image").noconvert(), nb::arg("v_exposure").noconvert().none(),
          "Loss of `image` against `target`; writes the gradients into v_image and v_exposure.");
}

}  // namespace

void bind_photometric_loss(nb::module_& m) {
    bind<float, float>(m);
    bind<float, std::uint8_t>(m);
    bind<double, double>(m);
    bind<double, std::uint8_t>(m);
}

}  // namespace maquette
