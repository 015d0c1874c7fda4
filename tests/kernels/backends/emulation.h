// The instructions of csrc/cuda/instructions.h for threads emulated on the CPU, so that the kernels' logic can be tested
// where there is no GPU. A thread is a fiber. The warps of a block run in random order, each as far as it can get before a
// barrier or a wait, and asynchronous copies land as late as they may: a missing barrier or wait shows as a wrong result,
// and warps that wait for each other for ever as a failure. Shared
// memory starts as NaN and ends at a guard page. What a warp does together (shuffles, mma, ldmatrix) takes the operands
// of all 32 lanes, and fails where they do not meet at the same instruction.
#pragma once

#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <algorithm>
#include <functional>
#include <random>
#include <vector>

#define NPR_DEVICE inline
#define NPR_CONSTANT constexpr
#define NPR_KERNEL(threads, blocks) void
#define NPR_LARGE_BLOCKS 2

struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};

namespace npr::cuda {
namespace emulation {

constexpr int kLanes = 32, kWarpgroup = 128;
constexpr size_t kStack = 256 << 10, kSharedMost = 227 << 10;

inline int processors = 3;  // blocks that "fit on the device"
inline std::mt19937 random_order(0);

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulation: %s\n", what);
  std::abort();
}

struct Copy {
  unsigned char* to;
  const unsigned char* from;
  int bytes;
};

struct Thread {
  int index = 0;
  bool started = false, done = false, at_barrier = false;
  bool of_group = false;  // the barrier is for a warpgroup
  jmp_buf state;
  std::vector<char> stack = std::vector<char>(kStack);
  std::vector<std::vector<Copy>> copies;  // groups under way; the last is open
};

struct Warp {  // where the lanes meet
  int arrived = 0, generation = 0;
  const void* instruction = nullptr;
  uint32_t in[kLanes][10], out[kLanes][4];
  const unsigned char* row[kLanes];
};

struct Block {
  int threads = 0, index = 0, row = 0, count = 0;
  int64_t events = 0;  // grows whenever a warp gets further
  std::vector<Thread> thread;
  std::vector<Warp> warp;
  unsigned char* shared = nullptr;
  std::function<void()> body;
  Thread* current = nullptr;
  jmp_buf scheduler;
};
inline Block block;

inline void yield() {
  if (_setjmp(block.current->state) == 0) _longjmp(block.scheduler, 1);
}

inline void entry() {
  block.body();
  block.current->done = true;
  _longjmp(block.scheduler, 1);
}

inline void resume(Thread& thread) {
  block.current = &thread;
  if (_setjmp(block.scheduler) != 0) return;
  if (thread.started) _longjmp(thread.state, 1);
  thread.started = true;
  static ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = thread.stack.data();
  context.uc_stack.ss_size = kStack;
  makecontext(&context, entry, 0);
  setcontext(&context);
}

// Lets threads continue if all of them are at the barrier of their warpgroup, or of the block.
inline bool release(int first, int end, bool of_group) {
  for (int i = first; i < end; ++i) {
    const Thread& thread = block.thread[static_cast<size_t>(i)];
    if (!thread.at_barrier || thread.of_group != of_group) return false;
  }
  for (int i = first; i < end; ++i) block.thread[static_cast<size_t>(i)].at_barrier = false;
  return true;
}

inline void run_block() {
  const int warps = block.threads / kLanes;
  for (Thread& thread : block.thread) {
    thread.started = thread.done = thread.at_barrier = false;
    thread.copies.assign(1, {});
  }
  for (Warp& warp : block.warp) warp.arrived = 0;
  std::vector<int> order(static_cast<size_t>(warps));
  for (int w = 0; w < warps; ++w) order[static_cast<size_t>(w)] = w;
  for (int done = 0; done < block.threads;) {
    const int64_t events = block.events;
    bool all_ran = true;
    std::shuffle(order.begin(), order.end(), random_order);
    for (const int w : order) {  // each until all its lanes wait, or are done
      if (random_order() % 4 == 0) {  // or not now, so that other warps get far ahead of it
        all_ran = false;
        continue;
      }
      for (int64_t before = -1; before != block.events;) {
        before = block.events;
        for (int lane = 0; lane < kLanes; ++lane) {
          Thread& thread = block.thread[static_cast<size_t>(w * kLanes + lane)];
          if (thread.done || thread.at_barrier) continue;
          resume(thread);
          block.events += thread.done || thread.at_barrier;
          done += thread.done;
        }
      }
    }
    bool released = false;
    for (int first = 0; first < block.threads; first += kWarpgroup)
      released = release(first, std::min(first + kWarpgroup, block.threads), true) || released;
    released = released || release(0, block.threads, false);
    if (done == block.threads || released || !all_ran || block.events != events) continue;
    int waiting = 0;
    for (const Thread& thread : block.thread) waiting += thread.at_barrier;
    if (done + waiting == block.threads && done > 0) fail("some threads ended while others wait at a barrier");
    fail("some threads wait for others that never come");
  }
}

// The last lane to arrive computes for all.
template <typename Compute>
void together(const void* instruction, Compute compute) {
  const int lane = block.current->index % kLanes;
  Warp& warp = block.warp[static_cast<size_t>(block.current->index / kLanes)];
  if (warp.arrived == 0) warp.instruction = instruction;
  if (warp.instruction != instruction) fail("the lanes of a warp are at different instructions");
  if (++warp.arrived == kLanes) {
    compute(warp);
    warp.arrived = 0;
    ++warp.generation;
    ++block.events;
  }
  const int generation = warp.generation;
  if (lane < kLanes && warp.arrived != 0)
    while (warp.generation == generation) yield();
}

inline Warp& my_warp() { return block.warp[static_cast<size_t>(block.current->index / kLanes)]; }
inline int my_lane() { return block.current->index % kLanes; }

template <typename T>
float to_float(uint16_t bits) {
  if constexpr (std::is_same_v<T, BFloat16>) return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
  else return static_cast<float>(std::bit_cast<_Float16>(bits));
}
template <typename T>
uint16_t to_bits(float value) {
  if (std::isnan(value)) return 0x7fff;
  if constexpr (std::is_same_v<T, BFloat16>) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
  } else {
    return std::bit_cast<uint16_t>(static_cast<_Float16>(value));
  }
}

}  // namespace emulation

