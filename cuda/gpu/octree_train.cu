// Gradients of an octree's leaves, their update, and how much light each leaf sends to the cameras.
//
// Rays are walked twice, to count the leaves they meet and, when all know where theirs begin, to write a record for
// each: one kernel does both, as two that the compiler rounds differently could disagree about a leaf at a threshold.
// Each ray's records are coloured and gone through backwards. Then they are sorted by leaf, and a leaf's are summed in
// their order: no two threads add to one number, and the bits are always the same. The sums go to the gradient, or
// straight through Adam into the leaves.
#include "gpu/octree_rays.h"
#include "math/adam.h"

namespace maquette {

constexpr int kSumThreads = 256;
constexpr int kPiece = 32;  // records in a row in the sorted list
constexpr int kAtOnce = 4;  // of them are on their way to a thread

// A record: what a ray did with a leaf; read and written as a whole.
struct alignas(16) OctreeRecord {
    float weight, after, length;
    int ray;
};

struct SortedRecords {
    const unsigned *rows, *places;  // ascending leaves, and which record each is
    int count;
    const OctreeRecord* records;
    const float4* gradients;  // [count] by the three logits and by sigma
    const float* basis;       // [rays, functions]
    int functions;
};

// Sums of weights, and the largest.
struct WeightSums {
    float sum, most;
    __device__ static WeightSums none() { return {0.0f, 0.0f}; }
    __device__ static WeightSums of(const SortedRecords& s, int i, int) {
        const float weight = __ldg(&s.records[s.places[i]].weight);
        return {weight, weight};
    }
    __device__ void add(const WeightSums& other, bool) { sum += other.sum, most = fmaxf(most, other.most); }
};

// Gradients by the coefficients of a basis function; behind the last of them a column for sigma, the weights'
// sum and the largest.
struct GradientSums {
    float v[3];
    __device__ static GradientSums none() { return {{0.0f, 0.0f, 0.0f}}; }
    __device__ static GradientSums of(const SortedRecords& s, int i, int column) {
        const unsigned place = s.places[i];
        const float4 g = __ldg(s.gradients + place);
        const OctreeRecord* record = s.records + place;
        if (column == s.functions) {
            const float weight = __ldg(&record->weight);
            return {{g.w, weight, weight}};
        }
        const float y = __ldg(s.basis + (long long)__ldg(&record->ray) * s.functions + column);
        return {{y * g.x, y * g.y, y * g.z}};
    }
    __device__ void add(const GradientSums& other, bool light) {
        const float most = fmaxf(v[2], other.v[2]);
#pragma unroll
        for (int c = 0; c < 3; ++c) v[c] += other.v[c];
        if (light) v[2] = most;
    }
};

// Blocks have a thread per column and a row per piece.
__device__ inline long long own_piece() { return (long long)blockIdx.x * blockDim.y + threadIdx.y; }

// Sums of the leaves that a piece holds whole go to finish(row, column, sums). What it begins with may belong to a leaf
// that an earlier piece began, and what it ends with to one that later pieces go on with: those wait in heads and
// tails.
// heads, tails: [pieces, columns], unwritten elsewhere.
template <typename Sums, typename Finish>
__device__ inline void sum_piece(const SortedRecords& s, Sums* heads, Sums* tails, const Finish& finish) {
    const long long piece = own_piece(), first = piece * kPiece;
    if (first >= s.count) return;
    const int begin = int(first), end = s.count - begin < kPiece ? s.count : begin + kPiece;
    const int column = int(threadIdx.x);
    const long long place = piece * blockDim.x + column;
    unsigned row = s.rows[begin];
    bool head = begin > 0 && s.rows[begin - 1] == row;
    Sums sums = Sums::none();
    for (int at = begin; at < end; at += kAtOnce) {
        Sums own[kAtOnce];
        unsigned next[kAtOnce];
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
            const int i = at + k < end ? at + k : end - 1;
            own[k] = Sums::of(s, i, column);
            next[k] = i + 1 < s.count ? __ldg(s.rows + i + 1) : ~0u;  // no leaf
        }
#pragma unroll
        for (int k = 0; k < kAtOnce; ++k) {
            if (at + k >= end) return;
            sums.add(own[k], column == s.functions);
            const bool same = next[k] == row;
            if (same && at + k + 1 < end) continue;
            if (head) heads[place] = sums;
            else if (same) tails[place] = sums;
            else finish(row, column, sums);
            sums = Sums::none(), row = next[k], head = false;
        }
    }
}

