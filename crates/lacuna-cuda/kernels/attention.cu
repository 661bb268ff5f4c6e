// Attention against the cache: out = V softmax(K q / sqrt(D)) of each query over the positions that it sees, softmax as it
// goes along (Milakov & Gimelshein, arXiv 1805.02867), sums in f32.
//
// A block of threads has up to 8 queries that look at one head of one sequence's cache: neighbouring tokens, and all the heads
// of queries that share these keys. Its warps share out the positions, 32 at a time: first a lane has a position and all of
// its features, then, for the values, a lane has 8 features of every so-manieth position. So nothing is summed across lanes
// but, once for 32 positions, the maximum. Products are plain multiply-adds: attention is a small part of the work up to
// a few thousand tokens.
//
// Where there are fewer such blocks than the GPU has room for, several share out the positions of one, and the last to end
// adds up what all of them have left (flash-decoding), in one order.
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
    /// What the blocks of a tile leave: sums of values, then maximum and total, [tiles, kv_heads, splits, QUERIES, D + 2].
    float *parts;
    /// blocks of a tile that are done, [tiles, kv_heads]; zero between kernels
    u32 *done;
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
    /// blocks of a tile, which are all at work where there are many positions
    u32 splits;
    /// 1 / sqrt(D)
    float scale;
};

