// Wraps every instruction that only the GPU has in a small function. So the logic of the kernels can also be compiled
// for the host: tests/kernels/backends/emulation.h defines the same functions for threads that are emulated on the CPU.
#pragma once

#include <cstdint>

namespace npr::cuda {

// The 16-bit types, as bits. float32 is float.
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

#include <map>
#include <mutex>
#include <tuple>

#define NPR_DEVICE __device__ __forceinline__
#define NPR_CONSTANT __host__ __device__ constexpr  // for sizes that host and device compute
#define NPR_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)

// Multiprocessors with less shared memory than Hopper's run one large block at a time. That block may use more
// registers.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define NPR_LARGE_BLOCKS 1
#else
#define NPR_LARGE_BLOCKS 2
#endif

namespace npr::cuda {

NPR_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
NPR_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
NPR_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
NPR_DEVICE int block_row() { return static_cast<int>(blockIdx.y); }
NPR_DEVICE int blocks() { return static_cast<int>(gridDim.x); }
NPR_DEVICE void synchronize() { __syncthreads(); }
NPR_DEVICE bool any(bool value) { return __syncthreads_or(value); }  // all threads of the block must call it
NPR_DEVICE void synchronize_warp() { __syncwarp(); }

// Returns the same value, but hides from the compiler where it comes from. So results that depend on it are computed
// where they are needed, instead of occupying registers before.
template <typename T>
NPR_DEVICE T anew(T value) {
  asm volatile("" : "+r"(value));
  return value;
}

// thread_index(), read when it is needed. So rarely used results that depend on it occupy no registers before.
NPR_DEVICE int thread_index_anew() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

NPR_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

// Returns the value of the lane whose number is smaller by `lanes`. The first lanes keep their own value.
NPR_DEVICE uint32_t shuffle_up(uint32_t value, int lanes) { return __shfl_up_sync(0xffffffffu, value, static_cast<unsigned>(lanes)); }
// Returns the value of lane `lane`.
NPR_DEVICE uint32_t shuffle(uint32_t value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }

// Returns four bytes of a (0 .. 3) and b (4 .. 7). The nibbles of `selector` choose them.
NPR_DEVICE uint32_t byte_perm(uint32_t a, uint32_t b, uint32_t selector) { return __byte_perm(a, b, selector); }

// As byte_perm, but a nibble from 8 on repeats the sign bit of the chosen byte eight times.
NPR_DEVICE uint32_t byte_signs(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t out;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(selector));
  return out;
}

// Shifts `value`, extended to 64 bits, left by `bits`. The result is 0 if `bits` is 64 or more.
NPR_DEVICE void shift_left(uint32_t value, uint32_t bits, uint32_t& low, uint32_t& high) {
  asm("{.reg .b64 wide; mov.b64 wide, {%2, %4}; shl.b64 wide, wide, %3; mov.b64 {%0, %1}, wide;}"
      : "=r"(low), "=r"(high)
      : "r"(value), "r"(bits), "r"(0));
}

NPR_DEVICE float as_float(uint32_t bits) { return __uint_as_float(bits); }
NPR_DEVICE uint32_t as_bits(float value) { return __float_as_uint(value); }

// Shared memory has its own addresses of 32 bits.
NPR_DEVICE uint32_t shared_address(const unsigned char* memory) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(memory));
}
template <typename T>
NPR_DEVICE T load_shared(uint32_t from);
template <>
NPR_DEVICE uint16_t load_shared(uint32_t from) {
  uint16_t value;
  asm volatile("ld.shared.u16 %0, [%1];" : "=h"(value) : "r"(from) : "memory");
  return value;
}
template <>
NPR_DEVICE uint32_t load_shared(uint32_t from) {  // volatile: else two neighbours become one load into two consecutive
  uint32_t value;                                  // registers, which mma does not want
  asm volatile("ld.volatile.shared.u32 %0, [%1];" : "=r"(value) : "r"(from) : "memory");
  return value;
}
template <>
NPR_DEVICE uint2 load_shared(uint32_t from) {
  uint2 value;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(value.x), "=r"(value.y) : "r"(from) : "memory");
  return value;
}
template <>
NPR_DEVICE uint4 load_shared(uint32_t from) {
  uint4 value;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(from)
               : "memory");
  return value;
}
NPR_DEVICE void store_shared(uint32_t to, uint8_t value) {
  asm volatile("st.shared.u8 [%0], %1;" ::"r"(to), "r"(static_cast<uint32_t>(value)) : "memory");
}
NPR_DEVICE void store_shared(uint32_t to, uint16_t value) {
  asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(value) : "memory");
}
NPR_DEVICE void store_shared(uint32_t to, uint32_t value) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(to), "r"(value) : "memory");
}
NPR_DEVICE void store_shared(uint32_t to, uint2 value) {
  asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(to), "r"(value.x), "r"(value.y) : "memory");
}
NPR_DEVICE void store_shared(uint32_t to, uint4 value) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(value.x), "r"(value.y), "r"(value.z), "r"(value.w)
               : "memory");
}

