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
// Cost in bfloat16 for 64 channels and uint8 pixels, as compiled for sm_90: about 290 instructions of a warp for a step of
// eight pooled columns (32 mma, 16 loads of records, 32 conversions with ReLU, 40 maxima, 8 shuffles; the rest addresses,
// exchange, moves and the store) and 150 in every second warp for staging: 45 for a pooled pixel. A 256x256 image has
// 4096 of them: 0.19e6 instructions, 0.21 us on 132 processors x 4 schedulers x 1.7 GHz, beside the 0.24 us that its
// 708 KiB take at 3 TB/s. Tensor cores: 16384 mma, 0.11 to 0.15 us. Shared memory: 0.06 us. So the traffic decides, but
// not by much: two blocks of eight warps on a processor must keep the schedulers busy.
#include "staging.h"

namespace npr::cuda {
namespace {

// Taps by slot, for anchor 0: rows and columns -1, 0, 1 as 0, 1, 2 in nibbles. Slots t and t + 4 belong to lane t of a
// quad; the four of a load are in four different banks (Record::spread).
constexpr uint32_t kTapRows = 0x20221100, kTapColumns = 0x11022020;

struct Tap {
  int dy, dx;
};

// The centre takes the place of the tap that sees the anchor itself.
NPR_DEVICE Tap tap_of(int slot, int anchor) {
  const Tap tap{static_cast<int>(kTapRows >> 4 * slot & 15) - 1, static_cast<int>(kTapColumns >> 4 * slot & 15) - 1};
  return anchor > 0 && tap.dy == anchor >> 1 && tap.dx == (anchor & 1) ? Tap{0, 0} : tap;
}

struct Arguments {
  Source source;
  Tiling tiling;
  const float* weight;
  const float* bias;
  float scale[3];  // for the differences as they are staged
  int out_channels;
  void* out;
  uint8_t* argmax;
};

// A warp's chunk of channels, in tiles of 8 (mma's n); lane t = lane % 4 of a quad holds columns 2t and 2t + 1 of each.
// Neighbouring channels come from different tiles, so that a lane's are neighbours, in runs of eight.
template <typename T>
constexpr int kTiles = sizeof(T) == 4 ? 4 : 8;
template <typename T>
constexpr int kChunk = 8 * kTiles<T>;
template <typename T>
constexpr int kRuns = kTiles<T> / 4;
NPR_DEVICE int channel_of(int tile, int column) { return tile / 4 * 32 + column / 2 * 8 + tile % 4 * 2 + column % 2; }

// Two channels' outputs of the convolution after ReLU, as words whose order as unsigned numbers is that of the values
// with NaN at the top.
template <typename T>
struct Pair {
  static constexpr int kWords = 1;
  uint32_t word[1];
  static NPR_DEVICE Pair of(float a, float b) { return {{pack_relu<T>(a, b)}}; }
  NPR_DEVICE uint32_t bits(int channel) const { return channel ? word[0] >> 16 : word[0] & 0xffffu; }
};
template <>
struct Pair<float> {
  static constexpr int kWords = 2;
  uint32_t word[2];
  static NPR_DEVICE Pair of(float a, float b) { return {{as_bits(relu(a)), as_bits(relu(b))}}; }
  NPR_DEVICE uint32_t bits(int channel) const { return word[channel]; }
};

NPR_DEVICE uint32_t max_bits(uint32_t a, uint32_t b) { return a > b ? a : b; }

// What the pooling keeps of two channels while it looks for a maximum.
template <typename T, bool kArgmax>
struct Best;

template <typename T>
struct Best<T, false> {
  static constexpr int kWords = Pair<T>::kWords;
  uint32_t word[kWords];

  static NPR_DEVICE uint32_t max_word(uint32_t a, uint32_t b) {
    if constexpr (sizeof(T) == 4) return max_bits(a, b);
    else return max_halves<T>(a, b);
  }
  static NPR_DEVICE Best column(const Pair<T>& top, const Pair<T>& middle, const Pair<T>& bottom) {
    Best best;
#pragma unroll
    for (int i = 0; i < kWords; ++i) best.word[i] = max_word(max_word(top.word[i], middle.word[i]), bottom.word[i]);
    return best;
  }
  static NPR_DEVICE Best row(const Best& left, const Best& middle, const Best& right) {
    Best best;
#pragma unroll
    for (int i = 0; i < kWords; ++i) best.word[i] = max_word(max_word(left.word[i], middle.word[i]), right.word[i]);
    return best;
  }
  NPR_DEVICE Pair<T> value() const {
    Pair<T> pair;
#pragma unroll
    for (int i = 0; i < kWords; ++i) pair.word[i] = word[i];
    return pair;
  }
};

// With the argmax a candidate is (value, 8 - position in the window), compared in that order, so that the first of
// equals wins. 8 - position = 3 (2 - row) + (2 - column), added where the row and the column become known.
template <typename T>
struct Best<T, true> {  // 16-bit: value << 16 | 8 - position in one word
  static constexpr int kWords = 2;
  uint32_t word[2];

