// First and second moments of the convolution's patches: sum of P and of P P^T over all positions, P the 27 values that a
// position sees. The batch norm's statistics follow from them without the convolution's output.
//
// In 16 bits the sums run on the tensor cores: ldmatrix hands out patches of 16 positions transposed, 48 values each (the
// whole cells around the position), and the same registers serve as both operands. The constant 1 of a record gives the
// first moments. P P^T is symmetric: 12 of its 18 tiles of 16x8 are computed, six by each of two warps over the same
// positions. Sums of uint8 images are exact: a float holds 256 products of at most 255^2, then they go into a double.
//
// Cost for a 256x256 image: 1024 times 16 positions x (6 ldmatrix + 12 mma + 24 masks), under 0.1e6 instructions with the
// staging: the 196 KiB of pixels (0.07 us at 3 TB/s) and the latency of a step decide. Float32 images take the plain
// kernel: 34 instructions a position, 0.6 us an image.
#include "reduction.h"

namespace npr::cuda {
namespace {

constexpr int kSide = 28;  // 27 values and the constant

struct Arguments {
  Source source;
  Tiling tiling;
  double* partial;
};

NPR_DEVICE int index_of(int channel, int dy, int dx) { return channel * 9 + dy * 3 + dx; }

// What component `i` of a transposed patch is: rows dy = i / 16, of the left cell (8) and the position's own (8), each
// two records. -1 for the left cell's left pixel and for all constants but one.
NPR_DEVICE int index_of_component(int i) {
  const int dy = i / 16, own = i / 8 % 2, right = i / 4 % 2, channel = i % 4;
  if (channel == 3) return dy == 1 && own && !right ? 27 : -1;
  return own ? index_of(channel, dy, 1 + right) : right ? index_of(channel, dy, 0) : -1;
}

template <typename T>
struct Sums {
  static constexpr int kTiles = 6;
  static constexpr int kFlush = 4;  // steps of 64 positions that a float sums up
  const bool second;                // which six tiles
  float sum[kTiles][4];
  double total[kTiles][4] = {};

  NPR_DEVICE Sums() : second(thread_index() / 32 % 2) { clear(); }

  NPR_DEVICE void clear() {
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[i][j] = 0;
  }
  NPR_DEVICE void flush() {
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) total[i][j] += sum[i][j];
    clear();
  }

  // Tiles (m, n): the first warp of two has (0, 0..5), the second (1, 2..5) and (2, 4..5).
  static NPR_DEVICE int tile_row(bool second, int i) { return second ? 1 + i / 4 : 0; }
  static NPR_DEVICE int tile_column(bool second, int i) { return second ? 2 + i : i; }

  // A row of the convolution, at the positions of this warp and its partner: rows[dy] are the records it sees.
  NPR_DEVICE void row(const uint32_t (&rows)[3], const Walk& walk, const Source& source) {
    const int lane = thread_index() % 32, warps = thread_index() / 64 * 2;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int first = 16 * (warps + half);  // cell in the strip
      const int end = source.cell_columns - 2 * walk.column;
      const int cell = first + lane / 16 * 8 + lane % 8 - (lane / 8 % 2 == 0);  // whose row of records this lane names
      uint32_t patch[3][4];  // by dy: (left, own) of the first eight positions, then of the last
#pragma unroll
      for (int dy = 0; dy < 3; ++dy) {
        load_transposed(patch[dy], rows[dy] + static_cast<uint32_t>(record_offset<T, false>(2 * cell, 0)));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int position = first + i / 2 * 8 + lane % 4 * 2;  // and the next
          uint32_t mask = position + 1 < end ? 0xffffffffu : position < end ? 0xffffu : 0;
          if (position < 2 * walk.first) mask = 0;
          patch[dy][i] &= mask;
        }
      }
      if (second) {
        products<true>(patch);
      } else {
        products<false>(patch);
      }
    }
  }

  template <bool kSecond>
  NPR_DEVICE void products(const uint32_t (&patch)[3][4]) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const int n = tile_column(kSecond, i) - (kSecond && i >= 4 ? 2 : 0);
      multiply<T>(sum[i], patch[tile_row(kSecond, i)], patch[n / 2][n % 2], patch[n / 2][n % 2 + 2], sum[i]);
    }
  }

  NPR_DEVICE void add(double* out) const {
    const int lane = thread_index() % 32;
#pragma unroll
    for (int i = 0; i < kTiles; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int m = tile_row(second, i), n = tile_column(second, i) - (second && i >= 4 ? 2 : 0);
        const int a = index_of_component(16 * m + lane / 4 + j / 2 * 8);
        const int b = index_of_component(8 * n + lane % 4 * 2 + j % 2);
        if (a < 0 || b < 0) continue;
        out[a * kSide + b] += total[i][j];
        if (n / 2 != m) out[b * kSide + a] += total[i][j];
      }
  }
};

// Lane l < 27 has the products of tap l / 3 with the three taps of row l % 3.
template <>
struct Sums<float> {
  static constexpr int kFlush = 8;  // steps of 32 positions that a float sums up
  const int tap, other;
  float sum[3][3][3], first[3];
  double total[3][3][3] = {}, first_total[3] = {};

  NPR_DEVICE Sums()
      : tap(thread_index() % 32 < 27 ? thread_index() % 32 / 3 : 8), other(thread_index() % 3) {
    clear();
  }

  template <typename Visit>
  static NPR_DEVICE void each(const Visit& visit) {
#pragma unroll
    for (int c = 0; c < 3; ++c)
#pragma unroll
      for (int dx = 0; dx < 3; ++dx)
#pragma unroll
        for (int d = 0; d < 3; ++d) visit(c, dx, d);
  }
  NPR_DEVICE void clear() {
    each([&](int c, int dx, int d) { sum[c][dx][d] = 0; });
#pragma unroll
    for (int c = 0; c < 3; ++c) first[c] = 0;
  }
  NPR_DEVICE void flush() {
    each([&](int c, int dx, int d) { total[c][dx][d] += sum[c][dx][d]; });
#pragma unroll
    for (int c = 0; c < 3; ++c) first_total[c] += first[c];
    clear();
  }

