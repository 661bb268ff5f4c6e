// One inline function an instruction that C++ cannot say, and the two 16-bit types. Nothing here knows what it is for.
//
// Source: PTX ISA, sections "mma.sp", "ldmatrix", "cp.async", "prmt", "griddepcontrol". Compiled for a GPU by NVRTC, which brings no
// headers; for the host, where tests/host/emulate.hpp has another body for each of these, by any C++17 compiler.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

/// Threads of a warp.
constexpr int LANES = 32;

/// A kernel: one instance of a template, under a name to find it by, with the struct that it takes, for blocks of so many
/// threads of which so many share a multiprocessor. src/kernels.rs has the table of them.
#define LACUNA_KERNEL(name, threads, blocks, ...)                                                                      \
    extern "C" __global__ void __launch_bounds__(threads, blocks)                                                      \
        name(const __grid_constant__ __VA_ARGS__::Operands operands) {                                                 \
        let_next_begin();                                                                                              \
        __VA_ARGS__(operands).run();                                                                                   \
    }

/// The same for a kernel whose blocks come in clusters, neighbours down the grid.
#define LACUNA_CLUSTER_KERNEL(name, threads, cluster, ...)                                                             \
    extern "C" __global__ void __cluster_dims__(1, cluster, 1) __launch_bounds__(threads, 1)                           \
        name(const __grid_constant__ __VA_ARGS__::Operands operands) {                                                 \
        __VA_ARGS__(operands).run();                                                                                   \
    }

#ifdef LACUNA_HOST
#include "emulate.hpp"
#else

#define LACUNA_DEVICE __device__ __forceinline__

/// The dynamic shared memory of the block.
LACUNA_DEVICE u8 *shared_memory() {
    extern __shared__ __align__(128) u8 memory[];
    return memory;
}

/// Its address as instructions take it.
LACUNA_DEVICE u32 shared_address(const void *pointer) { return (u32)__cvta_generic_to_shared(pointer); }

/// Lets the next kernel begin once every block of this one has. It takes whatever room there is beside this one.
LACUNA_DEVICE void let_next_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Waits until all kernels before this one are done and their results are seen. What a kernel reads that another writes,
/// and what it writes, it touches after this; every thread that touches any waits. Constants need no waiting for.
LACUNA_DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Brings what will be read into the second-level cache.
LACUNA_DEVICE void prefetch(const void *from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

/// Reads what other blocks of this kernel have written, past the first-level cache.
LACUNA_DEVICE float load_fresh(const float *from) { return __ldcg(from); }

/// Counts one more; how many there were. What the block has written before, whoever counts later sees, if all its threads
/// met between `publish` and this.
LACUNA_DEVICE u32 count_up(u32 *counter) {
    u32 before = atomicAdd(counter, 1);
    __threadfence();
    return before;
}
LACUNA_DEVICE void publish() { __threadfence(); }

/// Reads what no kernel writes.
LACUNA_DEVICE uint4 load_constant(const uint4 *from) { return __ldg(from); }
LACUNA_DEVICE uint2 load_constant(const uint2 *from) { return __ldg(from); }
LACUNA_DEVICE u32 load_constant(const u32 *from) { return __ldg(from); }
LACUNA_DEVICE u16 load_constant(const u16 *from) { return __ldg(from); }
LACUNA_DEVICE float load_constant(const float *from) { return __ldg(from); }

/// The address `bytes · row` behind another. The compiler takes the sum apart where it is written in C++, at five
/// instructions instead of one.
LACUNA_DEVICE const u16 *row_at(const u16 *first, u32 row, u32 bytes) {
    const u16 *address;
    asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(address) : "r"(row), "r"(bytes), "l"(first));
    return address;
}

/// Begins to copy 16 bytes to shared memory past the registers; zeros if there is nothing to copy.
LACUNA_DEVICE void cp_async(u32 to, const void *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}

/// Closes a group of copies.
LACUNA_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits for all groups of this thread but the newest `PENDING`.
template <int PENDING> LACUNA_DEVICE void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

/// Four 8 x 8 matrices of 16 bits, transposed: lane l names the 16 bytes of row l % 8 of matrix l / 8; lane 4 n + t gets
/// rows 2 t and 2 t + 1 of column n of each.
LACUNA_DEVICE uint4 ldmatrix_transposed(u32 row) {
    uint4 r;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "r"(row)
                 : "memory");
    return r;
}

/// 16 and 2 bytes of shared memory.
LACUNA_DEVICE uint4 load_shared(u32 from) {
    uint4 r;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r.x), "=r"(r.y), "=r"(r.z), "=r"(r.w)
                 : "r"(from)
                 : "memory");
    return r;
}
LACUNA_DEVICE u32 load_shared_short(u32 from) {
    u16 r;
    asm volatile("ld.shared.u16 %0, [%1];" : "=h"(r) : "r"(from) : "memory");
    return r;
}
// From sm_90 on. PTX ISA, "mbarrier" and "cp.async.bulk". A phase of a barrier ends when as many have arrived as it was begun
// with, and as many bytes as were expected; its parity is that of the number of phases before it.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900

