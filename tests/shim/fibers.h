// Runs a grid on the host: blocks one after the other, the threads of a block as fibers that take turns at barriers.
//
// A fiber runs until it meets others (a barrier or a warp intrinsic) or ends. The last one to arrive at a meeting works
// out every member's result and all become ready. When nobody is ready and not all have ended, the meeting can never
// take place: that is reported with its source line instead of hanging, as is any access outside mapped memory.
#pragma once
#include <csetjmp>
#include <csignal>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <random>
#include <sys/mman.h>
#include <ucontext.h>
#include <type_traits>
#include <utility>
#include <vector>

#if !defined(__x86_64__)
#error "the host shim switches stacks with x86-64 instructions"
#endif

// Bounds of the section that holds all __shared__ variables; null when there are none.
extern "C" {
extern std::uint32_t __start_mq_shared[] __attribute__((weak, visibility("hidden")));
extern std::uint32_t __stop_mq_shared[] __attribute__((weak, visibility("hidden")));
}

// Saves the registers that a call keeps, moves to the other stack and takes its registers from there.
extern "C" __attribute__((visibility("hidden"))) void mq_swap(void** save, void* load);
asm(R"(
    .text
    .globl mq_swap
    .hidden mq_swap
    .type mq_swap, @function
mq_swap:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size mq_swap, .-mq_swap
)");

