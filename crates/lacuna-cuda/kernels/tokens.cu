// Both ends of a decoder: from tokens to columns of features, and back from logits to tokens.
#include "ptx.cuh"

constexpr u32 GATHER_THREADS = 256;

struct Gathered {
    /// a table of vectors; value k of vector i is at k feature_step + i vector_step
    const u16 *table;
    /// which vector each token takes, [T]
    const u32 *indices;
    /// [features, stride]
    u16 *out;
    /// T
    u32 tokens;
    u32 stride;
    u32 features;
    u32 feature_step;
    u32 vector_step;
};

/// The embedding of tokens, from a table [vocab, H]; or some columns of a matrix [H, stride].
struct Gather {
    using Operands = Gathered;
    const Gathered &p;
    LACUNA_DEVICE Gather(const Gathered &gathered) : p(gathered) {}

    LACUNA_DEVICE void run() const {
        wait_for_previous();
        u32 i = blockIdx.x * GATHER_THREADS + threadIdx.x;
        u32 token = i % p.tokens, feature = i / p.tokens;
        if (feature >= p.features) return;
        u64 from = (u64)feature * p.feature_step + (u64)p.indices[token] * p.vector_step;
        p.out[(u64)feature * p.stride + token] = p.table[from];
    }
};

struct Sequel {
    /// [vocab, stride]
    const float *logits;
    /// the likeliest of each sequence, [n]
    u32 *tokens;
    /// one more each, [n]
    u32 *positions;
    /// one more each, [n]
    u32 *ends;
    /// [n]
    u32 stride;
    u32 vocab;
};

/// What the next step of a decoder begins with: the likeliest token, of equal ones the first, at the next position. A block
/// a sequence.
struct Next {
    using Operands = Sequel;
    static constexpr u32 THREADS = 1024;
    /// Loads that are on their way together.
    static constexpr u32 AHEAD = 16;
    const Sequel &p;
    LACUNA_DEVICE Next(const Sequel &sequel) : p(sequel) {}

    /// The likelier of two tokens.
    LACUNA_DEVICE static void compare(float &most, u32 &best, float logit, u32 token) {
        if (logit > most || (logit == most && token < best)) {
            most = logit;
            best = token;
        }
    }

    /// The likeliest of a warp, for every lane.
    LACUNA_DEVICE static void compare_lanes(float &most, u32 &best) {
#pragma unroll
        for (int mask = LANES / 2; mask > 0; mask /= 2) {
            float logit = shuffle_xor(most, mask);
            u32 token = shuffle_xor(best, mask);
            compare(most, best, logit, token);
        }
    }

    LACUNA_DEVICE void run() const {
        wait_for_previous();
        // of each warp; there are as many as a warp has lanes
        float *values = (float *)shared_memory();
        u32 *indices = (u32 *)(values + THREADS / LANES);
        u32 sequence = blockIdx.x, best = threadIdx.x, warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
        float most = as_float(0xff800000);
        for (u32 first = threadIdx.x; first < p.vocab; first += AHEAD * THREADS) {
            float logits[AHEAD];
#pragma unroll
            for (u32 i = 0; i < AHEAD; i++) {
                u32 token = first + i * THREADS;
                logits[i] = token < p.vocab ? p.logits[(u64)token * p.stride + sequence] : as_float(0xff800000);
            }
#pragma unroll
            for (u32 i = 0; i < AHEAD; i++) compare(most, best, logits[i], first + i * THREADS);
        }
        compare_lanes(most, best);
        if (lane == 0) {
            values[warp] = most;
            indices[warp] = best;
        }
        __syncthreads();
        if (warp > 0) return;
        most = values[lane];
        best = indices[lane];
        compare_lanes(most, best);
        if (lane > 0) return;
        p.tokens[sequence] = best;
        p.positions[sequence]++;
        p.ends[sequence]++;
    }
};
