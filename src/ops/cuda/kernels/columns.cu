// Sums of columns, in two stages: of chunks of rows, and over the chunks.

/// Columns and rows that a block reads at a time.
constexpr u32 TILE_COLUMNS = 32, TILE_ROWS = 8;

/// The sum over the threads of a column, for the first of them.
static __device__ float tile_sum(float x) {
    __shared__ float tile[TILE_ROWS][TILE_COLUMNS];
    tile[threadIdx.y][threadIdx.x] = x;
    __syncthreads();
    float sum = 0;
    if (threadIdx.y == 0) {
        for (u32 row = 0; row < TILE_ROWS; row++) sum += tile[row][threadIdx.x];
    }
    // The next sum is written to the same memory.
    __syncthreads();
    return sum;
}

/// Adds up K numbers of each element that term(row, column, numbers) adds to `numbers`, over one chunk of rows: block
/// (piece of columns, chunk) writes its part of sums [chunks, K, width].
template <u32 K, class F>
__device__ inline void sum_columns(u32 rows, u32 width, u32 chunk_rows, float* sums, F term) {
    const u32 column = blockIdx.x * TILE_COLUMNS + threadIdx.x;
    const u32 first = blockIdx.y * chunk_rows;
    const u32 end = rows - first < chunk_rows ? rows : first + chunk_rows;
    float numbers[K] = {};
    if (column < width) {
        for (u32 row = first + threadIdx.y; row < end; row += TILE_ROWS) term(row, column, numbers);
    }
    for (u32 k = 0; k < K; k++) {
        const float sum = tile_sum(numbers[k]);
        if (threadIdx.y == 0 && column < width) sums[(u64(blockIdx.y) * K + k) * width + column] = sum;
    }
}

/// The first stage: sums [chunks, width] of xs [rows, width].
template <class T>
struct SumChunks {
    const T* xs;
    float* sums;
    u32 rows, width, chunk_rows;

    __device__ void run() const {
        sum_columns<1>(rows, width, chunk_rows, sums, [&](u32 row, u32 column, float* numbers) {
            numbers[0] += load(xs, u64(row) * width + column);
        });
    }
};
ENTRIES(sum_chunks, SumChunks)

/// The second stage: ys [width] of sums [chunks, width].
template <class T>
struct SumOfChunks {
    const float* sums;
    T* ys;
    u32 chunks, width;

    __device__ void run() const {
        const u32 column = blockIdx.x * TILE_COLUMNS + threadIdx.x;
        float sum = 0;
        if (column < width) {
            for (u32 chunk = threadIdx.y; chunk < chunks; chunk += TILE_ROWS) sum += sums[u64(chunk) * width + column];
        }
        sum = tile_sum(sum);
        if (threadIdx.y == 0 && column < width) store(ys, column, sum);
    }
};
ENTRIES(sum_of_chunks, SumOfChunks)
