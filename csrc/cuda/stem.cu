// The stem: NPR -> convolution -> bias -> ReLU -> 3x3/2 max-pool in one pass, the argmax beside it when asked for.
//
// A warp owns eight pooled columns (sixteen convolution columns) and a chunk of output channels, and walks down the rows.
// For a row of the convolution it multiplies 16 positions x 32 products x the channels: lane (g, t) = (lane / 4, lane % 4)
// reads the records of two taps at convolution columns 2g and 2g + 1, and these words are the fragments that mma wants,
// since the order of the 32 products (8 taps of 3 differences and a constant) is ours to choose. The tap that sees the
// anchor itself is always zero and left out; the constants carry the bias, split in three so that nothing of it is lost.
// The accumulators then hold, for each channel of the lane, an even and an odd column side by side: the vertical maxima
// need no exchange, and of the horizontal ones only the odd column of the left neighbour, by one shuffle, or from the
// warp to the left through shared memory. Channels are dealt out so that each lane stores 16 neighbouring bytes.
//
// The differences of uint8 images are exact in float16. Their weights are rounded to it; a channel's that are small or large
// for its range are divided by a power of two before, and the pooled values multiplied by it. Results of 16 bits are summed
// in float16, whose words are then what the maxima compare. For float32 results a weight is the sum of two of float16.
//
// What decides the speed is shared memory and its port, through which stores, shuffles and copies go, too. So a lane reads
// single words, in an order in which the taps of a quad meet different banks, and the image comes in pieces of 16 bytes.
#include "staging.h"
#include "warpgroup.h"

namespace npr::cuda {
namespace {

// Taps by slot, for anchor 0: rows and columns -1, 0, 1 as 0, 1, 2 in nibbles. Slots t and t + 4 belong to lane t of a
// quad. Lanes 0 and 1 read a record's first word first, lanes 2 and 3 the second: then the lanes of all but a few loads are
// in different banks (Record::spread), as the taps of each two lanes are two rows apart or in neighbouring columns.
constexpr uint32_t kTapRows = 0x20112020, kTapColumns = 0x11202200;

struct Tap {
  int dy, dx;
};

// The centre takes the place of the tap that sees the anchor itself.
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
  float scale[3];  // for the differences as they are staged
  int out_channels;
  void* out;
  uint8_t* argmax;
};

// What is computed how: T is the type of the result, kBytes says that the image is uint8.
template <typename T, bool kBytes, bool kArgmax>
struct Kind {
  using Staged = std::conditional_t<kBytes, Float16, T>;  // type of the records
  static constexpr bool kTensorCores = sizeof(Staged) == 2;
  static constexpr bool kHalfSums = kBytes && sizeof(T) == 2;  // sums of float16: they are normalised
  using Sum = std::conditional_t<kHalfSums, Float16, T>;
  // A warp's chunk of channels, in tiles of 8 (mma's n): as many as leave registers for that many blocks.
  static constexpr int kTiles = sizeof(T) == 4 || kArgmax ? 4 : 8;
  static constexpr int kChunk = 8 * kTiles;
  static constexpr int kWarps = sizeof(T) == 4 ? 4 : 8, kBlocks = sizeof(T) == 4 ? 3 : 2;
};

// Lane t = lane % 4 of a quad holds columns 2t and 2t + 1 of each tile. Neighbouring channels come from different tiles,
// so that a lane's are neighbours, in runs of eight.
NPR_DEVICE int channel_of(int tile, int column) { return tile / 4 * 32 + column / 2 * 8 + tile % 4 * 2 + column % 2; }

// Two channels' outputs of the convolution, in words whose order as signed integers is that of the numbers, as far as
// they are positive (instructions.h): of 16 bits both in one word, or, if the argmax is wanted, in the upper halves of two.
template <typename T, bool kArgmax>
struct Pair {
  static constexpr int kWords = sizeof(T) == 4 || kArgmax ? 2 : 1;
  uint32_t word[kWords];
  static NPR_DEVICE Pair of(float a, float b) {
    if constexpr (sizeof(T) == 4) return {{as_bits(a), as_bits(b)}};
    else if constexpr (kArgmax) return {{pack<T>(0, a), pack<T>(0, b)}};
    else return {{pack<T>(a, b)}};
  }
  static NPR_DEVICE Pair of(uint32_t pair) {  // of 16 bits both
    if constexpr (kArgmax) return {{byte_perm(pair, 0, 0x1044), pair & 0xffff0000u}};
    else return {{pair}};
  }
};

// The product of words as they are stored.
template <typename T>
NPR_DEVICE uint32_t product(uint32_t a, uint32_t b) {
  if constexpr (sizeof(T) == 4) return as_bits(as_float(a) * as_float(b));
  else return multiply_halves<T>(a, b);
}

// What the pooling keeps of two channels while it looks for a maximum. column() is the maximum of three rows, row() that
// of three columns and of 0; value() gives the words to be stored.
template <typename T, bool kArgmax>
struct Best;

template <typename T>
struct Best<T, false> {
  static constexpr int kWords = Pair<T, false>::kWords;
  uint32_t word[kWords];