inline int thread_index() { return emulation::block.current->index; }
inline int block_threads() { return emulation::block.threads; }
inline int block_index() { return emulation::block.index; }
inline int block_row() { return emulation::block.row; }
inline int blocks() { return emulation::block.count; }
template <typename T>
T anew(T value) {
  return value;
}
inline int thread_index_anew() { return thread_index(); }
inline unsigned char* shared_memory() { return emulation::block.shared; }

inline void synchronize() {
  emulation::block.current->at_barrier = true;
  emulation::block.current->of_group = false;
  emulation::yield();
}

inline bool any(bool value) {
  static bool found;
  synchronize();
  found = false;
  synchronize();
  found = found || value;
  synchronize();
  return found;
}

inline void synchronize_warp() {
  static const char instruction = 0;
  emulation::together(&instruction, [](emulation::Warp&) {});
}

inline uint32_t shuffle_up(uint32_t value, int lanes) {
  static const char instruction = 0;
  emulation::Warp& warp = emulation::my_warp();
  const int me = emulation::my_lane();
  warp.in[me][0] = value;
  warp.in[me][1] = static_cast<uint32_t>(me < lanes ? me : me - lanes);
  emulation::together(&instruction, [](emulation::Warp& w) {
    for (auto i = 0; i < emulation::kLanes; ++i) w.out[i][0] = w.in[w.in[i][1]][0];
  });
  return warp.out[me][0];
}

inline uint32_t shuffle(uint32_t value, int lane) {
  static const char instruction = 0;
  emulation::Warp& warp = emulation::my_warp();
  const int me = emulation::my_lane();
  warp.in[me][0] = value;
  warp.in[me][1] = static_cast<uint32_t>(lane);
  emulation::together(&instruction, [](emulation::Warp& w) {
    for (auto i = 0; i < emulation::kLanes; ++i) w.out[i][0] = w.in[w.in[i][1]][0];
  });
  return warp.out[me][0];
}

inline uint32_t byte_signs(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = static_cast<uint64_t>(b) << 32 | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t nibble = selector >> 4 * i & 15, byte = static_cast<uint32_t>(bytes >> 8 * (nibble & 7) & 255);
    out |= (nibble < 8 ? byte : byte >> 7 ? 255u : 0u) << 8 * i;
  }
  return out;
}
inline uint32_t byte_perm(uint32_t a, uint32_t b, uint32_t selector) { return byte_signs(a, b, selector & 0x7777u); }

inline void shift_left(uint32_t value, uint32_t bits, uint32_t& low, uint32_t& high) {
  const uint64_t wide = bits < 64 ? static_cast<uint64_t>(value) << bits : 0;
  low = static_cast<uint32_t>(wide);
  high = static_cast<uint32_t>(wide >> 32);
}

inline float as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline uint32_t as_bits(float value) { return std::bit_cast<uint32_t>(value); }

