// Few tokens: decoding. Time is the bytes of the weight, each of which is read once, so there is no shared memory for x:
// it stays in the first cache, and lanes gather B's registers from there. A block of threads computes a strip of 16 or 32
// rows; its warps share out the slabs of K and add up in shared memory at the end, in one order: results do not depend on
// timing. Tokens beyond the last are zero; a further strip of tokens reads the weight again.
//
// Integers become 16-bit floats exactly, in registers; what a slab gives is multiplied by its scale in f32.
#include "product.cuh"

constexpr int DECODE_WARPS = 16;

/// The values of one m-tile and slab, in the type of the activations.
template <class Half> struct Floats {
    static constexpr bool SCALED = false;
    uint4 steps[STEPS];
    LACUNA_DEVICE void load(const Product &p, u64 tile_slab, int lane) {
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            steps[step] = load_constant((const uint4 *)p.values + (tile_slab * STEPS + step) * LANES + lane);
        }
    }
    LACUNA_DEVICE uint4 fragment(int step) const { return steps[step]; }
};

/// Codes as bytes of code + 128: 8 a step, in the order of A's registers.
template <class Half> struct Int8 {
    static constexpr bool SCALED = true;
    uint4 codes;
    LACUNA_DEVICE void load(const Product &p, u64 tile_slab, int lane) {
        codes = load_constant((const uint4 *)p.values + tile_slab * LANES + lane);
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
    uint2 codes;
    LACUNA_DEVICE void load(const Product &p, u64 tile_slab, int lane) {
        codes = load_constant((const uint2 *)p.values + tile_slab * LANES + lane);
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

template <class Half, class Values, int M_TILES, int N_TILES> struct Decode {
    static constexpr int ROWS = M_TILES * TILE_ROWS;
    static constexpr int WIDTH = N_TILES * TOKENS;

    const Product &p;
    int warp = threadIdx.x / LANES;
    int lane = threadIdx.x % LANES;
    u32 first_m_tile = blockIdx.x * M_TILES;
    u32 first_token = blockIdx.y * WIDTH;

    LACUNA_DEVICE Decode(const Product &product) : p(product) {}

    /// B's registers of one step: lane 4 g + t wants token g of k-rows 8 i + 2 t and the next.
    LACUNA_DEVICE void gather(uint4 (&b)[N_TILES], u32 slab, int step) const {
        u32 row_block = first_m_tile * TILE_ROWS / p.v;
        u64 at = (((u64)row_block * p.slabs + slab) * STEPS + step) * 4 + lane % 4;
        const uint4 *columns = (const uint4 *)p.columns + at * 2;
        uint4 first = load_constant(columns), second = load_constant(columns + 1);
#pragma unroll
        for (int j = 0; j < N_TILES; j++) {
            u32 token = first_token + j * TOKENS + lane / 4;
            b[j] = uint4{pair(first.x, first.y, token), pair(first.z, first.w, token), pair(second.x, second.y, token),
                         pair(second.z, second.w, token)};
        }
    }

    LACUNA_DEVICE u32 pair(u32 low, u32 high, u32 token) const { return one(low, token) | one(high, token) << 16; }

    LACUNA_DEVICE u32 one(u32 column, u32 token) const {
        bool there = column != NO_COLUMN && token < p.tokens;
        return there ? load_constant(p.x + (u64)column * p.stride + token) : 0;
    }

    LACUNA_DEVICE void add_slab(float (&sums)[M_TILES][N_TILES][4], u32 slab) const {
        Values values[M_TILES];
        u32 metadata[M_TILES];
#pragma unroll
        for (int i = 0; i < M_TILES; i++) {
            u64 tile_slab = (u64)(first_m_tile + i) * p.slabs + slab;
            values[i].load(p, tile_slab, lane);
            metadata[i] = load_constant(p.metadata + tile_slab * LANES + lane);
        }
        uint4 b[STEPS][N_TILES];
        gather(b[0], slab, 0);
        gather(b[1], slab, 1);
#pragma unroll
        for (int i = 0; i < M_TILES; i++) {
            if constexpr (Values::SCALED) {
                u32 scale_blocks = (p.slabs + p.slabs_per_scale - 1) / p.slabs_per_scale;
                u64 at = ((u64)(first_m_tile + i) * scale_blocks + slab / p.slabs_per_scale) * TILE_ROWS + lane / 4;
                float low = F16::widen(load_constant(p.scales + at)), high = F16::widen(load_constant(p.scales + at + 8));
                float part[N_TILES][4] = {};
                multiply(part, values[i], b, metadata[i]);
#pragma unroll
                for (int j = 0; j < N_TILES; j++) {
                    sums[i][j][0] += low * part[j][0];
                    sums[i][j][1] += low * part[j][1];
                    sums[i][j][2] += high * part[j][2];
                    sums[i][j][3] += high * part[j][3];
                }
            } else {
                multiply(sums[i], values[i], b, metadata[i]);
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
        float sums[M_TILES][N_TILES][4] = {};
#pragma unroll 2
        for (u32 slab = warp; slab < p.slabs; slab += DECODE_WARPS) add_slab(sums, slab);
        // [warps, rows, tokens]
        float *parts = (float *)shared_memory();
        int g = lane / 4, t = lane % 4;
#pragma unroll
        for (int i = 0; i < M_TILES; i++) {
#pragma unroll
            for (int j = 0; j < N_TILES; j++) {
                float *part = parts + (warp * ROWS + i * TILE_ROWS + g) * WIDTH + j * TOKENS + 2 * t;
                part[0] = sums[i][j][0];
                part[1] = sums[i][j][1];
                part[8 * WIDTH] = sums[i][j][2];
                part[8 * WIDTH + 1] = sums[i][j][3];
            }
        }
        __syncthreads();
        for (int at = threadIdx.x; at < ROWS * WIDTH; at += DECODE_WARPS * LANES) {
            u32 row = first_m_tile * TILE_ROWS + at / WIDTH, token = first_token + at % WIDTH;
            if (row < p.rows && token < p.tokens) finish(parts + at, row, token);
        }
    }

    LACUNA_DEVICE void finish(const float *part, u32 packed_row, u32 token) const {
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < DECODE_WARPS; w++) sum += part[w * ROWS * WIDTH];
        u32 row = load_constant(p.output_rows + packed_row);
        u64 at = (u64)row * p.stride + token;
        if (p.bias) sum += p.bias[row];
        if (p.residual) sum += Half::widen(p.residual[at]);
        p.y[at] = (u16)Half::round(sum, 0.0f);
    }
};