  static NPR_DEVICE Best column(const Pair<T, false>& top, const Pair<T, false>& middle, const Pair<T, false>& bottom) {
    Best best;
#pragma unroll
    for (int i = 0; i < kWords; ++i)
      best.word[i] = sizeof(T) == 4 ? max3(top.word[i], middle.word[i], bottom.word[i])
                                    : max3_halves(top.word[i], middle.word[i], bottom.word[i]);
    return best;
  }
  static NPR_DEVICE Best row(const Best& left, const Best& middle, const Best& right) {
    Best best;
#pragma unroll
    for (int i = 0; i < kWords; ++i)
      best.word[i] = sizeof(T) == 4 ? max3_relu(left.word[i], middle.word[i], right.word[i])
                                    : max3_halves_relu(left.word[i], middle.word[i], right.word[i]);
    return best;
  }
  NPR_DEVICE uint32_t value(int i) const { return word[i]; }
};

// With the argmax a candidate is (value, 8 - position in the window), compared in that order, so that the first of
// equals wins. 8 - position = 3 (2 - row) + (2 - column), added where the row and the column become known. Last of all
// comes (0, 17), which wins where nothing is positive: |8 - 17| is 9.
constexpr uint32_t kNowhere = 17;

template <typename T>
struct Best<T, true> {  // 16-bit: value << 16 | 8 - position in one word
  static constexpr int kWords = 2;
  uint32_t word[2];

  static NPR_DEVICE Best column(const Pair<T, true>& top, const Pair<T, true>& middle, const Pair<T, true>& bottom) {
    Best best;
#pragma unroll
    for (int i = 0; i < 2; ++i) best.word[i] = add_max(top.word[i], 6, add_max(middle.word[i], 3, bottom.word[i]));
    return best;
  }
  static NPR_DEVICE Best row(const Best& left, const Best& middle, const Best& right) {
    Best best;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      best.word[i] = max3(add_max(middle.word[i], 1, right.word[i]), left.word[i] + 2, kNowhere);
    return best;
  }
  NPR_DEVICE uint32_t value(int) const { return byte_perm(word[0], word[1], 0x7632); }
  NPR_DEVICE uint32_t codes() const { return byte_perm(word[0], word[1], 0x7740); }  // in the lower two bytes
};
template <>
struct Best<float, true> {  // words: value, value, 8 - position, 8 - position
  static constexpr int kWords = 4;
  uint32_t word[4];

  NPR_DEVICE void keep_greater(int i, uint32_t value, uint32_t code) {
    const int mine = static_cast<int>(word[i]), other = static_cast<int>(value);
    const bool greater = other > mine || (other == mine && code > word[2 + i]);
    word[i] = greater ? value : word[i];
    word[2 + i] = greater ? code : word[2 + i];
  }
  static NPR_DEVICE Best column(const Pair<float, true>& top, const Pair<float, true>& middle,
                                const Pair<float, true>& bottom) {
    Best best{{top.word[0], top.word[1], 6, 6}};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      best.keep_greater(i, middle.word[i], 3);
      best.keep_greater(i, bottom.word[i], 0);
    }
    return best;
  }
  static NPR_DEVICE Best row(const Best& left, const Best& middle, const Best& right) {
    Best best{{left.word[0], left.word[1], left.word[2] + 2, left.word[3] + 2}};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      best.keep_greater(i, middle.word[i], middle.word[2 + i] + 1);
      best.keep_greater(i, right.word[i], right.word[2 + i]);
      best.keep_greater(i, 0, kNowhere);
    }
    return best;
  }
  NPR_DEVICE uint32_t value(int i) const { return word[i]; }
  NPR_DEVICE uint32_t codes() const { return byte_perm(word[2], word[3], 0x7740); }
};