inline uint32_t shared_address(const unsigned char* memory) {
  return static_cast<uint32_t>(memory - emulation::block.shared);
}
template <typename T>
T load_shared(uint32_t from) {
  if (from % sizeof(T)) emulation::fail("a load from shared memory is not aligned");
  return *reinterpret_cast<const T*>(emulation::block.shared + from);
}
template <typename T>
void store_shared(uint32_t to, T value) {
  if (to % sizeof(T)) emulation::fail("a store to shared memory is not aligned");
  *reinterpret_cast<T*>(emulation::block.shared + to) = value;
}

template <int kBytes>
void copy_async(uint32_t address, const unsigned char* from) {
  unsigned char* const to = emulation::block.shared + address;
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  if (reinterpret_cast<uintptr_t>(to) % kBytes || reinterpret_cast<uintptr_t>(from) % kBytes)
    emulation::fail("an asynchronous copy is not aligned");
  emulation::block.current->copies.back().push_back({to, from, kBytes});
}
inline void commit_copies() { emulation::block.current->copies.emplace_back(); }
template <int kNewest>
void wait_copies() {
  auto& groups = emulation::block.current->copies;
  while (groups.size() > kNewest + 1) {
    for (const emulation::Copy& copy : groups.front())
      std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
    groups.erase(groups.begin());
  }
}

template <typename T>
uint32_t pack(float low, float high) {
  return emulation::to_bits<T>(low) | static_cast<uint32_t>(emulation::to_bits<T>(high)) << 16;
}
template <typename T>
float low_half(uint32_t pair) {
  return emulation::to_float<T>(static_cast<uint16_t>(pair));
}
template <typename T>
float high_half(uint32_t pair) {
  return emulation::to_float<T>(static_cast<uint16_t>(pair >> 16));
}
template <typename T>
float load_number(uint32_t from) {
  if constexpr (sizeof(T) == 4) return load_shared<float>(from);
  else return low_half<T>(load_shared<uint16_t>(from));
}
inline uint32_t subtract_halves(uint32_t a, uint32_t b) {
  return pack<Float16>(low_half<Float16>(a) - low_half<Float16>(b), high_half<Float16>(a) - high_half<Float16>(b));
}
template <typename T>
uint32_t multiply_halves(uint32_t a, uint32_t b) {
  return pack<T>(low_half<T>(a) * low_half<T>(b), high_half<T>(a) * high_half<T>(b));
}
inline uint32_t max3(uint32_t a, uint32_t b, uint32_t c) {
  return static_cast<uint32_t>(std::max({static_cast<int>(a), static_cast<int>(b), static_cast<int>(c)}));
}
inline uint32_t max3_relu(uint32_t a, uint32_t b, uint32_t c) { return max3(max3(a, b, c), 0, 0); }
inline uint32_t max3_halves(uint32_t a, uint32_t b, uint32_t c) {
  return (max3(a << 16, b << 16, c << 16) >> 16) | (max3(a, b, c) & 0xffff0000u);
}
inline uint32_t max3_halves_relu(uint32_t a, uint32_t b, uint32_t c) {
  const uint32_t most = max3_halves(a, b, c);
  return max3_halves(most, 0, 0);
}
inline uint32_t max_halves(uint32_t a, uint32_t b) { return max3_halves(a, b, b); }
inline uint32_t max_halves_relu(uint32_t a, uint32_t b) { return max3_halves(a, b, 0); }
inline uint32_t add_max(uint32_t a, uint32_t b, uint32_t c) { return max3(a + b, c, c); }
inline uint32_t distance_of_bytes(uint32_t a, uint32_t b) {
  uint32_t out = 0;
  for (int i = 0; i < 32; i += 8)
    out |= static_cast<uint32_t>(std::abs(static_cast<int>(a >> i & 255) - static_cast<int>(b >> i & 255))) << i;
  return out;
}

template <typename T>
void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const float (&c)[4]) {
  static const char instruction = 0;
  emulation::Warp& warp = emulation::my_warp();
  uint32_t* const in = warp.in[emulation::my_lane()];
  for (int i = 0; i < 4; ++i) in[i] = a[i];
  in[4] = b0;
  in[5] = b1;
  for (int i = 0; i < 4; ++i) in[6 + i] = as_bits(c[i]);
  emulation::together(&instruction, [](emulation::Warp& w) {
    float a[16][16], b[16][8];
    for (auto lane = 0; lane < emulation::kLanes; ++lane) {
      const int g = lane / 4, t = lane % 4;
      for (int i = 0; i < 4; ++i) {
        float* const to = &a[g + i % 2 * 8][2 * t + i / 2 * 8];
        to[0] = low_half<T>(w.in[lane][i]);
        to[1] = high_half<T>(w.in[lane][i]);
      }
      for (int i = 0; i < 2; ++i) {
        b[2 * t + 8 * i][g] = low_half<T>(w.in[lane][4 + i]);
        b[2 * t + 8 * i + 1][g] = high_half<T>(w.in[lane][4 + i]);
      }
    }
    for (auto lane = 0; lane < emulation::kLanes; ++lane)
      for (int i = 0; i < 4; ++i) {
        double exact = as_float(w.in[lane][6 + i]);
        for (int k = 0; k < 16; ++k) exact += static_cast<double>(a[lane / 4 + i / 2 * 8][k]) * b[k][lane % 4 * 2 + i % 2];
        float sum = static_cast<float>(exact);  // cut off, as tensor cores are found to do
        if (std::abs(static_cast<double>(sum)) > std::abs(exact)) sum = std::nextafter(sum, 0.0f);
        w.out[lane][i] = as_bits(sum);
      }
  });
  for (int i = 0; i < 4; ++i) d[i] = as_float(warp.out[emulation::my_lane()][i]);
}