// Asynchronous copies to shared memory. After wait_copies the thread itself sees them. After a barrier the other
// threads see them, too. Copies of 16 bytes bypass the L1 cache, because the stem took 9 % longer with it on an H200.
template <int kBytes>
NPR_DEVICE void copy_async(uint32_t to, const unsigned char* from) {
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(from), "n"(kBytes) : "memory");
  }
}
NPR_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until all groups of copies except the newest `kNewest` have arrived.
template <int kNewest>
NPR_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kNewest) : "memory");
}

// Rounds two floats to nearest even. `low` goes to the lower half. NaN becomes a positive NaN.
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

// Loads a number from shared memory and converts it to float.
template <typename T>
NPR_DEVICE float load_number(uint32_t from) {
  if constexpr (sizeof(T) == 4) return as_float(load_shared<uint32_t>(from));
  else return low_half<T>(load_shared<uint16_t>(from));
}

// Returns a - b for both halves, which are float16.
NPR_DEVICE uint32_t subtract_halves(uint32_t a, uint32_t b) {
  uint32_t out;
  asm("sub.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
}
// Returns a * b for both halves.
template <typename T>
NPR_DEVICE uint32_t multiply_halves(uint32_t a, uint32_t b);
template <>
NPR_DEVICE uint32_t multiply_halves<Float16>(uint32_t a, uint32_t b) {
  uint32_t out;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
  return out;
}
template <>
NPR_DEVICE uint32_t multiply_halves<BFloat16>(uint32_t a, uint32_t b) {  // sm_80 has no product, so -0 is added
  uint32_t out;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(0x80008000u));
  return out;
}

// Maxima of integers. The bits of two floating point numbers compare as signed integers like the numbers, if one of
// them is positive; the positive NaN is the largest. So a maximum with 0 is also that of the numbers. It is one
// instruction from sm_90 on.
NPR_DEVICE uint32_t max3(uint32_t a, uint32_t b, uint32_t c) {
  return static_cast<uint32_t>(__vimax3_s32(static_cast<int>(a), static_cast<int>(b), static_cast<int>(c)));
}
NPR_DEVICE uint32_t max3_relu(uint32_t a, uint32_t b, uint32_t c) {
  return static_cast<uint32_t>(__vimax3_s32_relu(static_cast<int>(a), static_cast<int>(b), static_cast<int>(c)));
}
NPR_DEVICE uint32_t max_halves(uint32_t a, uint32_t b) { return __vmaxs2(a, b); }
NPR_DEVICE uint32_t max_halves_relu(uint32_t a, uint32_t b) { return __vimax_s16x2_relu(a, b); }
NPR_DEVICE uint32_t max3_halves(uint32_t a, uint32_t b, uint32_t c) { return __vimax3_s16x2(a, b, c); }
NPR_DEVICE uint32_t max3_halves_relu(uint32_t a, uint32_t b, uint32_t c) { return __vimax3_s16x2_relu(a, b, c); }
NPR_DEVICE uint32_t add_max(uint32_t a, uint32_t b, uint32_t c) {  // max(a + b, c)
  return static_cast<uint32_t>(__viaddmax_s32(static_cast<int>(a), static_cast<int>(b), static_cast<int>(c)));
}
// Returns |a - b| for each of four unsigned bytes.
NPR_DEVICE uint32_t distance_of_bytes(uint32_t a, uint32_t b) { return __vabsdiffu4(a, b); }