// Parameters of a block's chunk of channels in shared memory as (27 + bias, channels) of float, scaled; behind it what the
// pooled values are to be multiplied with, (channels) of T.
template <typename T, bool kBytes, bool kArgmax>
struct Table {
  using Kinds = Kind<T, kBytes, kArgmax>;
  static constexpr int kChannels = Kinds::kChunk, kRows = 28;
  static constexpr int64_t kSharedBytes = kRows * kChannels * 4 + kChannels * static_cast<int>(sizeof(T));
  // Whether any of the factors is not 1.
  static NPR_DEVICE bool fill(const Arguments& arguments, int chunk, unsigned char* shared) {
    float* const table = reinterpret_cast<float*>(shared);
    for (int i = thread_index(); i < kRows * kChannels; i += block_threads()) {
      const int channel = chunk + i % kChannels, k = i / kChannels;  // k: by tap, then by channel of the image
      float value = 0;
      if (channel < arguments.out_channels)
        value = k < 27 ? number_at(arguments.weight, channel * 27 + k % 3 * 9 + k / 3) * arguments.scale[k % 3]
                       : arguments.bias.data ? number_at(arguments.bias, channel) : 0;
      table[i] = value;
    }
    synchronize();
    if constexpr (kBytes) {
      bool scaled = false;
      for (int channel = thread_index(); channel < kChannels; channel += block_threads()) {
        float largest = 0;
        for (int k = 0; k < kRows; ++k) {
          const float size = as_float(as_bits(table[k * kChannels + channel]) & 0x7fffffffu);
          const float weighed = k == 27 ? size / 16 : size;  // a large bias may take more of the range
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

  // Of the power of two that a channel's weights are divided by. For float32 results the second part of a weight is some
  // 2^-11 of it, and must stay in the range of float16, too: all are brought close to 1. What T can hold limits it.
  static NPR_DEVICE int exponent_of(float largest) {
    const int exponent = static_cast<int>(as_bits(largest) >> 23) - 126;  // the largest is below two to the power of it
    if (largest == 0 || (sizeof(T) == 2 && exponent >= -7 && exponent <= 8)) return 0;
    constexpr int kLowest = std::is_same_v<T, Float16> ? -14 : -126;
    constexpr int kHighest = std::is_same_v<T, Float16> ? 15 : 126;
    return exponent < kLowest ? kLowest : exponent > kHighest ? kHighest : exponent;
  }
  static NPR_DEVICE float power_of_two(int exponent) { return as_float(static_cast<uint32_t>(127 + exponent) << 23); }
};

// What a lane reads of a row of the convolution: the records of two taps at two positions, as mma's factor.
template <typename Staged>
struct Fragments {
  uint32_t record[2][2][2];  // of the taps in slots t and t + 4 in a pair: for each row, at an even and at an odd column
  bool above[2];             // whether the tap of the first row is in the pair before

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

  // Whether lane t of a quad reads the second word of a record first.
  static NPR_DEVICE bool second_first(int t) { return t >= 2; }

  // Of convolution row 2s + kRow, from pair `current` and the one before it.
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

// The other factor: of a slot's tap and one channel, the first two weights (which = 0), or the third and the tap's part of
// the bias. Of parts beyond the first there is what is left of the weights after rounding.
template <typename Staged, int kChunk>
struct Weights {
  const float* column;  // of the channel in the table
  const float* weight;  // of the tap
  int part;             // of the bias; -1: none

  NPR_DEVICE Weights(const unsigned char* table, int channel, int slot, int anchor)
      : column(reinterpret_cast<const float*>(table) + channel), part(-1) {
    const Tap tap = tap_of(slot, anchor);
    weight = column + ((tap.dy + 1) * 3 + tap.dx + 1) * 3 * kChunk;
    // The constant of a pixel in the position's own cell is 1 wherever there is a position: three taps for the bias.
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

  // One of the three terms, each rounded, that sum up to the value; 0 for part -1.
  static NPR_DEVICE float part_of(float value, int part) {
    const float second = rest_of(value), third = rest_of(second);
    return part == 0 ? value : part == 1 ? second : part == 2 ? third : 0;
  }
  static NPR_DEVICE float rest_of(float value) {
    const float rounded = low_half<Staged>(pack<Staged>(value, 0));
    return rounded - rounded == 0 ? value - rounded : 0;  // infinity and NaN have no rest
  }
};

// Rows of the convolution by the products of each warp; the weights are in registers.
template <typename T, bool kBytes, bool kArgmax>
struct TensorCores {
  using Kinds = Kind<T, kBytes, kArgmax>;
  using Staged = typename Kinds::Staged;
  using Values = Pair<typename Kinds::Sum, kArgmax>;
  static constexpr int kTiles = Kinds::kTiles;
  static constexpr int kParts = kBytes && sizeof(T) == 4 ? 2 : 1;  // numbers that a weight is the sum of
  const Fragments<Staged> fragments;
  uint32_t weight[kParts][2][kTiles][2];

  NPR_DEVICE TensorCores(const Arguments& arguments, const unsigned char* table, uint32_t, int pitch)
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

  // Convolution row 2s + kRow; take(tile, even column, odd column) gets it.
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

#ifdef NPR_HAS_WARPGROUPS

// The same by the products of four warps; the weights are in shared memory, as two matrices of 16 products each.
template <typename T>
struct Warpgroups {
  using Kinds = Kind<T, true, false>;
  using Values = Pair<Float16, false>;
  static constexpr int kTiles = Kinds::kTiles, kMatrix = Kinds::kChunk * 32;  // bytes
  const Fragments<Float16> fragments;
  uint64_t weights[2];

  NPR_DEVICE Warpgroups(const Arguments& arguments, const unsigned char* table, uint32_t memory, int pitch)
      : fragments(arguments.source.anchor, pitch) {
#pragma unroll
    for (int x = 0; x < 2; ++x) weights[x] = matrix(memory + static_cast<uint32_t>(x * kMatrix), 128, 256);
    for (int i = thread_index(); i < 2 * Kinds::kChunk * 8; i += block_threads()) {
      const int k = i % 8, n = i / 8 % Kinds::kChunk, x = i / (8 * Kinds::kChunk);  // words of a row; rows of a matrix
      const Weights<Float16, Kinds::kChunk> weight(table, channel_of(n / 8, n % 8), k % 4 + 4 * x, arguments.source.anchor);
      const int offset = x * kMatrix + (n / 8 * 2 + k / 4) * 128 + n % 8 * 16 + k % 4 * 4;
      store_shared(memory + static_cast<uint32_t>(offset), weight.word((k >= 4) != fragments.second_first(k % 4)));
    }
    fence_shared();
    synchronize();
  }

  template <int kRow, typename Take>
  NPR_DEVICE void row(uint32_t before, uint32_t current, const Take& take) const {
    uint32_t fragment[2][4], sum[2 * kTiles];
    fragments.template load<kRow>(fragment, before, current);
    begin_products();
    multiply<false>(sum, fragment[0], weights[0]);
    multiply<true>(sum, fragment[1], weights[1]);
    end_products();
    await_products(sum);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) take(tile, Values::of(sum[2 * tile]), Values::of(sum[2 * tile + 1]));
  }
};

#else

template <typename T>
using Warpgroups = TensorCores<T, true, false>;

#endif

// Rows of the convolution of a float32 image in float32, all nine taps in order.
template <bool kArgmax>
struct Float32 {
  using Kinds = Kind<float, false, kArgmax>;
  static constexpr int kTiles = Kinds::kTiles;
  uint32_t weight;  // of this lane's first channel in the table
  int offset[5];    // of the pixels that the lane's two positions see, left to right
  const int pitch;

  NPR_DEVICE Float32(const Arguments&, const unsigned char* shared, uint32_t, int pitch) : pitch(pitch) {
    const int lane = thread_index() % 32, warp = thread_index() / 32;
    weight = shared_address(shared) + static_cast<uint32_t>(8 * (lane % 4) * 4);
#pragma unroll
    for (int i = 0; i < 5; ++i) offset[i] = record_offset<float, true>(4 * (8 * warp + lane / 4) + i - 1, 0);
  }

  // The lane's channels of row k of the table, in the order of (tile, column).
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

// Bytes of shared memory for the weights as matrices.
template <typename T, bool kGroups>
constexpr int64_t kMatrices = kGroups ? 2 * 32 * Kind<T, true, false>::kChunk : 0;

// Words that a lane of a warp's last column posts for the warp to the right; one buffer for even steps, one for odd.
template <typename T, bool kBytes, bool kArgmax>
constexpr int kPosted = Kind<T, kBytes, kArgmax>::kTiles * Best<typename Kind<T, kBytes, kArgmax>::Sum, kArgmax>::kWords;
template <typename T, bool kBytes, bool kArgmax>
NPR_CONSTANT int64_t exchange_bytes(int width) {
  return int64_t{2} * (width / 8) * 4 * kPosted<T, kBytes, kArgmax> * 4;
}

// How rows are convolved. Warpgroups need strips of 32 pooled columns, and pay for them where the results are of 16 bits.
template <typename T, bool kBytes, bool kArgmax, bool kGroups>
struct Method {
  using Rows = std::conditional_t<Kind<T, kBytes, kArgmax>::kTensorCores, TensorCores<T, kBytes, kArgmax>, Float32<kArgmax>>;
};
template <typename T>
struct Method<T, true, false, true> {
  using Rows = Warpgroups<T>;
};

template <typename T, bool kBytes, bool kArgmax, bool kGroups>
NPR_KERNEL(32 * (Kind<T, kBytes, kArgmax>::kWarps), (Kind<T, kBytes, kArgmax>::kBlocks))
stem_kernel(const Arguments arguments) {
  using Kinds = Kind<T, kBytes, kArgmax>;
  using Staged = typename Kinds::Staged;
  using Ring = PixelRows<Staged, true>;
  using Sum = typename Kinds::Sum;
  using Kept = Best<Sum, kArgmax>;
  using Values = Pair<Sum, kArgmax>;
  constexpr int kTiles = Kinds::kTiles, kWords = kPosted<T, kBytes, kArgmax>;
  const Tiling& tiling = arguments.tiling;
  const int width = tiling.width, warps = width / 8;
  const int lane = thread_index() % 32, warp = thread_index() / 32, group = lane / 4, t = lane % 4;
  const int chunk = block_row() * Kinds::kChunk;

  unsigned char* const shared = shared_memory();
  using Parameters = Table<T, kBytes, kArgmax>;
  const bool scaled = Parameters::fill(arguments, chunk, shared);
  using Rows = typename Method<T, kBytes, kArgmax, kGroups>::Rows;
  const uint32_t matrices = shared_address(shared) + static_cast<uint32_t>(Parameters::kSharedBytes);
  const Rows convolution(arguments, shared, matrices, Ring::pitch_of(width));
  const uint32_t factors = shared_address(shared) + Parameters::kRows * Parameters::kChannels * 4 + 8 * t * sizeof(T);
  const uint32_t exchange = matrices + static_cast<uint32_t>(kMatrices<T, kGroups>);
  const uint32_t mine = exchange + static_cast<uint32_t>((warp * 4 + t) * kWords * 4);
  const uint32_t ring = exchange + static_cast<uint32_t>(exchange_bytes<T, kBytes, kArgmax>(width));
  const uint32_t raw = ring + static_cast<uint32_t>(Ring::ring_bytes(width));
  Stager<Staged, kBytes, Ring> stager(arguments.source, ring, raw, width);

  Walk walk(tiling);
  while (walk.next(tiling)) {
    stager.start(walk);
    const int column = walk.column + 8 * warp + group;
    const bool stores = 8 * warp + group >= walk.first && column < tiling.columns;
    // An odd number of convolution columns: the last window ends at the even one.
    const bool odd_inside = 2 * column + 1 < arguments.source.cell_columns;
    const bool all_inside = 2 * (walk.column + width) <= arguments.source.cell_columns;
    const int64_t pixel = (int64_t{walk.image} * tiling.rows + walk.begin) * tiling.columns + column;
    int64_t out = pixel * arguments.out_channels + chunk + 8 * t;

    Values top[kTiles][2];  // the row above, from the step before
    for (int s = walk.begin - kLead; s < walk.begin; ++s, stager.rotate()) {
      stager.advance(s, walk);
      if (s == walk.begin - 1 && s >= 0) {
        convolution.template row<1>(stager.before, stager.current, [&](int tile, const Values& even, const Values& odd) {
          top[tile][0] = even;
          top[tile][1] = odd;
        });
      } else {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) top[tile][0] = top[tile][1] = Values{};
      }
      synchronize();
    }
#pragma unroll 1
    for (int s = walk.begin; s < walk.end; ++s, stager.rotate()) {
      stager.advance(s, walk);
      Kept best[kTiles][2];
      {
        Values middle[kTiles][2];
        convolution.template row<0>(stager.before, stager.current, [&](int tile, const Values& even, const Values& odd) {
          middle[tile][0] = even;
          middle[tile][1] = odd;
        });
        const auto pool = [&](int tile, const Values& even, const Values& odd) {
          best[tile][0] = Kept::column(top[tile][0], middle[tile][0], even);
          best[tile][1] = Kept::column(top[tile][1], middle[tile][1], odd);
          top[tile][0] = even;
          top[tile][1] = odd;
        };
        if (2 * s + 1 < arguments.source.cell_rows) {
          convolution.template row<1>(stager.before, stager.current, pool);
        } else {
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile) pool(tile, Values{}, Values{});
        }
      }
      if (!all_inside) {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
          for (int i = 0; i < Kept::kWords; ++i) best[tile][1].word[i] = odd_inside ? best[tile][1].word[i] : 0;
      }

      const uint32_t posted = mine + static_cast<uint32_t>((s & 1) * warps * 4 * kWords * 4);
      if (group == 7) {
#pragma unroll
        for (int i = 0; i < kWords; i += 4) {
          const auto word = [&](int k) { return best[k / Kept::kWords][1].word[k % Kept::kWords]; };
          store_shared(posted + static_cast<uint32_t>(4 * i), uint4{word(i), word(i + 1), word(i + 2), word(i + 3)});
        }
      }
      synchronize();

      uint32_t left[kWords];
#pragma unroll
      for (int i = 0; i < kWords; ++i)
        left[i] = shuffle_up(best[i / Kept::kWords][1].word[i % Kept::kWords], 4);
      if (group == 0) {
#pragma unroll
        for (int i = 0; i < kWords; i += 4) {
          uint4 four{0, 0, 0, 0};
          if (warp > 0) four = load_shared<uint4>(posted - static_cast<uint32_t>(4 * kWords * 4 - 4 * i));
          left[i] = four.x;
          left[i + 1] = four.y;
          left[i + 2] = four.z;
          left[i + 3] = four.w;
        }
      }
      constexpr int kRun = 2 * sizeof(T);  // words of eight channels
#pragma unroll
      for (int run = 0; run < kTiles / 4; ++run) {
        uint32_t value[kRun], codes[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int tile = 4 * run + i;
          Kept before;
#pragma unroll
          for (int k = 0; k < Kept::kWords; ++k) before.word[k] = left[tile * Kept::kWords + k];
          const Kept kept = Kept::row(before, best[tile][0], best[tile][1]);
#pragma unroll
          for (int k = 0; k < kRun / 4; ++k) value[i * (kRun / 4) + k] = kept.value(k);
          if constexpr (kArgmax) codes[i] = kept.codes();
        }
        if constexpr (!std::is_same_v<Sum, T>)
#pragma unroll
          for (uint32_t& word : value) word = pack<T>(low_half<Sum>(word), high_half<Sum>(word));
        if (kBytes && scaled) {
#pragma unroll
          for (int i = 0; i < kRun; i += 4) {
            const uint4 four = load_shared<uint4>(factors + static_cast<uint32_t>(32 * run * sizeof(T) + 4 * i));
            const uint32_t factor[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int k = 0; k < 4; ++k) value[i + k] = product<T>(value[i + k], factor[k]);
          }
        }
        if (!stores || chunk + 32 * run + 8 * t >= arguments.out_channels) break;
        uint4* const to = reinterpret_cast<uint4*>(static_cast<T*>(arguments.out) + out + 32 * run);
#pragma unroll
        for (int i = 0; i < kRun; i += 4) to[i / 4] = uint4{value[i], value[i + 1], value[i + 2], value[i + 3]};
        if constexpr (kArgmax)
          *reinterpret_cast<uint2*>(arguments.argmax + out + 32 * run) =
              uint2{distance_of_bytes(byte_perm(codes[0], codes[1], 0x5410), 0x08080808u),
                    distance_of_bytes(byte_perm(codes[2], codes[3], 0x5410), 0x08080808u)};
      }
      out += int64_t{tiling.columns} * arguments.out_channels;
    }
  }
}

template <typename T, bool kBytes, bool kArgmax, bool kGroups>
const char* launch_stem(const Arguments& arguments, const Task& task, void* stream) {
  using Kinds = Kind<T, kBytes, kArgmax>;
  const Tiling& tiling = arguments.tiling;
  const int threads = 4 * tiling.width;
  const int64_t shared = Table<T, kBytes, kArgmax>::kSharedBytes + kMatrices<T, kGroups> +
                         exchange_bytes<T, kBytes, kArgmax>(tiling.width) +
                         PixelRows<typename Kinds::Staged, true>::ring_bytes(tiling.width) +
                         raw_bytes(task.x.type, tiling.width);
  const auto kernel = stem_kernel<T, kBytes, kArgmax, kGroups>;
  int64_t blocks = 0;
  if (const char* error = resident_blocks(kernel, threads, shared, blocks)) return error;
  const int64_t chunks = (task.out_channels + Kinds::kChunk - 1) / Kinds::kChunk;
  const int64_t rows = tiling.batch * tiling.strips * tiling.rows;
  blocks = (blocks + chunks - 1) / chunks;
  return launch(kernel, blocks < rows ? blocks : rows, chunks, threads, shared, stream, arguments);
}

template <typename T, bool kBytes, bool kArgmax>
const char* launch_stem(const Stem& call, void* stream) {
  const Task& task = call.task;
  const auto scale = staged_scale<float>(task);
  const Arguments arguments{source_of(task), tiling_of(task, Kind<T, kBytes, kArgmax>::kWarps), call.weight, call.bias,
                            {scale[0], scale[1], scale[2]}, static_cast<int>(task.out_channels), call.out, call.argmax};
  if constexpr (kBytes && !kArgmax && sizeof(T) == 2)
    if (arguments.tiling.width % 32 == 0) return launch_stem<T, true, false, true>(arguments, task, stream);
  return launch_stem<T, kBytes, kArgmax, false>(arguments, task, stream);
}

template <typename T>
const char* launch_stem(const Stem& call, void* stream) {
  if (call.task.x.type == Type::kUInt8)
    return call.argmax ? launch_stem<T, true, true>(call, stream) : launch_stem<T, true, false>(call, stream);
  return call.argmax ? launch_stem<T, false, true>(call, stream) : launch_stem<T, false, false>(call, stream);
}

}  // namespace

const char* stem(const Stem& call, void* stream) {
  if (call.task.batch == 0) return nullptr;
  switch (call.out_type) {
    case Type::kBFloat16: return launch_stem<BFloat16>(call, stream);
    case Type::kFloat16: return launch_stem<Float16>(call, stream);
    case Type::kFloat32: return launch_stem<float>(call, stream);
    default: return "the stem has no uint8 result";
  }
}

}  // namespace npr::cuda
