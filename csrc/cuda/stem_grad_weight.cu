// The gradient of the stem for its weight and bias: the sums of dz P^T and of dz, where dz is the pooled gradient at
// the position of the argmax, and P is the vector of the 27 values that this position sees. dz is never written to
// memory.
//
// On the tensor cores this is a matrix product over pooled pixels and their nine positions. A (channels, pixels x
// positions) has the gradient at the position of the argmax and 0 at the eight others. B (pixels x positions,
// components) has the patches (patches.h), with the constant 1 for the sum of dz. A warp processes eight pooled columns
// of a row for 64 channels. A lane copies the gradient and the argmax of one column, and of the column four to the
// right, for eight channels. This is all it needs for its part of A: two neighbouring positions of a column share a
// register, so four positions are the 16-bit gradient shifted left by 16 * argmax in 64 bits. uint8 images are staged
// in the type of the gradient; bfloat16, too, holds differences of bytes exactly. A float32 gradient is the sum of
// three bfloat16 numbers, which have all of its 24 bits.
//
// In the machine code for sm_90, one step of a warp (eight pooled pixels of 64 channels) has about 460 instructions, 80
// of them mma, and 40 more for the sums in double.
//
// If image and gradient have no common 16-bit type (float32 images, gradients of the other 16-bit type), another kernel
// computes in float32 (stem_grad_weight_float32.cu).
#include "patches.h"
#include "stem_grad_weight.h"

namespace npr::cuda {
namespace {

constexpr int kChannels = 64;  // channels of a block
constexpr int kWarps = 8;
constexpr int kComponents = kPatchTiles * 8, kSums = kChannels * kComponents;

// Returns where flush() stores a sum. A lane has the sums of eight channels, two for each tile of 16 (mma's m), with
// two components each.
NPR_DEVICE int sum_of(int channel, int component) {
  return (channel % 8 / 2 * kPatchTiles + component / 8) * 128 + (channel / 8 * 4 + component % 8 / 2) * 4 +
         channel % 2 * 2 + component % 2;
}

// Gradients and argmax codes that are being copied, for three steps. Each lane has its own part for two columns.
template <typename G>
struct Pooled {
  static constexpr int kSteps = 3, kAhead = 2;
  static constexpr int kGradient = 8 * static_cast<int>(sizeof(G));  // bytes for a lane's eight channels
  static constexpr int kThreadBytes = 2 * (kGradient + 8);
  static NPR_CONSTANT int64_t bytes(int width) { return int64_t{kSteps} * 4 * width * kThreadBytes; }

  const Arguments& arguments;
  const int chunk;
  uint32_t now, soon, free;  // memory for steps s, s + 1 and s + 2: pieces of 16 bytes for each thread, then the codes
  int64_t index;             // where the step to fetch next begins
  bool exists[2];

  NPR_DEVICE Pooled(const Arguments& arguments, uint32_t memory, int chunk)
      : arguments(arguments),
        chunk(chunk),
        now(memory),
        soon(memory + step_bytes()),
        free(memory + 2 * step_bytes()),
        index(0) {}

  static NPR_DEVICE uint32_t step_bytes() { return static_cast<uint32_t>(block_threads() * kThreadBytes); }
  static NPR_DEVICE uint32_t piece(uint32_t step, int half, int i) {
    return step + static_cast<uint32_t>(((half * (kGradient / 16) + i) * block_threads() + thread_index()) * 16);
  }
  static NPR_DEVICE uint32_t code(uint32_t step, int half) {
    return step + static_cast<uint32_t>((2 * kGradient + half * 8) * block_threads() + thread_index() * 8);
  }

