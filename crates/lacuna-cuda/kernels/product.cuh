// What both products share: their operands and the order in which those lie in memory. src/tiles.rs makes them.
//
// y[R, T] = W[R, K] x[K, T] + bias[R] + residual[R, T], activations feature-major, W as V:2:M.
//
// Words. A *chunk* is a group of 4 kept columns, as wide as the hardware's 2:4 pattern. A *step* is what one mma.sp eats:
// 8 chunks, 32 of its k. A *slab* is two steps: its metadata fills one register (the instruction's selector says whose
// half is meant), and so a scale of 32 integers is that of one slab. An *m-tile* is 16 rows of W. A *row block* is V rows
// that share their columns. A *strip* is 4 m-tiles, whose values lie together. A *row tile* is some row blocks whose columns
// are fetched together.
//
// mma.sp m16n8k32, lane = 4 g + t (PTX ISA, "sparse matrix storage" and the fragments below it):
//   A  r0 = row g, the two kept values of chunk t; r1 = row g + 8; r2, r3 = the same of chunk t + 4
//   B  r_i = k 8 i + 2 t and the next, of column g
//   C  c0, c1 = row g, columns 2 t and 2 t + 1; c2, c3 = row g + 8
//   metadata under selector s: lane 4 g + 2 s + h has chunks 4 h to 4 h + 3, a nibble each, of row g in its low half, of
//   row g + 8 in its high half
#pragma once
#include "ptx.cuh"

/// A k-row without a column: its activations are zero.
constexpr u32 NO_COLUMN = 0xffffffff;
constexpr int TILE_ROWS = 16;
constexpr int STRIP_TILES = 4;
constexpr int STEPS = 2;
/// Tokens of one mma.sp.
constexpr int TOKENS = 8;

struct Product {
    /// floats [strips, slabs, steps, 4 m-tiles, lanes, 8]; int8 and int4 [strips, slabs, 4 m-tiles, lanes, steps, 8], both as
    /// in `decode.cu`
    const void *values;
    /// [strips, slabs, lanes, 4 m-tiles]
    const u32 *metadata;
    /// f16 [m-tiles, ceil(slabs / slabs_per_scale), 16]; only of integers
    const u16 *scales;
    /// prefill: place in the slab of a k-row, [strips, slabs, row blocks of a strip, lanes], step 0 in the low byte, step 1
    /// in the high one; lane l is k-row l
    const u16 *places;
    /// prefill: the column at each place of a slab, [row tiles, slabs, slab_places]
    const u32 *slab_columns;
    /// decode: the column of each k-row, [row blocks, slabs, steps, 4 t, 8] in the order of B's registers
    const u32 *columns;
    /// where each row of W goes, [R]
    const u32 *output_rows;
    /// [K, stride]
    const u16 *x;
    /// [R], or null
    const float *bias;
    /// [R, stride], or null; may be y
    const u16 *residual;
    /// [R, stride]
    u16 *y;
    /// R
    u32 rows;
    /// T
    u32 tokens;
    /// Tokens from one feature to the next, of x, residual and y. Prefill needs a multiple of 8, and writes them all.
    u32 stride;
    u32 v;
    u32 slabs;
    u32 slabs_per_scale;
    /// rows of a row tile
    u32 row_tile;
    /// places of a slab: a multiple of 8, at most 256
    u32 slab_places;
    /// prefill_bulk.cu: stages that there is room for, and blocks that share out the tiles
    u32 stages;
    u32 blocks;
};

/// Bias, residual, rounding: once, of 8 tokens of a row.
template <class Half> LACUNA_DEVICE void finish(const Product &p, const float *from, float bias, u32 row, u32 token) {
    float sums[8];
    *(float4 *)sums = *(const float4 *)from;
    *(float4 *)(sums + 4) = *(const float4 *)(from + 4);
    u64 at = (u64)row * p.stride + token;
    u32 out[4], before[4] = {0, 0, 0, 0};
    if (p.residual) *(uint4 *)before = *(const uint4 *)(p.residual + at);
#pragma unroll
    for (int n = 0; n < 4; n++) {
        float low = sums[2 * n] + bias, high = sums[2 * n + 1] + bias;
        if (p.residual) low += Half::widen((u16)before[n]), high += Half::widen((u16)(before[n] >> 16));
        out[n] = Half::round(low, high);
    }
    *(uint4 *)(p.y + at) = uint4{out[0], out[1], out[2], out[3]};
}
