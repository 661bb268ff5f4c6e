// Norms of every token by itself: RMSNorm (Zhang & Sennrich, arXiv 1910.07467) and LayerNorm (Ba et al., arXiv 1607.06450).
// A block of threads has up to 32 tokens, and few where there are few; the threads of a token share out its features and add
// up in one order. Activations are read twice or three times, the second time from a cache.
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
    static constexpr u32 THREADS = 1024;
    static constexpr u32 WARPS = THREADS / LANES;

    const Norm &p;
    u32 token = blockIdx.x * p.block_tokens + threadIdx.x % p.block_tokens;
    u32 first = threadIdx.x / p.block_tokens;
    u32 step = THREADS / p.block_tokens;
    /// behind the last feature that is read; tokens beyond the last have none
    u32 end = token < p.tokens ? p.features : 0;

    LACUNA_DEVICE Normalize(const Norm &norm) : p(norm) {}

    LACUNA_DEVICE float value(u32 feature) const { return Half::widen(p.x[(u64)feature * p.stride + token]); }

    /// Over the lanes that have the same token, for each of them.
    LACUNA_DEVICE float sum(float part) const {
        for (u32 mask = LANES / 2; mask >= p.block_tokens; mask /= 2) part += shuffle_xor(part, mask);
        return part;
    }

    /// The sum over the threads of a token, for each of them. Warps leave theirs in shared memory, [warps, block_tokens],
    /// and the lanes of each that have the same token share those out.
    LACUNA_DEVICE float total(float part) const {
        float *parts = (float *)shared_memory();
        u32 warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
        part = sum(part);
        __syncthreads();
        if (lane < p.block_tokens) parts[warp * p.block_tokens + lane] = part;
        __syncthreads();
        float all = 0.0f;
        for (u32 i = lane; i < WARPS * p.block_tokens; i += LANES) all += parts[i];
        return sum(all);
    }

    LACUNA_DEVICE void run() const {
        // Eight weights are what one fetch brings.
        for (u32 k = 8 * threadIdx.x; k < p.features; k += 8 * THREADS) prefetch(p.weight + k);
        wait_for_previous();
        float mean = 0.0f, squares = 0.0f;
        if constexpr (CENTRED) {
            float sum = 0.0f;
#pragma unroll 4
            for (u32 k = first; k < end; k += step) sum += value(k);
            mean = total(sum) / (float)p.features;
        }
        // Around the mean: the difference of two sums would cancel where the mean is large.
#pragma unroll 4
        for (u32 k = first; k < end; k += step) {
            float off = value(k) - mean;
            squares += off * off;
        }
        float scale = 1.0f / sqrtf(total(squares) / (float)p.features + p.epsilon);
#pragma unroll 4
        for (u32 k = first; k < end; k += step) {
            float y = (value(k) - mean) * scale * load_constant(p.weight + k);
            if constexpr (CENTRED) y += load_constant(p.bias + k);
            p.y[(u64)k * p.stride + token] = (u16)Half::round(y, 0.0f);
        }
    }
};
