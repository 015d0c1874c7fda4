// Computes the first and second moments of the convolution's patches: the sums of P and P P^T over all positions, where
// P is the vector of the 27 values that a position sees. The batch-norm statistics follow from them without the
// convolution's output.
//
// 16-bit numbers are summed on the tensor cores. ldmatrix loads the patches of 16 positions, transposed (patches.h),
// and the same registers are both operands. The constant 1 of a record gives the first moments. P P^T is symmetric, so
// only six of its eight tiles of 16x8 are computed. Sums of uint8 images are exact: a float sums 256 products of at
// most 255^2, and then the sums are added in double. Float32 images use a kernel without tensor cores.
#include "patches.h"
#include "reduction.h"

namespace npr::cuda {
namespace {

constexpr int kSide = 28;  // 27 values and the constant 1
static_assert(kMomentsPartial == 27 * kSide);

struct Arguments {
  Source source;
  Tiling tiling;
  double* partial;
};

template <typename T>
struct Sums {
  using Ring = PatchRows<T>;
  static constexpr int kTiles = 6, kEntries = kTiles * 4 * 32;
  static constexpr int kFlush = 8;  // steps of 32 positions that a float sums up
  // Offsets of this lane's rows for ldmatrix, for the first row of the convolution. `first` is for tile 0, or for tile
  // 1 if `above`, which comes from the cell above in the previous pair. `second` is for tile 2 or 3. For the second row
  // of the convolution, `down` replaces `first`.
  const bool above;
  uint32_t first, second, down, row_bytes;
  float sum[kTiles][4] = {};
  double total[kTiles][4] = {};

  NPR_DEVICE explicit Sums(const Source&) : above(thread_index() / 8 % 2) {}

  NPR_DEVICE void start(const Walk& walk, const Source& source, const Ring& ring) {
    const int lane = thread_index() % 32, position = thread_index() / 32 * 16 + lane / 16 * 8 + lane % 8;
    const bool inside = position >= 2 * walk.first && position < source.cell_columns - 2 * walk.column;
    const int cell = inside ? position : -1;  // cell -1 is always 0
    first = above ? ring.offset(1, kBottomRow, cell) : ring.offset(0, kRightColumn, cell - 1);
    down = above ? ring.offset(0, kBottomRow, cell) : ring.offset(1, kRightColumn, cell - 1);
    second = ring.offset(0, above ? kRest : source.anchor == 2 ? kRightColumn : kBottomRow, cell);
    row_bytes = ring.pair_bytes() / 2;
  }
  NPR_DEVICE void step(uint32_t before, uint32_t current, bool two) {
    row((above ? before : current) + first, current + second);
    if (two) row(current + down, current + second + row_bytes);
  }

  NPR_DEVICE void flush() {
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        total[i][j] += sum[i][j];
        sum[i][j] = 0;
      }
  }
  NPR_DEVICE void store(double* out) const {
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) out[(4 * i + j) * 32 + thread_index() % 32] = total[i][j];
  }
  // Returns the index of the entry with the sum of the products of components k and l (27 is the constant), or -1 for
  // 0.
  static NPR_DEVICE int entry(int k, int l, int anchor) {
    int m = patch_component(k, anchor), n = patch_component(l, anchor);
    if (m < 0 || n < 0) return -1;
    if (m / 16 > n / 16) {
      const int swap = m;
      m = n;
      n = swap;
    }
    const int tile = m < 16 ? n / 8 : 2 + n / 8;
    return (4 * tile + m % 16 / 8 * 2 + n % 2) * 32 + m % 8 * 4 + n % 8 / 2;
  }

