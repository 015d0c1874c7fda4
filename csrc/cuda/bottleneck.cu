// The part of a residual bottleneck after its first convolution, and the first convolution of the next block, on Hopper
// GPUs. It uses bfloat16 and channels_last, with sums in float32.
//
// A warpgroup computes 8x8 pixels. The pixels that its 3x3 convolution sees are in shared memory, as one plane for
// every 8 channels with 16 bytes per pixel. So every tap is the same matrix, beginning at another pixel. The results of
// the 3x3 convolution stay in registers as a factor of the third convolution. The results of the third convolution are
// a factor of the next block's first convolution. So each tensor is read or written once: for an image of 256x256
// pixels, the seven blocks move 22.5 MB, which takes 7.5 us at 3 TB/s, and the products take 4.6 us at the peak.
//
// The weights come from the L2 cache, once for every 128 or 192 pixels, through a ring of slots in shared memory that
// is filled ahead. A slot holds one stage. The first stages are the taps of the 3x3 convolution. Each later stage has
// everything for 32 channels of the result: their columns of conv3 and of the shortcut's convolution, their rows of the
// next conv1, and the pixels of the shortcut.
//
// The order of a result's channels (`order_of_channels` in npr_kernels/trunk/hopper_bottleneck.py) gives each thread 8
// neighbouring channels of every 32, so that it reads and writes 16 bytes at once.
#include "kernels.h"
#include "warpgroup.h"

#include <array>

#if defined(__CUDA_ARCH__) && !defined(NPR_HAS_WARPGROUPS)
#pragma nv_diag_suppress 177  // for other devices the kernel is empty and refers to nothing
#endif

namespace npr::cuda {
namespace {

constexpr int kSide = 8;   // rows and columns of the result that a warpgroup computes
constexpr int kStep = 32;  // channels of the result in a stage

// Sizes of a kernel. kProjected: channels of x if the shortcut is a convolution, else 0. kKept: every kKept-th row and
// column of the result is written; if 0, sums are written instead. kNext: channels of the next block's first
// convolution, or 0.
template <int kMiddle, int kStride, int kProjected, int kKept, int kNext>
struct Plan {
  static constexpr int kOutputs = 4 * kMiddle;
  static constexpr bool kTwice = kMiddle == 64 && kNext == 64;                // two blocks fit on a multiprocessor
  static constexpr int kBlocks = kTwice ? 2 : 1, kGroups = kTwice || kStride == 2 ? 2 : 3;  // warpgroups per block
  static constexpr int kThreads = 128 * kGroups;
  static constexpr int kSlots = kTwice ? 3 : kStride == 2 ? 2 : 4;

  // Number of rows and columns that the convolution sees. With stride 2, the even columns are stored before the odd
  // ones. The size of a plane keeps 8 planes in different banks.
  static constexpr int kSeen = kStride * (kSide - 1) + 3;
  static constexpr int kPlane = (16 * kSeen * kSeen + 111) / 128 * 128 + 16;
  static constexpr int kTile = kMiddle / 8 * kPlane;  // bytes per warpgroup

  static constexpr int kTap = 2 * kMiddle * kMiddle, kTaps = kMiddle == 64 ? 3 : 1;  // bytes of a tap; taps in a stage
  static constexpr int kThird = 2 * kMiddle * kStep, kShortcut = 2 * kProjected * kStep, kFollowing = 2 * kStep * kNext;
  static constexpr int kFirst = kTaps * kTap, kSecond = kThird + kShortcut + kFollowing;  // bytes of weights in a stage
  static constexpr int kFirstStages = 9 / kTaps, kStages = kFirstStages + kOutputs / kStep;
  static constexpr int kPixels = kProjected ? 0 : 32 * kThreads;  // bytes of the shortcut in a stage
  static constexpr int kSlot = kFirst > kSecond + kPixels ? kFirst : kSecond + kPixels;

  static constexpr int kRing = kGroups * kTile, kBiases = kRing + kSlots * kSlot;  // where they begin in shared memory
  static constexpr int kBarriers = kBiases + 4 * (kMiddle + kOutputs + kNext), kShared = kBarriers + 16 * kSlots;
  static_assert(kSlots - 1 <= kFirstStages, "a tile's first slots are filled before its pixels are known");

