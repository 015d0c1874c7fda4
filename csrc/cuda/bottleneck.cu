// The part of a residual bottleneck after its first convolution, and the first convolution of the next block, on Hopper
// GPUs. It uses bfloat16 and channels_last, with sums in float32.
//
// A warpgroup computes 8x8 pixels. The pixels that its 3x3 convolution sees are in shared memory, as one plane for
// every 8 channels with 16 bytes per pixel. So every tap is the same matrix, beginning at another pixel. The results of
// the 3x3 convolution stay in registers as a factor of the third convolution. The results of the third convolution are
// a factor of the next block's first convolution. So each tensor is read or written once: for an image of 256x256
// pixels, the seven blocks move 22.5 MB, which takes 7.5 us at 3 TB/s, and the products take 4.6 us at the peak.
//
// The weights come from the L2 cache, once for every 128 to 256 pixels, through a ring of slots in shared memory that
// is filled ahead. A slot holds one stage. The first stages are the taps of the 3x3 convolution. After them, each step
// computes 32 channels of the result. Its stage, or its two stages, have their columns of conv3 and of the shortcut's
// convolution, and their rows of the next conv1.
//
// Warpgroups do not wait for each other, so that one computes products while another rounds and writes its results.
// Each warp counts itself in when it has finished with a slot. The last of the block's warps refills the slot.
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
  static constexpr int kOutputs = 4 * kMiddle, kSteps = kOutputs / kStep;
  static constexpr int kGroups = kStride == 2 ? 2 : kNext == 128 ? 3 : 4;  // warpgroups per block
  static constexpr int kThreads = 128 * kGroups;

  // Number of rows and columns that the convolution sees. With stride 2, the even columns are stored before the odd
  // ones. The size of a plane keeps 8 planes in different banks.
  static constexpr int kSeen = kStride * (kSide - 1) + 3;
  static constexpr int kPlane = (16 * kSeen * kSeen + 111) / 128 * 128 + 16;
  static constexpr int kTile = kMiddle / 8 * kPlane;  // bytes per warpgroup

  static constexpr int kTaps = kMiddle == 64 ? 3 : 1;                           // taps in a first stage, or
  static constexpr int kShares = kMiddle == 64 ? 1 : 2;                         // stages of a tap
  static constexpr int kDepths = kMiddle / 16 / kShares;                        // products of a tap in a stage
  static constexpr int kTap = 2 * kMiddle * kMiddle / kShares, kFirst = kTaps * kTap;  // bytes of weights
  static constexpr int kThird = 2 * kMiddle * kStep, kShortcut = 2 * kProjected * kStep, kFollowing = 2 * kStep * kNext;
  static constexpr int kHalves = kProjected > 128 ? 2 : 1;                      // stages of a step
  static constexpr int kSecond = (kThird + kShortcut + kFollowing) / kHalves;   // bytes of weights in one of them
  static constexpr int kFirstStages = 9 * kShares / kTaps, kStages = kFirstStages + kHalves * kSteps;
  static constexpr int kSlot = kFirst > kSecond ? kFirst : kSecond;
  static constexpr int kFull = kSlot, kFinished = kSlot + 8, kNextSlot = kSlot + 16;  // the slot's barrier and counter
  static constexpr int kSlots = kStride == 2 ? 4 : kMiddle == 64 ? (kProjected ? 6 : 4) : kNext ? 6 : 3;
  static_assert(kSlots >= 2 && kSlots <= kStages, "a warp counts itself in when it has the next stage");

  // A thread's own pixels of the shortcut are copied kAhead steps ahead.
  static constexpr int kAhead = kProjected ? 2 : 4, kPixels = kProjected ? 0 : 32 * kThreads;  // bytes in a step
  static constexpr int kOwn = kGroups * kTile, kRing = kOwn + kAhead * kPixels;  // where they begin in shared memory
  static constexpr int kBiases = kRing + kSlots * kNextSlot, kShared = kBiases + 4 * (kMiddle + kOutputs + kNext);
  static_assert(kShared <= 227 << 10);

  // The pixels of the next tile are copied in parts of kRoundsOfPart rounds, one part per step. The newest kAhead - 1
  // groups of copies have none of them.
  static constexpr int kPieces = kMiddle / 8, kAtOnce = 128 / kPieces;  // 16 bytes of a pixel; pixels in a round
  static constexpr int kRounds = (kSeen * kSeen + kAtOnce - 1) / kAtOnce;
  static constexpr int kParts = kSteps - kAhead + 1, kRoundsOfPart = (kRounds + kParts - 1) / kParts;

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
NPR_KERNEL((Plan<kMiddle, kStride, kProjected, kKept, kNext>::kThreads), 1)
bottleneck_kernel(const Bottleneck call) {
#ifdef NPR_HAS_WARPGROUPS
  using P = Plan<kMiddle, kStride, kProjected, kKept, kNext>;
  const int thread = thread_index(), group = uniform(thread / 128), warp = thread / 32 % 4;
  const int g = thread % 32 / 4, t = thread % 4;
  const uint32_t shared = shared_address(shared_memory());
  const uint32_t tile = shared + static_cast<uint32_t>(group * P::kTile), ring = shared + P::kRing;
  const uint32_t bias2 = shared + P::kBiases, bias3 = bias2 + 4 * kMiddle, next_bias = bias3 + 4 * P::kOutputs;
  const auto* const weights = static_cast<const unsigned char*>(call.weights);
  const auto* const x = static_cast<const unsigned char*>(call.x);
  const int height = out_size(call.height, kStride), width = out_size(call.width, kStride);
  const int tiles = tiles_of(call, kStride, P::kGroups);

  // Copies rounds of the pixels that the 3x3 convolution sees. They are zero outside the image.
  const auto copy_tile = [&](const Place& at, int first, int count) {
    const int me = anew(thread), piece = me % P::kPieces;
    const unsigned char* const image = static_cast<const unsigned char*>(call.middle) +
                                       (static_cast<int64_t>(at.image) * call.height * call.width * kMiddle + 8 * piece) * 2;
#pragma unroll 1
    for (int round = first; round < first + count; ++round) {
      const int pixel = round * P::kAtOnce + me % 128 / P::kPieces;
      if (pixel >= P::kSeen * P::kSeen) break;
      const int seen_row = pixel / P::kSeen, seen_column = pixel % P::kSeen;
      const int row = at.row * kStride - 1 + seen_row, column = at.column * kStride - 1 + seen_column;
      const bool inside = at.exists && row >= 0 && row < call.height && column >= 0 && column < call.width;
      const int64_t offset = (static_cast<int64_t>(row) * call.width + column) * (2 * kMiddle);
      copy_async_or_zero(tile + static_cast<uint32_t>(piece * P::kPlane + P::at(seen_row, seen_column)),
                         inside ? image + offset : weights, inside);
    }
  };
  const auto copy_weights = [&](int stage, uint32_t slot) {
    const bool first = stage < P::kFirstStages;
    const int start = first ? stage * P::kFirst : P::kFirstStages * P::kFirst + (stage - P::kFirstStages) * P::kSecond;
    copy_bulk(slot, weights + start, first ? P::kFirst : P::kSecond, slot + P::kFull);
  };

  if (thread == 0)
    for (int i = 0; i < P::kSlots; ++i) {
      make_barrier(ring + static_cast<uint32_t>(i * P::kNextSlot + P::kFull));
      store_shared(ring + static_cast<uint32_t>(i * P::kNextSlot + P::kFinished), uint32_t{0});
    }
  for (int i = thread; i < kMiddle; i += P::kThreads) store_shared(bias2 + 4 * i, as_bits(call.bias2[i]));
  for (int i = thread; i < P::kOutputs; i += P::kThreads) store_shared(bias3 + 4 * i, as_bits(call.bias3[i]));
  for (int i = thread; i < kNext; i += P::kThreads) store_shared(next_bias + 4 * i, as_bits(call.next_bias[i]));
  fence_shared();
  synchronize();

  int index = block_index();
  Place here = place(call.batch, height, width, index * P::kGroups + group);
  if (thread == 0)
    for (int i = 0; i < P::kSlots; ++i) copy_weights(i, ring + static_cast<uint32_t>(i * P::kNextSlot));
  copy_tile(here, 0, P::kRounds);
  for (int i = 0; i < P::kAhead; ++i) commit_copies();
  uint32_t coming = ring;  // slot of the next stage
  uint32_t parity = 0;     // parity of the ring's turns
  for (; index < tiles; index += blocks()) {
    const int next_index = index + blocks();
    const Place after = place(call.batch, height, width, next_index * P::kGroups + group);
    // This thread's two pixels, one below the other. It has 8 of every 32 channels of them.
    const int row = here.row + 2 * warp, column = here.column + g;
    const bool inside[2] = {here.exists && row < height && column < width, here.exists && row + 1 < height && column < width};
    const int64_t pixel[2] = {(static_cast<int64_t>(here.image) * height + row) * width + column,
                              (static_cast<int64_t>(here.image) * height + row + 1) * width + column};
    const uint32_t own = shared + static_cast<uint32_t>(P::kOwn + 16 * thread);  // pixels of the shortcut

    // Waits for the weights of the next stage and returns their slot.
    const auto arrive = [&] {
      const uint32_t slot = coming;
      await_bulk(slot + P::kFull, parity);
      coming = slot == ring + (P::kSlots - 1) * P::kNextSlot ? ring : slot + P::kNextSlot;
      parity ^= coming == ring;
      return slot;
    };
    // Counts this warp in, which has finished with the slot of a stage. If it is the last one, it refills the slot.
    const auto leave = [&](uint32_t slot, int stage) {
      if (thread % 32 != 0 || !count_in(slot + P::kFinished, 4 * P::kGroups)) return;
      const int ahead = stage + P::kSlots;
      if (ahead < P::kStages) copy_weights(ahead, slot);
      else if (next_index < tiles) copy_weights(ahead - P::kStages, slot);
    };
    const auto copy_own = [&](int step) {
      for (int i = 0; i < 2; ++i)
        copy_async_or_zero(own + static_cast<uint32_t>(step % P::kAhead * P::kPixels + 16 * P::kThreads * i),
                           inside[i] ? x + 2 * (pixel[i] * P::kOutputs + 8 * t) + 2 * kStep * step : x, inside[i]);
    };

    wait_copies<P::kAhead - 1>();  // for the tile
    fence_shared();
    synchronize_group(group);
    if (!kProjected)
      for (int step = 0; step < P::kAhead; ++step) {
        copy_own(step);
        commit_copies();
      }

    // The pixels of x, which arrive during the first stages. Outside the image, they are any of x until later.
    uint4 loaded[kProjected ? kProjected / 32 : 1][2];
    for (int u = 0; u < kProjected / 32; ++u)
      for (int i = 0; i < 2; ++i)
        loaded[u][i] = load_global(
            reinterpret_cast<const uint4*>(x + (inside[i] ? 2 * pixel[i] * kProjected : 0) + 2 * (32 * u + 8 * t)));

    float middle[kMiddle / 2];
    for (int j = 0; j < kMiddle / 8; ++j) {
      const uint2 bias = load_shared<uint2>(bias2 + static_cast<uint32_t>(4 * (8 * j + 2 * t)));
      middle[4 * j] = middle[4 * j + 2] = as_float(bias.x);
      middle[4 * j + 1] = middle[4 * j + 3] = as_float(bias.y);
    }
    uint32_t slot = 0;
#pragma unroll 1
    for (int stage = 0; stage < P::kFirstStages; ++stage) {
      const uint32_t from = arrive();
      begin_products();
#pragma unroll
      for (int i = 0; i < P::kTaps; ++i) {
        const int tap = stage / P::kShares * P::kTaps + i;
        const int plane = stage % P::kShares * P::kDepths * 2;
        const uint32_t seen = tile + static_cast<uint32_t>(P::at(tap / 3, tap % 3) + plane * P::kPlane);
#pragma unroll
        for (int k = 0; k < P::kDepths; ++k)
          multiply(middle, matrix(seen + static_cast<uint32_t>(2 * k * P::kPlane), P::kPlane, kStride * P::at(1, 0)),
                   matrix(from + static_cast<uint32_t>(i * P::kTap + 2 * k * 16 * kMiddle), 16 * kMiddle, 128));
      }
      end_products();
      if (stage > 0) leave(slot, stage - 1);
      slot = from;
      await_products(middle);
    }
    leave(slot, P::kFirstStages - 1);
    synchronize_group(group);  // the tile is free
    uint32_t second[kMiddle / 16][4];
    for (int k = 0; k < kMiddle / 16; ++k)
      for (int i = 0; i < 4; ++i) second[k][i] = pack_relu(middle[8 * k + 2 * i], middle[8 * k + 2 * i + 1]);

    uint32_t pixels[kProjected ? kProjected / 16 : 1][4];  // of x, as a factor
    for (int u = 0; u < kProjected / 32; ++u)
      for (int i = 0; i < 2; ++i) {
        pixels[2 * u][i] = inside[i] ? loaded[u][i].x : 0;
        pixels[2 * u][2 + i] = inside[i] ? loaded[u][i].y : 0;
        pixels[2 * u + 1][i] = inside[i] ? loaded[u][i].z : 0;
        pixels[2 * u + 1][2 + i] = inside[i] ? loaded[u][i].w : 0;
      }

    float following[kNext ? kNext / 2 : 1];
    for (int u = 0; u < kNext / 32; ++u) {
      const Eight bias = load_eight(next_bias + static_cast<uint32_t>(4 * (32 * u + 8 * t)));
      for (int j = 0; j < 4; ++j)
        for (int e = 0; e < 2; ++e)
          following[16 * u + 4 * j + e] = following[16 * u + 4 * j + 2 + e] = bias.value[2 * j + e];
    }
#pragma unroll 1
    for (int step = 0; step < P::kSteps; ++step) {
      const int stage = P::kFirstStages + P::kHalves * step;
      const uint32_t from = arrive();
      if (!kProjected) wait_copies<P::kAhead - 1>();
      float out[kStep / 2];
      const Eight bias = load_eight(bias3 + static_cast<uint32_t>(4 * (step * kStep + 8 * t)));
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        uint4 words = {0, 0, 0, 0};
        if (!kProjected)
          words = load_shared<uint4>(own + static_cast<uint32_t>(step % P::kAhead * P::kPixels + 16 * P::kThreads * i));
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
      for (int k = 0; k < kProjected / 16 / P::kHalves; ++k)
        multiply(out, pixels[k], matrix(from + static_cast<uint32_t>(P::kThird + 2 * k * 16 * kStep), 16 * kStep, 128));
      end_products();
      await_older_products();  // with the next conv1
      if (step > 0) leave(slot, stage - 1);
      if (!kProjected && step + P::kAhead < P::kSteps) copy_own(step + P::kAhead);
      if (next_index < tiles) copy_tile(after, step * P::kRoundsOfPart, P::kRoundsOfPart);
      commit_copies();
      slot = from;
      if constexpr (P::kHalves == 2) {
        slot = arrive();
        begin_products();
#pragma unroll
        for (int k = 0; k < kProjected / 32; ++k)
          multiply(out, pixels[kProjected / 32 + k], matrix(slot + static_cast<uint32_t>(2 * k * 16 * kStep), 16 * kStep, 128));
        end_products();
        await_older_products();
        leave(from, stage);
      }
      await_products(out);
      if constexpr (kKept == 0) {
        float sum[8];
#pragma unroll
        for (int j = 0; j < 4; ++j)
          for (int e = 0; e < 2; ++e) {
            const float upper = out[4 * j + e], lower = out[4 * j + 2 + e];  // NaN stays NaN
            sum[2 * j + e] = (inside[0] && !(upper <= 0) ? upper : 0) + (inside[1] && !(lower <= 0) ? lower : 0);
          }
        // Of two lanes, each adds up half of their channels. In the end each of the 8 lanes has one channel.
#pragma unroll
        for (int half = 4; half > 0; half /= 2) {
          const bool upper = (g & 4 / half) != 0;
#pragma unroll
          for (int i = 0; i < half; ++i) {
            const uint32_t other = as_bits(upper ? sum[i] : sum[half + i]);
            sum[i] = (upper ? sum[half + i] : sum[i]) + as_float(shuffle(other, thread % 32 ^ 16 / half));
          }
        }
        const int channel = step * kStep + 8 * t + (g & 1) * 4 + (g & 2) + g / 4;
        const int64_t part = static_cast<int64_t>(index * P::kGroups + group) * 4 + warp;
        if (here.exists) call.sums[part * P::kOutputs + channel] = sum[0];
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
                   matrix(slot + static_cast<uint32_t>(P::kSecond - P::kFollowing + 2 * k * 16 * kNext), 16 * kNext, 128));
        }
        end_products();
      }
    }
    if constexpr (kNext > 0) await_products(following);
    leave(slot, P::kStages - 1);
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
