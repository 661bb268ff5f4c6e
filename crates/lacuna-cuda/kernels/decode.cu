// Few tokens: decoding. Time is the bytes of the weight, each of which is read once, and how long it takes until the first are
// there. A block of threads computes a strip of 16 or 32 rows; its warps share out the slabs and add up in shared memory at
// the end, in one order: results do not depend on timing. Each warp copies its slabs to shared memory of its own, the first
// of them while the kernel before still runs, and then gathers x by their columns, every lane other rows of it: what lanes
// fetch for themselves, most of them nothing, takes longer than the weight. Further tokens than 32 read the weight again.
//
// Integers become 16-bit floats exactly, in registers; what a slab gives is multiplied by its scale in f32.
#include "product.cuh"

/// The values of one m-tile and slab, in the type of the activations. `BYTES` is what a strip has of a slab, `RUNS` in how
/// many runs of all its m-tiles that lies.
template <class Half> struct Floats {
    static constexpr bool SCALED = false;
    static constexpr u32 BYTES = STEPS * STRIP_TILES * LANES * sizeof(uint4);
    static constexpr u32 RUNS = STEPS;
    uint4 steps[STEPS];
    /// `tiles` m-tiles lie there.
    LACUNA_DEVICE void load(const u8 *slab, int tiles, int m_tile, int lane) {
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            steps[step] = *((const uint4 *)slab + (step * tiles + m_tile) * LANES + lane);
        }
    }
    LACUNA_DEVICE uint4 fragment(int step) const { return steps[step]; }
};

/// Codes as bytes of code + 128: 8 a step, in the order of A's registers.
template <class Half> struct Int8 {
    static constexpr bool SCALED = true;
    static constexpr u32 BYTES = STRIP_TILES * LANES * sizeof(uint4);
    static constexpr u32 RUNS = 1;
    uint4 codes;
    LACUNA_DEVICE void load(const u8 *slab, int, int m_tile, int lane) {
        codes = *((const uint4 *)slab + m_tile * LANES + lane);
    }
    /// The byte in the mantissa of 2^23 is an exact f32.
    static LACUNA_DEVICE float code(u32 bytes, int i) {
        return as_float(permute_bytes(bytes, 0x4b000000, 0x7440 | i)) - (8388608.0f + 128.0f);
    }
    static LACUNA_DEVICE u32 pair(u32 bytes, int first) { return Half::round(code(bytes, first), code(bytes, first + 1)); }
    LACUNA_DEVICE uint4 fragment(int step) const {
        u32 low = step ? codes.z : codes.x, high = step ? codes.w : codes.y;
        return uint4{pair(low, 0), pair(low, 2), pair(high, 0), pair(high, 2)};
    }
};

/// Codes as nibbles of code + 8: nibble r is the first value of A's register r, nibble r + 4 its second.
template <class Half> struct Int4 {
    static constexpr bool SCALED = true;
    static constexpr u32 BYTES = STRIP_TILES * LANES * sizeof(uint2);
    static constexpr u32 RUNS = 1;
    uint2 codes;
    LACUNA_DEVICE void load(const u8 *slab, int, int m_tile, int lane) {
        codes = *((const uint2 *)slab + m_tile * LANES + lane);
    }
    LACUNA_DEVICE uint4 fragment(int step) const {
        u32 c = step ? codes.y : codes.x;
        return uint4{widen_nibbles(c), widen_nibbles(c >> 4), widen_nibbles(c >> 8), widen_nibbles(c >> 12)};
    }
    /// The nibble in the mantissa of the power of two whose last place is 1 is exact: 1024 of f16, 128 of bf16.
    static LACUNA_DEVICE u32 widen_nibbles(u32 c);
};
template <> LACUNA_DEVICE u32 Int4<F16>::widen_nibbles(u32 c) {
    return F16::subtract((c & 0x000f000f) | 0x64006400, 0x64086408);
}
template <> LACUNA_DEVICE u32 Int4<Bf16>::widen_nibbles(u32 c) {
    return Bf16::subtract((c & 0x000f000f) | 0x43004300, 0x43084308);
}

/// Products of one x, in one launch: each ends and begins but once.
struct Products {
    Product of[3];
    /// behind the last block of each
    u32 ends[3];
};