// Sums of the leaves that a piece begins and others go on with.
template <typename Sums, typename Finish>
__device__ inline void sum_across(const SortedRecords& s, const Sums* heads, const Sums* tails, const Finish& finish) {
    const long long piece = own_piece(), first = piece * kPiece;
    if (first >= s.count || s.count - first <= kPiece) return;
    const int begin = int(first), end = begin + kPiece;
    const unsigned row = s.rows[end - 1];
    if (s.rows[end] != row || (begin > 0 && s.rows[begin - 1] == row)) return;
    const int column = int(threadIdx.x);
    Sums sums = tails[piece * blockDim.x + column];
    for (long long next = piece + 1; next * kPiece < s.count && s.rows[next * kPiece] == row; ++next)
        sums.add(heads[next * blockDim.x + column], column == s.functions);
    finish(row, column, sums);
}

// Where sums go: weights are added up, gradients written, or leaves trained.
struct AddWeights {
    float *sums, *maxima;  // [leaves]
    __device__ void operator()(unsigned row, int, const WeightSums& found) const {
        sums[row] += found.sum;
        maxima[row] = fmaxf(maxima[row], found.most);
    }
};

struct WriteGradients {
    int functions;
    float *v_sigmas, *v_sh;
    __device__ void operator()(unsigned row, int column, const GradientSums& found) const {
        if (column == functions) {
            v_sigmas[row] = found.v[0];
            return;
        }
        float* to = v_sh + ((long long)row * functions + column) * 3;
#pragma unroll
        for (int c = 0; c < 3; ++c) to[c] = found.v[c];
    }
};

struct TrainLeaves {
    int functions, leaves;
    float *sigmas, *sh, *sigma_moments, *sh_moments, *weights, *maxima;  // moments: [2, as the parameters]
    AdamStep<float> sigma_step, sh_step;
    float floor;
    __device__ void operator()(unsigned row, int column, const GradientSums& found) const {
        if (column == functions) {
            float sigma = sigmas[row], m = sigma_moments[row], v = sigma_moments[(long long)leaves + row];
            adam_update(sigma, found.v[0], m, v, sigma_step);
            sigmas[row] = fmaxf(sigma, floor);
            sigma_moments[row] = m, sigma_moments[(long long)leaves + row] = v;
            weights[row] += found.v[1];
            maxima[row] = fmaxf(maxima[row], found.v[2]);
            return;
        }
        const long long first = ((long long)row * functions + column) * 3, all = (long long)leaves * functions * 3;
        float p[3], m[3], v[3];
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            p[c] = sh[first + c], m[c] = sh_moments[first + c], v[c] = sh_moments[all + first + c];
        }
#pragma unroll
        for (int c = 0; c < 3; ++c) adam_update(p[c], found.v[c], m[c], v[c], sh_step);
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            sh[first + c] = p[c], sh_moments[first + c] = m[c], sh_moments[all + first + c] = v[c];
        }
    }
};

// What is known of a picture: gradients by it, [rays, 3] and [rays], or a photo [rays, 3] and what is behind it [3].
struct Upstream {
    const float *v_rgb, *v_last, *target, *background;
    const float2* spans;  // t at which each record's piece begins, and its length; null without a distortion loss
    float distortion;     // its weight
};

