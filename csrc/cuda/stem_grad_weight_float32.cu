// The gradient of the stem for its weight and bias (stem_grad_weight.cu) without tensor cores, in float32. A lane has
// one channel. It reads the position from the argmax and adds gradient times patch, which it reads from the records.
#include "stem_grad_weight.h"

namespace npr::cuda {
namespace {

constexpr int kChannels = 32;  // channels of a block
constexpr int kWarps = 4;

NPR_DEVICE float number_at(const Parameter& parameter, int64_t index) {
  if (parameter.type == Type::kFloat32) return load_global(static_cast<const float*>(parameter.data) + index);
  const uint32_t bits = load_global(static_cast<const uint16_t*>(parameter.data) + index);
  return parameter.type == Type::kBFloat16 ? low_half<BFloat16>(bits) : low_half<Float16>(bits);
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

template <typename T>
NPR_KERNEL(32 * kWarps, sizeof(T) == 4 ? 2 : 3)
plain_kernel(const Arguments arguments) {
  const Tiling& tiling = arguments.tiling;
  const int lane = thread_index() % 32, warp = thread_index() / 32;
  const int chunk = block_row() * kChannels;
  const bool exists = chunk + lane < arguments.out_channels;
  const uint32_t ring = shared_address(shared_memory());
  using Ring = PixelRows<T, false>;
  const uint32_t raw = ring + static_cast<uint32_t>(Ring::ring_bytes(tiling.width));
  Stager<T, false, Ring> stager(arguments.source, ring, raw, tiling.width);
  const int pitch = stager.layout.pitch;

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
        const int64_t pixel = (int64_t{walk.image} * tiling.rows + s) * tiling.columns + walk.column + column;
        const int64_t index = pixel * arguments.out_channels + chunk + lane;
        position[i] = load_global(arguments.argmax + index);
        gradient[i] = number_at(arguments.grad, index);
      }
      stager.advance(s, walk);
      if (s < walk.begin) continue;

      const int before = static_cast<int>(stager.before), current = static_cast<int>(stager.current);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (position[i] > 8) continue;
        const int row = static_cast<int>(position[i] * 11 >> 5), column = static_cast<int>(position[i]) - 3 * row;
        // Convolution row 2s - 1 sees the pixel rows 1, 2 and 3 of the previous pair. Row 2s sees its row 3 and the
        // rows 0 and 1 of this pair. Row 2s + 1 sees the rows 1, 2 and 3 of this pair.
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
  const int channels = arguments.out_channels - chunk < kChannels ? arguments.out_channels - chunk : kChannels;
  reduce_block(
      channels * kEntries, channels * kEntries,
      arguments.partial + (static_cast<int64_t>(block_index()) * arguments.out_channels + chunk) * kEntries,
      [&](double* out) {
#pragma unroll
        for (int i = 0; i < kEntries; ++i)
          if (exists) out[lane * kEntries + i] = sums[i];
      },
      [](int i) { return i; });
}

// Where a block's row of sums has them.
struct Place {
  int entries, entry;
  NPR_DEVICE Place(int index, const Result& result) : entries(kEntries * result.out_channels), entry(index) {}
};

template <typename T>
const char* launch_plain(const StemGradWeight& call, void* stream) {
  const Arguments arguments = arguments_of(call, kWarps);
  const int width = arguments.tiling.width;
  const int64_t staged = PixelRows<T, false>::ring_bytes(width) + raw_bytes(call.task.x.type, width);
  const int64_t reduced = reduce_bytes(kChannels * kEntries, 4 * width);
  return launch_with<Place>(plain_kernel<T>, call, arguments, kChannels, staged > reduced ? staged : reduced, stream);
}

}  // namespace

const char* stem_grad_weight_float32(const StemGradWeight& call, void* stream) {
  switch (call.task.x.type) {
    case Type::kFloat32: return launch_plain<float>(call, stream);
    case Type::kBFloat16: return launch_plain<BFloat16>(call, stream);
    default: return launch_plain<Float16>(call, stream);
  }
}

}  // namespace npr::cuda
