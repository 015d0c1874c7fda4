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
#include "stem_convolution.h"

namespace npr::cuda {
namespace {

// Chooses how rows are convolved. Warpgroups need strips of 32 pooled columns. They are faster if the results have 16
// bits.
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