inline void multiply_float16(uint32_t (&d)[2], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const uint32_t (&c)[2]) {
  const float wide[4] = {low_half<Float16>(c[0]), high_half<Float16>(c[0]), low_half<Float16>(c[1]), high_half<Float16>(c[1])};
  float sum[4];
  multiply<Float16>(sum, a, b0, b1, wide);
  d[0] = pack<Float16>(sum[0], sum[1]);
  d[1] = pack<Float16>(sum[2], sum[3]);
}

template <typename T>
void multiply_half(float (&d)[4], const uint32_t (&a)[2], uint32_t b, const float (&c)[4]) {
  multiply<T>(d, {a[0], a[1], 0, 0}, b, 0, c);
}

inline void load_transposed(uint32_t (&out)[4], uint32_t address) {
  static const char instruction = 0;
  const unsigned char* const row = emulation::block.shared + address;
  if (reinterpret_cast<uintptr_t>(row) % 16) emulation::fail("a row for ldmatrix is not aligned");
  emulation::Warp& warp = emulation::my_warp();
  warp.row[emulation::my_lane()] = row;
  emulation::together(&instruction, [](emulation::Warp& w) {
    for (auto lane = 0; lane < emulation::kLanes; ++lane)
      for (int m = 0; m < 4; ++m) {
        uint16_t pair[2];
        for (int i = 0; i < 2; ++i)
          std::memcpy(&pair[i], w.row[8 * m + 2 * (lane % 4) + i] + 2 * (lane / 4), 2);
        w.out[lane][m] = pair[0] | static_cast<uint32_t>(pair[1]) << 16;
      }
  });
  for (int i = 0; i < 4; ++i) out[i] = warp.out[emulation::my_lane()][i];
}

template <typename T>
T load_global(const T* from) {
  return *from;
}

template <typename... Arguments>
const char* resident_blocks(void (*)(Arguments...), int threads, int64_t shared_bytes, int64_t& blocks) {
  if (threads > 1024 || shared_bytes > static_cast<int64_t>(emulation::kSharedMost)) return "too much for a block";
  blocks = emulation::processors;
  return nullptr;
}

inline int64_t most_shared_bytes() { return emulation::kSharedMost; }
inline int64_t multiprocessors() { return emulation::processors; }

template <typename... Arguments>
const char* launch(void (*kernel)(Arguments...), int64_t blocks, int64_t block_rows, int threads, int64_t shared_bytes,
                   void*, const Arguments&... arguments) {
  emulation::Block& block = emulation::block;
  constexpr size_t kPage = 4096, kMost = (emulation::kSharedMost + kPage - 1) / kPage * kPage;
  static unsigned char* const memory = [] {
    void* const pages = mmap(nullptr, kMost + kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED || mprotect(static_cast<char*>(pages) + kMost, kPage, PROT_NONE)) emulation::fail("mmap");
    return static_cast<unsigned char*>(pages);
  }();
  if (shared_bytes % 16) emulation::fail("the size of shared memory is not a multiple of 16");
  block.threads = threads;
  block.count = static_cast<int>(blocks);
  block.thread.resize(static_cast<size_t>(threads));
  for (int i = 0; i < threads; ++i) block.thread[static_cast<size_t>(i)].index = i;
  block.warp.resize(static_cast<size_t>(threads / emulation::kLanes));
  block.shared = memory + kMost - shared_bytes;
  block.body = [&] { kernel(arguments...); };
  for (int64_t y = 0; y < block_rows; ++y)
    for (int64_t x = 0; x < blocks; ++x) {
      block.index = static_cast<int>(x);
      block.row = static_cast<int>(y);
      std::memset(memory, 0xff, kMost);
      emulation::run_block();
    }
  return nullptr;
}

}  // namespace npr::cuda
