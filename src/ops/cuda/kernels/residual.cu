// The sum of a residual branch: y = x + factor of the sample * gamma * branch.

template <class T>
struct Residual {
    const T *xs, *branch, *gamma; // no gamma where that is null
    const float* factors;         // one for each sample, or null
    T* ys;
    u32 rows, width, sample_rows;

    __device__ void run() const {
        const u32 row = blockIdx.x;
        const u64 start = u64(row) * width;
        const float factor = factors ? factors[row / sample_rows] : 1;
        for_columns(width, [&](u32 column) {
            const u64 i = start + column;
            const float scaled = gamma ? load(gamma, column) * load(branch, i) : load(branch, i);
            store(ys, i, load(xs, i) + factor * scaled);
        });
    }
};
ENTRIES(residual, Residual)

/// The gradient of the branch. (That of x is the result's.)
template <class T>
struct ResidualBackward {
    const T *grads, *gamma;
    const float* factors;
    T* dbranch;
    u32 rows, width, sample_rows;

    __device__ void run() const {
        const u32 row = blockIdx.x;
        const u64 start = u64(row) * width;
        const float factor = factors ? factors[row / sample_rows] : 1;
        for_columns(width, [&](u32 column) {
            const float scale = gamma ? factor * load(gamma, column) : factor;
            store(dbranch, start + column, scale * load(grads, start + column));
        });
    }
};
ENTRIES(residual_backward, ResidualBackward)

/// The gradient of gamma over chunks of rows: sums [chunks, width].
template <class T>
struct ResidualSums {
    const T *grads, *branch;
    const float* factors;
    float* sums;
    u32 rows, width, sample_rows, chunk_rows;

    __device__ void run() const {
        sum_columns<1>(rows, width, chunk_rows, sums, [&](u32 row, u32 column, float* numbers) {
            const u64 i = u64(row) * width + column;
            const float factor = factors ? factors[row / sample_rows] : 1;
            numbers[0] += factor * load(grads, i) * load(branch, i);
        });
    }
};
ENTRIES(residual_sums, ResidualSums)
