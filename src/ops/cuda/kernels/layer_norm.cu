// Layer norm: a warp for each row.

struct Moments {
    float mean, scale;
};

/// Mean and reciprocal standard deviation of a row, in two passes: no cancellation.
template <class T>
__device__ inline Moments moments(const T* x, u32 width, float eps) {
    const float mean = warp_sum_of(width, [&](u32 i) { return load(x, i); }) / width;
    const float variance = warp_sum_of(width, [&](u32 i) {
        const float centred = load(x, i) - mean;
        return centred * centred;
    }) / width;
    return {mean, 1 / sqrtf(variance + eps)};
}

template <class T>
struct LayerNorm {
    const T *xs, *weight, *bias; // no bias where that is null
    T* ys;
    u32 rows, width;
    float eps;

    __device__ void run() const {
        const u32 row = warp();
        if (row >= rows) return;
        const T* x = xs + u64(row) * width;
        T* y = ys + u64(row) * width;
        const Moments m = moments(x, width, eps);
        for (u32 i = lane(); i < width; i += WARP) {
            const float normed = (load(x, i) - m.mean) * m.scale * load(weight, i);
            store(y, i, bias ? normed + load(bias, i) : normed);
        }
    }
};
ENTRIES(layer_norm, LayerNorm)

/// The gradient of the input; and each row's moments [rows, 2], for the parameters' gradients.
template <class T>
struct LayerNormBackward {
    const T *xs, *weight, *grads;
    T* dxs;
    float* stats;
    u32 rows, width;
    float eps;

    __device__ void run() const {
        const u32 row = warp();
        if (row >= rows) return;
        const u64 start = u64(row) * width;
        const T *x = xs + start, *g = grads + start;
        const Moments m = moments(x, width, eps);
        const float mean_h = warp_sum_of(width, [&](u32 i) { return __fmul_rn(load(g, i), load(weight, i)); }) / width;
        const float mean_hx = warp_sum_of(width, [&](u32 i) {
            return load(g, i) * load(weight, i) * ((load(x, i) - m.mean) * m.scale);
        }) / width;
        for (u32 i = lane(); i < width; i += WARP) {
            const float normed = (load(x, i) - m.mean) * m.scale;
            // Not fused: where the mean is a single element it must cancel exactly.
            const float h = __fmul_rn(load(g, i), load(weight, i));
            store(dxs + start, i, m.scale * (h - mean_h - normed * mean_hx));
        }
        if (lane() == 0) {
            stats[2 * u64(row)] = m.mean;
            stats[2 * u64(row) + 1] = m.scale;
        }
    }
};
ENTRIES(layer_norm_backward, LayerNormBackward)

/// The gradients of weight and bias over chunks of rows: sums [chunks, 2, width].
template <class T>
struct LayerNormSums {
    const T *xs, *grads;
    const float* stats;
    float* sums;
    u32 rows, width, chunk_rows;

    __device__ void run() const {
        sum_columns<2>(rows, width, chunk_rows, sums, [&](u32 row, u32 column, float* numbers) {
            const u64 i = u64(row) * width + column;
            const float g = load(grads, i);
            numbers[0] += g * ((load(xs, i) - stats[2 * u64(row)]) * stats[2 * u64(row) + 1]);
            numbers[1] += g;
        });
    }
};
ENTRIES(layer_norm_sums, LayerNormSums)