  NPR_DEVICE void row(const uint32_t (&rows)[3], const Walk& walk, const Source& source) {
    const uint32_t mine = tap < 3 ? rows[0] : tap < 6 ? rows[1] : rows[2];
    const uint32_t others = other == 0 ? rows[0] : other == 1 ? rows[1] : rows[2];
    const int warp = thread_index() / 32, end = source.cell_columns - 2 * walk.column;
    const int begin = 16 * warp < 2 * walk.first ? 2 * walk.first : 16 * warp;
    for (int position = begin; position < end && position < 16 * (warp + 1); ++position) {
      const float4 a = record(mine, 2 * position + tap % 3 - 1);
      const float value[3] = {a.x, a.y, a.z};
      float4 b[3];
#pragma unroll
      for (int dx = 0; dx < 3; ++dx) b[dx] = record(others, 2 * position + dx - 1);
      each([&](int c, int dx, int d) { sum[c][dx][d] += value[c] * (d == 0 ? b[dx].x : d == 1 ? b[dx].y : b[dx].z); });
#pragma unroll
      for (int c = 0; c < 3; ++c) first[c] += value[c];
    }
  }
  static NPR_DEVICE float4 record(uint32_t row, int pixel) {
    const uint4 words = load_shared<uint4>(row + static_cast<uint32_t>(record_offset<float, false>(pixel, 0)));
    return {as_float(words.x), as_float(words.y), as_float(words.z), as_float(words.w)};
  }

  NPR_DEVICE void add(double* out) const {
    if (thread_index() % 32 >= 27) return;
    each([&](int c, int dx, int d) {
      out[index_of(c, tap / 3, tap % 3) * kSide + index_of(d, other, dx)] += total[c][dx][d];
    });
#pragma unroll
    for (int c = 0; c < 3; ++c)
      if (other == 0) out[index_of(c, tap / 3, tap % 3) * kSide + 27] += first_total[c];
  }
};

constexpr int kWarps = 8;

template <typename T, bool kBytes>
NPR_KERNEL(32 * kWarps, 1)
moments_kernel(const Arguments arguments) {
  const Tiling& tiling = arguments.tiling;
  unsigned char* const shared = shared_memory();
  double* const total = reinterpret_cast<double*>(shared);
  const uint32_t ring = shared_address(shared) + kMomentsPartial * 8;
  const uint32_t raw = ring + static_cast<uint32_t>(ring_bytes(Record<T>::kBytes, tiling.width));
  Stager<T, kBytes, false> stager(arguments.source, ring, raw, tiling.width);

  Sums<T> sums;
  Walk walk(tiling);
  while (walk.next(tiling)) {
    stager.start(walk);
    for (int s = walk.begin - kLead; s < walk.end; ++s, stager.rotate(), synchronize()) {
      stager.advance(s, walk);
      if (s < walk.begin) continue;
      const uint32_t pair = stager.current, pitch = static_cast<uint32_t>(stager.pitch);
      const uint32_t upper[3] = {stager.before + 3 * pitch, pair, pair + pitch};
      const uint32_t lower[3] = {pair + pitch, pair + 2 * pitch, pair + 3 * pitch};
      sums.row(upper, walk, arguments.source);
      if (2 * s + 1 < arguments.source.cell_rows) sums.row(lower, walk, arguments.source);
      if ((s - walk.begin) % Sums<T>::kFlush == Sums<T>::kFlush - 1) sums.flush();
    }
    sums.flush();
  }
  reduce_block(total, kMomentsPartial, arguments.partial + block_index() * kMomentsPartial,
               [&](double* out) { sums.add(out); });
}

struct Result {
  double* first;
  double* second;
  double scale[3];
};

NPR_KERNEL(32 * kReduceWarps, 1)
finish_moments(const double* partial, int count, const Result result) {
  const int index = block_index() * kReduceWarps + thread_index() / 32;
  const double sum = reduce_rows(partial, kMomentsPartial, index, count);
  const int row = index / kSide, column = index % kSide;
  if (thread_index() % 32 != 0 || row == 27) return;
  const double scale = result.scale[row / 9];
  if (column == 27) {
    result.first[row] = sum * scale;
  } else {
    result.second[row * 27 + column] = sum * scale * result.scale[column / 9];
  }
}

template <typename T, bool kBytes>
const char* launch_moments(const Moments& call, void* stream) {
  Arguments arguments{source_of(call.task), tiling_of(call.task, kWarps), call.partial};
  Tiling& tiling = arguments.tiling;
  tiling.width = (tiling.width + 15) / 16 * 16;  // warps in pairs
  const int threads = 4 * tiling.width;
  const int64_t shared =
      kMomentsPartial * 8 + ring_bytes(Record<T>::kBytes, tiling.width) + raw_bytes(call.task.x.type, tiling.width);
  const auto kernel = moments_kernel<T, kBytes>;
  int64_t blocks = 0;
  if (const char* error = reduction_blocks(kernel, tiling, 1, threads, shared, blocks)) return error;
  if (blocks > 0)
    if (const char* error = launch(kernel, blocks, 1, threads, shared, stream, arguments)) return error;
  const auto scale = staged_scale<double>(call.task);
  const Result result{call.first, call.second, {scale[0], scale[1], scale[2]}};
  return launch(finish_moments, kMomentsPartial / kReduceWarps, 1, 32 * kReduceWarps, 0, stream,
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
