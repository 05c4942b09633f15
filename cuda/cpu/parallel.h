// A small thread pool of our own. OpenMP is not used: torch brings its own libgomp, and two of them in one process
// oversubscribe the cores and spin against each other.
#pragma once
#include <cstdint>
#include <functional>

namespace maquette {

void set_threads(int count);
int threads();

// Calls body(task, worker) for every task in [0, tasks), in any order, on `threads()` workers including the caller.
// `worker` is in [0, threads()), for scratch memory. Results must not depend on which worker ran a task.
void parallel_tasks(std::int64_t tasks, const std::function<void(std::int64_t, int)>& body);

// Splits [0, count) into pieces of `grain` elements and calls body(begin, end). The split depends on `grain` only,
// never on the number of threads, so that sums per piece are reproducible.
template <typename Body>
void parallel_ranges(std::int64_t count, std::int64_t grain, const Body& body) {
    const std::int64_t pieces = (count + grain - 1) / grain;
    parallel_tasks(pieces, [&](std::int64_t piece, int) {
        const std::int64_t begin = piece * grain;
        body(begin, begin + grain < count ? begin + grain : count);
    });
}

}  // namespace maquette
