// The stem's gradient to its weight and bias: sum of dz P^T and of dz, where dz is the pooled gradient at the positions
// of the argmax and P the 27 values that such a position sees.
//
// dz is never written. A lane is an output channel; it goes through the pooled pixels of its warp, finds the position in
// the argmax byte and adds gradient times patch, read from the image's records in shared memory. The lanes of a warp look
// at no more than nine positions of one window: different rows and columns, few bank conflicts.
//
// Cost for 64 channels: 8192 warps' elements for a 256x256 image, each 9 loads of records, 27 multiply-adds, 27
// conversions and about 20 for addresses and the loop: 0.7e6 instructions, 0.75 us on 132 processors x 4 schedulers x
// 1.7 GHz. The traffic, 196 KiB of pixels and 768 KiB of gradient and argmax, takes 0.32 us at 3 TB/s.
#include "reduction.h"

namespace npr::cuda {
namespace {

constexpr int kChunk = 32;    // channels of a block
constexpr int kEntries = kGradientPartial;  // of a channel: 27 products and the sum
constexpr int kWarps = 4;
constexpr int kFlush = 8;     // steps of eight pooled pixels that a float sums up

struct Arguments {
  Source source;
  Tiling tiling;
  Image grad;
  const uint8_t* argmax;
  int64_t argmax_stride[4];
  int out_channels;
  double* partial;
};

NPR_DEVICE float load_gradient(const Image& grad, int64_t index) {
  if (grad.type == Type::kFloat32) return load_global(static_cast<const float*>(grad.data) + index);
  const uint32_t bits = load_global(static_cast<const uint16_t*>(grad.data) + index);
  return grad.type == Type::kBFloat16 ? low_half<BFloat16>(bits) : low_half<Float16>(bits);
}

template <typename T>
NPR_DEVICE void load_record(uint32_t from, float (&out)[3]) {
  if constexpr (sizeof(T) == 4) {
    const uint4 record = load_shared<uint4>(from);
    out[0] = as_float(record.x);
    out[1] = as_float(record.y);
    out[2] = as_float(record.z);
  } else {
    const uint2 record = load_shared<uint2>(from);
    out[0] = low_half<T>(record.x);
    out[1] = high_half<T>(record.x);
    out[2] = low_half<T>(record.y);
  }
}

template <typename T, bool kBytes>
NPR_KERNEL(32 * kWarps, sizeof(T) == 4 ? 2 : 3)
stem_grad_weight_kernel(const Arguments arguments) {
  const Tiling& tiling = arguments.tiling;
  const int lane = thread_index() % 32, warp = thread_index() / 32;
  const int chunk = block_row() * kChunk;
  const bool exists = chunk + lane < arguments.out_channels;
  unsigned char* const shared = shared_memory();
  double* const total = reinterpret_cast<double*>(shared);
  const uint32_t ring = shared_address(shared) + kChunk * kEntries * 8;
  const uint32_t raw = ring + static_cast<uint32_t>(ring_bytes(Record<T>::kBytes, tiling.width));
  Stager<T, kBytes, false> stager(arguments.source, ring, raw, tiling.width);
  const int pitch = stager.pitch;

  float sum[kEntries] = {};
  double sums[kEntries] = {};
  const auto flush = [&] {
#pragma unroll
    for (int i = 0; i < kEntries; ++i) {
      sums[i] += sum[i];
      sum[i] = 0;
    }
  };

  Walk walk(tiling);
  while (walk.next(tiling)) {
    stager.start(walk);
    for (int s = walk.begin - kLead; s < walk.end; ++s, stager.rotate(), synchronize()) {
      float gradient[8];
      uint32_t position[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int column = 8 * warp + i;
        position[i] = 9;
        gradient[i] = 0;
        if (!exists || s < walk.begin || column < walk.first || walk.column + column >= tiling.columns) continue;
        const auto index = [&](const int64_t(&stride)[4]) {
          const int64_t row = int64_t{walk.image} * stride[0] + s * stride[2];
          return row + (chunk + lane) * stride[1] + (walk.column + column) * stride[3];
        };
        position[i] = load_global(arguments.argmax + index(arguments.argmax_stride));
        gradient[i] = load_gradient(arguments.grad, index(arguments.grad.stride));
      }
      stager.advance(s, walk);
      if (s < walk.begin) continue;

      const int before = static_cast<int>(stager.before), current = static_cast<int>(stager.current);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (position[i] > 8) continue;
        const int row = static_cast<int>(position[i] * 11 >> 5), column = static_cast<int>(position[i]) - 3 * row;
        // Convolution row 2s - 1 + row sees the pixel rows 1, 2, 3 of the pair before, then 3 and 0, 1 of this one, ...
        const int offset = record_offset<T, false>(4 * (8 * warp + i) + 2 * column - 3, 0);
        const int rows[3] = {
            (row < 2 ? before + (1 + 2 * row) * pitch : current + pitch) + offset,
            (row < 1 ? before + 2 * pitch : current + (2 * row - 2) * pitch) + offset,
            (row < 1 ? before + 3 * pitch : current + (2 * row - 1) * pitch) + offset,
        };
#pragma unroll
        for (int dy = 0; dy < 3; ++dy)
#pragma unroll
          for (int dx = 0; dx < 3; ++dx) {
            float record[3];
            load_record<T>(static_cast<uint32_t>(rows[dy] + dx * Record<T>::kBytes), record);
#pragma unroll
            for (int c = 0; c < 3; ++c) sum[c * 9 + dy * 3 + dx] += gradient[i] * record[c];
          }
        sum[27] += gradient[i];
      }
      if ((s - walk.begin) % kFlush == kFlush - 1) flush();
    }
    flush();
  }
  const int channels = arguments.out_channels - chunk < kChunk ? arguments.out_channels - chunk : kChunk;
  reduce_block(total, channels * kEntries,
               arguments.partial + (static_cast<int64_t>(block_index()) * arguments.out_channels + chunk) * kEntries,
               [&](double* out) {
#pragma unroll
                 for (int i = 0; i < kEntries; ++i)
                   if (exists) out[lane * kEntries + i] += sums[i];
               });
}

struct Result {
  float* products;
  float* sums;
  double scale[3];
  int out_channels;
};

NPR_KERNEL(32 * kReduceWarps, 1)
finish_stem_grad_weight(const double* partial, int count, const Result result) {
  const int64_t entries = int64_t{kEntries} * result.out_channels;
  const int index = block_index() * kReduceWarps + thread_index() / 32;
  if (index >= entries) return;
  const double sum = reduce_rows(partial, entries, index, count);
  const int channel = index / kEntries, k = index % kEntries;
  if (thread_index() % 32 != 0) return;
  if (k == 27) {
    result.sums[channel] = static_cast<float>(sum);
  } else {
    result.products[channel * 27 + k] = static_cast<float>(sum * result.scale[k / 9]);
  }
}

template <typename T, bool kBytes>
const char* launch_stem_grad_weight(const StemGradWeight& call, void* stream) {
  const Task& task = call.task;
  const int out_channels = static_cast<int>(task.out_channels);
  const int64_t* const stride = call.argmax_stride;
  const Arguments arguments{source_of(task), tiling_of(task, kWarps), call.grad, call.argmax,
                            {stride[0], stride[1], stride[2], stride[3]}, out_channels, call.partial};
  const Tiling& tiling = arguments.tiling;
  const int threads = 4 * tiling.width;
  const int64_t shared =
      kChunk * kEntries * 8 + ring_bytes(Record<T>::kBytes, tiling.width) + raw_bytes(task.x.type, tiling.width);
  const auto kernel = stem_grad_weight_kernel<T, kBytes>;
  const int64_t chunks = (out_channels + kChunk - 1) / kChunk;
  int64_t blocks = 0;
  if (const char* error = reduction_blocks(kernel, tiling, chunks, threads, shared, blocks)) return error;
  if (blocks > 0)
    if (const char* error = launch(kernel, blocks, chunks, threads, shared, stream, arguments)) return error;
  const auto scale = staged_scale<double>(task);
  const Result result{call.products, call.sums, {scale[0], scale[1], scale[2]}, out_channels};
  const int64_t finishing = (out_channels * kEntries + kReduceWarps - 1) / kReduceWarps;
  return launch(finish_stem_grad_weight, finishing, 1, 32 * kReduceWarps, 0, stream,
                static_cast<const double*>(call.partial), static_cast<int>(blocks), result);
}

}  // namespace

const char* stem_grad_weight(const StemGradWeight& call, void* stream) {
  switch (call.task.x.type) {
    case Type::kUInt8: return launch_stem_grad_weight<Float16, true>(call, stream);
    case Type::kFloat32: return launch_stem_grad_weight<float, false>(call, stream);
    case Type::kBFloat16: return launch_stem_grad_weight<BFloat16, false>(call, stream);
    default: return launch_stem_grad_weight<Float16, false>(call, stream);
  }
}

}  // namespace npr::cuda
