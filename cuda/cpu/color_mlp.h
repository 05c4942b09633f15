// The colour network of DVGO on a panel of samples: two hidden layers with ReLU; what they say is added to the first
// three features, and three sigmoids end it.
//
// All is matrix products by one micro-kernel, a block of a few rows and vectors of sums that stay in registers, close
// to the processor's peak. What is left to win is work that need not be done: half of the activations behind a ReLU
// are zero, and neighbours on a ray are much alike, so that in training two in five columns are zero for 4 successive
// samples at once. Each block lists the other columns, and products over a hidden layer visit those only.
//
// Rows of hidden activations stand 16 numbers further apart than they are long: at a power of two apart, the same
// column of all of them would fall into a few sets of the cache and push itself out.
#pragma once
#include <algorithm>
#include <cstdint>

#include "cpu/buffer.h"
#include "cpu/simd.h"

namespace maquette::color_mlp {

// A block of sums in registers. More rows ask less of memory, fewer have more zeros in common.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRows = 4, kVectors = 4;  // 16 sums, 4 vectors of the right matrix and a number of the left, of 32
#else
constexpr int kRows = 6, kVectors = 2;  // 12 + 2 + 1 of 16
#endif
constexpr int kLanes = Floats::count;
constexpr int kColumns = kVectors * kLanes;
constexpr int kRowStep = 12;  // samples are padded to whole blocks
constexpr int kPanel = 96;    // samples; hidden activations take 54 kB per layer of 128
constexpr int kColors = 3;

constexpr int padded(int count, int multiple) { return (count + multiple - 1) / multiple * multiple; }

// Which columns of the left matrix, and rows of the right one, a product visits.
struct All {
    int count;
    MQ_INLINE int operator[](int n) const { return n; }
};
struct Listed {
    const std::uint32_t* list;
    int count;
    MQ_INLINE int operator[](int n) const { return int(list[n]); }
};

// sum[r][v] += sum over those k of a[r a_row + k a_step] * (vector v of b[k b_step ..]).
template <int kR, int kV, typename Which>
MQ_INLINE void multiply(Floats (&sum)[kR][kV], const float* a, int a_row, int a_step, const float* b, int b_step,
                        const Which& which) {
    for (int n = 0; n < which.count; ++n) {
        const float *left_row = a + which[n] * a_step, *right_row = b + which[n] * b_step;
        Floats right[kV];
#pragma GCC unroll 4
        for (int v = 0; v < kV; ++v) right[v] = Floats::load(right_row + v * kLanes);
#pragma GCC unroll 6
        for (int r = 0; r < kR; ++r) {
            const Floats left(left_row[r * a_row]);
#pragma GCC unroll 4
            for (int v = 0; v < kV; ++v) sum[r][v] += left * right[v];
        }
    }
}

// The block of kR rows by kColumns at (row, column) of a product: `start(r, c)` gives what the sums begin with and
// `finish(r, c, sum)` takes them.
template <int kR, typename Which, typename Start, typename Finish>
MQ_INLINE void block(int row, int column, const float* a, int a_row, int a_step, const float* b, int b_step,
                     const Which& which, const Start& start, const Finish& finish) {
    Floats sum[kR][kVectors];
#pragma GCC unroll 6
    for (int r = 0; r < kR; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sum[r][v] = start(row + r, column + v * kLanes);
    multiply<kR, kVectors>(sum, a + row * a_row, a_row, a_step, b + column, b_step, which);
#pragma GCC unroll 6
    for (int r = 0; r < kR; ++r)
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) finish(row + r, column + v * kLanes, sum[r][v]);
}

MQ_INLINE Floats positive_part(Floats a) { return maximum(Floats(0.0f), a); }  // NaN stays NaN

// Gradient v through a ReLU that gave h.
MQ_INLINE Floats where_positive(Floats h, Floats v) { return choose(at_least(Floats(0.0f), h), Floats(0.0f), v); }

// What the caller gives: weights as torch.nn.Linear has them, the first layer's columns for features before those for
// the view.
struct Weights {
    const float *w1, *b1;  // [kHidden, features + view], [kHidden]
    const float *w2, *b2;  // [kHidden, kHidden], [kHidden]
    const float *w3, *b3;  // [kColors, kHidden], [kColors]
};
struct Gradients {
    float *w1, *b1, *w2, *b2, *w3, *b3;
};

// Weights, or sums of their gradients, with rows that the micro-kernel can read as its right matrix.
template <int kHidden>
struct Layers {
    static constexpr int kStride = kHidden + 16;

