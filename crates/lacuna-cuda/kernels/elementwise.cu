// What stands between products and concerns every value by itself.
#include "ptx.cuh"

constexpr u32 ELEMENT_THREADS = 256;

/// x sigma(x)
struct Silu {
    static LACUNA_DEVICE float of(float x) { return x / (1.0f + expf(-x)); }
};
/// x Phi(x) (Hendrycks & Gimpel, arXiv 1606.08415)
struct GeluErf {
    static LACUNA_DEVICE float of(float x) { return 0.5f * x * erfcf(x * -0.70710678f); }
};
/// x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), with (1 + tanh u) / 2 = 1 / (1 + exp(-2 u))
struct GeluTanh {
    static LACUNA_DEVICE float of(float x) { return x / (1.0f + expf(-1.5957691f * (x + 0.044715f * x * x * x))); }
};
/// x sigma(1.702 x)
struct GeluSigmoid {
    static LACUNA_DEVICE float of(float x) { return x / (1.0f + expf(-1.702f * x)); }
};
/// max(x, 0)
struct Relu {
    static LACUNA_DEVICE float of(float x) { return fmaxf(x, 0.0f); }
};

struct Activation {
    /// [length], in place
    u16 *x;
    /// [length], of a gated MLP
    const u16 *factor;
    u32 length;
};

/// x = f(x), or f(x) times a factor.
template <class Half, class Function, bool GATED> struct Activate {
    using Operands = Activation;
    const Activation &p;
    LACUNA_DEVICE Activate(const Activation &activation) : p(activation) {}

    LACUNA_DEVICE void run() const {
        wait_for_previous();
        u32 i = blockIdx.x * ELEMENT_THREADS + threadIdx.x;
        if (i >= p.length) return;
        float y = Function::of(Half::widen(p.x[i]));
        if constexpr (GATED) y *= Half::widen(p.factor[i]);
        p.x[i] = (u16)Half::round(y, 0.0f);
    }
};

struct RowBias {
    /// [R, stride]
    u16 *y;
    /// [R]
    const float *bias;
    u32 rows;
    u32 stride;
    /// whether y holds something that the bias is added to
    u32 add;
};

/// y[r, t] = bias[r], or += it: what a dense product is then added to.
template <class Half> struct AddBias {
    using Operands = RowBias;
    const RowBias &p;
    LACUNA_DEVICE AddBias(const RowBias &bias) : p(bias) {}

    LACUNA_DEVICE void run() const {
        wait_for_previous();
        u32 i = blockIdx.x * ELEMENT_THREADS + threadIdx.x;
        if (i >= p.rows * p.stride) return;
        float y = p.bias[i / p.stride] + (p.add ? Half::widen(p.y[i]) : 0.0f);
        p.y[i] = (u16)Half::round(y, 0.0f);
    }
};
