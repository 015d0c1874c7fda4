// Every instruction that only the device has, behind a small function, so that the kernels' logic can also be compiled
// for the host: tests/kernels/emulation.h gives the same names to threads emulated on the CPU.
#pragma once

#include <cstdint>

namespace npr::cuda {

// The 16-bit types, as bits; float32 is float.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

}  // namespace npr::cuda

#ifdef NPR_EMULATION
#include "emulation.h"
#else

#include <cuda_runtime.h>

#define NPR_DEVICE __device__ __forceinline__
#define NPR_CONSTANT __host__ __device__ constexpr  // for sizes that both sides compute
#define NPR_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)

namespace npr::cuda {

NPR_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
NPR_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
NPR_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
NPR_DEVICE int block_row() { return static_cast<int>(blockIdx.y); }
NPR_DEVICE int blocks() { return static_cast<int>(gridDim.x); }
NPR_DEVICE void synchronize() { __syncthreads(); }

NPR_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

NPR_DEVICE uint32_t shuffle(uint32_t value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }
NPR_DEVICE double shuffle_xor(double value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// Four bytes chosen by the nibbles of `selector` among those of a (0..3) and b (4..7).
NPR_DEVICE uint32_t byte_perm(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }

NPR_DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
NPR_DEVICE uint32_t as_bits(float value) { return __float_as_uint(value); }

// One word of shared memory, never joined with its neighbour: mma wants its words in other registers.
NPR_DEVICE uint32_t load_word(const unsigned char* from) {
  uint32_t word;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(from))) : "memory");
  return word;
}

// Asynchronous copies to shared memory of this thread's own bytes: no barrier is needed to read them back.
template <int kBytes>
NPR_DEVICE void copy_async(unsigned char* to, const unsigned char* from) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address), "l"(from), "n"(kBytes) : "memory");
}
NPR_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Until all but the newest `kNewest` groups have arrived.
template <int kNewest>
NPR_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
}

// Rounds two floats to nearest even; `low` goes to the lower half. With relu, what is negative becomes 0, NaN stays.
template <typename T>
NPR_DEVICE uint32_t pack(float low, float high);
template <>
NPR_DEVICE uint32_t pack<BFloat16>(float low, float high) {
  uint32_t out;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
template <>
NPR_DEVICE uint32_t pack<Float16>(float low, float high) {
  uint32_t out;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
template <typename T>
NPR_DEVICE uint32_t pack_relu(float low, float high);
template <>
NPR_DEVICE uint32_t pack_relu<BFloat16>(float low, float high) {
  uint32_t out;
  asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
template <>
NPR_DEVICE uint32_t pack_relu<Float16>(float low, float high) {
  uint32_t out;
  asm("cvt.rn.relu.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(high), "f"(low));
  return out;
}
NPR_DEVICE float relu(float value) {
  float out;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(out) : "f"(value));
  return out;
}

template <typename T>
NPR_DEVICE float low_half(uint32_t pair);
template <typename T>
NPR_DEVICE float high_half(uint32_t pair);
template <>
NPR_DEVICE float low_half<BFloat16>(uint32_t pair) { return as_float(pair << 16); }
template <>
NPR_DEVICE float high_half<BFloat16>(uint32_t pair) { return as_float(pair & 0xffff0000u); }
template <>
NPR_DEVICE float low_half<Float16>(uint32_t pair) {
  float out;
  asm("{.reg .f16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, low;}" : "=f"(out) : "r"(pair));
  return out;
}
template <>
NPR_DEVICE float high_half<Float16>(uint32_t pair) {
  float out;
  asm("{.reg .f16 low, high; mov.b32 {low, high}, %1; cvt.f32.f16 %0, high;}" : "=f"(out) : "r"(pair));
  return out;
}

// Maximum of each half; NaN wins. All values here are >= 0 or the positive NaN.
template <typename T>
NPR_DEVICE uint32_t max_halves(uint32_t a, uint32_t b);
template <>
NPR_DEVICE uint32_t max_halves<BFloat16>(uint32_t a, uint32_t b) {
  uint32_t out;
  asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
}
template <>
NPR_DEVICE uint32_t max_halves<Float16>(uint32_t a, uint32_t b) {
  uint32_t out;
  asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
}

// d += a b on the tensor cores: a 16x16 (row-major), b 16x8 (column-major), d 16x8; the fragments of mma.m16n8k16.
template <typename T>
NPR_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
NPR_DEVICE void multiply<BFloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
NPR_DEVICE void multiply<Float16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four transposed 8x8 matrices of 16-bit elements; lane l names the row l % 8 (16 bytes) of matrix l / 8.
NPR_DEVICE void load_transposed(uint32_t (&out)[4], const unsigned char* row) {
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address)
               : "memory");
}

template <typename T>
NPR_DEVICE T load_global(const T* from) {
  return __ldg(from);
}

// --- host ---

inline const char* describe(cudaError_t error) { return error == cudaSuccess ? nullptr : cudaGetErrorString(error); }

// Blocks of `kernel` that the current device can run at a time.
template <typename... Arguments>
const char* resident_blocks(void (*kernel)(Arguments...), int threads, int64_t shared_bytes, int64_t& blocks) {
  int device = 0, processors = 0, each = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess)
    error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                 static_cast<int>(shared_bytes));
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, static_cast<size_t>(shared_bytes));
  blocks = static_cast<int64_t>(processors) * (each < 1 ? 1 : each);
  return describe(error);
}

inline int64_t multiprocessors() {
  int device = 0, processors = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) != cudaSuccess)
    return 0;
  return processors;
}

template <typename... Arguments>
const char* launch(void (*kernel)(Arguments...), int64_t blocks, int64_t block_rows, int threads, int64_t shared_bytes,
                   void* stream, const Arguments&... arguments) {
  kernel<<<dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(block_rows)), threads,
           static_cast<size_t>(shared_bytes), static_cast<cudaStream_t>(stream)>>>(arguments...);
  return describe(cudaGetLastError());
}

}  // namespace npr::cuda

#endif
