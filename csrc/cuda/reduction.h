// Sums over all blocks, the same for every run: each block leaves a row of partial sums in double, and a second kernel
// adds the rows in a fixed order.
#pragma once

#include "staging.h"

namespace npr::cuda {

// Adds what the threads of a block have, warp by warp. add(total) adds a thread's own share; in one warp no two threads
// may touch the same entry. Leaves the sums in `partial`.
template <typename Add>
NPR_DEVICE void reduce_block(double* total, int entries, double* partial, const Add& add) {
  synchronize();
  for (int i = thread_index(); i < entries; i += block_threads()) total[i] = 0;
  for (int warp = 0; warp < block_threads() / 32; ++warp) {
    synchronize();
    if (thread_index() / 32 == warp) add(total);
  }
  synchronize();
  for (int i = thread_index(); i < entries; i += block_threads()) partial[i] = total[i];
}

// One warp sums entry `index` of `count` rows; every lane has the sum.
NPR_DEVICE double reduce_rows(const double* partial, int64_t entries, int64_t index, int count) {
  double sum = 0;
  for (int row = thread_index() % 32; row < count; row += 32) sum += partial[row * entries + index];
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
  return sum;
}

constexpr int kReduceWarps = 8;

// Blocks of a reduction over the tiling's rows: as many as run at a time, no more than there are slots.
template <typename Kernel>
const char* reduction_blocks(Kernel kernel, const Tiling& tiling, int64_t chunks, int threads, int64_t shared_bytes,
                             int64_t& blocks) {
  if (const char* error = resident_blocks(kernel, threads, shared_bytes, blocks)) return error;
  const int64_t rows = tiling.batch * tiling.strips * tiling.rows;
  blocks = (blocks + chunks - 1) / chunks;
  if (blocks > slots()) blocks = slots();
  if (blocks > rows) blocks = rows;
  return nullptr;
}

}  // namespace npr::cuda