namespace mq_shim {

struct Index {
    unsigned x, y, z;
};

// One launch, as tests/shim/launcher.py lays it out.
struct Launch {
    unsigned grid[3], block[3];
    int schedule;  // 0 forward, 1 reverse, 2 random
    std::uint32_t seed;
    const std::uint64_t* arguments;
    char error[1024];
    std::uint64_t fault;  // where in the library it was, if memory or a sanitizer's trap stopped a thread
};

enum class Op { none, block, warp, shuffle, ballot, match };
enum class State { ready, waiting, ended };

struct Fiber {
    void* stack_pointer;
    Index index;
    State state;
    // The meeting it waits at: what it brings, and what it takes away.
    Op op;
    const char* name;
    int line;
    unsigned mask;
    std::uint64_t value;
    int source;  // lane that a shuffle reads; -1: its own
    std::uint64_t result;
};

// 65 pages and a cache line more for each next stack: a power of two would put all of them into the same cache lines.
constexpr std::size_t kPage = 4096, kStack = 65 * kPage, kLine = 64, kMaxThreads = 1024;
constexpr unsigned kPoison = 0x7fc5a5a5u;  // a NaN, and no sensible integer

struct Scheduler {
    std::vector<Fiber> fibers;
    unsigned arrived[kMaxThreads / 32] = {};  // lanes of each warp that wait at a warp intrinsic
    char* stacks = nullptr;
    Fiber* now = nullptr;
    void* home = nullptr;
    int ended = 0, at_barrier = 0;
    void (*body)(void*) = nullptr;
    void* closure = nullptr;
    Launch* launch = nullptr;
    const char* kernel = "";
    sigjmp_buf fault;
};

static Scheduler self;
static Index current_thread, current_block, current_grid_size, current_block_size;

inline void fail(const char* format, ...) {
    if (self.launch->error[0]) return;  // the first fault is the cause of the others
    char* out = self.launch->error;
    const std::size_t room = sizeof(self.launch->error);
    const int used = snprintf(out, room, "%s, block (%u, %u, %u): ", self.kernel, current_block.x, current_block.y,
                              current_block.z);
    va_list rest;
    va_start(rest, format);
    vsnprintf(out + used, room - used, format, rest);
    va_end(rest);
}

inline int number(const Fiber& fiber) { return int(&fiber - self.fibers.data()); }

inline void fiber_main() {
    self.body(self.closure);
    self.now->state = State::ended;
    ++self.ended;
    mq_swap(&self.now->stack_pointer, self.home);
}

// A warp meeting at which all lanes of the mask have arrived: every lane's result.
inline void finish_warp(Fiber* warp, unsigned mask) {
    const Fiber& last = *self.now;
    unsigned ballot = 0;
    for (int lane = 0; lane < 32; ++lane) {
        if (!(mask >> lane & 1)) continue;
        const Fiber& other = warp[lane];
        if (other.op != last.op || other.line != last.line || other.mask != mask)
            return fail("%s at line %d (thread %d, mask %08x) meets %s at line %d (thread %d, mask %08x)", last.name,
                        last.line, number(last), mask, other.name, other.line, number(other), other.mask);
        if (other.value) ballot |= 1u << lane;
    }
    for (int lane = 0; lane < 32; ++lane) {
        if (!(mask >> lane & 1)) continue;
        Fiber& to = warp[lane];
        to.state = State::ready;
        to.result = to.value;
        if (to.op == Op::ballot) to.result = ballot;
        if (to.op == Op::shuffle && to.source >= 0)
            to.result = mask >> to.source & 1 ? warp[to.source].value : kPoison * 0x100000001ull;
        if (to.op == Op::match) {
            to.result = 0;
            for (int from = 0; from < 32; ++from)
                if (mask >> from & 1 && warp[from].value == to.value) to.result |= 1u << from;
        }
    }
}

// All threads of the block have arrived: the sum of what they bring.
inline void finish_block() {
    std::uint64_t sum = 0;
    for (const Fiber& fiber : self.fibers) {
        if (fiber.line != self.now->line)
            return fail("__syncthreads at line %d (thread %d) meets __syncthreads at line %d (thread %d)",
                        self.now->line, number(*self.now), fiber.line, number(fiber));
        sum += fiber.value;
    }
    for (Fiber& fiber : self.fibers) {
        fiber.state = State::ready;
        fiber.result = sum;
    }
    self.at_barrier = 0;
}

// The running fiber arrives at a meeting, waits for the others and gets its result.
__attribute__((noinline)) inline std::uint64_t meet(Op op, const char* name, int line, unsigned mask,
                                                    std::uint64_t value, int source = -1) {
    Fiber& me = *self.now;
    me.op = op;
    me.name = name;
    me.line = line;
    me.mask = mask;
    me.value = value;
    me.source = source;
    me.state = State::waiting;
    if (op == Op::block) {
        if (++self.at_barrier == int(self.fibers.size())) finish_block();
    } else {
        const int warp = number(me) / 32, lane = number(me) % 32;
        if (!(mask >> lane & 1)) fail("%s at line %d: lane %d is not in its mask %08x", name, line, lane, mask);
        self.arrived[warp] |= 1u << lane;
        if (!(mask & ~self.arrived[warp]) && !self.launch->error[0]) {
            finish_warp(self.fibers.data() + 32 * warp, mask);
            self.arrived[warp] &= ~mask;
        }
    }
    if (me.state == State::waiting || self.launch->error[0]) mq_swap(&me.stack_pointer, self.home);
    return me.result;
}

// Nobody is ready and not all have ended: names a waiting thread and one that it waits for.
inline void report_stuck() {
    for (const Fiber& fiber : self.fibers) {
        if (fiber.state != State::waiting) continue;
        const int first = number(fiber) & ~31;
        for (int other = 0; other < int(self.fibers.size()); ++other) {
            const Fiber& missing = self.fibers[other];
            const bool wanted = fiber.op == Op::block
                                    ? missing.state == State::ended || missing.op != Op::block
                                    : other >= first && other < first + 32 && fiber.mask >> (other - first) & 1 &&
                                          (missing.state == State::ended || missing.op == Op::block);
            if (!wanted) continue;
            if (missing.state == State::ended)
                return fail("%s at line %d (thread %d) waits for thread %d, which has ended", fiber.name, fiber.line,
                            number(fiber), other);
            return fail("%s at line %d (thread %d) waits for thread %d, which is at %s at line %d", fiber.name,
                        fiber.line, number(fiber), other, missing.name, missing.line);
        }
    }
    fail("warp intrinsics wait for lanes that the block of %d threads does not have, or for each other",
         int(self.fibers.size()));
}

inline void order_of(std::vector<unsigned>& order, int schedule, std::mt19937& random) {
    for (unsigned i = 0; i < order.size(); ++i) order[i] = schedule == 1 ? unsigned(order.size()) - 1 - i : i;
    if (schedule == 2)
        for (unsigned i = unsigned(order.size()); i > 1; --i) std::swap(order[i - 1], order[random() % i]);
}

inline void run_block(std::mt19937& random) {
    const std::size_t words = __start_mq_shared ? std::size_t(__stop_mq_shared - __start_mq_shared) : 0;
    for (std::size_t i = 0; i < words; ++i) __start_mq_shared[i] = kPoison;
    const Index size = current_block_size;
    for (std::size_t i = 0; i < self.fibers.size(); ++i) {
        Fiber& fiber = self.fibers[i];
        fiber = Fiber{};
        fiber.index = {unsigned(i) % size.x, unsigned(i) / size.x % size.y, unsigned(i) / size.x / size.y};
        auto* top = reinterpret_cast<void**>(self.stacks + (i + 1) * kStack - i % 61 * kLine);
        memset(top - 8, 0, 8 * sizeof(void*));
        top[-2] = reinterpret_cast<void*>(&fiber_main);  // where the first mq_swap returns to, with an aligned stack
        fiber.stack_pointer = top - 8;
    }
    memset(self.arrived, 0, sizeof(self.arrived));
    self.ended = self.at_barrier = 0;
    std::vector<unsigned> order(self.fibers.size());
    order_of(order, self.launch->schedule, random);
    while (self.ended < int(self.fibers.size())) {
        bool ran = false;
        if (self.launch->schedule == 2) order_of(order, 2, random);
        for (unsigned i : order) {
            Fiber& fiber = self.fibers[i];
            if (fiber.state != State::ready) continue;
            ran = true;
            self.now = &fiber;
            current_thread = fiber.index;
            mq_swap(&self.home, fiber.stack_pointer);
            if (self.launch->error[0]) return;
        }
        if (!ran) return report_stuck();
    }
}

inline void on_fault(int, siginfo_t*, void* context) {
    const auto at = std::uint64_t(static_cast<ucontext_t*>(context)->uc_mcontext.gregs[REG_RIP]);
    Dl_info library;
    if (dladdr(reinterpret_cast<void*>(&mq_swap), &library))
        self.launch->fault = at - reinterpret_cast<std::uint64_t>(library.dli_fbase);
    siglongjmp(self.fault, 1);
}

// All blocks, in the order of the schedule. Returns 0, or 1 with launch.error filled in.
inline int run_grid(const char* kernel, void (*body)(void*), void* closure, Launch& launch) {
    if (!self.stacks) {
        void* room = mmap(nullptr, kMaxThreads * kStack, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (room == MAP_FAILED) return snprintf(launch.error, sizeof(launch.error), "no memory for stacks"), 1;
        self.stacks = static_cast<char*>(room);
        for (std::size_t i = 0; i < kMaxThreads; ++i) mprotect(self.stacks + i * kStack, kPage, PROT_NONE);
    }
    self.kernel = kernel;
    self.body = body;
    self.closure = closure;
    self.launch = &launch;
    self.fibers.assign(launch.block[0] * launch.block[1] * launch.block[2], Fiber{});
    current_grid_size = {launch.grid[0], launch.grid[1], launch.grid[2]};
    current_block_size = {launch.block[0], launch.block[1], launch.block[2]};

    // A fault in a kernel must not end the tests: its handler runs on a stack of its own and comes back here.
    static char signal_stack[64 << 10];
    stack_t stack = {}, stack_before;
    stack.ss_sp = signal_stack;
    stack.ss_size = sizeof(signal_stack);
    constexpr int kSignals = 4, signals[kSignals] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    struct sigaction action = {}, before[kSignals];
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_ONSTACK | SA_SIGINFO;
    sigaltstack(&stack, &stack_before);
    for (int i = 0; i < kSignals; ++i) sigaction(signals[i], &action, &before[i]);

    std::mt19937 random(launch.seed);
    const unsigned gx = launch.grid[0], gy = launch.grid[1];
    std::vector<unsigned> order(gx * gy * launch.grid[2]);
    order_of(order, launch.schedule, random);
    if (sigsetjmp(self.fault, 1) == 0) {
        for (unsigned i : order) {
            current_block = {i % gx, i / gx % gy, i / gx / gy};
            run_block(random);
            if (launch.error[0]) break;
        }
    } else {
        fail("thread %d touched memory that is not there, misaligned or past the end of an array, or overflowed an int",
             number(*self.now));
    }
    for (int i = 0; i < kSignals; ++i) sigaction(signals[i], &before[i], nullptr);
    sigaltstack(&stack_before, nullptr);
    return launch.error[0] != 0;
}

template <class T>
T unpack(std::uint64_t bits) {
    T value;
    memcpy(&value, &bits, sizeof(T));
    return value;
}

template <class... A, std::size_t... I>
void call(void (*kernel)(A...), const std::uint64_t* bits, std::index_sequence<I...>) {
    kernel(unpack<A>(bits[I])...);
}

template <class... A>
int run(const char* name, void (*kernel)(A...), Launch& launch) {
    auto closure = [&] { call(kernel, launch.arguments, std::index_sequence_for<A...>{}); };
    using Closure = decltype(closure);
    return run_grid(name, [](void* c) { (*static_cast<Closure*>(c))(); }, &closure, launch);
}

// One letter a parameter: i int, f float, ? neither; pointers in capitals: F floats, I 32-bit, S 16-bit, L 64-bit
// integers, B bytes, V anything else.
template <class T>
char letter() {
    if constexpr (!std::is_pointer_v<T>) {
        return std::is_same_v<T, float> ? 'f' : std::is_same_v<T, int> || std::is_same_v<T, unsigned> ? 'i' : '?';
    } else {
        using E = std::remove_cv_t<std::remove_pointer_t<T>>;
        if (std::is_same_v<E, float>) return 'F';
        if constexpr (std::is_integral_v<E>)
            return sizeof(E) == 4 ? 'I' : sizeof(E) == 1 ? 'B' : sizeof(E) == 2 ? 'S' : 'L';
        return 'V';
    }
}

template <class... A>
const char* signature(void (*)(A...)) {
    static const char letters[] = {letter<A>()..., 0};
    return letters;
}

}  // namespace mq_shim
