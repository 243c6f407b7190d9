// CUDA as far as the kernels use it, on the CPU, for the tests: it comes before their source.
//
// The blocks of a grid run one after the other. The threads of a block are fibers, each of which runs until it waits at
// a barrier, in an order that the caller chooses: what is right in every order has its barriers. Memory that a block's
// threads share is undefined (NaN) when the block begins.

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

namespace emulator {

struct Dim {
    unsigned x, y;
};

enum class State { Ready, AtWarp, AtBlock, Done };

struct Fiber {
    /// Where it begins, and where it goes on: a jump costs a hundredth of a change of context.
    ucontext_t context;
    jmp_buf jump;
    bool started = false;
    std::vector<char> stack = std::vector<char>(64 * 1024);
    State state;
    Dim thread;
    unsigned index;
    unsigned char exchanged[8];
};

constexpr unsigned WARP_SIZE = 32;

static std::vector<Fiber> fibers;
static Fiber* current;
static Dim block, block_size;
static jmp_buf scheduler;
static const std::function<void()>* body;
static bool failed;

extern "C" char __start_shared_memory[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_shared_memory[] __attribute__((weak, visibility("hidden")));

static void wait(State state) {
    current->state = state;
    if (!_setjmp(current->jump)) _longjmp(scheduler, 1);
}

/// A thread of one block after the other.
static void run_fiber() {
    for (;;) {
        (*body)();
        wait(State::Done);
    }
}

static void go_on(Fiber& fiber) {
    current = &fiber;
    if (_setjmp(scheduler)) return;
    if (fiber.started) _longjmp(fiber.jump, 1);
    fiber.started = true;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = fiber.stack.size();
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
    setcontext(&fiber.context);
}

/// Lets those go on that wait for nobody any more. False where nobody can: not all have come to the same barrier.
static bool release(unsigned threads) {
    bool any = false;
    for (unsigned first = 0; first < threads; first += WARP_SIZE) {
        const auto warp = fibers.begin() + first;
        if (std::all_of(warp, warp + WARP_SIZE, [](const Fiber& f) { return f.state == State::AtWarp; })) {
            std::for_each(warp, warp + WARP_SIZE, [](Fiber& f) { f.state = State::Ready; });
            any = true;
        }
    }
    // (On a device, threads that have returned are not waited for; here that is a fault, as the kernels need none such.)
    const auto end = fibers.begin() + threads;
    if (std::all_of(fibers.begin(), end, [](const Fiber& f) { return f.state == State::AtBlock; })) {
        std::for_each(fibers.begin(), end, [](Fiber& f) { f.state = State::Ready; });
        any = true;
    }
    return any;
}

static void run_block(unsigned threads, std::vector<unsigned>& order, unsigned seed) {
    std::memset(__start_shared_memory, 0xff, __stop_shared_memory - __start_shared_memory);
    for (unsigned i = 0; i < threads; i++) {
        Fiber& fiber = fibers[i];
        fiber.state = State::Ready;
        fiber.thread = {i % block_size.x, i / block_size.x};
        fiber.index = i;
    }
    std::mt19937 random(seed);
    const auto is_done = [](const Fiber& f) { return f.state == State::Done; };
    while (!std::all_of(fibers.begin(), fibers.begin() + threads, is_done)) {
        if (seed > 1) std::shuffle(order.begin(), order.end(), random);
        bool ran = false;
        for (unsigned i : order) {
            if (fibers[i].state != State::Ready) continue;
            go_on(fibers[i]);
            ran = true;
        }
        if (!release(threads) && !ran) {
            failed = true;
            return;
        }
    }
}

struct Launch {
    Dim grid, block;
    /// 0: threads in their order; 1: the last first; more: the seed of an order that changes at each barrier.
    unsigned order;
};

/// 0, or 1 where threads wait for each other forever, or 2 for a block that is not made of whole warps.
static int run(const Launch& launch, const std::function<void()>& kernel) {
    const unsigned threads = launch.block.x * launch.block.y;
    if (threads == 0 || threads % WARP_SIZE != 0 || threads > 1024) return 2;
    if (fibers.size() < threads) fibers = std::vector<Fiber>(threads);
    std::vector<unsigned> order(threads);
    for (unsigned i = 0; i < threads; i++) order[i] = launch.order == 1 ? threads - 1 - i : i;
    block_size = launch.block;
    body = &kernel;
    failed = false;
    for (unsigned y = 0; y < launch.grid.y && !failed; y++) {
        for (unsigned x = 0; x < launch.grid.x && !failed; x++) {
            block = {x, y};
            run_block(threads, order, launch.order);
        }
    }
    // Those that still wait begin anew.
    if (failed) fibers.clear();
    return failed ? 1 : 0;
}

} // namespace emulator

#define __device__
#define __shared__ static __attribute__((section("shared_memory")))
#define threadIdx (emulator::current->thread)
#define blockIdx (emulator::block)
#define blockDim (emulator::block_size)

static inline void __syncthreads() { emulator::wait(emulator::State::AtBlock); }

template <class T>
static T __shfl_xor_sync(unsigned, T value, unsigned lanes) {
    emulator::Fiber* me = emulator::current;
    std::memcpy(me->exchanged, &value, sizeof value);
    emulator::wait(emulator::State::AtWarp);
    std::memcpy(&value, emulator::fibers[me->index ^ lanes].exchanged, sizeof value);
    // Nobody writes anew before all have read.
    emulator::wait(emulator::State::AtWarp);
    return value;
}

static inline float __uint_as_float(unsigned bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

static inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, sizeof x);
    return bits;
}

static inline float __fmul_rn(float a, float b) { return a * b; }

#define ENTRY(name, ...)                                                         \
    extern "C" int name(const void* args, const emulator::Launch* launch) {      \
        __VA_ARGS__ kernel;                                                      \
        std::memcpy(static_cast<void*>(&kernel), args, sizeof kernel);           \
        return emulator::run(*launch, [&] { kernel.run(); });                    \
    }
