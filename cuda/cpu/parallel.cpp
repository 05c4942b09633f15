#include "cpu/parallel.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <unistd.h>

namespace maquette {
namespace {

// One job at a time. Workers wait first by spinning, for as long as the Python between two stages of a training step
// takes, then on a condition variable, so that an idle pool takes no CPU time from anybody.
class Pool {
  public:
    explicit Pool(int workers) {
        for (int worker = 1; worker <= workers; ++worker) helpers_.emplace_back([this, worker] { serve(worker); });
    }

    ~Pool() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stopping_ = true;
            generation_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        for (auto& helper : helpers_) helper.join();
    }

    int size() const { return static_cast<int>(helpers_.size()) + 1; }

    void run(std::int64_t tasks, const std::function<void(std::int64_t, int)>& body) {
        std::lock_guard<std::mutex> one_job(job_mutex_);
        {
            std::lock_guard<std::mutex> lock(mutex_);
            body_ = &body;
            tasks_ = tasks;
            next_.store(0, std::memory_order_relaxed);
            busy_.store(static_cast<int>(helpers_.size()), std::memory_order_relaxed);
            generation_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        work(0);
        if (!spin_until([&] { return busy_.load(std::memory_order_acquire) == 0; }))
            while (busy_.load(std::memory_order_acquire) != 0) std::this_thread::yield();
    }

  private:
    static constexpr std::chrono::microseconds kSpinFor{300};

    // Whether the condition came true within kSpinFor. The clock is read now and then: it costs more than the test.
    template <typename Condition>
    static bool spin_until(const Condition& condition) {
        const auto end = std::chrono::steady_clock::now() + kSpinFor;
        do {
            for (int i = 0; i < 32; ++i) {
                if (condition()) return true;
                pause();
            }
        } while (std::chrono::steady_clock::now() < end);
        return false;
    }

    void work(int worker) {
        for (std::int64_t task; (task = next_.fetch_add(1, std::memory_order_relaxed)) < tasks_;) (*body_)(task, worker);
    }

    void serve(int worker) {
        std::uint64_t seen = 0;
        for (;;) {
            spin_until([&] { return generation_.load(std::memory_order_acquire) != seen; });
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return generation_.load(std::memory_order_acquire) != seen; });
                seen = generation_.load(std::memory_order_acquire);
                if (stopping_) return;
            }
            work(worker);
            busy_.fetch_sub(1, std::memory_order_release);
        }
    }

    static void pause() {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }

    std::vector<std::thread> helpers_;
    std::mutex job_mutex_, mutex_;
    std::condition_variable wake_;
    std::atomic<std::uint64_t> generation_{0};
    std::atomic<std::int64_t> next_{0};
    std::atomic<int> busy_{0};
    const std::function<void(std::int64_t, int)>* body_ = nullptr;
    std::int64_t tasks_ = 0;
    bool stopping_ = false;
};

std::mutex pool_mutex;
std::unique_ptr<Pool> pool;
pid_t pool_owner = 0;  // a forked child has no pool threads: it must make its own
int wanted = std::max(1u, std::thread::hardware_concurrency());

std::unique_ptr<Pool>& current_pool() {
    if (pool && pool_owner != getpid()) (void)pool.release();
    if (!pool || pool->size() != wanted) {
        pool.reset();
        pool = std::make_unique<Pool>(wanted - 1);
        pool_owner = getpid();
    }
    return pool;
}

}  // namespace

void set_threads(int count) {
    std::lock_guard<std::mutex> lock(pool_mutex);
    wanted = std::max(1, count);
}

int threads() {
    std::lock_guard<std::mutex> lock(pool_mutex);
    return wanted;
}

void parallel_tasks(std::int64_t tasks, const std::function<void(std::int64_t, int)>& body) {
    if (tasks <= 0) return;
    std::lock_guard<std::mutex> lock(pool_mutex);
    Pool& team = *current_pool();
    if (tasks == 1 || team.size() == 1) {
        for (std::int64_t task = 0; task < tasks; ++task) body(task, 0);
        return;
    }
    team.run(tasks, body);
}

}  // namespace maquette
