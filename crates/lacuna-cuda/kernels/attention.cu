// Attention against the cache: out = V softmax(K q / sqrt(D)) of each query over the positions that it sees, softmax as it
// goes along (Milakov & Gimelshein, arXiv 1805.02867), sums in f32.
//
// A block of threads has up to 8 queries that look at one head of one sequence's cache: neighbouring tokens, and all the heads
// of queries that share these keys. Its warps share out the positions, 32 at a time: first a lane has a position and all of
// its features, then, for the values, a lane has features and meets all 32 positions. So nothing is summed across lanes
// but, once for 32 positions, the maximum. Products are plain multiply-adds: attention is a small part of the work up to
// a few thousand tokens.
#include "ptx.cuh"

struct Attention {
    /// [kv_heads group D, stride], turned
    const u16 *queries;
    /// [slots, kv_heads, capacity, row]
    const u16 *keys;
    /// [slots, kv_heads, capacity, row]
    const u16 *values;
    /// Runs of queries of one sequence, [tiles, 2]: first and end. Query i is head i % group of token i / group.
    const u32 *tiles;
    /// the sequence of each token in the cache, [T]
    const u32 *slots;
    /// behind the last position that each token sees, [T]
    const u32 *ends;
    /// [kv_heads group D, stride]
    u16 *out;
    u32 stride;
    u32 kv_heads;
    /// heads of queries for each of keys
    u32 group;
    /// D
    u32 features;
    /// D, filled up to a multiple of 8
    u32 row;
    /// positions that a slot has room for
    u32 capacity;
    /// how many positions, the last ones, a token sees at most
    u32 window;
    /// 1 / sqrt(D)
    float scale;
};