    Layers(int features, int view) : features(features), view(view) {}

    int first_rows() const { return padded(features, kRows); }
    int view_rows() const { return padded(view + 1, kRows); }
    std::size_t numbers() const {
        return std::size_t(first_rows() + view_rows() + kHidden) * kStride + (kColors + 1) * kHidden + kLanes;
    }
    void place(float* at) {
        first = at;
        sight = first + first_rows() * kStride;
        second = sight + view_rows() * kStride;
        third = second + kHidden * kStride;
        bias2 = third + kColors * kHidden;
        bias3 = bias2 + kHidden;
    }

    int features, view;
    float* first;   // [first_rows, kStride]: row c holds the weights of feature c
    float* sight;   // [view_rows, kStride]: of the view, then the bias, then zeros
    float* second;  // [kHidden, kStride]: weights: row i those of input i; gradients: row o those of output o
    float* third;   // [kColors, kHidden]
    float* bias2;   // [kHidden]
    float* bias3;   // [kColors]
};

template <int kHidden>
class Network {
  public:
    static constexpr int kStride = kHidden + 16;

    Network(const Weights& weights, int features, int view) : layers(features, view) {
        const std::size_t forward = padded(int(layers.numbers()), kLanes);
        const std::size_t numbers = forward + std::size_t(kHidden) * (kStride + feature_columns());
        float* at = memory_.resize(numbers);
        std::fill_n(at, numbers, 0.0f);
        layers.place(at);
        second_by_output = at + forward;
        first_by_output = second_by_output + kHidden * kStride;
        for (int h = 0; h < kHidden; ++h) {
            const float* row = weights.w1 + std::size_t(h) * (features + view);
            for (int c = 0; c < features; ++c) {
                layers.first[c * kStride + h] = row[c];
                first_by_output[h * feature_columns() + c] = row[c];
            }
            for (int e = 0; e < view; ++e) layers.sight[e * kStride + h] = row[features + e];
            layers.sight[view * kStride + h] = weights.b1[h];
            for (int i = 0; i < kHidden; ++i) {
                layers.second[i * kStride + h] = weights.w2[h * kHidden + i];
                second_by_output[h * kStride + i] = weights.w2[h * kHidden + i];
            }
        }
        std::copy_n(weights.w3, kColors * kHidden, layers.third);
        std::copy_n(weights.b2, kHidden, layers.bias2);
        std::copy_n(weights.b3, kColors, layers.bias3);
    }

    int feature_columns() const { return padded(layers.features, kLanes); }

    Layers<kHidden> layers;
    float* second_by_output;  // [kHidden, kStride], row o
    float* first_by_output;   // [kHidden, feature_columns], row o

  private:
    Buffer<float> memory_;
};

// Samples in the order of their rays, with the embedded viewing direction of each ray.
struct Samples {
    const float* features;     // [M, features]
    const std::int32_t* rays;  // [M]
    const float* view;         // [R, view]
};

// Up to kPanel samples at a time. Rows beyond the last sample are zeros, and so are their gradients.
template <int kHidden>
class Panel {
  public:
    static constexpr int kStride = kHidden + 16;

    Panel(const Network<kHidden>& network, const Samples& samples) : net_(network), samples_(samples) {
        feature_step_ = network.layers.first_rows();
        view_step_ = network.layers.view_rows();
        const int hidden = kPanel * kStride, numbers = kPanel * (feature_step_ + view_step_) + 3 * hidden +
                                                       kColors * kPanel + kPanel * network.feature_columns();
        hidden1_ = memory_.resize(numbers);
        std::fill_n(hidden1_, numbers, 0.0f);
        hidden2_ = hidden1_ + hidden;
        base_ = hidden2_ + hidden;
        colors_ = base_ + hidden;
        v_features_ = colors_ + kColors * kPanel;
        features_ = v_features_ + kPanel * network.feature_columns();
        view_ = features_ + kPanel * feature_step_;
    }

    // rgb: [M, kColors], of which the rows of the panel are written.
    void forward(std::int64_t begin, int count, float* rgb) {
        hidden_layers(begin, count);
        logits();
        for (int i = 0; i < kColors * rows_; i += kLanes) {
            const Floats one(1.0f);
            (one / (one + exp(-Floats::load(colors_ + i)))).store(colors_ + i);
        }
        std::copy_n(colors_, kColors * count, rgb + kColors * begin);
    }

