// Many tokens: prefill and batches. The sums of a block of threads, BLOCK_ROWS x BLOCK_TOKENS, stay in registers over all
// of K. What its rows need of x comes slab by slab into shared memory, a row of tokens a place, three slabs in flight.
// Each row block gathers its columns from there by the row addresses of ldmatrix, which costs no instruction. Values and
// metadata go from global memory to registers, in the order of the fragments, a step ahead of their use.
//
// A slab holds every column that some row of the row tile keeps, once. With 64:2:8 and 256 rows that is nearly all of the
// slab's 128 columns (a dense slab); with large M, or row blocks as high as the tile, it is only what is used.
//
// 16 bytes of a row, 8 tokens, lie at chunk ^ (place & 7), so that 8 rows whose places differ modulo 8 come from
// different banks. src/banks.rs chooses places for which that holds as often as it can.
#include "product.cuh"

constexpr int STAGES = 3;

template <class Half, int WARPS_DOWN, int WARPS_ACROSS, int M_TILES, int N_TILES, int SHARING>
struct Prefill {
    using Operands = Product;
    static constexpr int THREADS = WARPS_DOWN * WARPS_ACROSS * LANES;
    static constexpr int BLOCK_ROWS = WARPS_DOWN * M_TILES * TILE_ROWS;
    static constexpr int BLOCK_TOKENS = WARPS_ACROSS * N_TILES * TOKENS;
    static constexpr u32 PLACE_BYTES = BLOCK_TOKENS * 2;
    /// m-tiles that share their columns; the warp gathers once for each such run
    static constexpr int RUNS = M_TILES / SHARING;

    /// 16 bytes of a row, and rows that the block copies at once
    static constexpr u32 CHUNKS = BLOCK_TOKENS / 8;
    static constexpr u32 COPIED_ROWS = THREADS / CHUNKS;
    static_assert(COPIED_ROWS % 8 == 0, "a thread's places are the same modulo 8, so its swizzle is one number");

    const Product &p;
    int warp = threadIdx.x / LANES;
    int lane = threadIdx.x % LANES;
    int warp_across = warp % WARPS_ACROSS;
    u32 first_m_tile = blockIdx.x * BLOCK_ROWS / TILE_ROWS + warp / WARPS_ACROSS * M_TILES;
    u32 first_token = blockIdx.y * BLOCK_TOKENS;
    u32 row_tile = blockIdx.x * BLOCK_ROWS / p.row_tile;
    /// Runs of a strip whose rows share their columns.
    u32 strip_runs = p.v < STRIP_TILES * TILE_ROWS ? STRIP_TILES * TILE_ROWS / p.v : 1;
    /// This lane's part of what the warp multiplies: of slab 0, and the others behind it.
    const uint4 *values = (const uint4 *)p.values +
                          ((u64)(first_m_tile / STRIP_TILES) * p.slabs * STEPS * STRIP_TILES + first_m_tile % STRIP_TILES) * LANES +
                          lane;
    const u32 *metadata = p.metadata + ((u64)(first_m_tile / STRIP_TILES) * p.slabs * LANES + lane) * STRIP_TILES +
                          first_m_tile % STRIP_TILES;
    u32 shared = shared_address(shared_memory());
    /// What this thread copies of every slab: 8 tokens of the columns at some places.
    u32 copied_place = threadIdx.x / CHUNKS;
    u32 copied_token = first_token + threadIdx.x % CHUNKS * 8;
    u32 copied_to = copied_place * PLACE_BYTES + ((threadIdx.x % CHUNKS ^ (copied_place & 7)) << 4);

    LACUNA_DEVICE Prefill(const Product &product) : p(product) {}

    // Shared memory: STAGES slabs of x, then STAGES lists of their columns.
    LACUNA_DEVICE u32 slab_bytes() const { return p.slab_places * PLACE_BYTES; }
    LACUNA_DEVICE u8 *list(u32 slab) const {
        return shared_memory() + STAGES * slab_bytes() + slab % STAGES * p.slab_places * sizeof(u32);
    }

    /// Begins to fetch the list of a slab's columns, four a thread.
    LACUNA_DEVICE void fetch_list(u32 slab) const {
        if (slab < p.slabs && threadIdx.x < p.slab_places / 4) {
            const u32 *from = p.slab_columns + ((u64)row_tile * p.slabs + slab) * p.slab_places;
            cp_async(shared_address(list(slab)) + threadIdx.x * 16, from + threadIdx.x * 4, true);
        }
    }

    /// Begins to fetch a slab whose list is there.
    LACUNA_DEVICE void fetch_slab(u32 slab) const {
        if (slab >= p.slabs) return;
        const u32 *columns = (const u32 *)list(slab);
        u32 to = shared + slab % STAGES * slab_bytes() + copied_to;
        const u16 *from = p.x + copied_token;
        bool inside = copied_token < p.stride;
#pragma unroll 4
        for (u32 place = copied_place; place < p.slab_places; place += COPIED_ROWS, to += COPIED_ROWS * PLACE_BYTES) {
            u32 column = columns[place];
            cp_async(to, row_at(from, column, p.stride * sizeof(u16)), inside && column != NO_COLUMN);
        }
    }

    LACUNA_DEVICE void load_values(uint4 (&to)[M_TILES], u32 slab, u32 step) const {
        const uint4 *from = values + (slab * STEPS + step) * (STRIP_TILES * LANES);
#pragma unroll
        for (int i = 0; i < M_TILES; i++) to[i] = load_constant(from + i * LANES);
    }

