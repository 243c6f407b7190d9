// Rows by their numbers: tokens that are kept, samples of a batch.

/// ys[r] = xs[index[r]], or others[r] where the number is that of no row.
template <class T>
struct GatherRows {
    const T* xs;
    const u32* index;
    const T* others;
    T* ys;
    u32 num_xs, width;

    __device__ void run() const {
        const u32 row = blockIdx.x, from = index[row];
        const T* x = from < num_xs ? xs + u64(from) * width : others ? others + u64(row) * width : nullptr;
        T* y = ys + u64(row) * width;
        for_columns(width, [&](u32 column) {
            if (x) y[column] = x[column];
            else store(y, column, 0);
        });
    }
};
ENTRIES(gather_rows, GatherRows)

/// dxs[r] = the sum of the gradients of the rows that were gathered from r: those that `places` lists from starts[r] on
/// up to starts[r + 1].
template <class T>
struct ScatterRows {
    const T* grads;
    const u32 *starts, *places;
    T* dxs;
    u32 width;

    __device__ void run() const {
        const u32 row = blockIdx.x, first = starts[row], end = starts[row + 1];
        for_columns(width, [&](u32 column) {
            float sum = 0;
            for (u32 i = first; i < end; i++) sum += load(grads, u64(places[i]) * width + column);
            store(dxs, u64(row) * width + column, sum);
        });
    }
};
ENTRIES(scatter_rows, ScatterRows)