    // From the colours and their gradient [M, kColors]: writes the panel's rows of v_features [M, features] and adds to
    // the gradients of the weights.
    void backward(std::int64_t begin, int count, const float* rgb, const float* v_rgb, float* v_features,
                  const Layers<kHidden>& v) {
        hidden_layers(begin, count);
        for (int i = 0; i < kColors * count; ++i) {
            const float color = rgb[kColors * begin + i];
            colors_[i] = v_rgb[kColors * begin + i] * color * (1.0f - color);
        }
        std::fill(colors_ + kColors * count, colors_ + kColors * rows_, 0.0f);
        third_layer_backward(v);
        active2_.fill(hidden2_, rows_);
        add_second_product(v.second);
        second_layer_backward();
        add_product(v.first, feature_step_, features_, feature_step_, hidden1_, rows_);
        feature_gradients();
        const int width = net_.layers.features, columns = net_.feature_columns();
        for (int s = 0; s < count; ++s) {
            float* to = std::copy_n(v_features_ + s * columns, width, v_features + (begin + s) * width) - width;
            for (int k = 0; k < kColors; ++k) to[k] += colors_[kColors * s + k];
        }
        sum_by_ray(count);
        add_product(v.sight, view_step_, view_, view_step_, base_, rays_);
    }

  private:
    void hidden_layers(std::int64_t begin, int count) {
        load(begin, count);
        const Layers<kHidden>& w = net_.layers;
        const Floats zero(0.0f);
        for (int column = 0; column < kHidden; column += kColumns)
            for (int row = 0; row < rays_; row += kRows)
                block<kRows>(
                    row, column, view_, view_step_, 1, w.sight, kStride, All{w.view + 1},
                    [&](int, int) { return zero; },
                    [&](int r, int c, Floats sum) { sum.store(base_ + r * kStride + c); });
        for (int column = 0; column < kHidden; column += kColumns)
            for (int row = 0; row < rows_; row += kRows)
                block<kRows>(
                    row, column, features_, feature_step_, 1, w.first, kStride, All{w.features},
                    [&](int r, int c) { return Floats::load(base_ + place_[r] * kStride + c); },
                    [&](int r, int c, Floats sum) { positive_part(sum).store(hidden1_ + r * kStride + c); });
        active1_.fill(hidden1_, rows_);
        for (int column = 0; column < kHidden; column += kColumns)
            for (int row = 0; row < rows_; row += kRows)
                block<kRows>(
                    row, column, hidden1_, kStride, 1, w.second, kStride, active1_.of(row),
                    [&](int, int c) { return Floats::load(w.bias2 + c); },
                    [&](int r, int c, Floats sum) { positive_part(sum).store(hidden2_ + r * kStride + c); });
    }

    // Features of the samples, and the views of their rays: each once, with a one behind it for the bias.
    void load(std::int64_t begin, int count) {
        const int width = net_.layers.features, view = net_.layers.view;
        rows_ = padded(count, kRowStep);
        for (int s = 0; s < count; ++s)
            std::copy_n(samples_.features + (begin + s) * width, width, features_ + s * feature_step_);
        std::fill(features_ + count * feature_step_, features_ + rows_ * feature_step_, 0.0f);
        rays_ = 0;
        for (int s = 0; s < count; ++s) {
            const std::int32_t ray = samples_.rays[begin + s];
            if (s == 0 || ray != samples_.rays[begin + s - 1]) {
                float* row = view_ + rays_++ * view_step_;
                std::copy_n(samples_.view + std::int64_t(ray) * view, view, row);
                row[view] = 1.0f;
            }
            place_[s] = rays_ - 1;
        }
        std::fill(place_ + count, place_ + rows_, rays_ - 1);
    }