// dL/dtau_i = T_(i+1) g_i - behind_i with behind_i = sum_(j>i) w_j g_j + T_end v.background (0.2 of the spec), where
// g_i = dL/dw_i = v.c_i + distortion (2 sum_j w_j |m_i - m_j| + 2/3 w_i dt_i), m the middles of the pieces.
template <int kDegree>
__device__ inline void octree_gradients(const OctreeScene& scene, const int* begins, const unsigned* rows,
                                        const OctreeRecord* records, const Upstream& up, float4* gradients,
                                        float* basis, float* errors) {
    constexpr int kBasis = sh_count(kDegree);
    const long long own = scene.own_ray();
    if (own >= scene.rays) return;
    const int id = int(own), begin = begins[id], end = begins[id + 1];
    if (begin == end && !up.target) return;
    Vec3<float> sum = {0.0f, 0.0f, 0.0f};
    float last = 1.0f, before[2] = {0.0f, 0.0f}, after[2] = {0.0f, 0.0f};  // sums of w and of w m on either side
    if (begin < end) {
        float origin[3], direction[3];
        scene.at(id, origin, direction);
        const OctreeLook<kDegree> look(direction);
#pragma unroll
        for (int k = 0; k < kBasis; ++k) basis[(long long)id * kBasis + k] = look.basis[k];
        for (int i = begin; i < end; ++i) {
            const Vec3<float> c = look.color(scene.sh, int(__ldg(rows + i)));
            const float weight = __ldg(&records[i].weight);
            sum = sum + weight * c;
            if (up.spans) {
                const float2 span = __ldg(up.spans + i);
                before[0] += weight, before[1] += weight * (span.x + 0.5f * span.y);
            }
            gradients[i] = make_float4(c.x, c.y, c.z, 0.0f);
        }
        last = __ldg(&records[end - 1].after);
    }
    Vec3<float> v;
    float behind;
    if (up.target) {
        const float* photo = up.target + 3LL * id;
        const Vec3<float> back = {up.background[0], up.background[1], up.background[2]};
        const Vec3<float> error = sum + last * back - Vec3<float>{photo[0], photo[1], photo[2]};
        errors[id] = dot(error, error);
        v = 2.0f * error;
        behind = last * dot(back, v);
    } else {
        v = {up.v_rgb[3LL * id], up.v_rgb[3LL * id + 1], up.v_rgb[3LL * id + 2]};
        behind = last * up.v_last[id];
    }
    for (int i = end - 1; i >= begin; --i) {
        const float4 record = __ldg(reinterpret_cast<const float4*>(records + i));  // weight, after, length, ray
        const float4 c = gradients[i];
        const float weight = record.x;
        float seen = v.x * c.x + v.y * c.y + v.z * c.z;
        if (up.spans) {
            const float2 span = __ldg(up.spans + i);
            const float middle = span.x + 0.5f * span.y;
            before[0] -= weight, before[1] -= weight * middle;
            const float apart = middle * (before[0] - after[0]) - (before[1] - after[1]);
            seen += up.distortion * (2.0f * apart + (2.0f / 3.0f) * weight * span.y);
            after[0] += weight, after[1] += weight * middle;
        }
        gradients[i] = make_float4(weight * v.x * c.x * (1.0f - c.x), weight * v.y * c.y * (1.0f - c.y),
                                   weight * v.z * c.z * (1.0f - c.z), record.z * (record.y * seen - behind));
        behind += weight * seen;
    }
}

}  // namespace maquette

using namespace maquette;

// begins: [rays + 1] where each ray's records go, or null: they are only counted, into counts [rays].
// rows: [records].  records: [records, 4].  spans: [records, 2] or null.  Ten blocks at once: left to itself, ptxas spills for a sixteenth on sm_80.
MQ_KERNEL __launch_bounds__(kOctreeThreads, 10)
octree_walk(MQ_OCTREE_PARAMETERS, const int* begins, int* counts, unsigned* rows, float* records, float* spans) {
    const OctreeScene scene = MQ_OCTREE_SCENE;
    const long long own = scene.own_ray();
    if (own >= scene.rays) return;
    const int id = int(own);
    float origin[3], direction[3];
    scene.at(id, origin, direction);
    OctreeWalk walk(scene, origin, direction);
    OctreeMet met;
    int at = begins ? begins[id] : 0;
    while (walk.next(scene, met)) {
        if (begins) {
            rows[at] = unsigned(met.row);
            reinterpret_cast<OctreeRecord*>(records)[at] = {met.weight, met.after, met.length, id};
            if (spans) reinterpret_cast<float2*>(spans)[at] = make_float2(met.t, met.dt);
        }
        ++at;
    }
    if (!begins) counts[id] = at;
}