  NPR_DEVICE void start(const Walk& walk) {
    const Tiling& tiling = arguments.tiling;
    const int thread = anew(thread_index()), lane = thread % 32;
    const int column = thread / 32 * 8 + lane % 4, first = chunk + lane / 4 * 8;
    const int64_t row = int64_t{walk.image} * tiling.rows + walk.begin;
    index = (row * tiling.columns + walk.column + column) * arguments.out_channels + first;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int own = column + 4 * half;
      exists[half] = own >= walk.first && walk.column + own < tiling.columns && first < arguments.out_channels;
      if (!exists[half])
        for (const uint32_t step : {now, soon, free}) store_shared(code(step, half), uint2{0x09090909u, 0x09090909u});
    }
  }

  // Requests step s + 2.
  NPR_DEVICE void fetch() {
#pragma unroll
    for (int half = 0; half < 2; ++half)
      if (exists[half]) {
        const int64_t from = index + half * 4 * arguments.out_channels;
        const unsigned char* const grad = static_cast<const unsigned char*>(arguments.grad.data) + from * sizeof(G);
#pragma unroll
        for (int i = 0; i < kGradient / 16; ++i) copy_async<16>(piece(free, half, i), grad + 16 * i);
        copy_async<8>(code(free, half), arguments.argmax + from);
      }
    index += int64_t{arguments.tiling.columns} * arguments.out_channels;
  }

  NPR_DEVICE void rotate() {
    const uint32_t used = now;
    now = soon;
    soon = free;
    free = used;
  }
};

// The gradients of two channels as pairs of type T. The gradient is the sum of the pairs.
template <typename T, typename G>
struct Gradient;
template <typename T>
struct Gradient<T, T> {
  static constexpr int kParts = 1;
  uint32_t pair[4];  // one word per pair of channels
  NPR_DEVICE void load(uint32_t step, int half) {
    const uint4 words = load_shared<uint4>(Pooled<T>::piece(step, half, 0));
    pair[0] = words.x;
    pair[1] = words.y;
    pair[2] = words.z;
    pair[3] = words.w;
  }
  NPR_DEVICE void parts(int i, uint32_t (&out)[1]) const { out[0] = pair[i]; }
};
template <>
struct Gradient<BFloat16, float> {
  static constexpr int kParts = 3;
  float value[8];
  NPR_DEVICE void load(uint32_t step, int half) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint4 words = load_shared<uint4>(Pooled<float>::piece(step, half, i));
      value[4 * i] = as_float(words.x);
      value[4 * i + 1] = as_float(words.y);
      value[4 * i + 2] = as_float(words.z);
      value[4 * i + 3] = as_float(words.w);
    }
  }
  NPR_DEVICE void parts(int i, uint32_t (&out)[3]) const {
    float low = value[2 * i], high = value[2 * i + 1];
#pragma unroll
    for (int part = 0; part < 3; ++part) {
      out[part] = pack<BFloat16>(low, high);
      low -= low_half<BFloat16>(out[part]);
      high -= high_half<BFloat16>(out[part]);
    }
  }
};

template <typename T>
struct Products {
  static constexpr uint32_t kBefore = 0x80000000u;  // marks an offset in the previous pair

  // Offsets of each thread's rows for ldmatrix: for the first and the second four positions of the pooling windows, in
  // tiles 0 and 1 and in tiles 2 and 3, and for the ninth position. They are in shared memory to save registers.
  const uint32_t rows;
  float sum[kChannels / 16][kPatchTiles][4] = {};

  static NPR_CONSTANT int64_t rows_bytes(int width) { return int64_t{4} * width * (2 * 8 + 4); }

