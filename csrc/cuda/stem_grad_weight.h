// What the kernels of the stem's gradient share, those on the tensor cores (stem_grad_weight.cu) and those without them
// (stem_grad_weight_float32.cu): their arguments, and the sum of what their blocks write.
#pragma once

#include "reduction.h"

namespace npr::cuda {

// Computes the gradient without tensor cores, for an image and a gradient that have no common 16-bit type.
const char* stem_grad_weight_float32(const StemGradWeight& call, void* stream);

namespace {

constexpr int kEntries = 28;  // entries of a channel: 27 products and the sum
constexpr int kFlush = 8;     // steps of eight pooled pixels that a float sums up

struct Arguments {
  Source source;
  Tiling tiling;
  Parameter grad;
  const uint8_t* argmax;
  int out_channels;
  double* partial;
};

inline Arguments arguments_of(const StemGradWeight& call, int warps) {
  return {source_of(call.task), tiling_of(call.task, warps), call.grad, call.argmax,
          static_cast<int>(call.task.out_channels), call.partial};
}

struct Result {
  float* products;
  float* sums;
  Factors scale;
  int out_channels, anchor;
};

// Sums the results of all blocks. Place(index, result) tells how many `entries` a block's row of sums has, and which
// `entry` is number index % kEntries of channel index / kEntries; it is 0 if the row has no such entry.
template <typename Place>
NPR_KERNEL(32 * kReduceWarps, 1)
finish_stem_grad_weight(const double* partial, int count, const Result result) {
  const int index = block_index() * 32 + thread_index() % 32, channel = index / kEntries, k = index % kEntries;
  const Place place(index, result);
  const double sum = reduce_rows(partial, place.entries, place.entry, count);
  if (thread_index() >= 32 || channel >= result.out_channels) return;
  if (k == 27) {
    result.sums[channel] = static_cast<float>(sum);
  } else {
    result.products[channel * 27 + k] = static_cast<float>(sum * result.scale[k / 9]);
  }
}

// Launches a kernel for chunks of `channels`, and then the kernel that sums the results of its blocks.
template <typename Place, typename Kernel>
const char* launch_with(Kernel kernel, const StemGradWeight& call, const Arguments& arguments, int channels,
                        int64_t shared, void* stream) {
  const int threads = 4 * arguments.tiling.width, out_channels = arguments.out_channels;
  const int64_t chunks = (out_channels + channels - 1) / channels;
  int64_t blocks = 0;
  if (const char* error = reduction_blocks(kernel, arguments.tiling, chunks, threads, shared, blocks)) return error;
  if (blocks > 0)
    if (const char* error = launch(kernel, blocks, chunks, threads, shared, stream, arguments)) return error;
  const Result result{call.products, call.sums, factors_of(call.task), out_channels, call.task.anchor};
  return launch(finish_stem_grad_weight<Place>, (out_channels * kEntries + 31) / 32, 1, 32 * kReduceWarps, kReduceBytes,
                stream, static_cast<const double*>(call.partial), static_cast<int>(blocks), result);
}

}  // namespace
}  // namespace npr::cuda