/// `QUERIES` are the most of a tile.
template <class Half, int QUERIES> struct Attend {
    using Operands = Attention;
    static constexpr int WARPS = QUERIES == 1 ? 8 : 4;
    static constexpr int THREADS = WARPS * LANES;
    /// Features of a lane; heads have up to 32 times as many.
    static constexpr int FEATURES = 8;
    static constexpr int WIDTH = FEATURES * LANES;
    /// Of a warp: products of features before they are added up.
    static constexpr int PRODUCTS = QUERIES == 1 ? LANES * (LANES + 1) : 0;
    static constexpr int LEFT = PRODUCTS > QUERIES * WIDTH ? PRODUCTS : QUERIES * WIDTH;
    static constexpr float NOTHING = -1e30f;
    /// Loads that are on their way together.
    static constexpr int AHEAD = QUERIES == 1 ? 8 : 4;
    /// A block has so many positions before another one shares them: what that saves has to pay for adding up.
    static constexpr u32 SHARE = 2 * WARPS * LANES;

    const Attention &p;
    int warp = threadIdx.x / LANES;
    int lane = threadIdx.x % LANES;
    u32 kv_head = blockIdx.y;
    u32 tile = blockIdx.x / p.splits;
    u32 split = blockIdx.x % p.splits;
    u32 first = p.tiles[2 * tile];
    u32 count = p.tiles[2 * tile + 1] - first;
    /// of the sequence and the head
    u64 cache = ((u64)p.slots[first / p.group] * p.kv_heads + kv_head) * p.capacity * p.row;
    /// Lanes that have a row of values together, and rows that the warp has at once; lanes that are left over have none.
    u32 across = p.row / FEATURES;
    u32 rows = LANES / across;
    // Shared memory: queries [QUERIES, row]; weights of positions [WARPS, QUERIES, LANES]; products [WARPS, LANES,
    // across + 1] and, at the end, there, of each warp, sums [WARPS, QUERIES, LANES, FEATURES], maxima and totals [WARPS,
    // QUERIES].
    float *queries = (float *)shared_memory();
    float *weights = queries + QUERIES * p.row;
    float *sums_of = weights + WARPS * QUERIES * LANES;
    float *maxima = sums_of + WARPS * LEFT;
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

    /// Eight values as floats.
    LACUNA_DEVICE static void widen(float (&out)[FEATURES], const uint4 &in) {
        const u32 pairs[4] = {in.x, in.y, in.z, in.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            out[2 * i] = Half::widen((u16)pairs[i]);
            out[2 * i + 1] = Half::widen((u16)(pairs[i] >> 16));
        }
    }

    /// Scores of one position for all queries.
    LACUNA_DEVICE void score(float (&scores)[QUERIES], u32 position) const {
        const uint4 *key = (const uint4 *)(p.keys + cache + (u64)position * p.row);
#pragma unroll AHEAD
        for (u32 chunk = 0; chunk < across; chunk++) {
            float k[FEATURES];
            widen(k, key[chunk]);
#pragma unroll
            for (int q = 0; q < QUERIES; q++) {
                const float *query = queries + q * p.row + chunk * FEATURES;
                float4 low = *(const float4 *)query, high = *(const float4 *)(query + 4);
                scores[q] += k[0] * low.x;
                scores[q] += k[1] * low.y;
                scores[q] += k[2] * low.z;
                scores[q] += k[3] * low.w;
                scores[q] += k[4] * high.x;
                scores[q] += k[5] * high.y;
                scores[q] += k[6] * high.z;
                scores[q] += k[7] * high.w;
            }
        }
    }

    /// What a lane has of some of 32 positions, from `first` on, of keys or values. What is past the last position may be no
    /// number, and nothing times it none either: there it is that of the last.
    LACUNA_DEVICE void fetch(uint4 (&pieces)[AHEAD], const u16 *of, u32 begin, u32 end, u32 first) const {
        const u16 *own = of + cache + lane % across * FEATURES;
        u32 last = end - 1 - begin;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            u32 j = first + i * rows;
            pieces[i] = j < LANES ? *(const uint4 *)(own + (u64)(begin + (j < last ? j : last)) * p.row) : uint4{};
        }
    }

    /// The score of the position of this lane for a single query: as for values a lane has 8 features of every so-manieth
    /// position, so that what lanes load lies together, and they add up in shared memory. More queries make up for loads
    /// that do not.
    LACUNA_DEVICE float score_one(u32 begin, u32 end, u32 first_row) const {
        float *products = sums_of + warp * LEFT;
        const float *query = queries + lane % across * FEATURES;
        for (u32 first = first_row; first < LANES; first += AHEAD * rows) {
            uint4 keys[AHEAD];
            fetch(keys, p.keys, begin, end, first);
#pragma unroll
            for (int i = 0; i < AHEAD; i++) {
                u32 j = first + i * rows;
                float k[FEATURES], product = 0.0f;
                widen(k, keys[i]);
#pragma unroll
                for (int f = 0; f < FEATURES; f++) product += k[f] * query[f];
                if (j < LANES) products[j * (across + 1) + lane % across] = product;
            }
        }
        __syncwarp();
        float score = 0.0f;
#pragma unroll AHEAD
        for (u32 c = 0; c < across; c++) score += products[lane * (across + 1) + c];
        return score;
    }

    /// Adds values of some positions by their weights.
    LACUNA_DEVICE void mix(float (&sums)[QUERIES][FEATURES], const uint4 (&values)[AHEAD], const float *own,
                           u32 first) const {
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
            u32 j = first + i * rows;
            float v[FEATURES];
            widen(v, values[i]);
#pragma unroll
            for (int q = 0; q < QUERIES; q++) {
                float weight = j < LANES ? own[q * LANES + j] : 0.0f;
#pragma unroll
                for (int f = 0; f < FEATURES; f++) sums[q][f] += weight * v[f];
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
        for (int q = 0; q < QUERIES; q++) {
            if ((u32)q < count) prefetch(p.ends + (first + q) / p.group);
        }
        wait_for_previous();
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
        u32 sharing = (end - begin + SHARE - 1) / SHARE;
        sharing = sharing < p.splits ? sharing : p.splits;
        if (split >= sharing) return;
        load_queries();
        float *own = weights + warp * QUERIES * LANES;
        bool busy = (u32)lane < rows * across;
        for (u32 chunk = begin / LANES + split * WARPS + warp; chunk * LANES < end; chunk += sharing * WARPS) {
            u32 position = chunk * LANES + lane, first_row = busy ? lane / across : LANES;
            // The first values are on their way before their weights are known.
            uint4 values[AHEAD];
            fetch(values, p.values, chunk * LANES, end, first_row);
            float scores[QUERIES] = {};
            if constexpr (QUERIES == 1) scores[0] = score_one(chunk * LANES, end, first_row);
            else if (position < end) score(scores, position);
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
            mix(sums, values, own, first_row);
            for (u32 first = first_row + AHEAD * rows; first < LANES; first += AHEAD * rows) {
                fetch(values, p.values, chunk * LANES, end, first);
                mix(sums, values, own, first);
            }
            __syncwarp();
        }
        merge(sums, maximum, total, sharing);
    }

    /// Adds up what the warps have, in one order, each by its maximum.
    LACUNA_DEVICE void merge(const float (&sums)[QUERIES][FEATURES], const float (&maximum)[QUERIES],
                             const float (&total)[QUERIES], u32 sharing) const {
#pragma unroll
        for (int q = 0; q < QUERIES; q++) {
            float all = sum(total[q]);
            if (lane == 0) {
                maxima[warp * QUERIES + q] = maximum[q];
                totals[warp * QUERIES + q] = all;
            }
#pragma unroll
            for (int f = 0; f < FEATURES; f++) sums_of[warp * LEFT + q * WIDTH + lane * FEATURES + f] = sums[q][f];
        }
        __syncthreads();
        for (u32 i = threadIdx.x; i < count * p.features; i += THREADS) {
            u32 q = i / p.features, feature = i % p.features;
            float most = NOTHING, mixed = 0.0f, all = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) most = fmaxf(most, maxima[w * QUERIES + q]);
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                float weight = expf(maxima[w * QUERIES + q] - most), part = 0.0f;
                for (u32 r = 0; r < rows; r++) part += sums_of[w * LEFT + q * WIDTH + r * p.row + feature];
                mixed += weight * part;
                all += weight * totals[w * QUERIES + q];
            }
            if (sharing == 1) {
                p.out[feature_row(first + q, feature)] = (u16)Half::round(mixed / all, 0.0f);
                continue;
            }
            float *left = part_of(split, q);
            left[feature] = mixed;
            if (feature > 0) continue;
            left[p.features] = most;
            left[p.features + 1] = all;
        }
        if (sharing > 1) finish_tile(sharing);
    }

    /// What a block leaves of a query.
    LACUNA_DEVICE float *part_of(u32 of_split, u32 query) const {
        u64 block = ((u64)tile * p.kv_heads + kv_head) * p.splits + of_split;
        return p.parts + (block * QUERIES + query) * (p.features + 2);
    }

    /// The last of the blocks that share a tile adds up what all have left, in one order.
    LACUNA_DEVICE void finish_tile(u32 sharing) const {
        u32 *done = p.done + tile * p.kv_heads + kv_head, *before = (u32 *)shared_memory();
        publish();
        __syncthreads();
        if (threadIdx.x == 0) *before = count_up(done);
        __syncthreads();
        if (*before + 1 < sharing) return;
        for (u32 i = threadIdx.x; i < count * p.features; i += THREADS) {
            u32 q = i / p.features, feature = i % p.features;
            float most = NOTHING, mixed = 0.0f, all = 0.0f;
#pragma unroll 8
            for (u32 s = 0; s < sharing; s++) most = fmaxf(most, load_fresh(part_of(s, q) + p.features));
#pragma unroll 8
            for (u32 s = 0; s < sharing; s++) {
                const float *left = part_of(s, q);
                float weight = expf(load_fresh(left + p.features) - most);
                mixed += weight * load_fresh(left + feature);
                all += weight * load_fresh(left + p.features + 1);
            }
            p.out[feature_row(first + q, feature)] = (u16)Half::round(mixed / all, 0.0f);
        }
        if (threadIdx.x == 0) *done = 0;
    }
};
