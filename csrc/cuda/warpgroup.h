// Hopper's warpgroup instructions (wgmma) and what they need. They multiply 64 rows at once, from shared memory or
// registers, while the threads continue. tests/kernels/backends/emulated_warpgroup.h defines the same functions for
// emulated threads.
//
// A matrix in shared memory consists of blocks of 8 rows of 16 bytes, 128 bytes each. `across` is the distance in bytes
// between two blocks that are neighbours along the dimension of the sum, `down` the distance along the other dimension.
// There is no swizzling, so a matrix may begin at any multiple of 16 bytes, for example at another pixel of an image.
#pragma once

#include "instructions.h"

#ifdef NPR_EMULATION
#include "emulated_warpgroup.h"
#else

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || (defined(__CUDA_ARCH_SPECIFIC__) && __CUDA_ARCH_SPECIFIC__ == 900)
#define NPR_HAS_WARPGROUPS 1
#endif

namespace npr::cuda {

// Makes the compiler know that a value is the same in all threads of a warp. The address of a matrix must be.
NPR_DEVICE int uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

// Copies 16 bytes to shared memory, or zeros if `read` is false. The L2 cache loads 256 bytes, which other threads need
// next.
NPR_DEVICE void copy_async_or_zero(uint32_t to, const unsigned char* from, bool read) {
  asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(read ? 16 : 0) : "memory");
}

NPR_DEVICE void store_global(unsigned char* to, uint4 value) { *reinterpret_cast<uint4*>(to) = value; }