  static NPR_DEVICE Best column(const Pair<T>& top, const Pair<T>& middle, const Pair<T>& bottom) {
    const auto low = [](const Pair<T>& p, uint32_t code) { return byte_perm(p.word[0], code, 0x1054); };
    const auto high = [](const Pair<T>& p, uint32_t code) { return (p.word[0] & 0xffff0000u) | code; };
    return {{max_bits(max_bits(low(top, 6), low(middle, 3)), low(bottom, 0)),
             max_bits(max_bits(high(top, 6), high(middle, 3)), high(bottom, 0))}};
  }
  static NPR_DEVICE Best row(const Best& left, const Best& middle, const Best& right) {
    Best best;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      best.word[i] = max_bits(max_bits(left.word[i] + 2, middle.word[i] + 1), right.word[i]);
    return best;
  }
  NPR_DEVICE Pair<T> value() const { return {{byte_perm(word[0], word[1], 0x7632)}}; }
  NPR_DEVICE uint32_t position(int channel) const {
    return word[channel] < 0x10000u ? 9 : 8 - (word[channel] & 15u);
  }
};
template <>
struct Best<float, true> {  // words: value, value, 8 - position, 8 - position
  static constexpr int kWords = 4;
  uint32_t word[4];

  static NPR_DEVICE void keep_greater(uint32_t& value, uint32_t& code, uint32_t other, uint32_t other_code) {
    const bool greater = other > value || (other == value && other_code > code);
    value = greater ? other : value;
    code = greater ? other_code : code;
  }
  static NPR_DEVICE Best column(const Pair<float>& top, const Pair<float>& middle, const Pair<float>& bottom) {
    Best best{{top.word[0], top.word[1], 6, 6}};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      keep_greater(best.word[i], best.word[2 + i], middle.word[i], 3);
      keep_greater(best.word[i], best.word[2 + i], bottom.word[i], 0);
    }
    return best;
  }
  static NPR_DEVICE Best row(const Best& left, const Best& middle, const Best& right) {
    Best best{{left.word[0], left.word[1], left.word[2] + 2, left.word[3] + 2}};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      keep_greater(best.word[i], best.word[2 + i], middle.word[i], middle.word[2 + i] + 1);
      keep_greater(best.word[i], best.word[2 + i], right.word[i], right.word[2 + i]);
    }
    return best;
  }
  NPR_DEVICE Pair<float> value() const { return {{word[0], word[1]}}; }
  NPR_DEVICE uint32_t position(int channel) const { return word[channel] == 0 ? 9 : 8 - word[2 + channel]; }
};

// Rows of the convolution on the tensor cores.
template <typename T>
struct Convolution {
  static constexpr int64_t kSharedBytes = 0;
  static constexpr int kTiles = cuda::kTiles<T>;
  uint32_t weight[2][kTiles][2];  // fragments for the taps in slots t and t + 4
  int offset[2][2];               // of the taps' records in their row, at an even and at an odd column
  int dy[2];

