// Steps over all parameters in one launch: a table tells where each is, and blocks take chunks of them.

/// Elements of a chunk.
constexpr u32 CHUNK = 16384;

/// A parameter with its state; of what there is none, that is null.
struct Parameter {
    float* weights;
    const float* grads;
    float *m, *v;
    u64 len;
    u32 first_chunk;
    float lr, weight_decay, m_scale, root_scale; // the scales are corrections of the moments' start at 0
    u32 unused;
};

/// What a block is to do: the number of its parameter, and its elements.
struct Work {
    u32 parameter;
    u64 first, end;
};

static __device__ Work work(const Parameter* table, u32 parameters) {
    // The last parameter that begins at this chunk or before it.
    u32 low = 0, high = parameters;
    while (high - low > 1) {
        const u32 middle = (low + high) / 2;
        if (table[middle].first_chunk <= blockIdx.x) low = middle;
        else high = middle;
    }
    const u64 first = u64(blockIdx.x - table[low].first_chunk) * CHUNK, len = table[low].len;
    return {low, first, len - first < CHUNK ? len : first + CHUNK};
}

/// The sum over the threads of a block, for the first of them.
static __device__ double block_sum(double x) {
    __shared__ double warps[WARP];
    x = warp_sum(x);
    if (lane() == 0) warps[threadIdx.x / WARP] = x;
    __syncthreads();
    double sum = 0;
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < blockDim.x / WARP; i++) sum += warps[i];
    }
    __syncthreads();
    return sum;
}

struct AdamW {
    const Parameter* table;
    u32 parameters;
    float grad_scale, beta1_rest, beta2, beta2_rest, eps;

    __device__ void run() const {
        const Work at = work(table, parameters);
        const Parameter p = table[at.parameter];
        const float keep = 1 - p.lr * p.weight_decay, step_size = p.lr * p.m_scale;
        for (u64 i = at.first + threadIdx.x; i < at.end; i += blockDim.x) {
            const float g = p.grads[i] * grad_scale;
            const float m = p.m[i] + (g - p.m[i]) * beta1_rest;
            const float v = p.v[i] * beta2 + g * g * beta2_rest;
            p.m[i] = m;
            p.v[i] = v;
            p.weights[i] = p.weights[i] * keep - step_size * (m / (sqrtf(v) * p.root_scale + eps));
        }
    }
};
ENTRY(adamw_f32, AdamW)

/// LAMB's direction.
__device__ inline float direction(const Parameter& p, u64 i, float eps) {
    return p.m[i] * p.m_scale / (sqrtf(p.v[i]) * p.root_scale + eps) + p.weights[i] * p.weight_decay;
}

/// The moments; and of each chunk the squared norms of weights and direction [chunks, 2].
struct LambMoments {
    const Parameter* table;
    double* squares;
    u32 parameters;
    float grad_scale, beta1, beta1_rest, beta2, beta2_rest, eps;

    __device__ void run() const {
        const Work at = work(table, parameters);
        const Parameter p = table[at.parameter];
        double weights = 0, directions = 0;
        for (u64 i = at.first + threadIdx.x; i < at.end; i += blockDim.x) {
            const float g = p.grads[i] * grad_scale;
            p.m[i] = p.m[i] * beta1 + g * beta1_rest;
            p.v[i] = p.v[i] * beta2 + g * g * beta2_rest;
            const double w = p.weights[i], u = direction(p, i, eps);
            weights += w * w;
            directions += u * u;
        }
        weights = block_sum(weights);
        directions = block_sum(directions);
        if (threadIdx.x == 0) {
            squares[2 * u64(blockIdx.x)] = weights;
            squares[2 * u64(blockIdx.x) + 1] = directions;
        }
    }
};
ENTRY(lamb_moments_f32, LambMoments)

/// The sums over each parameter's chunks [parameters, columns] of [chunks, columns]: a warp for each of them.
struct ChunkTotals {
    const Parameter* table;
    const double* sums;
    double* totals;
    u32 parameters, columns, chunks;

    __device__ void run() const {
        const u32 i = warp();
        if (i >= parameters * columns) return;
        const u32 parameter = i / columns, column = i % columns;
        const u32 end = parameter + 1 < parameters ? table[parameter + 1].first_chunk : chunks;
        double sum = 0;
        for (u32 chunk = table[parameter].first_chunk + lane(); chunk < end; chunk += WARP) {
            sum += sums[u64(chunk) * columns + column];
        }
        sum = warp_sum(sum);
        if (lane() == 0) totals[i] = sum;
    }
};
ENTRY(chunk_totals_f32, ChunkTotals)

/// The step, as long as the weights where they decay: `squares` [parameters, 2].
struct LambStep {
    const Parameter* table;
    const double* squares;
    u32 parameters;
    float eps;

    __device__ void run() const {
        const Work at = work(table, parameters);
        const Parameter p = table[at.parameter];
        const double w = squares[2 * at.parameter], u = squares[2 * at.parameter + 1];
        const float trust = p.weight_decay > 0 && w > 0 && u > 0 ? float(sqrt(w / u)) : 1;
        for (u64 i = at.first + threadIdx.x; i < at.end; i += blockDim.x) {
            p.weights[i] -= p.lr * trust * direction(p, i, eps);
        }
    }
};
ENTRY(lamb_step_f32, LambStep)

/// weights += (grads - weights) lr: an average that moves towards weights.
struct Lerp {
    const Parameter* table;
    u32 parameters;

    __device__ void run() const {
        const Work at = work(table, parameters);
        const Parameter p = table[at.parameter];
        for (u64 i = at.first + threadIdx.x; i < at.end; i += blockDim.x) {
            p.weights[i] += (p.grads[i] - p.weights[i]) * p.lr;
        }
    }
};
ENTRY(lerp_f32, Lerp)

/// The squared norm of each chunk of the gradients.
struct Squares {
    const Parameter* table;
    double* squares;
    u32 parameters;

    __device__ void run() const {
        const Work at = work(table, parameters);
        const float* g = table[at.parameter].grads;
        double sum = 0;
        for (u64 i = at.first + threadIdx.x; i < at.end; i += blockDim.x) sum += double(g[i]) * double(g[i]);
        sum = block_sum(sum);
        if (threadIdx.x == 0) squares[blockIdx.x] = sum;
    }
};
ENTRY(squares_f32, Squares)