 private:
  // Adds 16 positions of a row of the convolution. Each load gets two tiles for the first eight and the last eight
  // positions.
  NPR_DEVICE void row(uint32_t low, uint32_t high) {
    uint32_t tiles[2][4];
    load_transposed(tiles[0], low);
    load_transposed(tiles[1], high);
#pragma unroll
    for (int n = 0; n < 4; ++n)
      multiply<T>(sum[n], tiles[0], tiles[n / 2][n % 2], tiles[n / 2][n % 2 + 2], sum[n]);
#pragma unroll
    for (int n = 0; n < 2; ++n) multiply<T>(sum[4 + n], tiles[1], tiles[1][n], tiles[1][n + 2], sum[4 + n]);
  }
};

// Lane l < 27 sums the products of tap l / 3 with the three taps of row l % 3.
template <>
struct Sums<float> {
  using Ring = PixelRows<float, false>;
  static constexpr int kProducts = 27, kEntries = (kProducts + 3) * 32;
  static constexpr int kFlush = 8;  // steps of 32 positions that a float sums up
  const int tap, other;
  int begin, end, pitch;  // the warp's positions, and bytes per row
  float sum[kProducts] = {}, first[3] = {};
  double total[kProducts] = {}, first_total[3] = {};

  NPR_DEVICE explicit Sums(const Source&)
      : tap(thread_index() % 32 < 27 ? thread_index() % 32 / 3 : 8), other(thread_index() % 32 % 3) {}

  NPR_DEVICE void start(const Walk& walk, const Source& source, const Ring& ring) {
    const int warp = thread_index() / 32, inside = source.cell_columns - 2 * walk.column;
    begin = 16 * warp < 2 * walk.first ? 2 * walk.first : 16 * warp;
    end = 16 * (warp + 1) < inside ? 16 * (warp + 1) : inside;
    pitch = ring.pitch;
  }
  NPR_DEVICE void step(uint32_t before, uint32_t current, bool two) {
    for (int i = 0; i < (two ? 2 : 1); ++i) {
      const auto row = [&](int dy) {
        return i == 0 && dy == 0 ? before + static_cast<uint32_t>(3 * pitch)
                                 : current + static_cast<uint32_t>((2 * i + dy - 1) * pitch);
      };
      const uint32_t mine = row(tap / 3), others = row(other);
      for (int position = begin; position < end; ++position) {
        float value[3], with[3][3];
        load(value, mine, 2 * position + tap % 3 - 1);
#pragma unroll
        for (int dx = 0; dx < 3; ++dx) load(with[dx], others, 2 * position + dx - 1);
#pragma unroll
        for (int k = 0; k < kProducts; ++k) sum[k] += value[k / 9] * with[k / 3 % 3][k % 3];
#pragma unroll
        for (int c = 0; c < 3; ++c) first[c] += value[c];
      }
    }
  }
  static NPR_DEVICE void load(float (&out)[3], uint32_t row, int pixel) {
    const uint4 words = load_shared<uint4>(row + static_cast<uint32_t>(record_offset<float, false>(pixel, 0)));
    out[0] = as_float(words.x);
    out[1] = as_float(words.y);
    out[2] = as_float(words.z);
  }

  NPR_DEVICE void flush() {
#pragma unroll
    for (int k = 0; k < kProducts; ++k) {
      total[k] += sum[k];
      sum[k] = 0;
    }
#pragma unroll
    for (int c = 0; c < 3; ++c) {
      first_total[c] += first[c];
      first[c] = 0;
    }
  }
  NPR_DEVICE void store(double* out) const {
#pragma unroll
    for (int k = 0; k < kProducts; ++k) out[k * 32 + thread_index() % 32] = total[k];
#pragma unroll
    for (int c = 0; c < 3; ++c) out[(kProducts + c) * 32 + thread_index() % 32] = first_total[c];
  }
  static NPR_DEVICE int entry(int k, int l, int) {
    const int lane = k % 9 * 3;
    return l == 27 ? (kProducts + k / 9) * 32 + lane : (k / 9 * 9 + l % 3 * 3 + l / 9) * 32 + lane + l % 9 / 3;
  }
};