  // The pixels of the next tile are copied in parts of kRoundsOfPart rounds, one part per stage, because every stage
  // waits for the copies of earlier stages.
  static constexpr int kPieces = kMiddle / 8, kAtOnce = 128 / kPieces;  // 16 bytes of a pixel; pixels in a round
  static constexpr int kRounds = (kSeen * kSeen + kAtOnce - 1) / kAtOnce;
  static constexpr int kParts = kOutputs / kStep - kSlots + 2, kRoundsOfPart = (kRounds + kParts - 1) / kParts;
  static_assert(kBlocks * (kShared + 1024) <= 228 << 10);

  NPR_CONSTANT static int at(int row, int column) {  // offset of a pixel in a plane
    return 16 * (row * kSeen + (kStride == 1 ? column : column / 2 + column % 2 * (kSeen + 1) / 2));
  }
};

NPR_CONSTANT int out_size(int size, int stride) { return (size - 1) / stride + 1; }

// Returns the number of tiles, which are `at_once` squares of 8x8 pixels each.
NPR_CONSTANT int tiles_of(const Bottleneck& call, int stride, int at_once) {
  const int across = out_size(out_size(call.width, stride), kSide), down = out_size(out_size(call.height, stride), kSide);
  return out_size(call.batch * across * down, at_once);
}

// The pixels of a warpgroup: their image, and the first row and column in the result.
struct Place {
  int image, row, column;
  bool exists;
};

NPR_DEVICE Place place(int batch, int height, int width, int index) {
  const int across = out_size(width, kSide), down = out_size(height, kSide);
  const int image = index / (across * down), rest = index % (across * down);
  return {image, rest / across * kSide, rest % across * kSide, image < batch};
}

struct Eight {
  float value[8];
};
NPR_DEVICE Eight load_eight(uint32_t from) {
  const uint4 low = load_shared<uint4>(from), high = load_shared<uint4>(from + 16);
  return {as_float(low.x), as_float(low.y), as_float(low.z), as_float(low.w),
          as_float(high.x), as_float(high.y), as_float(high.z), as_float(high.w)};
}

template <int kMiddle, int kStride, int kProjected, int kKept, int kNext>
NPR_KERNEL((Plan<kMiddle, kStride, kProjected, kKept, kNext>::kThreads),
           (Plan<kMiddle, kStride, kProjected, kKept, kNext>::kBlocks))
bottleneck_kernel(const Bottleneck call) {
#ifdef NPR_HAS_WARPGROUPS
  using P = Plan<kMiddle, kStride, kProjected, kKept, kNext>;
  const int thread = thread_index(), group = uniform(thread / 128), warp = thread / 32 % 4;
  const int g = thread % 32 / 4, t = thread % 4;
  const uint32_t shared = shared_address(shared_memory());
  const uint32_t tile = shared + static_cast<uint32_t>(group * P::kTile), ring = shared + P::kRing;
  const uint32_t bias2 = shared + P::kBiases, bias3 = bias2 + 4 * kMiddle, next_bias = bias3 + 4 * P::kOutputs;
  const uint32_t barriers = shared + P::kBarriers;
  const auto* const weights = static_cast<const unsigned char*>(call.weights);
  const auto* const x = static_cast<const unsigned char*>(call.x);
  const int height = out_size(call.height, kStride), width = out_size(call.width, kStride);
  const int tiles = tiles_of(call, kStride, P::kGroups);

  // Copies rounds of the pixels that the 3x3 convolution sees. They are zero outside the image.
  const auto copy_tile = [&](const Place& at, int first, int count) {
    const int piece = thread % P::kPieces;
    const unsigned char* const image = static_cast<const unsigned char*>(call.middle) +
                                       (static_cast<int64_t>(at.image) * call.height * call.width * kMiddle + 8 * piece) * 2;
#pragma unroll 1
    for (int round = first; round < first + count; ++round) {
      const int pixel = round * P::kAtOnce + thread % 128 / P::kPieces;
      if (pixel >= P::kSeen * P::kSeen) break;
      const int seen_row = pixel / P::kSeen, seen_column = pixel % P::kSeen;
      const int row = at.row * kStride - 1 + seen_row, column = at.column * kStride - 1 + seen_column;
      const bool inside = at.exists && row >= 0 && row < call.height && column >= 0 && column < call.width;
      const int64_t offset = (static_cast<int64_t>(row) * call.width + column) * (2 * kMiddle);
      copy_async_or_zero(tile + static_cast<uint32_t>(piece * P::kPlane + P::at(seen_row, seen_column)),
                         inside ? image + offset : weights, inside);
    }
  };
  const auto copy_weights = [&](int stage, int slot) {
    const bool first = stage < P::kFirstStages;
    const int start = first ? stage * P::kFirst : P::kFirstStages * P::kFirst + (stage - P::kFirstStages) * P::kSecond;
    if (thread == 0)
      copy_bulk(ring + static_cast<uint32_t>(slot * P::kSlot), weights + start, first ? P::kFirst : P::kSecond,
                barriers + static_cast<uint32_t>(8 * slot));
  };

  if (thread == 0)
    for (int slot = 0; slot < P::kSlots; ++slot) make_barrier(barriers + static_cast<uint32_t>(8 * slot));
  for (int i = thread; i < kMiddle; i += P::kThreads) store_shared(bias2 + 4 * i, as_bits(call.bias2[i]));
  for (int i = thread; i < P::kOutputs; i += P::kThreads) store_shared(bias3 + 4 * i, as_bits(call.bias3[i]));
  for (int i = thread; i < kNext; i += P::kThreads) store_shared(next_bias + 4 * i, as_bits(call.next_bias[i]));
  fence_shared();
  synchronize();

  int index = block_index();
  Place here = place(call.batch, height, width, index * P::kGroups + group);
  copy_tile(here, 0, P::kRounds);
  commit_copies();
  for (int stage = 0; stage < P::kSlots - 1; ++stage) {
    copy_weights(stage, stage);
    if (stage > 0) commit_copies();
  }
  int slot = 0;         // slot of the stage that is computed
  uint32_t parity = 0;  // parity of the ring's turns
  for (; index < tiles; index += blocks()) {
    const int next_index = index + blocks();
    const Place after = place(call.batch, height, width, next_index * P::kGroups + group);
    // This thread's two pixels, one below the other. It has 8 of every 32 channels of them.
    const int row = here.row + 2 * warp, column = here.column + g;
    const bool inside[2] = {here.exists && row < height && column < width, here.exists && row + 1 < height && column < width};
    const int64_t pixel[2] = {(static_cast<int64_t>(here.image) * height + row) * width + column,
                              (static_cast<int64_t>(here.image) * height + row + 1) * width + column};
    const uint32_t own = static_cast<uint32_t>(P::kSecond + 16 * thread);  // the shortcut's pixels in a slot

    // Waits for the copies of a stage.
    const auto arrive = [&](bool first) {
      if (first || !kProjected) wait_copies<P::kSlots - 2>();
      if (first) fence_shared();
      synchronize();
      await_bulk(barriers + static_cast<uint32_t>(8 * slot), parity);
      return ring + static_cast<uint32_t>(slot * P::kSlot);
    };
    // Refills the slot of the previous stage, which all threads have finished, while the products of this stage are
    // computed.
    const auto refill = [&](int stage) {
      const int ahead = stage + P::kSlots - 1, free = slot == 0 ? P::kSlots - 1 : slot - 1;
      if (ahead < P::kStages) copy_weights(ahead, free);
      else if (next_index < tiles) copy_weights(ahead - P::kStages, free);
      if (!kProjected && ahead >= P::kFirstStages && ahead < P::kStages)
        for (int i = 0; i < 2; ++i)
          copy_async_or_zero(ring + static_cast<uint32_t>(free * P::kSlot + 16 * P::kThreads * i) + own,
                             inside[i] ? x + 2 * (pixel[i] * P::kOutputs + 8 * t) + 2 * kStep * (ahead - P::kFirstStages) : x,
                             inside[i]);
      if (stage >= P::kFirstStages && next_index < tiles)
        copy_tile(after, (stage - P::kFirstStages) * P::kRoundsOfPart, P::kRoundsOfPart);
      commit_copies();
      slot = slot == P::kSlots - 1 ? 0 : slot + 1;
      parity ^= slot == 0;
    };

    uint32_t pixels[kProjected ? kProjected / 16 : 1][4];  // the pixels of x, as a factor
    for (int u = 0; u < kProjected / 32; ++u)
      for (int i = 0; i < 2; ++i) {
        uint4 words = {0, 0, 0, 0};
        if (inside[i]) words = load_global(reinterpret_cast<const uint4*>(x + 2 * (pixel[i] * kProjected + 32 * u + 8 * t)));
        pixels[2 * u][i] = words.x;
        pixels[2 * u][2 + i] = words.y;
        pixels[2 * u + 1][i] = words.z;
        pixels[2 * u + 1][2 + i] = words.w;
      }

    float middle[kMiddle / 2];
    for (int j = 0; j < kMiddle / 8; ++j) {
      const uint2 bias = load_shared<uint2>(bias2 + static_cast<uint32_t>(4 * (8 * j + 2 * t)));
      middle[4 * j] = middle[4 * j + 2] = as_float(bias.x);
      middle[4 * j + 1] = middle[4 * j + 3] = as_float(bias.y);
    }
#pragma unroll 1
    for (int stage = 0; stage < P::kFirstStages; ++stage) {
      const uint32_t from = arrive(stage == 0);
      begin_products();
#pragma unroll
      for (int i = 0; i < P::kTaps; ++i) {
        const int tap = stage * P::kTaps + i;
        const uint32_t seen = tile + static_cast<uint32_t>(P::at(tap / 3, tap % 3));
#pragma unroll
        for (int k = 0; k < kMiddle / 16; ++k)
          multiply(middle, matrix(seen + static_cast<uint32_t>(2 * k * P::kPlane), P::kPlane, kStride * P::at(1, 0)),
                   matrix(from + static_cast<uint32_t>(i * P::kTap + 2 * k * 16 * kMiddle), 16 * kMiddle, 128));
      }
      end_products();
      refill(stage);
      await_products(middle);
    }
    uint32_t second[kMiddle / 16][4];
    for (int k = 0; k < kMiddle / 16; ++k)
      for (int i = 0; i < 4; ++i) second[k][i] = pack_relu(middle[8 * k + 2 * i], middle[8 * k + 2 * i + 1]);

    float following[kNext ? kNext / 2 : 1];
    for (int u = 0; u < kNext / 32; ++u) {
      const Eight bias = load_eight(next_bias + static_cast<uint32_t>(4 * (32 * u + 8 * t)));
      for (int j = 0; j < 4; ++j)
        for (int e = 0; e < 2; ++e)
          following[16 * u + 4 * j + e] = following[16 * u + 4 * j + 2 + e] = bias.value[2 * j + e];
    }
#pragma unroll 1
    for (int step = 0; step < P::kOutputs / kStep; ++step) {
      const uint32_t from = arrive(false);
      float out[kStep / 2];
      const Eight bias = load_eight(bias3 + static_cast<uint32_t>(4 * (step * kStep + 8 * t)));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint4 words = {0, 0, 0, 0};
        if (!kProjected) words = load_shared<uint4>(from + own + static_cast<uint32_t>(16 * P::kThreads * i));
        const uint32_t word[4] = {words.x, words.y, words.z, words.w};
        for (int j = 0; j < 4; ++j) {
          out[4 * j + 2 * i] = bias.value[2 * j] + low_half<BFloat16>(word[j]);
          out[4 * j + 2 * i + 1] = bias.value[2 * j + 1] + high_half<BFloat16>(word[j]);
        }
      }
      begin_products();
#pragma unroll
      for (int k = 0; k < kMiddle / 16; ++k)
        multiply(out, second[k], matrix(from + static_cast<uint32_t>(2 * k * 16 * kStep), 16 * kStep, 128));
#pragma unroll
      for (int k = 0; k < kProjected / 16; ++k)
        multiply(out, pixels[k], matrix(from + static_cast<uint32_t>(P::kThird + 2 * k * 16 * kStep), 16 * kStep, 128));
      end_products();
      refill(P::kFirstStages + step);
      await_products(out);
      if constexpr (kKept == 0) {
        float sum[8];
#pragma unroll
        for (int j = 0; j < 4; ++j)
          for (int e = 0; e < 2; ++e) {
            const float upper = out[4 * j + e], lower = out[4 * j + 2 + e];  // NaN stays NaN
            sum[2 * j + e] = (inside[0] && !(upper <= 0) ? upper : 0) + (inside[1] && !(lower <= 0) ? lower : 0);
            for (int mask = 4; mask < 32; mask *= 2) sum[2 * j + e] += as_float(shuffle(as_bits(sum[2 * j + e]), thread % 32 ^ mask));
          }
        const int64_t part = static_cast<int64_t>(index * P::kGroups + group) * 4 + warp;
        if (here.exists && g == 0)
          for (int i = 0; i < 8; ++i) call.sums[part * P::kOutputs + step * kStep + 8 * t + i] = sum[i];
      } else {
        uint32_t rounded[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          for (int j = 0; j < 4; ++j) rounded[i][j] = pack_relu(out[4 * j + 2 * i], out[4 * j + 2 * i + 1]);
          int64_t kept = pixel[i];
          if (kKept == 2)
            kept = (static_cast<int64_t>(here.image) * out_size(height, 2) + row / 2) * out_size(width, 2) + column / 2;
          if (inside[i] && (kKept == 1 || (i == 0 && g % 2 == 0)))
            store_global(static_cast<unsigned char*>(call.y) + 2 * (kept * P::kOutputs + 8 * t) + 2 * kStep * step,
                         {rounded[i][0], rounded[i][1], rounded[i][2], rounded[i][3]});
        }
        begin_products();
#pragma unroll
        for (int k = 0; k < kStep / 16; ++k) {
          const uint32_t factor[4] = {rounded[0][2 * k], rounded[1][2 * k], rounded[0][2 * k + 1], rounded[1][2 * k + 1]};
          multiply(following, factor,
                   matrix(from + static_cast<uint32_t>(P::kThird + P::kShortcut + 2 * k * 16 * kNext), 16 * kNext, 128));
        }
        end_products();
        await_products(following);
      }
    }
    for (int u = 0; u < kNext / 32; ++u)
      for (int i = 0; i < 2; ++i)
        if (inside[i]) {
          const float* const from = following + 16 * u + 2 * i;
          store_global(static_cast<unsigned char*>(call.next_middle) + 2 * (pixel[i] * kNext + 32 * u + 8 * t),
                       {pack_relu(from[0], from[1]), pack_relu(from[4], from[5]), pack_relu(from[8], from[9]),
                        pack_relu(from[12], from[13])});
        }
    here = after;
  }
  wait_copies<0>();
#endif
}

template <int kMiddle, int kStride, int kProjected, int kKept, int kNext>
const char* run(const Bottleneck& call, void* stream) {
  using P = Plan<kMiddle, kStride, kProjected, kKept, kNext>;
  const auto kernel = bottleneck_kernel<kMiddle, kStride, kProjected, kKept, kNext>;
  int64_t resident = 0;
  if (const char* error = resident_blocks(kernel, P::kThreads, P::kShared, resident)) return error;
  const int64_t tiles = tiles_of(call, kStride, P::kGroups);
  return launch(kernel, tiles < resident ? tiles : resident, 1, P::kThreads, P::kShared, stream, call);
}

using Kind = std::array<int, 5>;

}  // namespace

const char* bottleneck(const Bottleneck& call, void* stream) {
  if (const char* error = without_warpgroups()) return error;
  const Kind kind{call.middle_channels, call.stride, call.projected, call.kept, call.next_channels};
  if (kind == Kind{64, 1, 64, 1, 64}) return run<64, 1, 64, 1, 64>(call, stream);
  if (kind == Kind{64, 1, 0, 1, 64}) return run<64, 1, 0, 1, 64>(call, stream);
  if (kind == Kind{64, 1, 0, 2, 128}) return run<64, 1, 0, 2, 128>(call, stream);
  if (kind == Kind{128, 2, 256, 1, 128}) return run<128, 2, 256, 1, 128>(call, stream);
  if (kind == Kind{128, 1, 0, 1, 128}) return run<128, 1, 0, 1, 128>(call, stream);
  if (kind == Kind{128, 1, 0, 0, 0}) return run<128, 1, 0, 0, 0>(call, stream);
  return "the bottleneck has no kernel of this kind";
}

}  // namespace npr::cuda
