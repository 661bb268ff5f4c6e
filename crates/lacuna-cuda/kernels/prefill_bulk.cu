// Many tokens, from sm_90 on: as prefill.cu, but four warps fetch and eight multiply, so that what multiplies never waits for
// an address, and a block goes on to its next tile of y while the sums of the last one are written.
//
// A *stage* is all that a block needs of one slab: values, metadata and places of the k-rows, by copies of whole pieces, and
// the rows of x, 16 bytes a thread. The fetching warps wait until a stage is empty, the others until it is full; both are
// barriers in shared memory that count. Which columns of x a slab has is a list, fetched as many slabs ahead as there are
// stages. Blocks of a cluster have the same rows of W and different tokens: each fetches its part of W's side for all.
//
// Rows of x lie swizzled as in prefill.cu.
#include "product.cuh"

template <class Half, int SHARING, int CLUSTER> struct PrefillBulk {
    using Operands = Product;
    static constexpr int WARPS_DOWN = 4, WARPS_ACROSS = 2, WARPS = WARPS_DOWN * WARPS_ACROSS;
    static constexpr int FETCH_WARPS = 4, FETCH_THREADS = FETCH_WARPS * LANES;
    /// Of a thread. All 12 warps begin with 168; what the two groups of 4 that multiply gain, the third gives.
    static constexpr int FETCH_REGISTERS = 40, MULTIPLY_REGISTERS = 232;
    static constexpr int M_TILES = 4, N_TILES = 8;
    static constexpr int BLOCK_ROWS = WARPS_DOWN * M_TILES * TILE_ROWS;
    static constexpr int BLOCK_TOKENS = WARPS_ACROSS * N_TILES * TOKENS;
    static constexpr int STRIPS = BLOCK_ROWS / TILE_ROWS / STRIP_TILES;
    static_assert(STRIPS == FETCH_WARPS && STRIPS == WARPS_DOWN, "a warp fetches, and a warp multiplies, one strip");
    static constexpr u32 PITCH = BLOCK_TOKENS * 2;
    /// m-tiles that share their columns; the warp gathers once for each such run
    static constexpr int RUNS = M_TILES / SHARING;
    /// Slabs of the inner loop: with two, fragments of the next slab need not be moved. With two runs registers do not do.
    static constexpr int UNROLLED = RUNS == 2 ? 1 : 2;
    /// 16 bytes of a row of x, and rows that are copied at once
    static constexpr u32 CHUNKS = BLOCK_TOKENS / 8;
    static constexpr u32 FETCH_ROWS = FETCH_THREADS / CHUNKS;

    /// Bytes of a strip and slab.
    static constexpr u32 VALUE_BYTES = STEPS * STRIP_TILES * LANES * sizeof(uint4);
    static constexpr u32 METADATA_BYTES = LANES * STRIP_TILES * sizeof(u32);
    static constexpr u32 PLACE_BYTES = RUNS * LANES * sizeof(u16);
    /// In a stage.
    static constexpr u32 METADATA = STRIPS * VALUE_BYTES;
    static constexpr u32 PLACES = METADATA + STRIPS * METADATA_BYTES;
    static constexpr u32 X = PLACES + STRIPS * PLACE_BYTES;
    /// Sums of a warp on their way out.
    static constexpr u32 OUT_ROWS = 8, OUT_TOKENS = 32, OUT_BYTES = OUT_ROWS * OUT_TOKENS * sizeof(float);
    /// Shared memory: barriers, for at most 8 stages; sums; the stages; two lists for each.
    static constexpr u32 BARRIER_BYTES = 256, STAGES = BARRIER_BYTES + WARPS * OUT_BYTES;

    const Product &p;
    int warp = threadIdx.x / LANES;
    int lane = threadIdx.x % LANES;
    u32 shared = shared_address(shared_memory());
    u32 list_bytes = p.slab_places * sizeof(u32);
    u32 stage_bytes = X + p.slab_places * PITCH;
    u32 stages_at = shared + STAGES;
    u32 lists_at = stages_at + p.stages * stage_bytes;
    /// Tiles of y, those of one column after another; a cluster takes neighbours of a row.
    u32 tiles_down = (p.rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    u32 tiles = tiles_down * ((p.stride + CLUSTER * BLOCK_TOKENS - 1) / (CLUSTER * BLOCK_TOKENS));

    LACUNA_DEVICE PrefillBulk(const Product &product) : p(product) {}

    LACUNA_DEVICE u32 full(u32 stage) const { return shared + stage * 8; }
    LACUNA_DEVICE u32 empty(u32 stage) const { return shared + 64 + stage * 8; }
    LACUNA_DEVICE u32 listed(u32 list) const { return shared + 128 + list * 8; }
    LACUNA_DEVICE u32 list_at(u32 list) const { return lists_at + list * list_bytes; }
    LACUNA_DEVICE u32 tile_row(u32 tile) const { return tile % tiles_down * BLOCK_ROWS; }
    LACUNA_DEVICE u32 tile_token(u32 tile) const { return (tile / tiles_down * CLUSTER + blockIdx.y) * BLOCK_TOKENS; }

    /// Where in a ring somebody is.
    struct Ring {
        u32 at = 0, parity = 0, offset = 0;
        LACUNA_DEVICE void advance(u32 count, u32 bytes) {
            offset += bytes;
            if (++at == count) at = 0, parity ^= 1, offset = 0;
        }
    };

    /// The next slab whose list is to be fetched.
    struct Ahead {
        u32 tile, slab = 0, list = 0;
    };

    LACUNA_DEVICE void fetch_list(Ahead &ahead) const {
        if (ahead.tile >= tiles) return;
        u64 row_tile = tile_row(ahead.tile) / p.row_tile;
        barrier_expect(listed(ahead.list), list_bytes);
        bulk_copy<1>(list_at(ahead.list), p.slab_columns + (row_tile * p.slabs + ahead.slab) * p.slab_places, list_bytes,
                     listed(ahead.list));
        if (++ahead.slab == p.slabs) ahead.slab = 0, ahead.tile += p.blocks;
        if (++ahead.list == 2 * p.stages) ahead.list = 0;
    }

    /// The fetching warps.
    LACUNA_DEVICE void fetch() const {
        u32 thread = threadIdx.x - WARPS * LANES, strip = warp - WARPS;
        bool mine = lane == 0 && strip % CLUSTER == blockIdx.y;
        // Of x, 8 tokens of the columns at 4 places in a row, and of those 4 times FETCH_ROWS further on.
        u32 first_place = thread / CHUNKS * 4;
        u32 copied_to = stages_at + X + first_place * PITCH, chunk = thread % CHUNKS ^ (first_place & 4);
        Ahead ahead{blockIdx.x};
        if (thread == 0) {
            for (u32 stage = 0; stage < p.stages; stage++) fetch_list(ahead);
        }
        Ring ring, lists;
        for (u32 tile = blockIdx.x; tile < tiles; tile += p.blocks) {
            u64 first_slab = (u64)(tile_row(tile) / TILE_ROWS / STRIP_TILES + strip) * p.slabs;
            const u8 *values = (const u8 *)p.values + first_slab * VALUE_BYTES;
            const u8 *metadata = (const u8 *)p.metadata + first_slab * METADATA_BYTES;
            const u8 *places = (const u8 *)p.places + first_slab * PLACE_BYTES;
            u32 token = tile_token(tile) + thread % CHUNKS * 8;
            bool inside = token < p.stride;
            const u16 *x = p.x + token;
            for (u32 slab = 0; slab < p.slabs; slab++) {
                barrier_wait(empty(ring.at), ring.parity ^ 1);
                if (thread == 0) {
                    // All have read the list whose place this one takes: the stage that they filled from it is empty again.
                    fetch_list(ahead);
                    barrier_expect(full(ring.at), X);
                }
                if (mine) {
                    u32 to = stages_at + ring.offset;
                    bulk_copy<CLUSTER>(to + strip * VALUE_BYTES, values, VALUE_BYTES, full(ring.at));
                    bulk_copy<CLUSTER>(to + METADATA + strip * METADATA_BYTES, metadata, METADATA_BYTES, full(ring.at));
                    bulk_copy<CLUSTER>(to + PLACES + strip * PLACE_BYTES, places, PLACE_BYTES, full(ring.at));
                    values += VALUE_BYTES, metadata += METADATA_BYTES, places += PLACE_BYTES;
                }
                __syncwarp();
                barrier_wait(listed(lists.at), lists.parity);
                u32 list = list_at(lists.at), to = copied_to + ring.offset;
#pragma unroll 2
                for (u32 place = first_place; place < p.slab_places; place += 4 * FETCH_ROWS) {
                    uint4 columns = load_shared(list + place * sizeof(u32));
                    copy(to + (chunk << 4), x, columns.x, inside);
                    copy(to + PITCH + ((chunk ^ 1) << 4), x, columns.y, inside);
                    copy(to + 2 * PITCH + ((chunk ^ 2) << 4), x, columns.z, inside);
                    copy(to + 3 * PITCH + ((chunk ^ 3) << 4), x, columns.w, inside);
                    to += 4 * FETCH_ROWS * PITCH;
                }
                barrier_arrive_after_copies(full(ring.at));
                ring.advance(p.stages, stage_bytes);
                lists.advance(2 * p.stages, 0);
            }
        }
    }

    LACUNA_DEVICE void copy(u32 to, const u16 *x, u32 column, bool inside) const {
        cp_async(to, row_at(x, column, p.stride * sizeof(u16)), inside && column != NO_COLUMN);
    }

    /// What a multiplying warp keeps of a slab in registers, beside its values.
    struct Slab {
        u32 metadata[M_TILES];
        /// where the k-row of this lane begins, of this warp's tokens, in both steps
        u32 rows[STEPS][RUNS];
    };

    /// `stage` is where the stage's part of this lane begins.
    LACUNA_DEVICE void load_values(uint4 (&to)[M_TILES], u32 from) const {
#pragma unroll
        for (int i = 0; i < M_TILES; i++) to[i] = load_shared(from + i * (LANES * 16));
    }

    LACUNA_DEVICE void load_slab(Slab &slab, u32 metadata, u32 places, u32 x) const {
        *(uint4 *)slab.metadata = load_shared(metadata);
#pragma unroll
        for (int run = 0; run < RUNS; run++) {
            u32 both = load_shared_short(places + run * (LANES * 2));
            slab.rows[0][run] = x + (both & 0xff) * PITCH + ((both & 7) << 4);
            slab.rows[1][run] = x + (both >> 8) * PITCH + ((both >> 8 & 7) << 4);
        }
    }

    /// The multiplying warps.
    LACUNA_DEVICE void multiply() const {
        u32 strip = warp / WARPS_ACROSS, across = warp % WARPS_ACROSS;
        u32 values_at = stages_at + strip * VALUE_BYTES + lane * 16;
        u32 metadata_at = stages_at + METADATA + strip * METADATA_BYTES + lane * 16;
        u32 places_at = stages_at + PLACES + strip * PLACE_BYTES + lane * 2;
        u32 x_at = stages_at + X + across * (N_TILES * TOKENS * 2);
        constexpr u32 STEP_BYTES = VALUE_BYTES / STEPS;
        Ring ring;
        for (u32 tile = blockIdx.x; tile < tiles; tile += p.blocks) {
            float sums[M_TILES][N_TILES][4] = {};
            uint4 values[STEPS][M_TILES];
            Slab now, next;
            barrier_wait(full(ring.at), ring.parity);
            load_values(values[0], values_at + ring.offset);
            load_slab(now, metadata_at + ring.offset, places_at + ring.offset, x_at + ring.offset);
            uint4 b = ldmatrix_transposed(now.rows[0][0]);
#pragma unroll UNROLLED
            for (u32 left = p.slabs; left > 0; left--) {
                u32 before = ring.at, offset = ring.offset;
                ring.advance(p.stages, stage_bytes);
#pragma unroll
                for (int step = 0; step < STEPS; step++) {
#pragma unroll
                    for (int gather = 0; gather < N_TILES * RUNS; gather++) {
                        int j = gather / RUNS, run = gather % RUNS;
                        if (gather == 1) {
                            if (step == 0) {
                                load_values(values[1], values_at + offset + STEP_BYTES);
                            } else if (left > 1) {
                                barrier_wait(full(ring.at), ring.parity);
                                load_values(values[0], values_at + ring.offset);
                                load_slab(next, metadata_at + ring.offset, places_at + ring.offset, x_at + ring.offset);
                            }
                        }
                        // The next gather is on its way while this one is multiplied.
                        uint4 next_b;
                        int then = gather + 1;
                        if (then < N_TILES * RUNS) next_b = ldmatrix_transposed(now.rows[step][then % RUNS] ^ (u32)(then / RUNS << 4));
                        else if (step == 0) next_b = ldmatrix_transposed(now.rows[1][0]);
                        else if (left > 1) next_b = ldmatrix_transposed(next.rows[0][0]);
#pragma unroll
                        for (int i = run * SHARING; i < (run + 1) * SHARING; i++) {
                            if (step == 0) Half::template mma_sp<0>(sums[i][j], values[0][i], b, now.metadata[i]);
                            else Half::template mma_sp<1>(sums[i][j], values[1][i], b, now.metadata[i]);
                        }
                        b = next_b;
                    }
                }
                // All that was read of the stage has been multiplied.
                if (lane < CLUSTER) barrier_arrive<CLUSTER>(empty(before), lane);
                now = next;
            }
            store(sums, tile_row(tile) + strip * (M_TILES * TILE_ROWS), tile_token(tile) + across * (N_TILES * TOKENS));
        }
    }

    /// Sums go by way of shared memory, 8 rows and 32 tokens at a time, so that a lane writes 16 bytes of a row of y.
    LACUNA_DEVICE void store(const float (&sums)[M_TILES][N_TILES][4], u32 first_row, u32 first_token) const {
        float *out = (float *)(shared_memory() + BARRIER_BYTES + warp * OUT_BYTES);
        u32 out_row = lane / 4, chunk = lane % 4 * 8;
        u32 g = lane / 4, t = lane % 4;
        // All at once: their way here is long.
        u32 rows[M_TILES * 2];
#pragma unroll
        for (int i = 0; i < M_TILES * 2; i++) {
            u32 row = first_row + i * OUT_ROWS + out_row;
            rows[i] = row < p.rows ? load_constant(p.output_rows + row) : NO_COLUMN;
        }
        float biases[M_TILES * 2] = {};
        if (p.bias) {
#pragma unroll
            for (int i = 0; i < M_TILES * 2; i++) biases[i] = rows[i] == NO_COLUMN ? 0.0f : p.bias[rows[i]];
        }
#pragma unroll
        for (int i = 0; i < M_TILES * 2; i++) {
#pragma unroll
            for (int part = 0; part < N_TILES * TOKENS / (int)OUT_TOKENS; part++) {
                __syncwarp();
#pragma unroll
                for (int j = 0; j < (int)OUT_TOKENS / TOKENS; j++) {
                    const float(&of)[4] = sums[i / 2][part * (OUT_TOKENS / TOKENS) + j];
                    // The exclusive or keeps the rows of one store in different banks.
                    *(float2 *)(out + g * OUT_TOKENS + ((j * TOKENS + 2 * t) ^ (g * 8 & (OUT_TOKENS - 1)))) =
                        float2{of[i % 2 * 2], of[i % 2 * 2 + 1]};
                }
                __syncwarp();
                u32 token = first_token + part * OUT_TOKENS + chunk;
                if (rows[i] == NO_COLUMN || token >= p.stride) continue;
                finish<Half>(p, out + out_row * OUT_TOKENS + (chunk ^ (out_row * 8 & (OUT_TOKENS - 1))), biases[i], rows[i], token);
            }
        }
    }

    LACUNA_DEVICE void run() const {
        if (threadIdx.x == 0) {
            for (u32 stage = 0; stage < p.stages; stage++) {
                barrier_begin(full(stage), 1 + FETCH_THREADS);
                barrier_begin(empty(stage), WARPS * CLUSTER);
                barrier_begin(listed(2 * stage), 1);
                barrier_begin(listed(2 * stage + 1), 1);
            }
            barriers_begun();
        }
        cluster_sync<CLUSTER>();
        if (warp >= WARPS) {
            registers_down<FETCH_REGISTERS>();
            fetch();
            __syncwarp();
        } else {
            registers_up<MULTIPLY_REGISTERS>();
            multiply();
            __syncwarp();
        }
        // No block of a cluster ends before the others' last arrivals.
        cluster_sync<CLUSTER>();
    }
};