  NPR_DEVICE Convolution(const Arguments& arguments, int chunk, unsigned char*) {
    const int lane = thread_index() % 32, warp = thread_index() / 32;
    const int anchor = arguments.source.anchor;
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const int slot = lane % 4 + 4 * x;
      const Tap tap = tap_of(slot, anchor);
      dy[x] = tap.dy;
#pragma unroll
      for (int odd = 0; odd < 2; ++odd)
        offset[x][odd] = record_offset<T, true>(4 * (8 * warp + lane / 4) + 2 * odd + tap.dx, tap.dy + 4);
      // The constant of a pixel in the position's own cell is 1 wherever there is a position: three taps for the bias.
      int part = -1;
#pragma unroll
      for (int other = 0; other < 8; ++other) {
        const Tap before = tap_of(other, anchor);
        part += other <= slot && before.dy >= 0 && before.dx >= 0;
      }
      if (tap.dy < 0 || tap.dx < 0) part = -1;
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        const int channel = chunk + channel_of(tile, lane / 4);
        const bool exists = channel < arguments.out_channels;
        float w[3] = {0, 0, 0};
#pragma unroll
        for (int c = 0; c < 3; ++c)
          if (exists)
            w[c] = arguments.scale[c] * arguments.weight[(channel * 3 + c) * 9 + (tap.dy + 1) * 3 + tap.dx + 1];
        const float bias = exists && arguments.bias ? part_of(arguments.bias[channel], part) : 0;
        weight[x][tile][0] = pack<T>(w[0], w[1]);
        weight[x][tile][1] = pack<T>(w[2], bias);
      }
    }
  }

  // One of the three terms, each rounded to T, that sum up to the value; 0 for part -1.
  static NPR_DEVICE float part_of(float value, int part) {
    const float second = rest_of(value), third = rest_of(second);
    return part == 0 ? value : part == 1 ? second : part == 2 ? third : 0;
  }
  static NPR_DEVICE float rest_of(float value) {
    const float rounded = low_half<T>(pack<T>(value, 0));
    return rounded - rounded == 0 ? value - rounded : 0;  // infinity and NaN have no rest
  }

  // Convolution row 2s + kRow, of pair `current` and the one before it; take(tile, even column, odd column) gets it.
  template <int kRow, typename Take>
  NPR_DEVICE void row(const unsigned char* before, const unsigned char* current, int pitch, const Take& take) const {
    uint32_t fragment[2][4];
#pragma unroll
    for (int x = 0; x < 2; ++x) {
      const unsigned char* base = current + (2 * kRow + dy[x]) * pitch;
      if (kRow == 0 && dy[x] < 0) base = before + 3 * pitch;
#pragma unroll
      for (int odd = 0; odd < 2; ++odd) {
        // Two rows further the spread has turned by two records.
        const unsigned char* const record = base + (offset[x][odd] ^ (kRow * 16));
        fragment[x][odd] = load_word(record);
        fragment[x][2 + odd] = load_word(record + 4);
      }
    }
    float sum[kTiles][4] = {};
#pragma unroll
    for (int x = 0; x < 2; ++x)
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile)
        multiply<T>(sum[tile], fragment[x], weight[x][tile][0], weight[x][tile][1]);
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
      take(tile, Pair<T>::of(sum[tile][0], sum[tile][1]), Pair<T>::of(sum[tile][2], sum[tile][3]));
  }
};

// Rows of the convolution in float32, all nine taps in order; the weights in shared memory as (27 + bias, channels).
template <>
struct Convolution<float> {
  static constexpr int kTiles = cuda::kTiles<float>;
  static constexpr int kChannels = kChunk<float>;
  static constexpr int64_t kSharedBytes = 28 * kChannels * 4;
  const float* weight;  // of this lane's first channel
  int offset[5];        // of the pixels that the lane's two positions see, left to right

  NPR_DEVICE Convolution(const Arguments& arguments, int chunk, unsigned char* shared) {
    const int lane = thread_index() % 32, warp = thread_index() / 32;
    float* const table = reinterpret_cast<float*>(shared);
    for (int i = thread_index(); i < 28 * kChannels; i += block_threads()) {
      const int channel = chunk + i % kChannels, k = i / kChannels;
      table[i] = 0;
      if (channel >= arguments.out_channels) continue;
      if (k < 27) table[i] = arguments.weight[channel * 27 + k % 3 * 9 + k / 3] * arguments.scale[k % 3];
      if (k == 27 && arguments.bias) table[i] = arguments.bias[channel];
    }
    weight = table + 8 * (lane % 4);
#pragma unroll
    for (int i = 0; i < 5; ++i) offset[i] = record_offset<float, true>(4 * (8 * warp + lane / 4) + i - 1, 0);
  }

  // The lane's channels of row k of the table, in the order of (tile, column).
  NPR_DEVICE void load(float (&out)[2 * kTiles], int k) const {
#pragma unroll
    for (int i = 0; i < 2 * kTiles; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(weight + k * kChannels + i);
      out[i] = four.x;
      out[i + 1] = four.y;
      out[i + 2] = four.z;
      out[i + 3] = four.w;
    }
  }

