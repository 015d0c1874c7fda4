// Computes rows of the stem's convolution. It reads records from shared memory (staging.h) and returns the words that
// the max-pool compares. On Hopper, stem_groups.h takes its place for
// uint8 images with 16-bit results, if the strips into which an image is cut have a multiple of 32 pooled columns.
//
// The differences of uint8 images are exact in float16. The weights are rounded to float16. If the weights of a channel
// are too small or too large for its range, they are divided by a power of two, and the pooled values are multiplied by
// it. 16-bit results are summed in float16, and the max-pool compares these words. For float32 results, a weight is the
// sum of two float16 numbers.
//
// Shared memory limits the speed: stores, shuffles and copies also use its port. So a lane reads single words, in an
// order in which the taps of a quad are in different banks, and the image is copied in pieces of 16 bytes.
#pragma once

#include "pooling.h"
#include "staging.h"

namespace npr::cuda {
namespace {

// The tap of each slot for anchor 0, one nibble per slot. 0, 1, 2 stand for the rows and columns -1, 0, 1. Slots t and
// t + 4 belong to lane t of a quad. Lanes 0 and 1 read the first word of a record first, lanes 2 and 3 the second word.
// So nearly all loads have their lanes in different banks (Record::spread), because the taps of every two lanes are two
// rows apart or in neighbouring columns.
constexpr uint32_t kTapRows = 0x20112020, kTapColumns = 0x11202200;

struct Tap {
  int dy, dx;
};

// Returns the tap of a slot. For anchors other than 0, the centre takes the slot of the tap that sees the anchor.
NPR_DEVICE Tap tap_of(int slot, int anchor) {
  const Tap tap{static_cast<int>(kTapRows >> 4 * slot & 15) - 1, static_cast<int>(kTapColumns >> 4 * slot & 15) - 1};
  return anchor > 0 && tap.dy == anchor >> 1 && tap.dx == (anchor & 1) ? Tap{0, 0} : tap;
}

NPR_DEVICE float number_at(const Parameter& parameter, int index) {
  if (parameter.type == Type::kFloat32) return load_global(static_cast<const float*>(parameter.data) + index);
  const uint32_t bits = load_global(static_cast<const uint16_t*>(parameter.data) + index);
  return parameter.type == Type::kBFloat16 ? low_half<BFloat16>(bits) : low_half<Float16>(bits);
}

struct Arguments {
  Source source;
  Tiling tiling;
  Parameter weight, bias;
  float scale[3];  // factors for the staged differences
  int out_channels;
  void* out;
  uint8_t* argmax;
};

// Chooses types and sizes. T is the type of the result; kBytes means that the image is uint8.
template <typename T, bool kBytes, bool kArgmax>
struct Kind {
  using Staged = std::conditional_t<kBytes, Float16, T>;  // type of the records
  static constexpr bool kTensorCores = sizeof(Staged) == 2;
  static constexpr bool kHalfSums = kBytes && sizeof(T) == 2;  // float16 sums, because the weights are brought into its range
  using Sum = std::conditional_t<kHalfSums, Float16, T>;
  // A warp's chunk of channels has kTiles tiles of 8 (mma's n). More tiles would not leave registers for kBlocks
  // blocks.
  static constexpr int kTiles = sizeof(T) == 4 || kArgmax ? 4 : 8;
  static constexpr int kChunk = 8 * kTiles;
  static constexpr int kWarps = sizeof(T) == 4 ? 4 : 8, kBlocks = sizeof(T) == 4 ? 3 : 2;
};

// Returns the channel of a column of a tile. Lane t = lane % 4 of a quad has columns 2t and 2t + 1 of each tile. The
// channels are assigned so that each lane has runs of eight neighbouring channels.
NPR_DEVICE int channel_of(int tile, int column) { return tile / 4 * 32 + column / 2 * 8 + tile % 4 * 2 + column % 2; }

// Returns whether a tap always sees the anchor of a cell, where the difference is 0.
NPR_DEVICE bool sees_anchor(int tap, int anchor) {
  return ((tap / 3 - 1) & 1) == anchor >> 1 && ((tap % 3 - 1) & 1) == (anchor & 1);
}

// The scaled parameters of a block's chunk of channels in shared memory: (27 weights + bias, channels) float. After
// them come the factors for the pooled values, (channels) of type T.
template <typename T, bool kBytes, bool kArgmax>
struct Table {
  using Kinds = Kind<T, kBytes, kArgmax>;
  static constexpr int kChannels = Kinds::kChunk, kRows = 28;
  static constexpr int64_t kSharedBytes = kRows * kChannels * 4 + kChannels * static_cast<int>(sizeof(T));
  // Fills the table. Returns whether any factor differs from 1.
  static NPR_DEVICE bool fill(const Arguments& arguments, int chunk, unsigned char* shared) {
    float* const table = reinterpret_cast<float*>(shared);
    const int anchor = arguments.source.anchor, left_out = (anchor / 2 + 1) * 3 + anchor % 2 + 1;
    for (int i = thread_index(); i < kRows * kChannels; i += block_threads()) {
      const int channel = chunk + i % kChannels, tap = i / kChannels / 3, c = i / kChannels % 3;
      const auto weight = [&](int tap, int c) { return number_at(arguments.weight, channel * 27 + c * 9 + tap); };
      float value = 0;
      if (channel < arguments.out_channels && tap == 9) {  // NaN and infinity must show, even in the tap that is left out
        value = arguments.bias.data ? number_at(arguments.bias, channel) : 0;
        for (int k = 0; k < 3; ++k) value += weight(left_out, k) - weight(left_out, k);
      } else if (channel < arguments.out_channels) {  // weights that are only multiplied by 0 must not decide the exponent
        value = sees_anchor(tap, anchor) ? weight(tap, c) - weight(tap, c) : weight(tap, c) * arguments.scale[c];
      }
      table[i] = value;
    }
    synchronize();
    if constexpr (kBytes) {
      bool scaled = false;
      for (int channel = thread_index(); channel < kChannels; channel += block_threads()) {
        float largest = 0;
        for (int k = 0; k < kRows; ++k) {
          const float size = as_float(as_bits(table[k * kChannels + channel]) & 0x7fffffffu);
          const float weighed = k == 27 ? size / 16 : size;  // a large bias may use more of the range
          if (weighed > largest && weighed < 3e38f) largest = weighed;
        }
        const int exponent = exponent_of(largest);
        for (int k = 0; k < kRows; ++k) table[k * kChannels + channel] *= power_of_two(-exponent);
        const float factor = power_of_two(exponent);
        T& to = reinterpret_cast<T*>(shared + kRows * kChannels * 4)[channel];
        if constexpr (sizeof(T) == 4) {
          to = factor;
        } else {
          to.bits = static_cast<uint16_t>(pack<T>(factor, 0));
        }
        scaled = scaled || exponent != 0;
      }
      return any(scaled);
    }
    return false;
  }

