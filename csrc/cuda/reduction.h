// Sums over all blocks, with the same result in every run. Each block writes a row of partial sums in double, and a
// second kernel adds the rows in a fixed order.
#pragma once

#include "staging.h"

namespace npr::cuda {

// Bytes of shared memory that reduce_block needs. It may reuse the ring's memory, which is not read any more.
NPR_CONSTANT int64_t reduce_bytes(int entries, int threads) { return int64_t{threads / 32} * entries * 8; }

// Adds the sums of a block's warps in the order of the warps. store(total) writes the `entries` sums of a warp; each
// thread writes its own. entry(i) is the index of the sum that goes to partial[i], or negative if partial[i] is 0.
template <typename Store, typename Entry>
NPR_DEVICE void reduce_block(int entries, int results, double* partial, const Store& store, const Entry& entry) {
  double* const totals = reinterpret_cast<double*>(shared_memory());
  synchronize();
  store(totals + thread_index() / 32 * entries);
  synchronize();
  for (int i = thread_index(); i < results; i += block_threads()) {
    double sum = 0;
    const int from = entry(i);
    if (from >= 0)
      for (int warp = 0; warp < block_threads() / 32; ++warp) sum += totals[warp * entries + from];
    partial[i] = sum;
  }
}

constexpr int kReduceWarps = 16;
constexpr int64_t kReduceBytes = 32 * kReduceWarps * 8;  // bytes of shared memory

// Sums `count` rows of `entries` numbers with all warps of a block. Each lane has one entry. The first warp returns the
// sums.
NPR_DEVICE double reduce_rows(const double* partial, int64_t entries, int entry, int count) {
  double* const sums = reinterpret_cast<double*>(shared_memory());
  const int lane = thread_index() % 32, warp = thread_index() / 32;
  double sum = 0;
  if (entry < entries) {
#pragma unroll 8
    for (int row = warp; row < count; row += kReduceWarps) sum += partial[row * entries + entry];
  }
  sums[thread_index()] = sum;
  synchronize();
  if (warp > 0) return 0;
#pragma unroll
  for (int other = 1; other < kReduceWarps; ++other) sum += sums[32 * other + lane];
  return sum;
}

// One factor per channel of the image.
struct Factors {
  double first, second, third;
  NPR_DEVICE double operator[](int channel) const { return channel == 0 ? first : channel == 1 ? second : third; }
};
inline Factors factors_of(const Task& task) {
  const auto scale = staged_scale<double>(task);
  return {scale[0], scale[1], scale[2]};
}

// Computes the number of blocks of a reduction over the rows of a tiling: as many as can run at a time, but not more
// than there are slots or rows.
template <typename Kernel>
const char* reduction_blocks(Kernel kernel, const Tiling& tiling, int64_t chunks, int threads, int64_t shared_bytes,
                             int64_t& blocks) {
  if (const char* error = resident_blocks(kernel, threads, shared_bytes, blocks)) return error;
  const int64_t rows = tiling.batch * tiling.strips * tiling.rows;
  blocks = (blocks + chunks - 1) / chunks;
  if (slots() == 0) return "the device does not tell its number of multiprocessors";
  if (blocks > slots()) blocks = slots();
  if (blocks > rows) blocks = rows;
  return nullptr;
}

}  // namespace npr::cuda