constexpr int kWarps = 8;

template <typename T, bool kBytes>
NPR_KERNEL(32 * kWarps, (sizeof(T) == 4 ? 1 : 2))
moments_kernel(const Arguments arguments) {
  const Source& source = arguments.source;
  const Tiling& tiling = arguments.tiling;
  const uint32_t ring = shared_address(shared_memory());
  const uint32_t raw = ring + static_cast<uint32_t>(Sums<T>::Ring::ring_bytes(tiling.width));
  Stager<T, kBytes, typename Sums<T>::Ring> stager(source, ring, raw, tiling.width);

  Sums<T> sums(source);
  int steps = 0;  // number of steps since the last flush
  Walk walk(tiling);
  while (walk.next(tiling)) {
    stager.start(walk);
    sums.start(walk, source, stager.layout);
    for (int s = walk.begin - kLead; s < walk.begin; ++s, stager.rotate(), synchronize()) stager.advance(s, walk);
    for (int s = walk.begin; s < walk.end; ++s, stager.rotate(), synchronize()) {
      stager.advance(s, walk);
      sums.step(stager.before, stager.current, 2 * s + 1 < source.cell_rows);
      if (++steps == Sums<T>::kFlush) {
        sums.flush();
        steps = 0;
      }
    }
  }
  sums.flush();
  reduce_block(
      Sums<T>::kEntries, kMomentsPartial, arguments.partial + block_index() * kMomentsPartial,
      [&](double* out) { sums.store(out); },
      [&](int i) { return Sums<T>::entry(i / kSide, i % kSide, source.anchor); });
}

struct Result {
  double* first;
  double* second;
  Factors scale;
};

NPR_KERNEL(32 * kReduceWarps, 1)
finish_moments(const double* partial, int count, const Result result) {
  const int index = block_index() * 32 + thread_index() % 32, row = index / kSide, column = index % kSide;
  const double sum = reduce_rows(partial, kMomentsPartial, index, count);
  if (thread_index() >= 32 || index >= kMomentsPartial) return;
  if (column == 27) {
    result.first[row] = sum * result.scale[row / 9];
  } else {
    result.second[row * 27 + column] = sum * result.scale[row / 9] * result.scale[column / 9];
  }
}

template <typename T, bool kBytes>
const char* launch_moments(const Moments& call, void* stream) {
  const Arguments arguments{source_of(call.task), tiling_of(call.task, kWarps), call.partial};
  const Tiling& tiling = arguments.tiling;
  const int threads = 4 * tiling.width;
  const int64_t staged = Sums<T>::Ring::ring_bytes(tiling.width) + raw_bytes(call.task.x.type, tiling.width);
  const int64_t reduced = reduce_bytes(Sums<T>::kEntries, threads), shared = staged > reduced ? staged : reduced;
  const auto kernel = moments_kernel<T, kBytes>;
  int64_t blocks = 0;
  if (const char* error = reduction_blocks(kernel, tiling, 1, threads, shared, blocks)) return error;
  if (blocks > 0)
    if (const char* error = launch(kernel, blocks, 1, threads, shared, stream, arguments)) return error;
  const Result result{call.first, call.second, factors_of(call.task)};
  return launch(finish_moments, (kMomentsPartial + 31) / 32, 1, 32 * kReduceWarps, kReduceBytes, stream,
                static_cast<const double*>(call.partial), static_cast<int>(blocks), result);
}

}  // namespace

int64_t slots() { return 4 * multiprocessors(); }

const char* moments(const Moments& call, void* stream) {
  switch (call.task.x.type) {
    case Type::kUInt8: return launch_moments<Float16, true>(call, stream);
    case Type::kFloat32: return launch_moments<float, false>(call, stream);
    case Type::kBFloat16: return launch_moments<BFloat16, false>(call, stream);
    default: return launch_moments<Float16, false>(call, stream);
  }
}

}  // namespace npr::cuda