  template <int kRow, typename Take>
  NPR_DEVICE void row(const unsigned char* before, const unsigned char* current, int pitch, const Take& take) const {
    float sum[2][2 * kTiles];
    load(sum[0], 27);
#pragma unroll
    for (int i = 0; i < 2 * kTiles; ++i) sum[1][i] = sum[0][i];
#pragma unroll 1
    for (int dy = -1; dy < 2; ++dy) {
      const unsigned char* const base = kRow == 0 && dy < 0 ? before + 3 * pitch : current + (2 * kRow + dy) * pitch;
      float4 pixel[5];
#pragma unroll
      for (int i = 0; i < 5; ++i) pixel[i] = *reinterpret_cast<const float4*>(base + offset[i]);
#pragma unroll
      for (int dx = 0; dx < 3; ++dx)
#pragma unroll
        for (int c = 0; c < 3; ++c) {
          float w[2 * kTiles];
          load(w, ((dy + 1) * 3 + dx) * 3 + c);
#pragma unroll
          for (int odd = 0; odd < 2; ++odd) {
            const float4& p = pixel[dx + 2 * odd];
            const float value = c == 0 ? p.x : c == 1 ? p.y : p.z;
#pragma unroll
            for (int i = 0; i < 2 * kTiles; ++i) sum[odd][i] += w[i] * value;
          }
        }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
      take(tile, Pair<float>::of(sum[0][2 * tile], sum[0][2 * tile + 1]),
           Pair<float>::of(sum[1][2 * tile], sum[1][2 * tile + 1]));
  }
};

template <typename T, bool kArgmax>
struct Shape {  // of a block; registers decide
  static constexpr int kWarps = sizeof(T) == 4 || kArgmax ? 4 : 8;
  static constexpr int kBlocks = sizeof(T) == 4 || kArgmax ? 3 : 2;  // on a processor, at least
};

// Words that a warp posts for its right neighbour; one buffer for even steps, one for odd.
template <typename T, bool kArgmax>
constexpr int kPosted = 4 * kTiles<T> * Best<T, kArgmax>::kWords;
template <typename T, bool kArgmax>
NPR_CONSTANT int64_t exchange_bytes(int width) { return int64_t{2} * (width / 8) * kPosted<T, kArgmax> * 4; }

template <typename T, bool kArgmax>
NPR_KERNEL(32 * (Shape<T, kArgmax>::kWarps), (Shape<T, kArgmax>::kBlocks))
stem_kernel(const Arguments arguments) {
  using Kept = Best<T, kArgmax>;
  constexpr int kTiles = cuda::kTiles<T>;
  const Tiling& tiling = arguments.tiling;
  const int width = tiling.width, warps = width / 8;
  const int lane = thread_index() % 32, warp = thread_index() / 32, group = lane / 4, t = lane % 4;
  const int chunk = block_row() * kChunk<T>;

  unsigned char* shared = shared_memory();
  const Convolution<T> convolution(arguments, chunk, shared);
  shared += Convolution<T>::kSharedBytes;
  unsigned char* const ring = shared;
  shared += ring_bytes(Record<T>::kBytes, width);
  uint32_t* const exchange = reinterpret_cast<uint32_t*>(shared);
  shared += exchange_bytes<T, kArgmax>(width);
  Stager<T, true> stager(arguments.source, ring, shared, width);
  stager.clear_left();

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

    Pair<T> top[kTiles][2] = {};  // the row above, from the step before
    for (int s = walk.begin - kLead; s < walk.end; ++s) {
      stager.advance(s, walk);
      if (s < walk.begin - 1) {
        synchronize();
        continue;
      }
      Kept best[kTiles][2];
      {
        const unsigned char *const before = stager.pair(s - 1), *const current = stager.pair(s);
        Pair<T> middle[kTiles][2] = {};
        if (s >= walk.begin)
          convolution.template row<0>(before, current, stager.pitch,
                                      [&](int tile, const Pair<T>& even, const Pair<T>& odd) {
                                        middle[tile][0] = even;
                                        middle[tile][1] = odd;
                                      });
        const auto pool = [&](int tile, const Pair<T>& even, const Pair<T>& odd) {
          best[tile][0] = Kept::column(top[tile][0], middle[tile][0], even);
          best[tile][1] = Kept::column(top[tile][1], middle[tile][1], odd);
          top[tile][0] = even;
          top[tile][1] = odd;
        };
        if (s >= 0 && 2 * s + 1 < arguments.source.cell_rows) {
          convolution.template row<1>(before, current, stager.pitch, pool);
        } else {
#pragma unroll
          for (int tile = 0; tile < kTiles; ++tile) pool(tile, Pair<T>{}, Pair<T>{});
        }
      }
      if (!all_inside) {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
          for (int i = 0; i < Kept::kWords; ++i) best[tile][1].word[i] = odd_inside ? best[tile][1].word[i] : 0;
      }

      // Words of lane t of a quad, of a warp's last odd column, lie 4 apart.
      uint32_t* const posted = exchange + ((s & 1) * warps + warp) * kPosted<T, kArgmax> + t;
      if (group == 7) {
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
          for (int i = 0; i < Kept::kWords; ++i) posted[4 * (tile * Kept::kWords + i)] = best[tile][1].word[i];
      }
      synchronize();
      if (s < walk.begin) continue;

      uint32_t value[kTiles * Pair<T>::kWords];
      uint32_t position[kTiles];
#pragma unroll
      for (int tile = 0; tile < kTiles; ++tile) {
        Kept left;
#pragma unroll
        for (int i = 0; i < Kept::kWords; ++i) {
          left.word[i] = shuffle(best[tile][1].word[i], (lane + 28) % 32);
          if (group == 0)
            left.word[i] = warp > 0 ? posted[4 * (tile * Kept::kWords + i) - kPosted<T, kArgmax>] : 0;
        }
        const Kept kept = Kept::row(left, best[tile][0], best[tile][1]);
        const Pair<T> pair = kept.value();
#pragma unroll
        for (int i = 0; i < Pair<T>::kWords; ++i) value[tile * Pair<T>::kWords + i] = pair.word[i];
        if constexpr (kArgmax) position[tile] = kept.position(0) | kept.position(1) << 8;
      }
#pragma unroll
      for (int run = 0; run < kRuns<T>; ++run) {
        if (!stores || chunk + 32 * run + 8 * t >= arguments.out_channels) break;
        constexpr int kWords = 2 * sizeof(T);
        uint4* const to = reinterpret_cast<uint4*>(static_cast<T*>(arguments.out) + out + 32 * run);
#pragma unroll
        for (int i = 0; i < kWords; i += 4) {
          const uint32_t* const words = value + kWords * run + i;
          to[i / 4] = uint4{words[0], words[1], words[2], words[3]};
        }
        if constexpr (kArgmax) {
          const uint32_t* const p = position + 4 * run;
          *reinterpret_cast<uint2*>(arguments.argmax + out + 32 * run) = uint2{p[0] | p[1] << 16, p[2] | p[3] << 16};
        }
      }
      out += int64_t{tiling.columns} * arguments.out_channels;
    }
  }
}