    LACUNA_DEVICE void load_metadata(u32 (&to)[M_TILES], u32 (&places)[RUNS], u32 slab) const {
        const u32 *from = metadata + slab * (LANES * STRIP_TILES);
        if constexpr (M_TILES == 4) *(uint4 *)to = load_constant((const uint4 *)from);
        else *(uint2 *)to = load_constant((const uint2 *)from);
#pragma unroll
        for (int run = 0; run < RUNS; run++) {
            u32 m_tile = first_m_tile + run * SHARING, of_strip = m_tile % STRIP_TILES * TILE_ROWS / p.v;
            u64 at = ((u64)(m_tile / STRIP_TILES) * p.slabs + slab) * strip_runs + of_strip;
            places[run] = load_constant(p.places + at * LANES + lane);
        }
    }

    template <int STEP>
    LACUNA_DEVICE void multiply(float (&sums)[M_TILES][N_TILES][4], const uint4 (&values)[M_TILES],
                                const u32 (&metadata)[M_TILES], const u32 (&places)[RUNS], u32 slab) const {
        u32 stage = shared + slab % STAGES * slab_bytes();
#pragma unroll
        for (int run = 0; run < RUNS; run++) {
            u32 place = places[run] >> (8 * STEP) & 0xff;
            // Rows begin at multiples of 128 bytes, so the chunk's number and the swizzle are one exclusive or.
            u32 row = stage + place * PLACE_BYTES + ((place & 7) << 4);
#pragma unroll
            for (int j = 0; j < N_TILES; j++) {
                uint4 b = ldmatrix_transposed(row ^ (u32)((warp_across * N_TILES + j) << 4));
#pragma unroll
                for (int i = run * SHARING; i < (run + 1) * SHARING; i++) {
                    Half::template mma_sp<STEP>(sums[i][j], values[i], b, metadata[i]);
                }
            }
        }
    }

    /// Sums go by way of shared memory, an m-tile of a warp at a time, so that a lane writes 16 bytes of a row of y.
    LACUNA_DEVICE void store(const float (&sums)[M_TILES][N_TILES][4]) const {
        constexpr int WIDTH = N_TILES * TOKENS;
        constexpr int CHUNKS = WIDTH / 8;
        float *tile = (float *)shared_memory() + warp * TILE_ROWS * WIDTH;
        int g = lane / 4, t = lane % 4;
#pragma unroll
        for (int i = 0; i < M_TILES; i++) {
            __syncwarp();
#pragma unroll
            for (int j = 0; j < N_TILES; j++) {
                // The exclusive or keeps the 8 rows of one store in different banks.
                int at = ((j * TOKENS + 2 * t) ^ (g * 8 & (WIDTH - 1)));
                *(float2 *)(tile + g * WIDTH + at) = float2{sums[i][j][0], sums[i][j][1]};
                *(float2 *)(tile + (g + 8) * WIDTH + at) = float2{sums[i][j][2], sums[i][j][3]};
            }
            __syncwarp();
#pragma unroll
            for (int part = lane; part < TILE_ROWS * CHUNKS; part += LANES) {
                int row_in_tile = part / CHUNKS, chunk = part % CHUNKS;
                u32 row = (first_m_tile + i) * TILE_ROWS + row_in_tile;
                u32 token = first_token + warp_across * WIDTH + chunk * 8;
                if (row >= p.rows || token >= p.stride) continue;
                const float *from = tile + row_in_tile * WIDTH + (chunk * 8 ^ (row_in_tile * 8 & (WIDTH - 1)));
                u32 to = load_constant(p.output_rows + row);
                finish<Half>(p, from, p.bias ? p.bias[to] : 0.0f, to, token);
            }
        }
    }

    LACUNA_DEVICE void run() const {
        float sums[M_TILES][N_TILES][4] = {};
        uint4 values[STEPS][M_TILES];
        u32 metadata[M_TILES], places[RUNS];
        // A group of copies is a slab and the list of the slab two further on. The first two lists stand alone.
        fetch_list(0);
        fetch_list(1);
        cp_async_commit();
        cp_async_wait<0>();
        __syncthreads();
        fetch_slab(0);
        fetch_list(2);
        cp_async_commit();
        // The list of slab 3 takes the place of slab 0's.
        __syncthreads();
        fetch_slab(1);
        fetch_list(3);
        cp_async_commit();
        load_values(values[0], 0, 0);
        load_metadata(metadata, places, 0);
        for (u32 slab = 0; slab < p.slabs; slab++) {
            cp_async_wait<1>();
            // All see this slab and the list of the next but one; none reads the slab before any more.
            __syncthreads();
            fetch_slab(slab + 2);
            fetch_list(slab + 4);
            cp_async_commit();
            u32 next = slab + 1 < p.slabs ? slab + 1 : slab;
            u32 next_metadata[M_TILES], next_places[RUNS];
            load_values(values[1], slab, 1);
            load_metadata(next_metadata, next_places, next);
            multiply<0>(sums, values[0], metadata, places, slab);
            load_values(values[0], next, 0);
            multiply<1>(sums, values[1], metadata, places, slab);
#pragma unroll
            for (int i = 0; i < M_TILES; i++) metadata[i] = next_metadata[i];
#pragma unroll
            for (int run = 0; run < RUNS; run++) places[run] = next_places[run];
        }
        // The slabs' memory becomes that of the sums; copies past the last slab are none.
        cp_async_wait<0>();
        __syncthreads();
        store(sums);
    }
};
