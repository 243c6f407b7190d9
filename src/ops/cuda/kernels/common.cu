// What all kernels share.
//
// They are compiled at run time, so that no header of CUDA's is included, and by a C++ compiler for the tests
// (emulator/emulator.h). A kernel is a struct of its arguments, 8-byte ones first, then u32, then float: the order in
// which launch.rs writes them. Sums run in an order that sizes alone decide, without atomics: the same input gives
// the same bits.

using u32 = unsigned int;
using u64 = unsigned long long;

/// bfloat16 by its bits.
struct bf16 {
    unsigned short bits;
};

__device__ inline float load(const float* xs, u64 i) { return xs[i]; }

__device__ inline float load(const bf16* xs, u64 i) { return __uint_as_float(u32(xs[i].bits) << 16); }

__device__ inline void store(float* ys, u64 i, float y) { ys[i] = y; }

/// Rounded to the nearest, ties to even.
__device__ inline void store(bf16* ys, u64 i, float y) {
    const u32 bits = __float_as_uint(y);
    // Rounding might turn what is undefined into an infinity.
    ys[i].bits = y != y ? 0x7fff : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

constexpr u32 WARP = 32;

__device__ inline u32 lane() { return threadIdx.x % WARP; }

/// The number of a warp among those of all blocks.
__device__ inline u32 warp() { return blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP; }

/// The sum over the lanes of a warp, in every lane to the bit.
template <class T>
__device__ inline T warp_sum(T x) {
    for (u32 lanes = WARP / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(0xffffffff, x, lanes);
    return x;
}

__device__ inline float warp_max(float x) {
    for (u32 lanes = WARP / 2; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, lanes));
    return x;
}

/// The sum of f(i) over i < len, shared by the lanes of a warp.
template <class F>
__device__ inline float warp_sum_of(u32 len, F f) {
    float sum = 0;
    for (u32 i = lane(); i < len; i += WARP) sum += f(i);
    return warp_sum(sum);
}

/// Columns of a row that a block goes through, in kernels whose blocks are (row, piece of it).
constexpr u32 PIECE = 1024;

/// Calls f(column) for those of this block's piece of a row.
template <class F>
__device__ inline void for_columns(u32 width, F f) {
    const u32 first = blockIdx.y * PIECE;
    const u32 end = width - first < PIECE ? width : first + PIECE;
    for (u32 column = first + threadIdx.x; column < end; column += blockDim.x) f(column);
}

#ifndef ENTRY
#define ENTRY(name, ...) \
    extern "C" __global__ void name(const __VA_ARGS__ kernel) { kernel.run(); }
#endif

/// A kernel of both dtypes.
#define ENTRIES(name, Kernel) ENTRY(name##_f32, Kernel<float>) ENTRY(name##_bf16, Kernel<bf16>)