template <typename T, bool kArgmax>
const char* launch_stem(const Stem& call, void* stream) {
  const Task& task = call.task;
  const auto scale = staged_scale<float>(task);
  const Arguments arguments{source_of(task), tiling_of(task, Shape<T, kArgmax>::kWarps), call.weight, call.bias,
                            {scale[0], scale[1], scale[2]}, static_cast<int>(task.out_channels), call.out, call.argmax};
  const Tiling& tiling = arguments.tiling;
  const int threads = 4 * tiling.width;
  const int64_t shared = Convolution<T>::kSharedBytes + ring_bytes(Record<T>::kBytes, tiling.width) +
                         exchange_bytes<T, kArgmax>(tiling.width) + raw_bytes(task.x.type, tiling.width);
  const auto kernel = stem_kernel<T, kArgmax>;
  int64_t blocks = 0;
  if (const char* error = resident_blocks(kernel, threads, shared, blocks)) return error;
  const int64_t chunks = (task.out_channels + kChunk<T> - 1) / kChunk<T>;
  const int64_t rows = tiling.batch * tiling.strips * tiling.rows;
  blocks = (blocks + chunks - 1) / chunks;
  return launch(kernel, blocks < rows ? blocks : rows, chunks, threads, shared, stream, arguments);
}

template <typename T>
const char* launch_stem(const Stem& call, void* stream) {
  return call.argmax ? launch_stem<T, true>(call, stream) : launch_stem<T, false>(call, stream);
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
