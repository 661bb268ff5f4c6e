// Not products: three questions whose answers decide how products should be written, asked by `cargo xtask gpu-check`.
// How fast is mma.sp beside mma and, on Hopper, wgmma.sp? How fast does the second-level cache give?
#include "ptx.cuh"

constexpr int PROBE_SUMS = 8;

/// Instructions one after another on `PROBE_SUMS` independent sums; what they compute does not matter, but it is no zero,
/// which would draw less power than weights do.
template <bool SPARSE> LACUNA_DEVICE void probe_mma(float *out, u32 rounds) {
    float sums[PROBE_SUMS][4] = {};
    u32 seed = threadIdx.x * 2654435761u + blockIdx.x;
    uint4 a{}, b{};
    u32 *registers[8] = {&a.x, &a.y, &a.z, &a.w, &b.x, &b.y, &b.z, &b.w};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        seed = seed * 1664525u + 1013904223u;
        // Mantissas and signs are random, magnitudes about 1.
        *registers[i] = (seed & 0x807f807f) | 0x3f803f80;
    }
    for (u32 round = 0; round < rounds; round++) {
#pragma unroll
        for (int i = 0; i < PROBE_SUMS; i++) {
            if constexpr (SPARSE) {
                Bf16::mma_sp<0>(sums[i], a, b, 0x4e4e4e4e);
            } else {
                asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                             "{%8, %9}, {%0, %1, %2, %3};"
                             : "+f"(sums[i][0]), "+f"(sums[i][1]), "+f"(sums[i][2]), "+f"(sums[i][3])
                             : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "r"(b.x), "r"(b.y));
            }
        }
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < PROBE_SUMS; i++) sum += sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3];
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

/// 16 x 8 x 16 products a warp and instruction, `PROBE_SUMS` instructions a round.
extern "C" __global__ void probe_mma_dense(float *out, u32 rounds) { probe_mma<false>(out, rounds); }
/// 16 x 8 x 32 of which half are kept.
extern "C" __global__ void probe_mma_sparse(float *out, u32 rounds) { probe_mma<true>(out, rounds); }

/// 64 x 128 x 32 products a group of 4 warps and instruction, half of them kept: A in registers, B in shared memory.
/// `PROBE_SUMS` instructions a round.
extern "C" __global__ void __launch_bounds__(128) probe_wgmma_sparse(float *out, u32 rounds) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
    u32 *b = (u32 *)shared_memory();
    u32 seed = threadIdx.x;
    // 32 x 128 values.
    for (int i = threadIdx.x; i < 32 * 128 / 2; i += 128) {
        seed = seed * 1664525u + 1013904223u;
        b[i] = (seed & 0x807f807f) | 0x3f803f80;
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    // PTX ISA, "matrix descriptor": address, leading and stride offsets in 16 bytes, no swizzle.
    u64 descriptor = (u64)(shared_address(b) >> 4 & 0x3fff) | (u64)(128 >> 4) << 16 | (u64)(512 >> 4) << 32;
    float d[64] = {};
    u32 a = (seed & 0x807f807f) | 0x3f803f80;
    for (u32 round = 0; round < rounds; round++) {
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int i = 0; i < PROBE_SUMS; i++) {
            asm volatile(
                "wgmma.mma_async.sp.sync.aligned.m64n128k32.f32.bf16.bf16 "
                "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "
                "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, "
                "%42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
                "%62, %63}, "
                "{%64, %64, %64, %64}, %65, %66, 0, 1, 1, 1, 1;"
                : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
                  "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),
                  "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]),
                  "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]),
                  "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]),
                  "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]),
                  "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]),
                  "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),
                  "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
                : "r"(a), "l"(descriptor), "r"(0x4e4e4e4e));
        }
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 64; i++) sum += d[i];
    out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
#endif
}

/// Every block reads all of `data`, beginning at another place, past the first-level cache.
extern "C" __global__ void probe_cache(float *out, u32 rounds, const uint4 *data, u32 length) {
    u32 sum = 0;
    for (u32 round = 0; round < rounds; round++) {
        u32 start = (blockIdx.x + round) * 4096 % length;
#pragma unroll 8
        for (u32 i = threadIdx.x; i < length; i += blockDim.x) {
            u32 at = start + i < length ? start + i : start + i - length;
            uint4 v;
            asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                         : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                         : "l"(data + at));
            sum ^= v.x ^ v.y ^ v.z ^ v.w;
        }
    }
    out[blockIdx.x * blockDim.x + threadIdx.x] = (float)sum;
}
