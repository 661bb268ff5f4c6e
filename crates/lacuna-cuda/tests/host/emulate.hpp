// The kernels on a CPU: what ptx.cuh says of a GPU, said again in plain C++.
//
// A thread of the GPU is a fiber; a block of threads takes turns on one thread of the CPU. What a warp does together
// (mma.sp, ldmatrix) happens when its 32 lanes have arrived: each leaves its operands in an array of 32, the last one
// computes for all. Two orders of turns and two moments for cp.async show what a missing barrier would do:
//   late    a copy is done when its thread waits for it, or when nothing else can be done, and the first warp and lane run
//           first
//   eager   a copy is done when it is issued, and the last warp and lane run first
// The blocks of a cluster run side by side.
// Shared memory begins as NaN. mma.sp refuses metadata that PTX calls undefined, ldmatrix and cp.async addresses that are
// not multiples of 16 or lie outside; memory of the device ends at a page that may not be touched.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#define LACUNA_DEVICE inline
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define __cluster_dims__(...)

struct uint2 { u32 x, y; };
struct alignas(16) uint4 { u32 x, y, z, w; };
struct float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };

namespace emulate {

struct Index { u32 x = 0, y = 0, z = 0; };

[[noreturn]] inline void fail(const char *why) {
    std::fprintf(stderr, "emulated GPU: %s\n", why);
    std::exit(1);
}

/// Threads that wait for each other: a warp, a block.
struct Party {
    int size = 0, arrived = 0;
    unsigned round = 0;
    const char *doing = nullptr;
};

/// An mbarrier.
struct Barrier {
    int count = 0, pending = 0;
    long bytes = 0;
    unsigned phase = 0;
    void settle() {
        if (pending < 0) fail("more arrive at a barrier than it was begun with");
        if (pending == 0 && bytes == 0) phase++, pending = count;
    }
};

struct Copy {
    u32 to;
    const void *from;
    bool there;
    int group;
};

struct Fiber {
    /// where it begins, and, once it has, where it goes on: a jump costs no system call, which changing contexts does
    ucontext_t context;
    jmp_buf here;
    bool begun = false;
    std::unique_ptr<char[]> stack;
    Index thread;
    bool done = false;
    /// for the kernel before
    bool waited = false;
    Party *waits_for = nullptr;
    unsigned round = 0;
    const Barrier *barrier = nullptr;
    unsigned parity = 0;
    std::vector<Copy> copies;
    int groups = 0;
};

constexpr size_t STACK = 64 * 1024;

/// What the lanes of a warp leave for each other.
struct Warp {
    Party party;
    uint4 a[LANES], b[LANES], out[LANES];
    float c[LANES][4], shuffled[LANES], received[LANES];
    u32 address[LANES], metadata[LANES];
};

struct Block {
    std::vector<Fiber> fibers;
    std::vector<Warp> warps;
    Party party;
    std::map<u32, Barrier> barriers;
    std::vector<u8> shared;
    Index index;
    jmp_buf scheduler;
    Fiber *now = nullptr;
    std::function<void()> kernel;
};

/// Whose turn it is, those of its cluster, and what all of them meet at.
inline Block *block = nullptr;
inline std::vector<Block> cluster;
inline Party cluster_party;
inline bool eager = false;
/// whether the kernel may begin while the one before still runs
inline bool early = false;
/// What is done when nothing else can be.
inline std::deque<std::function<void()>> deferred;

inline u8 *aligned_shared() { return (u8 *)(((uintptr_t)block->shared.data() + 127) & ~(uintptr_t)127); }
inline size_t shared_bytes() { return block->shared.size() - 128; }
inline Warp &warp() { return block->warps[block->now->thread.x / LANES]; }
inline int lane() { return block->now->thread.x % LANES; }

/// Lets others have their turn.
inline void yield() {
    if (_setjmp(block->now->here) == 0) _longjmp(block->scheduler, 1);
}

/// Gives a fiber its turn.
inline void resume(Fiber &fiber) {
    block->now = &fiber;
    if (_setjmp(block->scheduler) != 0) return;
    if (fiber.begun) _longjmp(fiber.here, 1);
    fiber.begun = true;
    setcontext(&fiber.context);
}

/// Waits until all of a party are here; the last to come does what they came for.
template <class F> void meet(Party &party, const char *doing, F last) {
    Fiber *me = block->now;
    if (party.arrived > 0 && std::strcmp(party.doing, doing) != 0) fail("threads of a warp are at different instructions");
    party.doing = doing;
    if (++party.arrived == party.size) {
        last();
        party.arrived = 0;
        party.round++;
        return;
    }
    me->waits_for = &party;
    me->round = party.round;
    yield();
    me->waits_for = nullptr;
}

inline u8 *shared_at(u32 address) {
    if (address % 16 != 0) fail("an address in shared memory is no multiple of 16");
    if (address + 16 > shared_bytes()) fail("an address outside shared memory");
    return aligned_shared() + address;
}

inline void perform(const Copy &copy) {
    if (copy.there && (uintptr_t)copy.from % 16 != 0) fail("cp.async from an address that is no multiple of 16");
    if (copy.there) std::memcpy(shared_at(copy.to), copy.from, 16);
    else std::memset(shared_at(copy.to), 0, 16);
}

/// Now, or when nothing else can be done.
template <class F> void some_time(F action) {
    Block *of = block;
    auto there = [of, action] {
        Block *before = block;
        block = of;
        action();
        block = before;
    };
    if (eager) there();
    else deferred.push_back(there);
}

inline Barrier &barrier_at(Block &of, u32 address) {
    auto found = of.barriers.find(address);
    if (found == of.barriers.end()) fail("a barrier that was not begun");
    return found->second;
}

inline void run_fiber() {
    block->kernel();
    if (early && !block->now->waited) fail("a thread ends that has not waited for the kernel before");
    block->now->done = true;
    yield();
}

inline bool waits(const Fiber &fiber) {
    return fiber.done || (fiber.waits_for && fiber.waits_for->round == fiber.round) ||
           (fiber.barrier && fiber.barrier->phase % 2 == fiber.parity);
}

/// Gives each lane of a warp that can run a turn; says how many ran.
inline int run_warp(Fiber *first, int &left) {
    int ran = 0;
    for (int i = 0; i < LANES; i++) {
        Fiber &fiber = first[eager ? LANES - 1 - i : i];
        if (waits(fiber)) continue;
        ran++;
        resume(fiber);
        if (fiber.done) left--;
    }
    return ran;
}

/// Brings a block of threads to its beginning.
inline void begin_block(Block &b, int threads, size_t shared) {
    b.shared.assign(shared + 128, 0xff);
    b.party = Party{threads};
    b.barriers.clear();
    b.warps.assign(threads / LANES, Warp{});
    for (Warp &w : b.warps) w.party.size = LANES;
    b.fibers.resize(threads);
    for (int i = 0; i < threads; i++) {
        Fiber &fiber = b.fibers[i];
        if (!fiber.stack) fiber.stack = std::make_unique<char[]>(STACK);
        fiber.thread.x = i;
        fiber.done = fiber.begun = fiber.waited = false;
        fiber.waits_for = nullptr;
        fiber.barrier = nullptr;
        fiber.copies.clear();
        fiber.groups = 0;
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = STACK;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, run_fiber, 0);
    }
}