  NPR_DEVICE Products(const PatchRows<T>& ring, uint32_t rows) : rows(rows) {
    const int lane = thread_index() % 32, matrix = lane / 8, window = thread_index() / 32 * 8 + lane % 8 / 2, odd = lane % 2;
    // Rows of cells count from the previous pair.
    const auto row = [&](int code, int tile, int window) {
      const int r = code / 3 + (tile == 1 ? 0 : 1), cell = 2 * window + code % 3 - 1 - (tile == 0);
      const int array = tile == 0 ? kRightColumn : tile == 1 ? kBottomRow : tile == 3 ? kRest
                      : ring.anchor == 2 ? kRightColumn : kBottomRow;
      return ring.offset(r % 2, array, cell) + (r < 2 ? kBefore : 0);
    };
#pragma unroll
    for (int four = 0; four < 2; ++four) {  // matrices: the first two and the last two of four positions, for each tile
      const int code = 4 * four + matrix % 2 * 2 + odd;
      store_shared(place(four), uint2{row(code, matrix / 2, window), row(code, 2 + matrix / 2, window)});
    }
    store_shared(ninth_place(), row(8, matrix, window + 4 * odd));  // the ninth position of eight windows, one matrix per tile
  }
  NPR_DEVICE uint32_t place(int four) const {
    return rows + static_cast<uint32_t>((four * block_threads() + thread_index()) * 8);
  }
  NPR_DEVICE uint32_t ninth_place() const {
    return rows + static_cast<uint32_t>(2 * block_threads() * 8 + thread_index() * 4);
  }

  // Computes one step of eight pooled columns. `pooled` is the address of its gradients.
  template <typename G>
  NPR_DEVICE void step(uint32_t before, uint32_t current, uint32_t pooled) {
    constexpr int kParts = Gradient<T, G>::kParts;
    before += kBefore;
    const auto at = [&](uint32_t row) { return (static_cast<int>(row) < 0 ? before : current) + row; };
    uint32_t row[2][2];
#pragma unroll
    for (int four = 0; four < 2; ++four) {
      const uint2 lanes = load_shared<uint2>(place(four));
      row[four][0] = at(lanes.x);
      row[four][1] = at(lanes.y);
    }
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {  // four columns
      const uint32_t columns = static_cast<uint32_t>(8 * half * kPatchBytes);
      Gradient<T, G> gradient;
      gradient.load(pooled, half);
      const uint2 codes = load_shared<uint2>(Pooled<G>::code(pooled, half));
#pragma unroll
      for (int four = 0; four < 2; ++four) {  // positions
        uint32_t b[2][4];  // tiles 0 and 1, then 2 and 3: two positions of each, then the next two
#pragma unroll
        for (int i = 0; i < 2; ++i) load_transposed(b[i], row[four][i] + columns);
        const uint32_t flip = static_cast<uint32_t>(four) * 0x40404040u;  // other positions are shifted by 64 bits or more
        const uint32_t shifts[2] = {codes.x << 4 ^ flip, codes.y << 4 ^ flip};
#pragma unroll
        for (int i = 0; i < kChannels / 16; ++i) {
          const uint32_t first = byte_perm(shifts[i / 2], 0, i % 2 ? 0x4442u : 0x4440u);
          const uint32_t second = byte_perm(shifts[i / 2], 0, i % 2 ? 0x4443u : 0x4441u);
          uint32_t parts[kParts];
          gradient.parts(i, parts);
#pragma unroll
          for (int part = 0; part < kParts; ++part) {
            uint32_t a[4];
            shift_left(parts[part] & 0xffffu, first, a[0], a[2]);
            shift_left(parts[part] >> 16, second, a[1], a[3]);
#pragma unroll
            for (int n = 0; n < kPatchTiles; ++n)
              multiply<T>(sum[i][n], a, b[n / 2][n % 2 * 2], b[n / 2][n % 2 * 2 + 1], sum[i][n]);
          }
        }
      }
    }
    // The ninth position has code 8, and "no position" has code 9. Bit 3 without bit 0 becomes the sign of a byte.
    uint32_t ninth[kParts][kChannels / 16][2];  // the pairs of the first four columns, then combined with the other four
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Gradient<T, G> gradient;
      gradient.load(pooled, half);
      const uint2 codes = load_shared<uint2>(Pooled<G>::code(pooled, half));
      const uint32_t chosen[2] = {codes.x << 4 & ~(codes.x << 7), codes.y << 4 & ~(codes.y << 7)};
#pragma unroll
      for (int i = 0; i < kChannels / 16; ++i) {
        const uint32_t mask = byte_signs(chosen[i / 2], 0, i % 2 ? 0xbbaau : 0x9988u);
        uint32_t parts[kParts];
        gradient.parts(i, parts);
#pragma unroll
        for (int part = 0; part < kParts; ++part) {
          const uint32_t pair = parts[part] & mask, other = ninth[part][i][0];
          ninth[part][i][0] = half == 0 ? pair : byte_perm(other, pair, 0x5410);
          if (half == 1) ninth[part][i][1] = byte_perm(other, pair, 0x7632);
        }
      }
    }
    uint32_t b[kPatchTiles];
    load_transposed(b, current + load_shared<uint32_t>(ninth_place()));
#pragma unroll
    for (int part = 0; part < kParts; ++part)
#pragma unroll
      for (int i = 0; i < kChannels / 16; ++i)
#pragma unroll
        for (int n = 0; n < kPatchTiles; ++n) multiply_half<T>(sum[i][n], ninth[part][i], b[n], sum[i][n]);
  }

  // Adds the sums of all warps to the block's sums in double. `scratch` is shared memory that is not in use,
  // kScratchBytes for each warp.
  static constexpr int kScratchTiles = 2, kScratchBytes = kScratchTiles * 32 * 16;
  NPR_DEVICE void flush(uint32_t scratch, double* total) {
    const int lane = thread_index() % 32, warp = thread_index() / 32;
#pragma unroll
    for (int first = 0; first < kChannels / 16 * kPatchTiles; first += kScratchTiles) {
#pragma unroll
      for (int n = 0; n < kScratchTiles; ++n) {
        float(&four)[4] = sum[(first + n) / kPatchTiles][(first + n) % kPatchTiles];
        store_shared(scratch + static_cast<uint32_t>(warp * kScratchBytes + (n * 32 + lane) * 16),
                     uint4{as_bits(four[0]), as_bits(four[1]), as_bits(four[2]), as_bits(four[3])});
#pragma unroll
        for (int j = 0; j < 4; ++j) four[j] = 0;
      }
      synchronize();
      for (int i = thread_index(); i < kScratchBytes / 8; i += block_threads()) {
        float added[2] = {};
        const auto add = [&](int other) {
          const uint2 two = load_shared<uint2>(scratch + static_cast<uint32_t>(other * kScratchBytes + i * 8));
          added[0] += as_float(two.x);
          added[1] += as_float(two.y);
        };
        if (block_threads() == 32 * kWarps) {
#pragma unroll
          for (int other = 0; other < kWarps; ++other) add(other);
        } else {
#pragma unroll 1
          for (int other = 0; other < block_threads() / 32; ++other) add(other);
        }
        total[first * 128 + 2 * i] += added[0];
        total[first * 128 + 2 * i + 1] += added[1];
      }
      synchronize();
    }
  }
};