  // Returns the exponent of the power of two by which the weights of a channel are divided. For float32 results, the
  // second part of a weight is about 2^-11 of it and must be in the range of float16, too, so all weights are brought
  // close to 1. The range of T limits the exponent.
  static NPR_DEVICE int exponent_of(float largest) {
    const int exponent = static_cast<int>(as_bits(largest) >> 23) - 126;  // the largest weight is below 2^exponent
    if (largest == 0 || (sizeof(T) == 2 && exponent >= -7 && exponent <= 8)) return 0;
    constexpr int kLowest = std::is_same_v<T, Float16> ? -14 : -126;
    constexpr int kHighest = std::is_same_v<T, Float16> ? 15 : 126;
    return exponent < kLowest ? kLowest : exponent > kHighest ? kHighest : exponent;
  }
  static NPR_DEVICE float power_of_two(int exponent) { return as_float(static_cast<uint32_t>(127 + exponent) << 23); }
};

// The records that a lane reads for a row of the convolution: two taps at two positions. They are a factor of mma.
template <typename Staged>
struct Fragments {
  uint32_t record[2][2][2];  // offsets in a pair: for slots t and t + 4, for each row, at an even and at an odd column
  bool above[2];             // whether the tap of the first row is in the previous pair

  NPR_DEVICE Fragments(int anchor, int pitch) {
    const int lane = thread_index() % 32, warp = thread_index() / 32;
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const Tap tap = tap_of(lane % 4 + 4 * x, anchor);
      above[x] = tap.dy < 0;
#pragma unroll
      for (int row = 0; row < 2; ++row)
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          const int pixel = 4 * (8 * warp + lane / 4) + 2 * odd + tap.dx, y = (2 * row + tap.dy) & 3;
          record[x][row][odd] =
              static_cast<uint32_t>(y * pitch + record_offset<Staged, true>(pixel, y) + 4 * second_first(lane % 4));
        }
    }
  }

  // Returns whether lane t of a quad reads the second word of a record first.
  static NPR_DEVICE bool second_first(int t) { return t >= 2; }