/// Runs the blocks of a cluster to their end.
inline void run_cluster(int threads, size_t shared) {
    for (Block &b : cluster) begin_block(b, threads, shared);
    cluster_party = Party{threads * (int)cluster.size()};
    // A warp runs until it waits for another one, so that warps are as far apart as barriers let them be.
    for (int left = threads * cluster.size(), warps = threads / LANES; left > 0;) {
        bool moved = false;
        for (Block &b : cluster) {
            block = &b;
            for (int w = 0; w < warps; w++) {
                Fiber *first = &b.fibers[(eager ? warps - 1 - w : w) * LANES];
                while (int ran = run_warp(first, left)) moved |= ran > 0;
            }
        }
        if (moved) continue;
        if (deferred.empty()) fail("threads wait for each other for ever");
        auto action = deferred.front();
        deferred.pop_front();
        action();
    }
    if (!deferred.empty()) fail("a block ends before its copies do");
}

inline u32 float_bits(float x) {
    u32 bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

inline float bits_float(u32 bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

/// c[16, 8] += A[16, 32] B[32, 8], by the definition: A's rows are first spread out as the metadata says.
template <class Half> void mma_sp(Warp &w, int selector) {
    float b[32][8];
    for (int k = 0; k < 32; k++) {
        for (int n = 0; n < 8; n++) {
            const u32 registers[4] = {w.b[4 * n + k % 8 / 2].x, w.b[4 * n + k % 8 / 2].y, w.b[4 * n + k % 8 / 2].z,
                                      w.b[4 * n + k % 8 / 2].w};
            b[k][n] = Half::widen((u16)(registers[k / 8] >> (k % 2 * 16)));
        }
    }
    for (int row = 0; row < 16; row++) {
        int g = row % 8;
        float *sums[8];
        for (int n = 0; n < 8; n++) sums[n] = &w.c[4 * g + n / 2][row / 8 * 2 + n % 2];
        for (int chunk = 0; chunk < 8; chunk++) {
            u32 nibble = w.metadata[4 * g + 2 * selector + chunk / 4] >> (row / 8 * 16 + chunk % 4 * 4) & 15;
            u32 first = nibble & 3, second = nibble >> 2;
            if (first >= second) fail("mma.sp: metadata that is not in order");
            const uint4 &a = w.a[4 * g + chunk % 4];
            u32 both = chunk / 4 ? (row / 8 ? a.w : a.z) : (row / 8 ? a.y : a.x);
            for (int n = 0; n < 8; n++) {
                *sums[n] += Half::widen((u16)both) * b[4 * chunk + first][n];
                *sums[n] += Half::widen((u16)(both >> 16)) * b[4 * chunk + second][n];
            }
        }
    }
}

} // namespace emulate

#define threadIdx (emulate::block->now->thread)
#define blockIdx (emulate::block->index)

inline void __syncthreads() {
    emulate::meet(emulate::block->party, "__syncthreads", [] {});
}
inline void __syncwarp() {
    emulate::meet(emulate::warp().party, "__syncwarp", [] {});
}

// Kernels run one after the other, and so do blocks of one.
inline void let_next_begin() {}
inline void wait_for_previous() { emulate::block->now->waited = true; }
inline void prefetch(const void *) {}
inline void publish() {}
inline u32 count_up(u32 *counter) { return (*counter)++; }
inline float load_fresh(const float *from) { return *from; }

inline u8 *shared_memory() { return emulate::aligned_shared(); }
inline u32 shared_address(const void *pointer) { return (u32)((const u8 *)pointer - emulate::aligned_shared()); }

template <class T> T load_constant(const T *from) {
    if ((uintptr_t)from % sizeof(T) != 0) emulate::fail("a load from an address that is no multiple of its size");
    return *from;
}

inline const u16 *row_at(const u16 *first, u32 row, u32 bytes) {
    return (const u16 *)((uintptr_t)first + (u64)row * bytes);
}

inline void cp_async(u32 to, const void *from, bool there) {
    emulate::Fiber &me = *emulate::block->now;
    emulate::Copy copy{to, from, there, me.groups};
    if (emulate::eager) emulate::perform(copy);
    else me.copies.push_back(copy);
}
inline void cp_async_commit() { emulate::block->now->groups++; }
template <int PENDING> void cp_async_wait() {
    emulate::Fiber &me = *emulate::block->now;
    std::vector<emulate::Copy> later;
    for (const emulate::Copy &copy : me.copies) {
        if (copy.group < me.groups - PENDING) emulate::perform(copy);
        else later.push_back(copy);
    }
    me.copies = later;
}

inline uint4 load_shared(u32 from) {
    uint4 r;
    std::memcpy(&r, emulate::shared_at(from), sizeof r);
    return r;
}
inline u32 load_shared_short(u32 from) {
    u16 r;
    std::memcpy(&r, emulate::shared_at(from & ~15u) + from % 16, sizeof r);
    return r;
}

inline void barrier_begin(u32 barrier, u32 arrivals) {
    if (barrier % 8 != 0) emulate::fail("the address of a barrier is no multiple of 8");
    emulate::block->barriers[barrier] = emulate::Barrier{(int)arrivals, (int)arrivals, 0, 0};
}
inline void barriers_begun() {}
inline void barrier_expect(u32 barrier, u32 bytes) {
    emulate::Barrier &b = emulate::barrier_at(*emulate::block, barrier);
    b.pending--;
    b.bytes += bytes;
    b.settle();
}
template <int CLUSTER> void barrier_arrive(u32 barrier, u32 block) {
    emulate::Barrier &b = emulate::barrier_at(CLUSTER == 1 ? *emulate::block : emulate::cluster.at(block), barrier);
    b.pending--;
    b.settle();
}
inline void barrier_arrive_after_copies(u32 barrier) {
    emulate::some_time([barrier, copies = std::move(emulate::block->now->copies)] {
        for (const emulate::Copy &copy : copies) emulate::perform(copy);
        barrier_arrive<1>(barrier, 0);
    });
    emulate::block->now->copies.clear();
}
inline void barrier_wait(u32 barrier, u32 parity) {
    emulate::Fiber &me = *emulate::block->now;
    me.barrier = &emulate::barrier_at(*emulate::block, barrier);
    me.parity = parity;
    if (emulate::waits(me)) emulate::yield();
    me.barrier = nullptr;
}
template <int CLUSTER> void bulk_copy(u32 to, const void *from, u32 bytes, u32 barrier) {
    if ((uintptr_t)from % 16 != 0 || bytes % 16 != 0 || bytes == 0) emulate::fail("a bulk copy of no multiple of 16 bytes");
    emulate::some_time([=] {
        auto perform = [=](emulate::Block &there) {
            emulate::block = &there;
            std::memcpy(emulate::shared_at(to + bytes - 16) + 16 - bytes, from, bytes);
            emulate::Barrier &b = emulate::barrier_at(there, barrier);
            b.bytes -= bytes;
            b.settle();
        };
        emulate::Block *before = emulate::block;
        if (CLUSTER == 1) perform(*before);
        else for (emulate::Block &there : emulate::cluster) perform(there);
        emulate::block = before;
    });
}
template <int COUNT> void registers_down() {
    emulate::meet(emulate::warp().party, "setmaxnreg", [] {});
}
template <int COUNT> void registers_up() { registers_down<COUNT>(); }
template <int CLUSTER> void cluster_sync() {
    if (CLUSTER == 1) __syncthreads();
    else emulate::meet(emulate::cluster_party, "barrier.cluster", [] {});
}

inline uint4 ldmatrix_transposed(u32 row) {
    emulate::Warp &w = emulate::warp();
    int me = emulate::lane();
    w.address[me] = row;
    emulate::meet(w.party, "ldmatrix", [&] {
        for (int lane = 0; lane < LANES; lane++) {
            u32 registers[4];
            for (int m = 0; m < 4; m++) {
                u16 pair[2];
                for (int i = 0; i < 2; i++) {
                    std::memcpy(&pair[i], emulate::shared_at(w.address[8 * m + lane % 4 * 2 + i]) + lane / 4 * 2, 2);
                }
                registers[m] = pair[0] | (u32)pair[1] << 16;
            }
            w.out[lane] = uint4{registers[0], registers[1], registers[2], registers[3]};
        }
    });
    return w.out[me];
}

inline u32 permute_bytes(u32 low, u32 high, u32 choice) {
    u64 bytes = (u64)high << 32 | low;
    u32 out = 0;
    for (int i = 0; i < 4; i++) out |= (u32)(bytes >> ((choice >> 4 * i & 7) * 8) & 0xff) << 8 * i;
    return out;
}

inline float shuffle_xor(float x, int mask) {
    emulate::Warp &w = emulate::warp();
    int me = emulate::lane();
    w.shuffled[me] = x;
    emulate::meet(w.party, "shuffle", [&] {
        for (int lane = 0; lane < LANES; lane++) w.received[lane] = w.shuffled[lane ^ mask];
    });
    return w.received[me];
}

inline u32 shuffle_xor(u32 x, int mask) { return emulate::float_bits(shuffle_xor(emulate::bits_float(x), mask)); }

inline float as_float(u32 bits) { return emulate::bits_float(bits); }

/// The parts of both types that are the same.
template <class Half> struct HalfPairs {
    static u32 round(float low, float high) { return Half::narrow(low) | (u32)Half::narrow(high) << 16; }
    static u32 subtract(u32 x, u32 y) {
        return round(Half::widen((u16)x) - Half::widen((u16)y), Half::widen((u16)(x >> 16)) - Half::widen((u16)(y >> 16)));
    }
    template <int SELECTOR> static void mma_sp(float (&c)[4], const uint4 &a, const uint4 &b, u32 metadata) {
        emulate::Warp &w = emulate::warp();
        int me = emulate::lane();
        w.a[me] = a;
        w.b[me] = b;
        w.metadata[me] = metadata;
        std::memcpy(w.c[me], c, sizeof c);
        emulate::meet(w.party, SELECTOR ? "mma.sp 1" : "mma.sp 0", [&] { emulate::mma_sp<Half>(w, SELECTOR); });
        std::memcpy(c, w.c[me], sizeof c);
    }
};

struct Bf16 : HalfPairs<Bf16> {
    static float widen(u16 x) { return emulate::bits_float((u32)x << 16); }
    static u16 narrow(float x) {
        if (x != x) return 0x7fff;
        u32 bits = emulate::float_bits(x);
        return (u16)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
};

struct F16 : HalfPairs<F16> {
    static float widen(u16 x) {
        u32 exponent = x >> 10 & 31, mantissa = x & 0x3ff;
        float magnitude = exponent == 31  ? emulate::bits_float(0x7f800000 | mantissa << 13)
                          : exponent == 0 ? (float)mantissa * 0x1p-24f
                                          : emulate::bits_float((exponent + 112) << 23 | mantissa << 13);
        return x & 0x8000 ? -magnitude : magnitude;
    }
    static u16 narrow(float x) {
        u16 sign = (u16)(emulate::float_bits(x) >> 16 & 0x8000);
        float magnitude = x < 0 ? -x : x;
        if (x != x) return 0x7fff;
        if (magnitude >= 65520.0f) return sign | 0x7c00;
        if (magnitude < 0x1p-14f) {
            // One place of a subnormal number is 2^-24; adding 2^-1 lets the f32 unit round there.
            return sign | (u16)(emulate::float_bits(magnitude + 0.5f) - emulate::float_bits(0.5f));
        }
        u32 bits = emulate::float_bits(magnitude);
        return sign | (u16)((bits + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13);
    }
};