// After the next barrier, products and copy_bulk see what this thread wrote or copied to shared memory.
NPR_DEVICE void fence_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// Copies of many bytes, a multiple of 16, by one thread. A barrier has 8 bytes of shared memory and serves one copy at
// a time. Its turns have the parity 0, 1, 0, and so on.
NPR_DEVICE void make_barrier(uint32_t barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(barrier) : "memory");
}
NPR_DEVICE void copy_bulk(uint32_t to, const unsigned char* from, int bytes, uint32_t barrier) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from),
               "r"(bytes), "r"(barrier)
               : "memory");
}
NPR_DEVICE void await_bulk(uint32_t barrier, uint32_t parity) {
  asm volatile(
      "{.reg .pred done; again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1; @!done bra again;}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// Counts how often it is called with a counter in shared memory, which begins at 0. Returns true at every `most`-th call.
// The thread that gets true comes after what the others did before their calls.
NPR_DEVICE bool count_in(uint32_t counter, int most) {
  uint32_t before;
  asm volatile("atom.acq_rel.cta.shared::cta.inc.u32 %0, [%1], %2;" : "=r"(before) : "r"(counter), "r"(most - 1) : "memory");
  return before == static_cast<uint32_t>(most - 1);
}

// A barrier for the threads of one warpgroup.
NPR_DEVICE void synchronize_group(int group) { asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory"); }

// Rounds two floats to nearest even, and negative numbers to 0. NaN stays NaN.
NPR_DEVICE uint32_t pack_relu(float low, float high) {
  uint32_t out;
  asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}

// Stores four 8x8 matrices of 16-bit elements, transposed. In lane 4 g + t, word i has elements 2 t and 2 t + 1 of row g of
// matrix i. Lane l passes the address to which column l % 8 (16 bytes) of matrix l / 8 goes.
NPR_DEVICE void store_transposed(uint32_t column, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1,%2,%3,%4};" ::"r"(column), "r"(a), "r"(b), "r"(c),
               "r"(d)
               : "memory");
}

NPR_DEVICE uint64_t matrix(uint32_t address, int across, int down) {
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(across >> 4) << 16 |
         static_cast<uint64_t>(down >> 4) << 32;
}

#ifdef NPR_HAS_WARPGROUPS

// begin_products comes before the first product, end_products after the last one, and await_products waits for the sums
// `d`. await_older_products waits for all products that ended before the newest end_products.
NPR_DEVICE void begin_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
NPR_DEVICE void end_products() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
NPR_DEVICE void await_older_products() { asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory"); }
template <int kSums>
NPR_DEVICE void await_products(float (&d)[kSums]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int i = 0; i < kSums; ++i) asm volatile("" : "+f"(d[i])::"memory");  // the compiler moves no register before the wait
}
template <int kSums>
NPR_DEVICE void await_products(uint32_t (&d)[kSums]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
  for (int i = 0; i < kSums; ++i) asm volatile("" : "+r"(d[i])::"memory");
}

#define NPR_F4(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define NPR_F16(d, i) NPR_F4(d, i), NPR_F4(d, i + 4), NPR_F4(d, i + 8), NPR_F4(d, i + 12)
#define NPR_R16 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}"
#define NPR_R32                                                                                                     \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29," \
  "%30,%31}"
#define NPR_R64                                                                                                     \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29," \
  "%30,%31,%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57," \
  "%58,%59,%60,%61,%62,%63}"
#define NPR_PRODUCT(n) "{.reg .pred more; setp.eq.b32 more, 0, 0; wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 "

// Adds a b to d, with a (64, 16) and b (16, N). b is in shared memory. a is in shared memory, or in registers as for
// mma.m16n8k16, with 16 rows per warp. In lane 4 g + t, d[4 j], d[4 j + 1] are columns 8 j + 2 t and 8 j + 2 t + 1 of
// row g, and d[4 j + 2], d[4 j + 3] those of row g + 8.
NPR_DEVICE void multiply(float (&d)[32], uint64_t a, uint64_t b) {
  asm volatile(NPR_PRODUCT(64) NPR_R32 ", %32, %33, more, 1, 1, 0, 0;}"
               : NPR_F16(d, 0), NPR_F16(d, 16)
               : "l"(a), "l"(b));
}
NPR_DEVICE void multiply(float (&d)[64], uint64_t a, uint64_t b) {
  asm volatile(NPR_PRODUCT(128) NPR_R64 ", %64, %65, more, 1, 1, 0, 0;}"
               : NPR_F16(d, 0), NPR_F16(d, 16), NPR_F16(d, 32), NPR_F16(d, 48)
               : "l"(a), "l"(b));
}
NPR_DEVICE void multiply(float (&d)[16], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(NPR_PRODUCT(32) NPR_R16 ", {%16,%17,%18,%19}, %20, more, 1, 1, 0;}"
               : NPR_F16(d, 0)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
NPR_DEVICE void multiply(float (&d)[32], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(NPR_PRODUCT(64) NPR_R32 ", {%32,%33,%34,%35}, %36, more, 1, 1, 0;}"
               : NPR_F16(d, 0), NPR_F16(d, 16)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
NPR_DEVICE void multiply(float (&d)[64], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(NPR_PRODUCT(128) NPR_R64 ", {%64,%65,%66,%67}, %68, more, 1, 1, 0;}"
               : NPR_F16(d, 0), NPR_F16(d, 16), NPR_F16(d, 32), NPR_F16(d, 48)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// Computes d = a b, or d += a b if kAdds, with float16 factors and sums. d[2 j] has columns 8 j + 2 t and 8 j + 2 t + 1
// of row g, and d[2 j + 1] those of row g + 8.
template <bool kAdds>
NPR_DEVICE void multiply(uint32_t (&d)[16], const uint32_t (&a)[4], uint64_t b) {
  asm volatile(
      "{.reg .pred more; setp.ne.b32 more, %21, 0; wgmma.mma_async.sync.aligned.m64n64k16.f16.f16.f16 " NPR_R16
      ", {%16,%17,%18,%19}, %20, more, 1, 1, 0;}"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]), "+r"(d[7]), "+r"(d[8]),
        "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(static_cast<int>(kAdds)));
}

#undef NPR_F4
#undef NPR_F16
#undef NPR_R16
#undef NPR_R32
#undef NPR_R64
#undef NPR_PRODUCT

#endif  // NPR_HAS_WARPGROUPS

// Returns why the current device has no warpgroup instructions, or null if it has them. setup.py defines NPR_WARPGROUPS if
// it builds for 9.0a. Without it, a Hopper GPU would run code for other GPUs, in which these kernels are empty.
inline const char* without_warpgroups() {
#ifndef NPR_WARPGROUPS
  return "the kernels were not built for compute capability 9.0a";
#else
  int device = 0, major = 0, minor = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error != cudaSuccess) return describe(error);
  return major == 9 && minor == 0 ? nullptr : "the device is not of compute capability 9.0";
#endif
}

}  // namespace npr::cuda

#endif