  // Loads the records for convolution row 2s + kRow from the pairs `before` and `current`.
  template <int kRow>
  NPR_DEVICE void load(uint32_t (&fragment)[2][4], uint32_t before, uint32_t current) const {
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const uint32_t pair = kRow == 0 && above[x] ? before : current;
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        const uint32_t first = pair + record[x][kRow][odd];
        fragment[x][odd] = load_shared<uint32_t>(first);
        fragment[x][2 + odd] = load_shared<uint32_t>(first ^ 4);
      }
    }
  }
};

// The other factor of mma. For the tap of a slot and one channel, word(0) has the first two weights, and word(1) the
// third weight and the tap's part of the bias. rest() has what rounding left of the weights.
template <typename Staged, int kChunk>
struct Weights {
  const float* column;  // the channel's column of the table
  const float* weight;  // the tap's weights in this column
  int part;             // the tap's part of the bias, or -1 if it has none

  NPR_DEVICE Weights(const unsigned char* table, int channel, int slot, int anchor)
      : column(reinterpret_cast<const float*>(table) + channel), part(-1) {
    const Tap tap = tap_of(slot, anchor);
    weight = column + ((tap.dy + 1) * 3 + tap.dx + 1) * 3 * kChunk;
    // A pixel in the position's own cell always has the constant 1. So three taps can carry the parts of the bias.
#pragma unroll
    for (int other = 0; other < 8; ++other) {
      const Tap before = tap_of(other, anchor);
      part += other <= slot && before.dy >= 0 && before.dx >= 0;
    }
    if (tap.dy < 0 || tap.dx < 0) part = -1;
  }

  NPR_DEVICE uint32_t word(bool which) const {
    return which ? pack<Staged>(weight[2 * kChunk], part_of(column[27 * kChunk], part)) : pack<Staged>(weight[0], weight[kChunk]);
  }
  NPR_DEVICE uint32_t rest(bool which) const {
    return which ? pack<Staged>(rest_of(weight[2 * kChunk]), 0) : pack<Staged>(rest_of(weight[0]), rest_of(weight[kChunk]));
  }

  // Returns one of the three rounded terms whose sum is the value, or 0 for part -1.
  static NPR_DEVICE float part_of(float value, int part) {
    const float second = rest_of(value), third = rest_of(second);
    return part == 0 ? value : part == 1 ? second : part == 2 ? third : 0;
  }
  static NPR_DEVICE float rest_of(float value) {
    const float rounded = low_half<Staged>(pack<Staged>(value, 0));
    return rounded - rounded == 0 ? value - rounded : 0;  // the rest of infinity and NaN is 0
  }
};

// Computes rows of the convolution with the tensor cores of one warp. The weights are in registers.
template <typename T, bool kBytes, bool kArgmax>
struct TensorCores {
  using Kinds = Kind<T, kBytes, kArgmax>;
  using Staged = typename Kinds::Staged;
  using Values = Pair<typename Kinds::Sum, kArgmax>;
  static constexpr int kTiles = Kinds::kTiles;
  static constexpr int kParts = kBytes && sizeof(T) == 4 ? 2 : 1;  // a weight is the sum of so many numbers
  const Fragments<Staged> fragments;
  uint32_t weight[kParts][2][kTiles][2];

  NPR_DEVICE TensorCores(const Arguments& arguments, const unsigned char* table, int pitch)
      : fragments(arguments.source.anchor, pitch) {
    const int lane = thread_index() % 32, t = lane % 4;
#pragma unroll
    for (int x = 0; x < 2; ++x)
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const Weights<Staged, Kinds::kChunk> weights(table, channel_of(tile, lane / 4), t + 4 * x, arguments.source.anchor);
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          const bool which = k != fragments.second_first(t);
          weight[0][x][tile][k] = weights.word(which);
          if constexpr (kParts == 2) weight[1][x][tile][k] = weights.rest(which);
        }
      }
  }

  // Computes convolution row 2s + kRow and passes it to take(tile, even column, odd column).
  template <int kRow, typename Take>
  NPR_DEVICE void row(uint32_t before, uint32_t current, const Take& take) const {
    uint32_t fragment[2][4];
    fragments.template load<kRow>(fragment, before, current);
    if constexpr (Kinds::kHalfSums) {
      uint32_t sum[kTiles][2];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        constexpr uint32_t kZero[2] = {0, 0};
        multiply_float16(sum[tile], fragment[0], weight[0][0][tile][0], weight[0][0][tile][1], kZero);
      }
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
        multiply_float16(sum[tile], fragment[1], weight[0][1][tile][0], weight[0][1][tile][1], sum[tile]);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) take(tile, Values::of(sum[tile][0]), Values::of(sum[tile][1]));
    } else {
      float sum[kTiles][4];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        constexpr float kZero[4] = {0, 0, 0, 0};
        multiply<Staged>(sum[tile], fragment[0], weight[0][0][tile][0], weight[0][0][tile][1], kZero);
      }