template <typename T, typename G>
NPR_CONSTANT int64_t tensor_core_bytes(Type type, int width) {
  return kSums * 8 + Products<T>::rows_bytes(width) + Pooled<G>::bytes(width) + PatchRows<T>::ring_bytes(width) +
         raw_bytes(type, width);
}

template <typename T, typename G, bool kBytes>
NPR_KERNEL(32 * kWarps, (sizeof(G) == 4 ? 1 : NPR_LARGE_BLOCKS))
tensor_core_kernel(const Arguments arguments) {
  const Tiling& tiling = arguments.tiling;
  double* const total = reinterpret_cast<double*>(shared_memory());
  const uint32_t rows = shared_address(shared_memory()) + kSums * 8, copies = rows + static_cast<uint32_t>(Products<T>::rows_bytes(tiling.width));
  const uint32_t ring = copies + static_cast<uint32_t>(Pooled<G>::bytes(tiling.width));
  const uint32_t raw = ring + static_cast<uint32_t>(PatchRows<T>::ring_bytes(tiling.width));
  for (int i = thread_index(); i < kSums; i += block_threads()) total[i] = 0;

  Stager<T, kBytes, PatchRows<T>> stager(arguments.source, ring, raw, tiling.width);
  Products<T> products(stager.layout, rows);
  Pooled<G> pooled(arguments, copies, block_row() * kChannels);
  // Tensor cores truncate the sums after every product, up to five times per step for each part of the gradient.
  constexpr int kSteps = kFlush / Gradient<T, G>::kParts;
  static_assert(Products<T>::kScratchBytes <= 32 * Pooled<G>::kThreadBytes);
  Walk walk(tiling);
  while (walk.next(tiling)) {
    stager.start(walk);
    pooled.start(walk);
    for (int s = walk.begin - kLead; s < walk.begin; ++s, stager.rotate(), pooled.rotate(), synchronize()) {
      const int ahead = s + Pooled<G>::kAhead;
      if (ahead >= walk.begin && ahead < walk.end) pooled.fetch();
      stager.advance(s, walk);
    }
    int s = walk.begin;
    walk.begin = 0;  // no step comes before the first from here on; this saves a register
    while (s < walk.end) {
      const int stop = s + kSteps < walk.end ? s + kSteps : walk.end;
      for (; s < stop; ++s, stager.rotate(), pooled.rotate(), synchronize()) {
        if (s + Pooled<G>::kAhead < walk.end) pooled.fetch();
        stager.advance(s, walk);
        products.template step<G>(stager.before, stager.current, pooled.now);
      }
      products.flush(pooled.free, total);
    }
  }
  synchronize();
  const int64_t chunks = (arguments.out_channels + kChannels - 1) / kChannels;
  double* const out = arguments.partial + (block_index() * chunks + block_row()) * kSums;
  for (int i = thread_index(); i < kSums; i += block_threads()) out[i] = total[sum_of(i / kComponents, i % kComponents)];
}