// v_rgb, v_last, or target and background; the others are null.  spans: [records, 2] or null.  gradients: [records, 4].  basis: [rays, functions].
// errors: [rays], squared, with a target only.
#define MQ_OCTREE_GRADIENTS(degree, blocks)                                                                            \
    MQ_KERNEL __launch_bounds__(kOctreeThreads, blocks)                                                                \
    octree_gradients_##degree(MQ_OCTREE_PARAMETERS, const int* begins, const unsigned* rows, const float* records,     \
                              const float* v_rgb, const float* v_last, const float* target, const float* background,   \
                              const float* spans, float distortion, float* gradients, float* basis, float* errors) {   \
        octree_gradients<degree>(MQ_OCTREE_SCENE, begins, rows, reinterpret_cast<const OctreeRecord*>(records),        \
                                 {v_rgb, v_last, target, background, reinterpret_cast<const float2*>(spans),           \
                                  distortion},                                                                         \
                                 reinterpret_cast<float4*>(gradients), basis, errors);                                 \
    }
MQ_OCTREE_GRADIENTS(0, 4)
MQ_OCTREE_GRADIENTS(1, 4)
MQ_OCTREE_GRADIENTS(2, 4)
MQ_OCTREE_GRADIENTS(3, 4)

// across: 0 for the leaves within a piece, then 1 for the others.  heads, tails: [pieces, columns, numbers of a sum].
template <typename Sums, typename Finish>
__device__ inline void sum_records(const SortedRecords& s, int across, float* heads, float* tails,
                                   const Finish& finish) {
    Sums *const begun = reinterpret_cast<Sums*>(heads), *const ended = reinterpret_cast<Sums*>(tails);
    if (across) sum_across(s, begun, ended, finish);
    else sum_piece(s, begun, ended, finish);
}

// sums, maxima: [leaves].
MQ_KERNEL __launch_bounds__(kSumThreads)
octree_sum_weights(const unsigned* rows, const unsigned* places, int count, const float* records, int across,
                   float* heads, float* tails, float* sums, float* maxima) {
    const SortedRecords s = {rows, places, count, reinterpret_cast<const OctreeRecord*>(records), nullptr, nullptr, 0};
    sum_records<WeightSums>(s, across, heads, tails, AddWeights{sums, maxima});
}

// v_sigmas: [leaves].  v_sh: [leaves, functions, 3]. Rows that no ray met are not written. Four blocks at once:
// left to itself, ptxas spills for another on sm_120.
MQ_KERNEL __launch_bounds__(kSumThreads, 4)
octree_sum_gradients(const unsigned* rows, const unsigned* places, int count, const float* records,
                     const float* gradients, const float* basis, int functions, int across, float* heads, float* tails,
                     float* v_sigmas, float* v_sh) {
    const SortedRecords s = {rows, places, count, reinterpret_cast<const OctreeRecord*>(records),
                             reinterpret_cast<const float4*>(gradients), basis, functions};
    sum_records<GradientSums>(s, across, heads, tails, WriteGradients{functions, v_sigmas, v_sh});
}

// One step of Adam on the rows met; sigmas stay at least at `floor`, and each row's weights are added to `weights` and
// raise `maxima`.
MQ_KERNEL __launch_bounds__(kSumThreads, 4)
octree_train_leaves(const unsigned* rows, const unsigned* places, int count, const float* records,
                    const float* gradients, const float* basis, int functions, int across, float* heads, float* tails,
                    int leaves, float* sigmas, float* sh, float* sigma_moments, float* sh_moments, float* weights,
                    float* maxima, float sigma_new1, float sigma_beta2, float sigma_new2, float sigma_rate, float sigma_inv_root_bias,
                    float sigma_eps, float sh_new1, float sh_beta2, float sh_new2, float sh_rate,
                    float sh_inv_root_bias, float sh_eps, float floor) {
    const SortedRecords s = {rows, places, count, reinterpret_cast<const OctreeRecord*>(records),
                             reinterpret_cast<const float4*>(gradients), basis, functions};
    const AdamStep<float> of_sigma = {sigma_new1, sigma_beta2, sigma_new2, sigma_rate, sigma_inv_root_bias, sigma_eps};
    const AdamStep<float> of_sh = {sh_new1, sh_beta2, sh_new2, sh_rate, sh_inv_root_bias, sh_eps};
    sum_records<GradientSums>(
        s, across, heads, tails,
        TrainLeaves{functions, leaves, sigmas, sh, sigma_moments, sh_moments, weights, maxima, of_sigma, of_sh, floor});
}
