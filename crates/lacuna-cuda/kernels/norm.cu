// Norms of every token by itself: RMSNorm (Zhang & Sennrich, arXiv 1910.07467) and LayerNorm (Ba et al., arXiv 1607.06450).
// A block of threads has up to 32 tokens; the threads of a token share out its features and add up in shared memory, in one
// order. Activations are read twice or three times, the second time from a cache.
#include "ptx.cuh"

struct Norm {
    /// [H, stride]
    const u16 *x;
    /// [H]
    const float *weight;
    /// [H], of a LayerNorm
    const float *bias;
    /// [H, stride]; may be x
    u16 *y;
    /// H
    u32 features;
    /// T
    u32 tokens;
    u32 stride;
    /// tokens of a block, a power of two up to 32
    u32 block_tokens;
    float epsilon;
};

template <class Half, bool CENTRED> struct Normalize {
    using Operands = Norm;
    static constexpr u32 THREADS = 256;

    const Norm &p;
    u32 token = blockIdx.x * p.block_tokens + threadIdx.x % p.block_tokens;
    u32 first = threadIdx.x / p.block_tokens;
    u32 step = THREADS / p.block_tokens;
    bool inside = token < p.tokens;

    LACUNA_DEVICE Normalize(const Norm &norm) : p(norm) {}

    LACUNA_DEVICE float value(u32 feature) const { return Half::widen(p.x[(u64)feature * p.stride + token]); }

    /// The sum over the threads of a token, for each of them.
    LACUNA_DEVICE float total(float part) const {
        float *parts = (float *)shared_memory();
        __syncthreads();
        parts[threadIdx.x] = part;
        for (u32 half = THREADS / 2; half >= p.block_tokens; half /= 2) {
            __syncthreads();
            if (threadIdx.x < half) parts[threadIdx.x] += parts[threadIdx.x + half];
        }
        __syncthreads();
        return parts[threadIdx.x % p.block_tokens];
    }

    LACUNA_DEVICE void run() const {
        float mean = 0.0f, squares = 0.0f;
        if constexpr (CENTRED) {
            float sum = 0.0f;
            for (u32 k = first; inside && k < p.features; k += step) sum += value(k);
            mean = total(sum) / (float)p.features;
        }
        // Around the mean: the difference of two sums would cancel where the mean is large.
        for (u32 k = first; inside && k < p.features; k += step) {
            float off = value(k) - mean;
            squares += off * off;
        }
        float scale = 1.0f / sqrtf(total(squares) / (float)p.features + p.epsilon);
        for (u32 k = first; inside && k < p.features; k += step) {
            float y = (value(k) - mean) * scale * p.weight[k];
            if constexpr (CENTRED) y += p.bias[k];
            p.y[(u64)k * p.stride + token] = (u16)Half::round(y, 0.0f);
        }
    }
};