// Computes d = a b + c on the tensor cores, with the fragments of mma.m16n8k16: a is 16x16 (row-major), b is 16x8
// (column-major), c and d are 16x8.
template <typename T>
NPR_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&c)[4]);
template <>
NPR_DEVICE void multiply<BFloat16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&c)[4]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
template <>
NPR_DEVICE void multiply<Float16>(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&c)[4]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// The same with float16 sums, two per word. The words of d and c hold columns (2t, 2t + 1) of rows g and g + 8.
NPR_DEVICE void multiply_float16(uint32_t (&d)[2], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const uint32_t (&c)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%0,%1}, {%2,%3,%4,%5}, {%6,%7}, {%8,%9};"
      : "=r"(d[0]), "=r"(d[1])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "r"(c[0]), "r"(c[1]));
}

// The same with half as many columns of a and rows of b: mma.m16n8k8.
template <typename T>
NPR_DEVICE void multiply_half(float (&d)[4], const uint32_t (&a)[2], uint32_t b, const float (&c)[4]);
template <>
NPR_DEVICE void multiply_half<BFloat16>(float (&d)[4], const uint32_t (&a)[2], uint32_t b, const float (&c)[4]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}
template <>
NPR_DEVICE void multiply_half<Float16>(float (&d)[4], const uint32_t (&a)[2], uint32_t b, const float (&c)[4]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%7,%8,%9,%10};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(b), "f"(c[0]), "f"(c[1]), "f"(c[2]), "f"(c[3]));
}

// Loads four 8x8 matrices of 16-bit elements, transposed. Lane l passes the address of row l % 8 (16 bytes) of matrix l
// / 8.
NPR_DEVICE void load_transposed(uint32_t (&out)[4], uint32_t row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(row)
               : "memory");
}

template <typename T>
NPR_DEVICE T load_global(const T* from) {
  return __ldg(from);
}

// --- host ---

// Returns an error message, or null on success. It clears the error, so that the next call does not report it.
inline const char* describe(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

// Computes how many blocks of `kernel` the current device can run at a time. Once per device, a kernel is allowed all
// the shared memory that a block can have. A limit that changed from call to call would be a race between threads.
template <typename... Arguments>
const char* resident_blocks(void (*kernel)(Arguments...), int threads, int64_t shared_bytes, int64_t& blocks) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, int, int64_t>, int64_t> known;  // kernel, device, threads, shared memory
  const void* const function = reinterpret_cast<const void*>(kernel);
  int device = 0, processors = 0, most = 0, each = 0;
  if (const char* error = describe(cudaGetDevice(&device))) return error;
  const std::lock_guard guard(mutex);
  const auto [found, fresh] = known.try_emplace({function, device, threads, shared_bytes}, 0);
  if (!fresh && found->second > 0) {
    blocks = found->second;
    return nullptr;
  }
  cudaError_t error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error == cudaSuccess) error = cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (error == cudaSuccess && shared_bytes > most / 4)  // else the cache would take memory that three blocks need
    error = cudaFuncSetAttribute(function, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error == cudaSuccess)
    error = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&each, kernel, threads, static_cast<size_t>(shared_bytes));
  if (error == cudaSuccess) blocks = found->second = static_cast<int64_t>(processors) * (each < 1 ? 1 : each);
  return describe(error);
}

// Returns how many bytes of shared memory a block can have.
inline int64_t most_shared_bytes() {
  int device = 0, most = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess)
    return 0;
  return most;
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