    void logits() {
        constexpr int kTogether = 4;  // samples
        const Layers<kHidden>& w = net_.layers;
        for (int s = 0; s < rows_; s += kTogether) {
            Floats dots[kTogether * kColors];
            for (Floats& dot : dots) dot = Floats(0.0f);
            for (int c = 0; c < kHidden; c += kLanes) {
                Floats weight[kColors];
#pragma GCC unroll 3
                for (int k = 0; k < kColors; ++k) weight[k] = Floats::load(w.third + k * kHidden + c);
#pragma GCC unroll 4
                for (int i = 0; i < kTogether; ++i) {
                    const Floats h = Floats::load(hidden2_ + (s + i) * kStride + c);
#pragma GCC unroll 3
                    for (int k = 0; k < kColors; ++k) dots[kColors * i + k] += h * weight[k];
                }
            }
            float sums[16];
            store_sums<kTogether * kColors>(dots, sums);
            for (int i = 0; i < kTogether * kColors; ++i)
                colors_[kColors * s + i] = sums[sum_place(i)] + w.bias3[i % kColors] +
                                           features_[(s + i / kColors) * feature_step_ + i % kColors];
        }
    }

    // hidden2_ becomes its gradient, before ReLU; adds to those of the third layer and of the second's bias.
    void third_layer_backward(const Layers<kHidden>& v) {
        for (int column = 0; column < kHidden; column += kColumns) {
            Floats weight[kColors][kVectors], v_weight[kColors][kVectors], v_bias[kVectors];
            for (int i = 0; i < kVectors; ++i) {
                for (int k = 0; k < kColors; ++k) {
                    weight[k][i] = Floats::load(net_.layers.third + k * kHidden + column + i * kLanes);
                    v_weight[k][i] = Floats::load(v.third + k * kHidden + column + i * kLanes);
                }
                v_bias[i] = Floats::load(v.bias2 + column + i * kLanes);
            }
            for (int s = 0; s < rows_; ++s) {
                float* row = hidden2_ + s * kStride + column;
                const Floats color[kColors] = {Floats(colors_[kColors * s]), Floats(colors_[kColors * s + 1]),
                                               Floats(colors_[kColors * s + 2])};
#pragma GCC unroll 4
                for (int i = 0; i < kVectors; ++i) {
                    const Floats h = Floats::load(row + i * kLanes);
                    Floats v_h = color[0] * weight[0][i];
                    v_weight[0][i] += color[0] * h;
#pragma GCC unroll 2
                    for (int k = 1; k < kColors; ++k) {
                        v_h += color[k] * weight[k][i];
                        v_weight[k][i] += color[k] * h;
                    }
                    v_h = where_positive(h, v_h);
                    v_bias[i] += v_h;
                    v_h.store(row + i * kLanes);
                }
            }
            for (int i = 0; i < kVectors; ++i) {
                for (int k = 0; k < kColors; ++k)
                    v_weight[k][i].store(v.third + k * kHidden + column + i * kLanes);
                v_bias[i].store(v.bias2 + column + i * kLanes);
            }
        }
        for (int s = 0; s < rows_; ++s)
            for (int k = 0; k < kColors; ++k) v.bias3[k] += colors_[kColors * s + k];
    }

    // hidden1_ becomes its gradient, before ReLU.
    void second_layer_backward() {
        for (int column = 0; column < kHidden; column += kColumns)
            for (int row = 0; row < rows_; row += kRows)
                block<kRows>(
                    row, column, hidden2_, kStride, 1, net_.second_by_output, kStride, active2_.of(row),
                    [&](int, int) { return Floats(0.0f); },
                    [&](int r, int c, Floats sum) {
                        float* at = hidden1_ + r * kStride + c;
                        where_positive(Floats::load(at), sum).store(at);
                    });
    }

    // v_features_ from the gradient in hidden1_, which is zero where the activation was. So few sums of one vector
    // would wait for each other: the even and the odd ones of the list are summed apart.
    void feature_gradients() {
        const int columns = net_.feature_columns();
        for (int column = 0; column < columns; column += kLanes)
            for (int row = 0; row < rows_; row += kRows) {
                const Listed all = active1_.of(row);
                const float *a = hidden1_ + row * kStride, *b = net_.first_by_output + column;
                Floats even[kRows], odd[kRows];
                for (int r = 0; r < kRows; ++r) even[r] = odd[r] = Floats(0.0f);
                const auto add = [&](Floats(&sum)[kRows], int h) {
                    const Floats right = Floats::load(b + h * columns);
#pragma GCC unroll 6
                    for (int r = 0; r < kRows; ++r) sum[r] += Floats(a[r * kStride + h]) * right;
                };
                for (int n = 0; n + 1 < all.count; n += 2) {
                    add(even, all[n]);
                    add(odd, all[n + 1]);
                }
                if (all.count % 2) add(even, all[all.count - 1]);
                for (int r = 0; r < kRows; ++r) (even[r] + odd[r]).store(v_features_ + (row + r) * columns + column);
            }
    }