/// `STAGES` are slabs of a warp that are in shared memory.
template <class Half, class Values, int M_TILES, int N_TILES, int WARPS, int STAGES> struct Decode {
    using Operands = Products;
    static constexpr int ROWS = M_TILES * TILE_ROWS;
    static constexpr int WIDTH = N_TILES * TOKENS;
    /// Slabs of up to 8 tokens that are multiplied together.
    static constexpr int AT_ONCE = 2;
    // A stage: values [runs, M_TILES], metadata of the strip, columns, scales [M_TILES]
    static constexpr u32 RUN_BYTES = Values::BYTES / Values::RUNS;
    static constexpr u32 COPIED_BYTES = RUN_BYTES / STRIP_TILES * M_TILES;
    static constexpr u32 METADATA = COPIED_BYTES * Values::RUNS;
    static constexpr u32 COLUMNS = METADATA + LANES * STRIP_TILES * sizeof(u32);
    static constexpr u32 SCALES = COLUMNS + STEPS * LANES * sizeof(u32);
    static constexpr u32 STAGE_BYTES = SCALES + (Values::SCALED ? ROWS * sizeof(u16) : 0);
    /// What a warp has of shared memory: its slabs and of many tokens x, at the end its sums [rows, tokens].
    static constexpr u32 FETCHED = STAGES * STAGE_BYTES;
    static constexpr u32 TILE_BYTES = (STEPS * LANES + 2) * sizeof(uint4);
    static constexpr u32 SLAB_BYTES = FETCHED + (N_TILES > 1 ? N_TILES * TILE_BYTES : 0);
    static constexpr u32 SUM_BYTES = ROWS * WIDTH * sizeof(float);
    static constexpr u32 WARP_BYTES = SLAB_BYTES > SUM_BYTES ? SLAB_BYTES : SUM_BYTES;
    using Sums = float[M_TILES][N_TILES][4];
    /// Entries of y that a thread writes.
    static constexpr int ENTRIES = (ROWS * WIDTH + WARPS * LANES - 1) / (WARPS * LANES);

    int which;
    const Product &p;
    int warp = threadIdx.x / LANES;
    int lane = threadIdx.x % LANES;
    u32 first_m_tile;
    u32 first_token = blockIdx.y * WIDTH;
    u32 piece = lane % N_TILES;
    u8 *own = shared_memory() + warp * WARP_BYTES;

    LACUNA_DEVICE Decode(const Products &products)
        : which((blockIdx.x >= products.ends[0]) + (blockIdx.x >= products.ends[1])), p(products.of[which]),
          first_m_tile((blockIdx.x - (which ? products.ends[which - 1] : 0)) * M_TILES) {}

    /// Begins to copy a slab; there is none past the last.
    LACUNA_DEVICE void copy(u32 turn) const {
        if (u32 slab = slab_of(turn); is_slab(turn)) {
            u32 strip = first_m_tile / STRIP_TILES, m_tile = first_m_tile % STRIP_TILES;
            u32 to = shared_address(stage(turn)), at = lane * sizeof(uint4);
            const u8 *values = (const u8 *)p.values + ((u64)strip * p.slabs + slab) * Values::BYTES;
            values += m_tile * (RUN_BYTES / STRIP_TILES) + at;
#pragma unroll
            for (u32 run = 0; run < Values::RUNS; run++) {
#pragma unroll
                for (u32 done = 0; done < COPIED_BYTES; done += LANES * sizeof(uint4)) {
                    if (done + at >= COPIED_BYTES) continue;
                    cp_async(to + run * COPIED_BYTES + done + at, values + run * RUN_BYTES + done, true);
                }
            }
            const u32 *metadata = p.metadata + (((u64)strip * p.slabs + slab) * LANES + lane) * STRIP_TILES;
            cp_async(to + METADATA + at, metadata, true);
            // Half of the lanes have columns to copy.
            const u32 *columns = p.columns + ((u64)(first_m_tile * TILE_ROWS / p.v) * p.slabs + slab) * (STEPS * LANES);
            if (lane < LANES / 2) cp_async(to + COLUMNS + at, columns + lane * 4, true);
            if constexpr (Values::SCALED) {
                u32 scale_blocks = (p.slabs + p.slabs_per_scale - 1) / p.slabs_per_scale;
                // 8 rows each, by lanes that copy no columns.
                u32 piece = lane - LANES / 2, tile = first_m_tile + piece / 2;
                const u16 *scales = p.scales + ((u64)tile * scale_blocks + slab / p.slabs_per_scale) * TILE_ROWS;
                if (piece < 2 * M_TILES) cp_async(to + SCALES + piece * sizeof(uint4), scales + piece % 2 * 8, true);
            }
        }
        cp_async_commit();
    }

    /// B's registers of some slabs of up to 8 tokens: lane 4 g + t wants token g of k-rows 8 i + 2 t and the next. Lane l
    /// fetches k-row l of the registers' order, token by token; they change hands where the columns were.
    LACUNA_DEVICE void gather_few(uint4 (&b)[AT_ONCE][STEPS][N_TILES], u32 turn) const {
        const u16 *rows[AT_ONCE][STEPS];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
#pragma unroll
            for (int step = 0; step < STEPS; step++) {
                u32 from = is_slab(turn + i) ? column(turn + i, step * LANES + lane) : NO_COLUMN;
                rows[i][step] = from == NO_COLUMN ? nullptr : row_at(p.x + first_token, from, p.stride * sizeof(u16));
                b[i][step][0] = uint4{};
            }
        }
        for (u32 token = 0; token < TOKENS && first_token + token < p.tokens; token++) {
            u16 x[AT_ONCE][STEPS];
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
#pragma unroll
                for (int step = 0; step < STEPS; step++) x[i][step] = rows[i][step] ? rows[i][step][token] : 0;
            }
            __syncwarp();
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
#pragma unroll
                for (int step = 0; step < STEPS; step++) {
                    ((u16 *)(stage(turn + i) + COLUMNS))[step * LANES + lane] = x[i][step];
                }
            }
            __syncwarp();
            if (lane / 4 != (int)token) continue;
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
#pragma unroll
                for (int step = 0; step < STEPS; step++) {
                    b[i][step][0] = ((const uint4 *)(stage(turn + i) + COLUMNS))[step * 4 + lane % 4];
                }
            }
        }
    }

    /// Fetches x of a slab for many tokens, whose rows are padded to 16 bytes: neighbouring lanes pieces of one row.
    LACUNA_DEVICE void fetch_many(uint4 (&x)[STEPS * N_TILES], u32 turn) const {
        u32 token = first_token + piece * TOKENS;
#pragma unroll
        for (int i = 0; i < STEPS * N_TILES; i++) {
            u32 from = is_slab(turn) && token < p.tokens ? column(turn, row_of(i)) : NO_COLUMN;
            const u16 *row = row_at(p.x + token, from, p.stride * sizeof(u16));
            x[i] = from != NO_COLUMN ? *(const uint4 *)row : uint4{};
        }
    }

    /// Makes B's registers of it by way of shared memory, [N_TILES, steps, lanes, 8 tokens] with a gap behind each tile, so
    /// that pieces of a row lie in different banks. Of the registers' order the 8 t + 2 i + n-th row is k-row 8 i + 2 t + n.
    LACUNA_DEVICE void gather_many(uint4 (&b)[STEPS][N_TILES], const uint4 (&x)[STEPS * N_TILES]) const {
#pragma unroll
        for (int i = 0; i < STEPS * N_TILES; i++) {
            u32 at = row_of(i), k_row = at / LANES * LANES + at % 8 / 2 * 8 + at % LANES / 8 * 2 + at % 2;
            *(uint4 *)(own + FETCHED + piece * TILE_BYTES + k_row * sizeof(uint4)) = x[i];
        }
        __syncwarp();
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
#pragma unroll
            for (int j = 0; j < N_TILES; j++) {
                u32 rows = shared_address(own + FETCHED) + j * TILE_BYTES + step * LANES * sizeof(uint4);
                b[step][j] = ldmatrix_transposed(rows + lane * sizeof(uint4));
            }
        }
    }

    /// The row, in the registers' order, of which this lane fetches a piece in its i-th load.
    LACUNA_DEVICE u32 row_of(int i) const { return i * (LANES / N_TILES) + lane / N_TILES; }

    LACUNA_DEVICE u32 column(u32 turn, u32 row) const { return ((const u32 *)(stage(turn) + COLUMNS))[row]; }

    LACUNA_DEVICE void add_slab(Sums &sums, const u8 *slab, const uint4 (&b)[STEPS][N_TILES]) const {
#pragma unroll
        for (int i = 0; i < M_TILES; i++) {
            Values values;
            values.load(slab, M_TILES, i, lane);
            u32 metadata = *((const u32 *)(slab + METADATA) + lane * STRIP_TILES + first_m_tile % STRIP_TILES + i);
            if constexpr (Values::SCALED) {
                const u16 *scales = (const u16 *)(slab + SCALES) + i * TILE_ROWS + lane / 4;
                float low = F16::widen(scales[0]), high = F16::widen(scales[8]);
                float part[N_TILES][4] = {};
                multiply(part, values, b, metadata);
#pragma unroll
                for (int j = 0; j < N_TILES; j++) {
                    sums[i][j][0] += low * part[j][0];
                    sums[i][j][1] += low * part[j][1];
                    sums[i][j][2] += high * part[j][2];
                    sums[i][j][3] += high * part[j][3];
                }
            } else {
                multiply(sums[i], values, b, metadata);
            }
        }
    }

    LACUNA_DEVICE static void multiply(float (&sums)[N_TILES][4], const Values &values,
                                       const uint4 (&b)[STEPS][N_TILES], u32 metadata) {
#pragma unroll
        for (int j = 0; j < N_TILES; j++) {
            Half::template mma_sp<0>(sums[j], values.fragment(0), b[0][j], metadata);
            Half::template mma_sp<1>(sums[j], values.fragment(1), b[1][j], metadata);
        }
    }

    LACUNA_DEVICE void run() const {
#pragma unroll
        for (int turn = 0; turn < STAGES; turn++) copy(turn);
        // Where entries of y go, and what is added to them.
        u64 places[ENTRIES];
        float addends[ENTRIES];
        bool there[ENTRIES];
#pragma unroll
        for (int i = 0; i < ENTRIES; i++) {
            u32 at = threadIdx.x + i * WARPS * LANES;
            u32 packed_row = first_m_tile * TILE_ROWS + at / WIDTH, token = first_token + at % WIDTH;
            there[i] = at < ROWS * WIDTH && packed_row < p.rows && token < p.tokens;
            u32 row = there[i] ? load_constant(p.output_rows + packed_row) : 0;
            places[i] = (u64)row * p.stride + token;
            addends[i] = there[i] && p.bias ? load_constant(p.bias + row) : 0.0f;
        }
        wait_for_previous();
#pragma unroll
        for (int i = 0; i < ENTRIES; i++) {
            if (there[i] && p.residual) addends[i] += Half::widen(p.residual[places[i]]);
        }
        Sums sums = {};
        if constexpr (N_TILES == 1) add_few(sums);
        else add_many(sums);
        leave(sums);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < ENTRIES; i++) {
            if (!there[i]) continue;
            const u8 *part = shared_memory() + (threadIdx.x + i * WARPS * LANES) * sizeof(float);
            float sum = 0.0f;
#pragma unroll
            for (int w = 0; w < WARPS; w++) sum += *(const float *)(part + w * WARP_BYTES);
            p.y[places[i]] = (u16)Half::round(sum + addends[i], 0.0f);
        }
    }

    /// Adds up all slabs of up to 8 tokens, two together, so that they wait for x once.
    LACUNA_DEVICE void add_few(Sums &sums) const {
        for (u32 turn = 0; is_slab(turn); turn += AT_ONCE) {
            cp_async_wait<STAGES - AT_ONCE>();
            __syncwarp();
            uint4 b[AT_ONCE][STEPS][N_TILES];
            gather_few(b, turn);
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) {
                if (is_slab(turn + i)) add_slab(sums, stage(turn + i), b[i]);
            }
            __syncwarp();
#pragma unroll
            for (int i = 0; i < AT_ONCE; i++) copy(turn + i + STAGES);
        }
    }

    /// The same of many tokens: while a slab is multiplied, x of the next is on its way.
    LACUNA_DEVICE void add_many(Sums &sums) const {
        uint4 x[STEPS * N_TILES], b[STEPS][N_TILES];
        cp_async_wait<STAGES - 1>();
        __syncwarp();
        fetch_many(x, 0);
        for (u32 turn = 0; is_slab(turn); turn++) {
            gather_many(b, x);
            cp_async_wait<STAGES - 2>();
            __syncwarp();
            fetch_many(x, turn + 1);
            add_slab(sums, stage(turn), b);
            __syncwarp();
            copy(turn + STAGES);
        }
    }

    LACUNA_DEVICE u32 slab_of(u32 turn) const { return warp + turn * WARPS; }
    LACUNA_DEVICE bool is_slab(u32 turn) const { return slab_of(turn) < p.slabs; }
    LACUNA_DEVICE u8 *stage(u32 turn) const { return own + turn % STAGES * STAGE_BYTES; }

    /// The sums of this warp, where its slabs were.
    LACUNA_DEVICE void leave(const Sums &sums) const {
        int g = lane / 4, t = lane % 4;
#pragma unroll
        for (int i = 0; i < M_TILES; i++) {
#pragma unroll
            for (int j = 0; j < N_TILES; j++) {
                float *part = (float *)own + (i * TILE_ROWS + g) * WIDTH + j * TOKENS + 2 * t;
                part[0] = sums[i][j][0];
                part[1] = sums[i][j][1];
                part[8 * WIDTH] = sums[i][j][2];
                part[8 * WIDTH + 1] = sums[i][j][3];
            }
        }
    }
};