// Where a block's row of sums has them.
struct Place {
  int entries, entry;
  NPR_DEVICE Place(int index, const Result& result) {
    const int component = patch_component(index % kEntries, result.anchor);  // or -1 for a product that is always 0
    entries = (result.out_channels + kChannels - 1) / kChannels * kSums;
    entry = component < 0 ? entries : index / kEntries * kComponents + component;
  }
};

template <typename T, typename G, bool kBytes>
const char* launch_tensor_cores(const StemGradWeight& call, void* stream) {
  const Type type = call.task.x.type;
  int warps = kWarps;
  while (warps > 1 && tensor_core_bytes<T, G>(type, 8 * warps) > most_shared_bytes()) --warps;
  const Arguments arguments = arguments_of(call, warps);
  return launch_with<Place>(tensor_core_kernel<T, G, kBytes>, call, arguments, kChannels,
                           tensor_core_bytes<T, G>(type, arguments.tiling.width), stream);
}

}  // namespace

const char* stem_grad_weight(const StemGradWeight& call, void* stream) {
  const Type grad = call.grad.type;
  switch (call.task.x.type) {
    case Type::kUInt8:
      if (grad == Type::kFloat32) return launch_tensor_cores<BFloat16, float, true>(call, stream);
      if (grad == Type::kBFloat16) return launch_tensor_cores<BFloat16, BFloat16, true>(call, stream);
      return launch_tensor_cores<Float16, Float16, true>(call, stream);
    case Type::kFloat32: return stem_grad_weight_float32(call, stream);
    case Type::kBFloat16:
      if (grad == Type::kFloat32) return launch_tensor_cores<BFloat16, float, false>(call, stream);
      if (grad == Type::kBFloat16) return launch_tensor_cores<BFloat16, BFloat16, false>(call, stream);
      return stem_grad_weight_float32(call, stream);
    default:
      if (grad == Type::kFloat16) return launch_tensor_cores<Float16, Float16, false>(call, stream);
      return stem_grad_weight_float32(call, stream);
  }
}

}  // namespace npr::cuda