    // Row i of base_ becomes the sum of hidden1_ over the samples of the panel's ray i.
    void sum_by_ray(int count) {
        for (int s = 0; s < count; ++s) {
            const float* row = hidden1_ + s * kStride;
            float* sum = base_ + place_[s] * kStride;
            const bool first = s == 0 || place_[s] != place_[s - 1];
            for (int c = 0; c < kHidden; c += kLanes)
                (first ? Floats::load(row + c) : Floats::load(sum + c) + Floats::load(row + c)).store(sum + c);
        }
    }

    // to[o][i] += sum over samples of hidden2_[s][o] hidden1_[s][i]. The activations of a block of samples stay in
    // registers while the rows of `to` that they change pass by.
    void add_second_product(float* to) {
        for (int column = 0; column < kHidden; column += kColumns)
            for (int row = 0; row < rows_; row += kRows) {
                Floats right[kRows][kVectors];
                for (int s = 0; s < kRows; ++s)
                    for (int v = 0; v < kVectors; ++v)
                        right[s][v] = Floats::load(hidden1_ + (row + s) * kStride + column + v * kLanes);
                const Listed outputs = active2_.of(row);
                for (int n = 0; n < outputs.count; ++n) {
                    const float* left_row = hidden2_ + row * kStride + outputs[n];
                    float* at = to + outputs[n] * kStride + column;
                    Floats sum[kVectors];
#pragma GCC unroll 4
                    for (int v = 0; v < kVectors; ++v) sum[v] = Floats::load(at + v * kLanes);
#pragma GCC unroll 6
                    for (int s = 0; s < kRows; ++s) {
                        const Floats left(left_row[s * kStride]);
#pragma GCC unroll 4
                        for (int v = 0; v < kVectors; ++v) sum[v] += left * right[s][v];
                    }
#pragma GCC unroll 4
                    for (int v = 0; v < kVectors; ++v) sum[v].store(at + v * kLanes);
                }
            }
    }

    // to[r][c] += sum over k < depth of a[k a_step + r] b[k kStride + c], for c < kHidden; rows: a multiple of kRows.
    static void add_product(float* to, int rows, const float* a, int a_step, const float* b, int depth) {
        for (int column = 0; column < kHidden; column += kColumns)
            for (int row = 0; row < rows; row += kRows)
                block<kRows>(
                    row, column, a, 1, a_step, b, kStride, All{depth},
                    [&](int r, int c) { return Floats::load(to + r * kStride + c); },
                    [&](int r, int c, Floats sum) { sum.store(to + r * kStride + c); });
    }

    // For each kRows samples the columns of a hidden layer that are not zero in all of them; NaN is not zero.
    struct Active {
        std::uint32_t list[kPanel / kRows][kHidden];
        int count[kPanel / kRows];

        Listed of(int row) const { return {list[row / kRows], count[row / kRows]}; }

        void fill(const float* hidden, int rows) {
            for (int row = 0; row < rows; row += kRows) {
                std::uint32_t nonzero[kHidden];
                for (int c = 0; c < kHidden; c += kLanes) {
                    Floats::Bits any = {};
                    for (int r = row; r < row + kRows; ++r)
                        any |= (Floats::Bits)Floats::load(hidden + r * kStride + c).v;
                    any = any != 0;
                    __builtin_memcpy(nonzero + c, &any, sizeof(any));
                }
                count[row / kRows] = indices_with_bit(nonzero, kHidden, 0, list[row / kRows]);
            }
        }
    };

    const Network<kHidden>& net_;
    const Samples samples_;
    Buffer<float> memory_;
    float *hidden1_, *hidden2_;  // [kPanel, kStride]
    float* base_;                // [kPanel, kStride], by ray: what view and bias give the first layer
    float* colors_;              // [kPanel, kColors]
    float* v_features_;          // [kPanel, feature_columns]
    float* features_;            // [kPanel, feature_step_]
    float* view_;                // [kPanel, view_step_], by ray
    Active active1_, active2_;   // of hidden1_, and of the gradient in hidden2_
    int place_[kPanel];          // of a sample's ray in the panel
    int rows_ = 0, rays_ = 0, feature_step_, view_step_;
};

}  // namespace maquette::color_mlp
