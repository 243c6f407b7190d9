// Softmax of scaled rows: a warp for each.

template <class T>
struct Softmax {
    const T* xs;
    T* ys;
    u32 rows, width;
    float scale; // above 0

    __device__ void run() const {
        const u32 row = warp();
        if (row >= rows) return;
        const u64 start = u64(row) * width;
        const T* x = xs + start;
        float max = __uint_as_float(0xff800000);
        for (u32 i = lane(); i < width; i += WARP) max = fmaxf(max, load(x, i));
        max = warp_max(max);
        // Where all are -inf this is NaN, as in PyTorch.
        const auto exponential = [&](u32 i) { return expf(scale * (load(x, i) - max)); };
        const float norm = 1 / warp_sum_of(width, exponential);
        for (u32 i = lane(); i < width; i += WARP) store(ys + start, i, exponential(i) * norm);
    }
};
ENTRIES(softmax, Softmax)

template <class T>
struct SoftmaxBackward {
    const T *ys, *grads;
    T* dxs;
    u32 rows, width;
    float scale;

    __device__ void run() const {
        const u32 row = warp();
        if (row >= rows) return;
        const u64 start = u64(row) * width;
        const T *y = ys + start, *g = grads + start;
        const float mean = warp_sum_of(width, [&](u32 i) { return load(y, i) * load(g, i); });
        for (u32 i = lane(); i < width; i += WARP) store(dxs + start, i, scale * load(y, i) * (load(g, i) - mean));
    }
};
ENTRIES(softmax_backward, SoftmaxBackward)
