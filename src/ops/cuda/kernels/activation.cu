// Functions of one element, of the sum of it and a bias. A function has a value and a derivative.

__device__ inline float logistic(float x) { return 1 / (1 + expf(-x)); }

struct Identity {
    static __device__ float value(float x) { return x; }
    static __device__ float derivative(float) { return 1; }
};

struct Gelu {
    // By the complement, so that the lower tail keeps its precision.
    static __device__ float cdf(float x) { return 0.5f * erfcf(x * -0.707106781f); }
    static __device__ float value(float x) { return x * cdf(x); }
    static __device__ float derivative(float x) { return cdf(x) + x * (0.398942280f * expf(-0.5f * x * x)); }
};

struct GeluTanh {
    // 0.5 (1 + tanh(u)) = σ(2 u), with 2 sqrt(2/π) and that times 0.044715.
    static __device__ float value(float x) { return x * logistic(x * (1.59576912f + 0.0713548163f * x * x)); }
    static __device__ float derivative(float x) {
        const float s = logistic(x * (1.59576912f + 0.0713548163f * x * x));
        return s + x * (1.59576912f + 3 * 0.0713548163f * x * x) * s * (1 - s);
    }
};

/// x σ(SLOPE x), of a slope in thousandths.
template <u32 SLOPE>
struct Swish {
    static constexpr float slope = SLOPE / 1000.0f;
    static __device__ float value(float x) { return x * logistic(slope * x); }
    static __device__ float derivative(float x) {
        const float s = logistic(slope * x);
        return s + slope * x * s * (1 - s);
    }
};

struct Sigmoid {
    static __device__ float value(float x) { return logistic(x); }
    static __device__ float derivative(float x) { return logistic(x) * (1 - logistic(x)); }
};

struct Relu {
    // Not fmaxf, which would turn what is undefined to 0.
    static __device__ float value(float x) { return x <= 0 ? 0 : x; }
    static __device__ float derivative(float x) { return x <= 0 ? 0 : 1; }
};

struct Mish {
    // tanh(log(1 + exp(x))); where exp(x) is large that is 1.
    static __device__ float gate(float x) { return x > 20 ? 1 : tanhf(log1pf(expf(x))); }
    static __device__ float value(float x) { return x * gate(x); }
    static __device__ float derivative(float x) { return gate(x) + x * logistic(x) * (1 - gate(x) * gate(x)); }
};

template <class F, class T>
struct Activation {
    const T *xs, *bias; // no bias where that is null
    T* ys;
    u64 len; // the last row may be shorter
    u32 width;

    __device__ void run() const {
        const u64 start = u64(blockIdx.x) * width;
        for_columns(width, [&](u32 column) {
            const u64 i = start + column;
            if (i < len) store(ys, i, F::value(load(xs, i) + (bias ? load(bias, column) : 0)));
        });
    }
};

/// The gradient of the input; that of the bias is the sum of its rows.
template <class F, class T>
struct ActivationBackward {
    const T *xs, *bias, *grads;
    T* dxs;
    u64 len;
    u32 width;

    __device__ void run() const {
        const u64 start = u64(blockIdx.x) * width;
        for_columns(width, [&](u32 column) {
            const u64 i = start + column;
            if (i < len) store(dxs, i, load(grads, i) * F::derivative(load(xs, i) + (bias ? load(bias, column) : 0)));
        });
    }
};

#define ACTIVATION(name, F)                                        \
    ENTRY(name##_f32, Activation<F, float>)                        \
    ENTRY(name##_bf16, Activation<F, bf16>)                        \
    ENTRY(name##_backward_f32, ActivationBackward<F, float>)       \
    ENTRY(name##_backward_bf16, ActivationBackward<F, bf16>)

ACTIVATION(identity, Identity)
ACTIVATION(gelu, Gelu)
ACTIVATION(gelu_tanh, GeluTanh)
ACTIVATION(quick_gelu, Swish<1702>)
ACTIVATION(silu, Swish<1000>)
ACTIVATION(mish, Mish)
ACTIVATION(sigmoid, Sigmoid)
ACTIVATION(relu, Relu)
