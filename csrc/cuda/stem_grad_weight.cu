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
// If image and gradient have no common 16-bit type (float32 images, gradients of the other 16-bit type), a kernel
// without tensor cores computes in float32. A lane has one channel. It reads the position from the argmax and adds
// gradient times patch, which it reads from the records.
#include "patches.h"
#include "reduction.h"

namespace npr::cuda {
namespace {

struct Arguments {
  Source source;
  Tiling tiling;
  Parameter grad;
  const uint8_t* argmax;
  int out_channels;
  double* partial;
};

// --- on the tensor cores ---

constexpr int kChannels = 64;  // channels of a block
constexpr int kWarps = 8;
constexpr int kComponents = kPatchTiles * 8, kSums = kChannels * kComponents;
constexpr int kFlush = 8;  // steps of eight pooled pixels that a float sums up

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

// --- in float32 ---

constexpr int kPlainChannels = 32;  // channels of a block
constexpr int kEntries = 28;        // entries of a channel: 27 products and the sum
constexpr int kPlainWarps = 4;

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
NPR_KERNEL(32 * kPlainWarps, sizeof(T) == 4 ? 2 : 3)
plain_kernel(const Arguments arguments) {
  const Tiling& tiling = arguments.tiling;
  const int lane = thread_index() % 32, warp = thread_index() / 32;
  const int chunk = block_row() * kPlainChannels;
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
  const int channels = arguments.out_channels - chunk < kPlainChannels ? arguments.out_channels - chunk : kPlainChannels;
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

// --- sums over all blocks ---

struct Result {
  float* products;
  float* sums;
  Factors scale;
  int out_channels, anchor;
};

template <bool kTensorCores>
NPR_KERNEL(32 * kReduceWarps, 1)
finish_stem_grad_weight(const double* partial, int count, const Result result) {
  const int index = block_index() * 32 + thread_index() % 32, channel = index / kEntries, k = index % kEntries;
  int entry = index, entries = kEntries * result.out_channels;
  if constexpr (kTensorCores) {
    const int component = patch_component(k, result.anchor);  // or -1 for a product that is always 0
    entries = (result.out_channels + kChannels - 1) / kChannels * kSums;
    entry = component < 0 ? entries : channel * kComponents + component;
  }
  const double sum = reduce_rows(partial, entries, entry, count);
  if (thread_index() >= 32 || channel >= result.out_channels) return;
  if (k == 27) {
    result.sums[channel] = static_cast<float>(sum);
  } else {
    result.products[channel * 27 + k] = static_cast<float>(sum * result.scale[k / 9]);
  }
}

// Launches a kernel for chunks of `channels`, and then the kernel that sums the results of its blocks.
template <bool kTensorCores, typename Kernel>
const char* launch_with(Kernel kernel, const StemGradWeight& call, const Arguments& arguments, int channels, int64_t shared,
                        void* stream) {
  const int threads = 4 * arguments.tiling.width, out_channels = arguments.out_channels;
  const int64_t chunks = (out_channels + channels - 1) / channels;
  int64_t blocks = 0;
  if (const char* error = reduction_blocks(kernel, arguments.tiling, chunks, threads, shared, blocks)) return error;
  if (blocks > 0)
    if (const char* error = launch(kernel, blocks, chunks, threads, shared, stream, arguments)) return error;
  const Result result{call.products, call.sums, factors_of(call.task), out_channels, call.task.anchor};
  return launch(finish_stem_grad_weight<kTensorCores>, (out_channels * kEntries + 31) / 32, 1, 32 * kReduceWarps,
                kReduceBytes, stream, static_cast<const double*>(call.partial), static_cast<int>(blocks), result);
}

Arguments arguments_of(const StemGradWeight& call, int warps) {
  return {source_of(call.task), tiling_of(call.task, warps), call.grad, call.argmax,
          static_cast<int>(call.task.out_channels), call.partial};
}

template <typename T, typename G, bool kBytes>
const char* launch_tensor_cores(const StemGradWeight& call, void* stream) {
  const Type type = call.task.x.type;
  int warps = kWarps;
  while (warps > 1 && tensor_core_bytes<T, G>(type, 8 * warps) > most_shared_bytes()) --warps;
  const Arguments arguments = arguments_of(call, warps);
  return launch_with<true>(tensor_core_kernel<T, G, kBytes>, call, arguments, kChannels,
                           tensor_core_bytes<T, G>(type, arguments.tiling.width), stream);
}

template <typename T>
const char* launch_plain(const StemGradWeight& call, void* stream) {
  const Arguments arguments = arguments_of(call, kPlainWarps);
  const int width = arguments.tiling.width;
  const int64_t staged = PixelRows<T, false>::ring_bytes(width) + raw_bytes(call.task.x.type, width);
  const int64_t reduced = reduce_bytes(kPlainChannels * kEntries, 4 * width);
  return launch_with<false>(plain_kernel<T>, call, arguments, kPlainChannels, staged > reduced ? staged : reduced, stream);
}

}  // namespace

const char* stem_grad_weight(const StemGradWeight& call, void* stream) {
  const Type grad = call.grad.type;
  switch (call.task.x.type) {
    case Type::kUInt8:
      if (grad == Type::kFloat32) return launch_tensor_cores<BFloat16, float, true>(call, stream);
      if (grad == Type::kBFloat16) return launch_tensor_cores<BFloat16, BFloat16, true>(call, stream);
      return launch_tensor_cores<Float16, Float16, true>(call, stream);
    case Type::kFloat32: return launch_plain<float>(call, stream);
    case Type::kBFloat16:
      if (grad == Type::kFloat32) return launch_tensor_cores<BFloat16, float, false>(call, stream);
      if (grad == Type::kBFloat16) return launch_tensor_cores<BFloat16, BFloat16, false>(call, stream);
      return launch_plain<BFloat16>(call, stream);
    default:
      if (grad == Type::kFloat16) return launch_tensor_cores<Float16, Float16, false>(call, stream);
      return launch_plain<Float16>(call, stream);
  }
}

}  // namespace npr::cuda
