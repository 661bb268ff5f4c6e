// Few tokens: decoding. Time is the bytes of the weight, each of which is read once, so there is no shared memory for x:
// it stays in the first cache, and lanes gather B's registers from there. A block of threads computes a strip of 16 or 32
// rows; its warps share out the slabs of K and add up in shared memory at the end, in one order: results do not depend on
// timing. Tokens beyond the last are zero; further tokens than 32 read the weight again.
//
// Integers become 16-bit floats exactly, in registers; what a slab gives is multiplied by its scale in f32.
#include "product.cuh"

/// The values of one m-tile and slab, in the type of the activations. `BYTES` is what a strip has of a slab.
template <class Half> struct Floats {
    static constexpr bool SCALED = false;
    static constexpr u32 BYTES = STEPS * STRIP_TILES * LANES * sizeof(uint4);
    uint4 steps[STEPS];
    LACUNA_DEVICE void load(const u8 *strip, u32 m_tile, int lane) {
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            steps[step] = load_constant((const uint4 *)strip + (step * STRIP_TILES + m_tile) * LANES + lane);
        }
    }
    LACUNA_DEVICE uint4 fragment(int step) const { return steps[step]; }
};

/// Codes as bytes of code + 128: 8 a step, in the order of A's registers.
template <class Half> struct Int8 {
    static constexpr bool SCALED = true;
    static constexpr u32 BYTES = STRIP_TILES * LANES * sizeof(uint4);
    uint4 codes;
    LACUNA_DEVICE void load(const u8 *strip, u32 m_tile, int lane) {
        codes = load_constant((const uint4 *)strip + m_tile * LANES + lane);
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
    uint2 codes;
    LACUNA_DEVICE void load(const u8 *strip, u32 m_tile, int lane) {
        codes = load_constant((const uint2 *)strip + m_tile * LANES + lane);
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

template <class Half, class Values, int M_TILES, int N_TILES, int WARPS> struct Decode {
    using Operands = Product;
    static constexpr int ROWS = M_TILES * TILE_ROWS;
    static constexpr int WIDTH = N_TILES * TOKENS;

    const Product &p;
    int warp = threadIdx.x / LANES;
    int lane = threadIdx.x % LANES;
    u32 first_m_tile = blockIdx.x * M_TILES;
    u32 first_token = blockIdx.y * WIDTH;
    /// Of slab 0; the others are behind it.
    const u8 *values = (const u8 *)p.values + (u64)(first_m_tile / STRIP_TILES) * p.slabs * Values::BYTES;
    const u32 *metadata = p.metadata + ((u64)(first_m_tile / STRIP_TILES) * p.slabs * LANES + lane) * STRIP_TILES +
                          first_m_tile % STRIP_TILES;
    const uint4 *columns =
        (const uint4 *)p.columns + ((u64)(first_m_tile * TILE_ROWS / p.v) * p.slabs * STEPS * 4 + lane % 4) * 2;

    LACUNA_DEVICE Decode(const Product &product) : p(product) {}

    /// B's registers of one step: lane 4 g + t wants token g of k-rows 8 i + 2 t and the next.
    LACUNA_DEVICE void gather(uint4 (&b)[N_TILES], u32 slab, int step) const {
        const uint4 *of_step = columns + (slab * STEPS + step) * 8;
        uint4 first = load_constant(of_step), second = load_constant(of_step + 1);
#pragma unroll
        for (int j = 0; j < N_TILES; j++) {
            u32 token = first_token + j * TOKENS + lane / 4;
            const u16 *x = p.x + token;
            bool inside = token < p.tokens;
            b[j] = uint4{pair(x, first.x, first.y, inside), pair(x, first.z, first.w, inside),
                         pair(x, second.x, second.y, inside), pair(x, second.z, second.w, inside)};
        }
    }

    LACUNA_DEVICE u32 pair(const u16 *x, u32 low, u32 high, bool inside) const {
        return permute_bytes(one(x, low, inside), one(x, high, inside), 0x5410);
    }

    LACUNA_DEVICE u32 one(const u16 *x, u32 column, bool inside) const {
        return inside && column != NO_COLUMN ? load_constant(row_at(x, column, p.stride * sizeof(u16))) : 0;
    }

    LACUNA_DEVICE void add_slab(float (&sums)[M_TILES][N_TILES][4], u32 slab) const {
        Values values_of[M_TILES];
        u32 metadata_of[M_TILES];
#pragma unroll
        for (int i = 0; i < M_TILES; i++) {
            values_of[i].load(values + slab * Values::BYTES, first_m_tile % STRIP_TILES + i, lane);
            metadata_of[i] = load_constant(metadata + slab * (LANES * STRIP_TILES) + i);
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
                multiply(part, values_of[i], b, metadata_of[i]);
#pragma unroll
                for (int j = 0; j < N_TILES; j++) {
                    sums[i][j][0] += low * part[j][0];
                    sums[i][j][1] += low * part[j][1];
                    sums[i][j][2] += high * part[j][2];
                    sums[i][j][3] += high * part[j][3];
                }
            } else {
                multiply(sums[i], values_of[i], b, metadata_of[i]);
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
        for (u32 slab = warp; slab < p.slabs; slab += WARPS) add_slab(sums, slab);
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
        for (int at = threadIdx.x; at < ROWS * WIDTH; at += WARPS * LANES) {
            u32 row = first_m_tile * TILE_ROWS + at / WIDTH, token = first_token + at % WIDTH;
            if (row < p.rows && token < p.tokens) finish(parts + at, row, token);
        }
    }

    LACUNA_DEVICE void finish(const float *part, u32 packed_row, u32 token) const {
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += part[w * ROWS * WIDTH];
        u32 row = load_constant(p.output_rows + packed_row);
        u64 at = (u64)row * p.stride + token;
        if (p.bias) sum += p.bias[row];
        if (p.residual) sum += Half::widen(p.residual[at]);
        p.y[at] = (u16)Half::round(sum, 0.0f);
    }
};