#pragma unroll
      for (int part = 0; part < kParts; ++part)
#pragma unroll
        for (int x = part == 0; x < 2; ++x)
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile)
            multiply<Staged>(sum[tile], fragment[x], weight[part][x][tile][0], weight[part][x][tile][1], sum[tile]);
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
        take(tile, Values::of(sum[tile][0], sum[tile][1]), Values::of(sum[tile][2], sum[tile][3]));
    }
  }
};

// Computes rows of the convolution for float32 images in float32, with all nine taps in order.
template <bool kArgmax>
struct Float32 {
  using Kinds = Kind<float, false, kArgmax>;
  static constexpr int kTiles = Kinds::kTiles;
  uint32_t weight;  // address of this lane's first channel in the table
  int offset[5];    // offsets of the pixels that the lane's two positions see, from left to right
  const int pitch;

  NPR_DEVICE Float32(const Arguments&, const unsigned char* shared, int pitch) : pitch(pitch) {
    const int lane = thread_index() % 32, warp = thread_index() / 32;
    weight = shared_address(shared) + static_cast<uint32_t>(8 * (lane % 4) * 4);
#pragma unroll
    for (int i = 0; i < 5; ++i) offset[i] = record_offset<float, true>(4 * (8 * warp + lane / 4) + i - 1, 0);
  }

  // Loads the lane's channels of row k of the table, in the order (tile, column).
  NPR_DEVICE void load(float (&out)[2 * kTiles], int k) const {
#pragma unroll
    for (int i = 0; i < 2 * kTiles; i += 4) {
      const uint4 four = load_shared<uint4>(weight + static_cast<uint32_t>((k * Kinds::kChunk + i) * 4));
      out[i] = as_float(four.x);
      out[i + 1] = as_float(four.y);
      out[i + 2] = as_float(four.z);
      out[i + 3] = as_float(four.w);
    }
  }

  template <int kRow, typename Take>
  NPR_DEVICE void row(uint32_t before, uint32_t current, const Take& take) const {
    float sum[2][2 * kTiles];
    load(sum[0], 27);
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) sum[1][i] = sum[0][i];
#pragma unroll 1
    for (int dy = -1; dy < 2; ++dy) {
      const uint32_t base = kRow == 0 && dy < 0 ? before + static_cast<uint32_t>(3 * pitch)
                                                : current + static_cast<uint32_t>((2 * kRow + dy) * pitch);
      float pixel[5][3];
#pragma unroll
      for (int i = 0; i < 5; ++i) {
        const uint4 record = load_shared<uint4>(base + static_cast<uint32_t>(offset[i]));
        pixel[i][0] = as_float(record.x);
        pixel[i][1] = as_float(record.y);
        pixel[i][2] = as_float(record.z);
      }
#pragma unroll
      for (int dx = 0; dx < 3; ++dx)
#pragma unroll
        for (int c = 0; c < 3; ++c) {
          float w[2 * kTiles];
          load(w, ((dy + 1) * 3 + dx) * 3 + c);
#pragma unroll
          for (int odd = 0; odd < 2; ++odd)
#pragma unroll
            for (int i = 0; i < 2 * kTiles; ++i) sum[odd][i] += w[i] * pixel[dx + 2 * odd][c];
        }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
      take(tile, Pair<float, kArgmax>::of(sum[0][2 * tile], sum[0][2 * tile + 1]),
           Pair<float, kArgmax>::of(sum[1][2 * tile], sum[1][2 * tile + 1]));
  }
};

// Number of words that a lane of a warp's last column passes to the warp on its right. Even and odd steps have separate
// buffers.
template <typename T, bool kBytes, bool kArgmax>
constexpr int kPosted = Kind<T, kBytes, kArgmax>::kTiles * Best<typename Kind<T, kBytes, kArgmax>::Sum, kArgmax>::kWords;
template <typename T, bool kBytes, bool kArgmax>
NPR_CONSTANT int64_t exchange_bytes(int width) {
  return int64_t{2} * (width / 8) * 4 * kPosted<T, kBytes, kArgmax> * 4;
}

}  // namespace
}  // namespace npr::cuda
