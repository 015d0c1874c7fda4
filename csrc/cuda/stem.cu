// The stem: NPR, convolution, bias, ReLU and the 3x3 max-pool with stride 2 in one pass. It also writes the argmax if
// asked.
//
// A warp has eight pooled columns (sixteen convolution columns) and a chunk of output channels, and walks down the
// rows. For a row of the convolution it multiplies 16 positions x 32 products x the channels. Lane (g, t) = (lane / 4,
// lane % 4) reads the records of two taps at the convolution columns 2g and 2g + 1. These words are the fragments that
// mma needs, because the 32 products (8 taps with 3 differences and a constant each) may be in any order. The tap that
// sees the anchor is always zero and is left out. The constants multiply the bias, which is split into three parts so
// that it loses no precision.
//
// Each lane's accumulators then have an even and an odd column next to each other. So vertical maxima need no exchange
// between lanes. Horizontal maxima need only the odd column of the left neighbour, from one shuffle, or through shared
// memory from the warp on the left. Channels are assigned so that each lane stores 16 consecutive bytes.
#include "stem_groups.h"

namespace npr::cuda {
namespace {

template <typename T, bool kBytes, bool kArgmax>
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
  using Rows = std::conditional_t<Kinds::kTensorCores, TensorCores<T, kBytes, kArgmax>, Float32<kArgmax>>;
  const Rows convolution(arguments, shared, Ring::pitch_of(width));
  const uint32_t factors = shared_address(shared) + Parameters::kRows * Parameters::kChannels * 4 + 8 * t * sizeof(T);
  const uint32_t exchange = shared_address(shared) + static_cast<uint32_t>(Parameters::kSharedBytes);
  const uint32_t mine = exchange + static_cast<uint32_t>((warp * 4 + t) * kWords * 4);
  const uint32_t ring = exchange + static_cast<uint32_t>(exchange_bytes<T, kBytes, kArgmax>(width));
  const uint32_t raw = ring + static_cast<uint32_t>(Ring::ring_bytes(width));
  Stager<Staged, kBytes, Ring> stager(arguments.source, ring, raw, width);

