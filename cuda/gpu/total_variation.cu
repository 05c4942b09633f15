// Adds the gradient of total variation to that of a voxel grid, dense or kept as a table of rows; a neighbour that is
// not there is replaced by the voxel itself, which pulls nothing. Each number is written by one thread.
#include "gpu/device.h"
#include "math/total_variation.h"

namespace maquette {

constexpr int kThreads = 256, kLines = kThreads / kWarp;  // a warp per line
constexpr int kRows = 64;                                 // of a table per block

}  // namespace maquette

using namespace maquette;

// values, grad: [nx, ny, nz]. A warp takes a line along z.
MQ_KERNEL __launch_bounds__(kThreads)
    total_variation(float* grad, const float* values, int nx, int ny, int nz, float scale, int touched_only) {
    const int line = int(blockIdx.x) * kLines + int(threadIdx.x) / kWarp;
    if (line >= nx * ny) return;
    const int x = line / ny, y = line % ny;
    const long long across = nz, down = (long long)ny * nz;
    for (int z = int(threadIdx.x) % kWarp; z < nz; z += kWarp) {
        const long long at = (long long)line * nz + z;
        const float before = grad[at];
        if (touched_only && before == 0.0f) continue;
        const float own = values[at];
        const auto pull = [&](bool there, long long step) {
            return variation_pull(own, there ? values[at + step] : own);
        };
        const float all = pull(x > 0, -down) + pull(x + 1 < nx, down) + pull(y > 0, -across) +
                          pull(y + 1 < ny, across) + pull(z > 0, -1) + pull(z + 1 < nz, 1);
        grad[at] = before + scale * all;
    }
}

// values, grad: [count, width].  rows: [nx, ny, nz].  cells: [count]; rows of cells outside the grid are left out.
MQ_KERNEL __launch_bounds__(kThreads)
    total_variation_rows(float* grad, const float* values, const int* rows, const int* cells, int count, int width,
                         int nx, int ny, int nz, float scale, int touched_only) {
    const int first = int(blockIdx.x) * kRows, here = min(kRows, count - first);
    const int across = nz, down = ny * nz;
    for (int i = int(threadIdx.x); i < here * width; i += kThreads) {
        const int place = i / width, channel = i - place * width, row = first + place, cell = cells[row];
        const long long at = (long long)row * width + channel;
        const float before = grad[at];
        if (cell < 0 || cell >= nx * down || (touched_only && before == 0.0f)) continue;
        const int x = cell / down, y = cell / across % ny, z = cell % across;
        const float own = values[at];
        const auto pull = [&](bool there, int step) {
            const int other = there ? rows[cell + step] : -1;
            return variation_pull(own, other >= 0 && other < count ? values[(long long)other * width + channel] : own);
        };
        const float all = pull(x > 0, -down) + pull(x + 1 < nx, down) + pull(y > 0, -across) +
                          pull(y + 1 < ny, across) + pull(z > 0, -1) + pull(z + 1 < nz, 1);
        grad[at] = before + scale * all;
    }
}