LACUNA_DEVICE void barrier_begin(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

/// Shows barriers that were begun to what copies, and to the cluster.
LACUNA_DEVICE void barriers_begun() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

/// Arrives, and says how many bytes the phase waits for.
LACUNA_DEVICE void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

/// Arrives at the same barrier of a block of the cluster.
template <int CLUSTER> LACUNA_DEVICE void barrier_arrive(u32 barrier, u32 block) {
    if constexpr (CLUSTER == 1) {
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
    } else {
        asm volatile("{.reg .u32 there;\n\t"
                     "mapa.shared::cluster.u32 there, %0, %1;\n\t"
                     "mbarrier.arrive.shared::cluster.b64 _, [there];}" ::"r"(barrier),
                     "r"(block)
                     : "memory");
    }
}

/// Arrives when this thread's copies by `cp_async` are done.
LACUNA_DEVICE void barrier_arrive_after_copies(u32 barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

/// Waits for the end of a phase.
LACUNA_DEVICE void barrier_wait(u32 barrier, u32 parity) {
    asm volatile("{.reg .pred done;\n"
                 "again:\n\t"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n\t"
                 "@!done bra again;}" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
}

/// Begins to copy bytes, a multiple of 16, to shared memory, in a cluster to the same place of every block; each one's
/// barrier counts them.
template <int CLUSTER> LACUNA_DEVICE void bulk_copy(u32 to, const void *from, u32 bytes, u32 barrier) {
    if constexpr (CLUSTER == 1) {
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
                     "l"(from), "r"(bytes), "r"(barrier)
                     : "memory");
    } else {
        asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, "
                     "[%3], %4;" ::"r"(to),
                     "l"(from), "r"(bytes), "r"(barrier), "h"((u16)((1 << CLUSTER) - 1))
                     : "memory");
    }
}

/// Gives registers of 4 warps back, takes given ones: so many of a thread.
template <int COUNT> LACUNA_DEVICE void registers_down() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }
template <int COUNT> LACUNA_DEVICE void registers_up() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }

/// Waits for all threads of the cluster.
template <int CLUSTER> LACUNA_DEVICE void cluster_sync() {
    if constexpr (CLUSTER == 1) __syncthreads();
    else asm volatile("barrier.cluster.arrive.relaxed.aligned;\n\tbarrier.cluster.wait.aligned;" ::: "memory");
}

#endif

/// Four bytes of the eight of `low` and `high`, chosen by the nibbles of `choice`.
LACUNA_DEVICE u32 permute_bytes(u32 low, u32 high, u32 choice) { return __byte_perm(low, high, choice); }

/// What the lane has whose number differs in the bits of `mask`.
LACUNA_DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffff, x, mask); }
LACUNA_DEVICE u32 shuffle_xor(u32 x, int mask) { return __shfl_xor_sync(0xffffffff, x, mask); }

LACUNA_DEVICE float as_float(u32 bits) { return __uint_as_float(bits); }

#define LACUNA_MMA_SP(TYPE)                                                                                            \
    asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32." TYPE "." TYPE ".f32 "                   \
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, {%0, %1, %2, %3}, %12, %13;"                 \
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])                                                      \
                 : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y), "r"(b.z), "r"(b.w), "r"(metadata),      \
                   "n"(SELECTOR))

/// IEEE half precision.
struct F16 {
    static LACUNA_DEVICE float widen(u16 x) {
        float wide;
        asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(x));
        return wide;
    }
    /// Two values rounded to nearest even, `low` in the low half.
    static LACUNA_DEVICE u32 round(float low, float high) {
        u32 pair;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
        return pair;
    }
    /// `x - y`, both halves.
    static LACUNA_DEVICE u32 subtract(u32 x, u32 y) {
        u32 pair;
        asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(pair) : "r"(x), "r"(y));
        return pair;
    }
    /// c[16, 8] += A[16, 32] B[32, 8], A with 2 of every 4 columns kept; the lanes' parts are in product.cuh.
    template <int SELECTOR>
    static LACUNA_DEVICE void mma_sp(float (&c)[4], const uint4 &a, const uint4 &b, u32 metadata) {
        LACUNA_MMA_SP("f16");
    }
};

/// bfloat16.
struct Bf16 {
    static LACUNA_DEVICE float widen(u16 x) { return __uint_as_float((u32)x << 16); }
    static LACUNA_DEVICE u32 round(float low, float high) {
        u32 pair;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
        return pair;
    }
    static LACUNA_DEVICE u32 subtract(u32 x, u32 y) {
        // Before sm_90 there is no subtraction, only x * 1 + (-y).
        u32 pair;
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(x), "r"(0x3f803f80), "r"(y ^ 0x80008000));
        return pair;
    }
    template <int SELECTOR>
    static LACUNA_DEVICE void mma_sp(float (&c)[4], const uint4 &a, const uint4 &b, u32 metadata) {
        LACUNA_MMA_SP("bf16");
    }
};

#endif