  Walk walk(tiling);
  while (walk.next(tiling)) {
    stager.start(walk);
    const int column = walk.column + 8 * warp + group;
    const bool stores = 8 * warp + group >= walk.first && column < tiling.columns;
    // If the number of convolution columns is odd, the last window has no odd column.
    const bool odd_inside = 2 * column + 1 < arguments.source.cell_columns;
    const bool all_inside = 2 * (walk.column + width) <= arguments.source.cell_columns;
    const int64_t pixel = (int64_t{walk.image} * tiling.rows + walk.begin) * tiling.columns + column;
    int64_t out = pixel * arguments.out_channels + chunk + 8 * t;

    Values top[kTiles][2];  // the row above, from the previous step
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
      constexpr int kRun = 2 * sizeof(T);  // number of words for eight channels
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

// The stem of uint8 images with 16-bit results, on Hopper. A step ends the row of the step before: after the barrier, all
// channels of its pixels are in shared memory, and each thread stores 16 bytes of two pixels.
template <typename T>
NPR_KERNEL(256, (std::is_same_v<T, Float16> ? 2 : 3))
group_stem_kernel(const Arguments arguments) {
#ifdef NPR_HAS_WARPGROUPS
  using Parameters = Table<T, true, false>;
  const Tiling& tiling = arguments.tiling;
  const int width = tiling.width, lane = thread_index() % 32, warp = thread_index() / 32, g = lane / 4, t = lane % 4;
  const int chunk = block_row() * Parameters::kChannels;

  unsigned char* const shared = shared_memory();
  const bool scaled = Parameters::fill(arguments, chunk, shared);
  const uint32_t exchange = shared_address(shared) + static_cast<uint32_t>(Parameters::kSharedBytes);
  const uint32_t factors = exchange - kPixelBytes;
  const uint32_t results = exchange + 2 * kRunExchange;
  const uint32_t ring = results + 2 * kRunResults;
  const uint32_t words = exchange + static_cast<uint32_t>(warp / 4 * kRunWords + (warp % 4 * 8 + g) * 8);
  if (warp < 4 && t == 0)
    for (int i = 0; i < 2; ++i) store_shared(words + static_cast<uint32_t>(i * kRunExchange), uint2{0, 0});
  const RunProducts products(arguments, shared);
  const uint32_t raw = ring + static_cast<uint32_t>(RunRows::ring_bytes(width));
  Stager<Float16, true, RunRows> stager(arguments.source, ring, raw, width);
  const uint32_t second = static_cast<uint32_t>(stager.layout.row_bytes);  // offset of the second row of a pair

  // Where this lane stores rows of eight channels, and where this thread reads 16 bytes of two pixels. The pieces of a
  // pixel are permuted, so that pixels of different runs are in different banks.
  const int run = lane % 8, piece = thread_index() % 8, pixel = thread_index() / 8 * 2;
  const uint32_t write = results + static_cast<uint32_t>((warp / 4 * 32 + run * 4 + lane / 16) * kPixelBytes +
                                                         ((warp % 4 * 2 + lane / 8 % 2) ^ run) * 16);
  const uint32_t read = results + static_cast<uint32_t>(pixel * kPixelBytes + (piece ^ pixel / 4 % 8) * 16);

  Walk walk(tiling);
  while (walk.next(tiling)) {
    stager.start(walk);
    const int end = arguments.source.cell_columns - 2 * walk.column;  // first position outside the image
    const bool wanted = chunk + 8 * piece < arguments.out_channels;
    const auto stores = [&](int column) {
      return wanted && column >= walk.first && walk.column + column < tiling.columns;
    };
    const bool store_first = stores(pixel), store_second = stores(pixel + 1);
    const int64_t first = (int64_t{walk.image} * tiling.rows + walk.begin) * tiling.columns + walk.column + pixel;
    T* out = static_cast<T*>(arguments.out) + first * arguments.out_channels + chunk + 8 * piece;
    // Stores the pooled row of step s.
    const auto finish = [&](int s) {
      const uint32_t from = read + static_cast<uint32_t>((s & 1) * kRunResults);
      uint4 value[2] = {load_shared<uint4>(from), load_shared<uint4>(from + kPixelBytes)};
      if (scaled) {
        const uint4 factor = load_shared<uint4>(factors + static_cast<uint32_t>(thread_index_anew() % 8 * 16));
#pragma unroll
        for (uint4& four : value)
          four = {product<T>(four.x, factor.x), product<T>(four.y, factor.y), product<T>(four.z, factor.z),
                  product<T>(four.w, factor.w)};
      }
      if (store_first) *reinterpret_cast<uint4*>(out) = value[0];
      if (store_second) *reinterpret_cast<uint4*>(out + arguments.out_channels) = value[1];
      out += int64_t{tiling.columns} * arguments.out_channels;
    };

    const bool all_inside = end >= 2 * width;
#pragma unroll 1
    for (int s = walk.begin - kLead; s < walk.begin; ++s, stager.rotate()) {
      stager.advance(s, walk);
      fence_shared();
      synchronize();
    }
    RunWindows top{};  // the row above, from the previous step
    if (walk.begin > 0) {
      uint32_t sum[16];
      products.begin(sum, stager.before + second);
      await_products(sum);
      top = RunWindows(sum, all_inside, end);
    }
#pragma unroll 1
    for (int s = walk.begin; s < walk.end; ++s, stager.rotate()) {
      uint32_t sum[16];
      products.begin(sum, stager.current);
      stager.advance(s, walk);
      await_products(sum);
      RunWindows best(sum, all_inside, end);
#pragma unroll
      for (int i = 0; i < 8; ++i) best.window[i / 2][i % 2] = max_halves(best.window[i / 2][i % 2], top.window[i / 2][i % 2]);
      // If the number of rows is odd, the last window has no second row. The first row takes its place.
      uint32_t next[16];
      products.begin(next, stager.current + (2 * s + 1 < arguments.source.cell_rows ? second : 0));
      await_products(next);
      const RunWindows bottom(next, all_inside, end);
      uint32_t last[2], value[8];
#pragma unroll
      for (int k = 0; k < 2; ++k) last[k] = max3_halves(top.last[k], best.last[k], bottom.last[k]);
#pragma unroll
      for (int i = 0; i < 8; ++i) value[i] = max_halves_relu(best.window[i / 2][i % 2], bottom.window[i / 2][i % 2]);
      top = bottom;

      const uint32_t received = words + static_cast<uint32_t>((s & 1) * kRunExchange);
      const int quad_lane = thread_index_anew() % 4;
      if (quad_lane == 3) store_shared(received + kRunWords, uint2{last[0], last[1]});
      fence_shared();
      synchronize();
      if (s > walk.begin) finish(s - 1);

      // The last columns of the runs on the left: in the other half, in the lane on the left or in the other warpgroup.
      uint2 left{shuffle_up(last[0], 1), shuffle_up(last[1], 1)};
      if (quad_lane == 0) left = load_shared<uint2>(received);
      value[0] = max_halves(value[0], byte_perm(left.x, last[0], 0x5432));
      value[1] = max_halves(value[1], byte_perm(left.y, last[1], 0x5432));
      if constexpr (!std::is_same_v<T, Float16>)
#pragma unroll
        for (uint32_t& word : value) word = pack<T>(low_half<Float16>(word), high_half<Float16>(word));
      const uint32_t to = write + static_cast<uint32_t>((s & 1) * kRunResults);
      store_transposed(to, value[0], value[1], value[2], value[3]);
      store_transposed(to + 2 * kPixelBytes, value[4], value[5], value[6], value[7]);
    }
    synchronize();
    finish(walk.end - 1);
  }
#endif
}

const char* launch_stem(void (*kernel)(Arguments), const Arguments& arguments, const Task& task, int chunk, int64_t shared,
                        void* stream) {
  const Tiling& tiling = arguments.tiling;
  const int threads = 4 * tiling.width;
  int64_t blocks = 0;
  if (const char* error = resident_blocks(kernel, threads, shared, blocks)) return error;
  const int64_t chunks = (task.out_channels + chunk - 1) / chunk;
  const int64_t rows = tiling.batch * tiling.strips * tiling.rows;
  blocks = (blocks + chunks - 1) / chunks;
  return launch(kernel, blocks < rows ? blocks : rows, chunks, threads, shared, stream, arguments);
}

template <typename T>
const char* launch_groups(const Arguments& arguments, const Task& task, void* stream) {
  const Tiling& tiling = arguments.tiling;
  const int64_t shared = Table<T, true, false>::kSharedBytes + 2 * kRunExchange + 2 * kRunResults +
                         RunRows::ring_bytes(tiling.width) + raw_bytes(task.x.type, tiling.width);
  return launch_stem(group_stem_kernel<T>, arguments, task, Kind<T, true, false>::kChunk, shared, stream);
}

template <typename T, bool kBytes, bool kArgmax>
const char* launch_stem(const Stem& call, void* stream) {
  const Task& task = call.task;
  const auto scale = staged_scale<float>(task);
  const Arguments arguments{source_of(task), tiling_of(task, Kind<T, kBytes, kArgmax>::kWarps), call.weight, call.bias,
                            {scale[0], scale[1], scale[2]}, static_cast<int>(task.out_channels), call.out, call.argmax};
  const int width = arguments.tiling.width;
  if constexpr (kBytes && !kArgmax && sizeof(T) == 2)
    if (width % 32 == 0 && !without_warpgroups()) return launch_groups<T>(arguments, task, stream);
  const int64_t shared = Table<T, kBytes, kArgmax>::kSharedBytes + exchange_bytes<T, kBytes, kArgmax>(width) +
                         PixelRows<typename Kind<T, kBytes, kArgmax>::Staged, true>::ring_bytes(width) +
                         raw_bytes(task.x.type, width);
  return launch_stem(stem_kernel<T, kBytes, kArgmax>, arguments, task, Kind<T, kBytes, kArgmax>::kChunk, shared, stream);
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