/// `FEATURES` are those of a lane: heads have up to 32 times as many.
template <class Half, int FEATURES> struct Attend {
    using Operands = Attention;
    static constexpr int WARPS = 4;
    static constexpr int THREADS = WARPS * LANES;
    static constexpr int QUERIES = 8;
    static constexpr float NOTHING = -1e30f;

    const Attention &p;
    int warp = threadIdx.x / LANES;
    int lane = threadIdx.x % LANES;
    u32 kv_head = blockIdx.y;
    u32 first = p.tiles[2 * blockIdx.x];
    u32 count = p.tiles[2 * blockIdx.x + 1] - first;
    /// of the sequence and the head
    u64 cache = ((u64)p.slots[first / p.group] * p.kv_heads + kv_head) * p.capacity * p.row;
    // Shared memory: queries [QUERIES, row]; weights of positions [WARPS, QUERIES, LANES]; at the end, of each warp,
    // sums [WARPS, QUERIES, row], maxima and totals [WARPS, QUERIES].
    float *queries = (float *)shared_memory();
    float *weights = queries + QUERIES * p.row;
    float *parts = weights + WARPS * QUERIES * LANES;
    float *maxima = parts + WARPS * QUERIES * p.row;
    float *totals = maxima + WARPS * QUERIES;

    LACUNA_DEVICE Attend(const Attention &attention) : p(attention) {}

    LACUNA_DEVICE u64 feature_row(u32 query, u32 feature) const {
        return ((u64)(kv_head * p.group + query % p.group) * p.features + feature) * p.stride + query / p.group;
    }

    LACUNA_DEVICE void load_queries() const {
        for (u32 i = threadIdx.x; i < QUERIES * p.row; i += THREADS) {
            u32 query = i / p.row, feature = i % p.row;
            bool there = query < count && feature < p.features;
            queries[i] = there ? Half::widen(p.queries[feature_row(first + query, feature)]) * p.scale : 0.0f;
        }
        __syncthreads();
    }

    /// Scores of one position for all queries: 8 features at a time.
    LACUNA_DEVICE void score(float (&scores)[QUERIES], u32 position) const {
        const uint4 *key = (const uint4 *)(p.keys + cache + (u64)position * p.row);
        for (u32 chunk = 0; chunk < p.row / 8; chunk++) {
            uint4 k = key[chunk];
            const u32 pairs[4] = {k.x, k.y, k.z, k.w};
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float low = Half::widen((u16)pairs[i]), high = Half::widen((u16)(pairs[i] >> 16));
#pragma unroll
                for (int q = 0; q < QUERIES; q++) {
                    float2 query = *(const float2 *)(queries + q * p.row + chunk * 8 + 2 * i);
                    scores[q] += low * query.x;
                    scores[q] += high * query.y;
                }
            }
        }
    }

    LACUNA_DEVICE static float largest(float x) {
#pragma unroll
        for (int mask = LANES / 2; mask > 0; mask /= 2) x = fmaxf(x, shuffle_xor(x, mask));
        return x;
    }

    LACUNA_DEVICE static float sum(float x) {
#pragma unroll
        for (int mask = LANES / 2; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
        return x;
    }

    LACUNA_DEVICE void run() const {
        load_queries();
        u32 starts[QUERIES], ends[QUERIES], begin = 0xffffffff, end = 0;
        float sums[QUERIES][FEATURES] = {}, maximum[QUERIES], total[QUERIES] = {};
#pragma unroll
        for (int q = 0; q < QUERIES; q++) {
            maximum[q] = NOTHING;
            starts[q] = ends[q] = 0;
            if ((u32)q < count) {
                ends[q] = p.ends[(first + q) / p.group];
                starts[q] = ends[q] > p.window ? ends[q] - p.window : 0;
                begin = starts[q] < begin ? starts[q] : begin;
                end = ends[q] > end ? ends[q] : end;
            }
        }
        float *own = weights + warp * QUERIES * LANES;
        for (u32 chunk = begin / LANES + warp; chunk * LANES < end; chunk += WARPS) {
            u32 position = chunk * LANES + lane;
            float scores[QUERIES] = {};
            if (position < end) score(scores, position);
#pragma unroll
            for (int q = 0; q < QUERIES; q++) {
                bool seen = position >= starts[q] && position < ends[q];
                float before = maximum[q];
                maximum[q] = fmaxf(before, largest(seen ? scores[q] : NOTHING));
                float weight = seen ? expf(scores[q] - maximum[q]) : 0.0f;
                float shrink = expf(before - maximum[q]);
                total[q] = total[q] * shrink + weight;
                own[q * LANES + lane] = weight;
#pragma unroll
                for (int f = 0; f < FEATURES; f++) sums[q][f] *= shrink;
            }
            __syncwarp();
            u32 positions = end - chunk * LANES < LANES ? end - chunk * LANES : LANES;
            for (u32 j = 0; j < positions; j++) {
                const u16 *value = p.values + cache + (u64)(chunk * LANES + j) * p.row;
#pragma unroll
                for (int f = 0; f < FEATURES; f++) {
                    u32 feature = f * LANES + lane;
                    float v = feature < p.row ? Half::widen(value[feature]) : 0.0f;
#pragma unroll
                    for (int q = 0; q < QUERIES; q++) sums[q][f] += own[q * LANES + j] * v;
                }
            }
            __syncwarp();
        }
        merge(sums, maximum, total);
    }

    /// Adds up what the warps have, in one order, each by its maximum.
    LACUNA_DEVICE void merge(const float (&sums)[QUERIES][FEATURES], const float (&maximum)[QUERIES],
                             const float (&total)[QUERIES]) const {
#pragma unroll
        for (int q = 0; q < QUERIES; q++) {
            float all = sum(total[q]);
            if (lane == 0) {
                maxima[warp * QUERIES + q] = maximum[q];
                totals[warp * QUERIES + q] = all;
            }
#pragma unroll
            for (int f = 0; f < FEATURES; f++) {
                u32 feature = f * LANES + lane;
                if (feature < p.row) parts[(warp * QUERIES + q) * p.row + feature] = sums[q][f];
            }
        }
        __syncthreads();
        for (u32 i = threadIdx.x; i < count * p.features; i += THREADS) {
            u32 q = i / p.features, feature = i % p.features;
            float most = NOTHING, mixed = 0.0f, all = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) most = fmaxf(most, maxima[w * QUERIES + q]);
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                float weight = expf(maxima[w * QUERIES + q] - most);
                mixed += weight * parts[(w * QUERIES + q) * p.row + feature];
                all += weight * totals[w * QUERIES + q];
            }
            p.out[feature_row(first + q, feature)] = (u16)Half::round(mixed / all, 0.0f);
        }
    }
};
