// How the image reaches the kernels: pairs of rows of cells, as differences from the anchors, in a ring in shared memory.
//
// A block walks down a strip of pooled columns. Step s of the walk is pooled row s: convolution rows 2s and 2s + 1,
// which read cell rows 2s - 1 (its lower pixels), 2s and 2s + 1. So the ring holds three pairs of cell rows: pair s and
// the end of pair s - 1 are read while pair s + 1 is written. Raw pixels arrive by asynchronous copies three steps
// ahead, each thread copying what it will convert itself.
//
// A record is one pixel: its three differences and the constant 1 (which multiplies the bias, or counts positions).
// Outside the image all four are 0. Differences of uint8 pixels are kept divided by 256: exact in bfloat16 and float16,
// and `scale` times 256 leaves the weights in the range of float16.
#pragma once

#include <array>

#include "instructions.h"
#include "kernels.h"

namespace npr::cuda {

// How pixels lie in memory. In fours: four pixels of a row are copied as 12 neighbouring elements (channels_last), or 4
// of each plane. Anything else is read element by element.
enum class Access : int { kInterleaved, kPlanar, kScalar };

struct Source {
  Image image;
  Access access;
  int anchor;
  int cell_rows, cell_columns;  // also the size of the convolution's output
};

// How pooled pixels are shared out. A strip is `width` pooled columns of one image; strips overlap by one column, whose
// results only the left strip keeps: the right one needs it as the left neighbour of its own. Every block takes an
// equal share of the rows of all strips.
struct Tiling {
  int64_t batch;
  int rows, columns;  // pooled
  int strips, width;  // strips in an image; width is a multiple of 8: eight pooled columns for each warp
};

// One block's walks: each covers rows [begin, end) of a strip, until `left` rows are gone through.
struct Walk {
  int image;
  int column;  // first pooled column of the strip
  int first;   // first pooled column, counted in the strip, whose results it keeps
  int begin, end;
  int strip, left;

  NPR_DEVICE explicit Walk(const Tiling& tiling) {
    const int64_t rows = tiling.batch * tiling.strips * tiling.rows;
    const int64_t from = rows * block_index() / blocks(), to = rows * (block_index() + 1) / blocks();
    strip = static_cast<int>(from / tiling.rows) - 1;
    end = static_cast<int>(from % tiling.rows);
    left = static_cast<int>(to - from);
  }

  NPR_DEVICE bool next(const Tiling& tiling) {
    if (left == 0) return false;
    ++strip;
    begin = end < tiling.rows ? end : 0;
    end = left < tiling.rows - begin ? begin + left : tiling.rows;
    left -= end - begin;
    image = strip / tiling.strips;
    const int index = strip - image * tiling.strips;
    column = index * (tiling.width - 1);
    first = index > 0;
    return true;
  }
};

// Where the records of a row lie. Pixel p of a strip (-4 .. 4 * width - 1; four pixels belong to a pooled column) is in
// group p / 4, and `spread` rotates the four within their group so that neither the writing of a group by each lane nor
// the reading of every fourth pixel, in three rows at once, meets the same banks.
template <typename T>
struct Record {  // 16-bit: two words, the first two differences and (the third, 1)
  static constexpr int kBytes = 8;
  static NPR_DEVICE int spread(int row, int group) { return row + (group >> 2); }
  static NPR_DEVICE void store(unsigned char* to, float a, float b, float c, float one) {
    *reinterpret_cast<uint2*>(to) = uint2{pack<T>(a, b), pack<T>(c, one)};
  }
};
template <>
struct Record<float> {
  static constexpr int kBytes = 16;
  static NPR_DEVICE int spread(int, int group) { return group >> 1; }
  static NPR_DEVICE void store(unsigned char* to, float a, float b, float c, float one) {
    *reinterpret_cast<float4*>(to) = float4{a, b, c, one};
  }
};

// Offset of pixel `pixel` in a row; `row` counts from a pair's first row, and only its value modulo 4 matters.
template <typename T, bool kSpread>
NPR_DEVICE int record_offset(int pixel, int row) {
  const int group = pixel >> 2;
  const int turn = kSpread ? Record<T>::spread(row, group) : 0;
  return ((group + 1) * 4 + ((pixel + turn) & 3)) * Record<T>::kBytes;
}

constexpr int kPairRows = 4;   // pixel rows in a pair of cell rows
constexpr int kPairs = 3;      // pairs in the ring
constexpr int kRawStages = 2;  // steps whose raw pixels are on their way
constexpr int kLead = 4;       // steps before a walk's first, in which its first pairs come in
constexpr int kPieces = 6;     // two rows of four pixels: two times three pieces of four elements

NPR_CONSTANT int element_bytes(Type type) { return type == Type::kUInt8 ? 1 : type == Type::kFloat32 ? 4 : 2; }
NPR_CONSTANT int record_pitch(int record_bytes, int width) { return (width + 1) * 4 * record_bytes; }
NPR_CONSTANT int64_t ring_bytes(int record_bytes, int width) {
  return static_cast<int64_t>(kPairs) * kPairRows * record_pitch(record_bytes, width);
}
NPR_CONSTANT int64_t raw_bytes(Type type, int width) {
  return static_cast<int64_t>(kRawStages) * kPieces * 2 * width * 4 * element_bytes(type);
}

// The state of one thread of a block of 4 * width threads (or more). The first 2 * width of them stage: each the two
// cells of one pooled column in one row of a pair.
template <typename T, bool kSpread>
struct Stager {
  const Source& source;
  unsigned char* const ring;
  unsigned char* const raw;
  const int width;
  const int pitch;
  const bool stages;   // whether this thread takes part
  const int column;    // pooled column in the strip: its two cells
  const int cell_row;  // in the pair
  const unsigned char* pixels;  // of cell row 0
  int valid;                    // how many of the two cells are inside the image

  NPR_DEVICE Stager(const Source& source, unsigned char* ring, unsigned char* raw, int width)
      : source(source),
        ring(ring),
        raw(raw),
        width(width),
        pitch(record_pitch(Record<T>::kBytes, width)),
        stages(thread_index() < 2 * width),
        column(thread_index() < width ? thread_index() : thread_index() - width),
        cell_row(thread_index() < width ? 0 : 1),
        pixels(nullptr),
        valid(0) {}

  // The records left of the strip: always 0, the padding of the image or a column whose results are not kept.
  NPR_DEVICE void clear_left() {
    for (int row = thread_index(); row < kPairs * kPairRows; row += block_threads())
      for (int k = 0; k < 4; ++k) Record<T>::store(ring + row * pitch + k * Record<T>::kBytes, 0, 0, 0, 0);
  }

  NPR_DEVICE unsigned char* pair(int s) const { return ring + (s + kPairs) % kPairs * (kPairRows * pitch); }

  NPR_DEVICE unsigned char* piece(int s, int index) const {
    const int bytes = 4 * element_bytes(source.image.type);
    return raw + (((s & 1) * kPieces + index) * (2 * width) + thread_index()) * bytes;
  }

  NPR_DEVICE bool inside(int s) const {
    const int row = 2 * s + cell_row;
    return stages && valid > 0 && row >= 0 && row < source.cell_rows;
  }

  NPR_DEVICE void start(const Walk& walk) {
    const Image& x = source.image;
    const int cells = source.cell_columns - 2 * (walk.column + column);
    valid = cells < 0 ? 0 : cells > 2 ? 2 : cells;
    const int64_t offset = int64_t{walk.image} * x.stride[0] + int64_t{4} * (walk.column + column) * x.stride[3];
    pixels = static_cast<const unsigned char*>(x.data) + offset * element_bytes(x.type);
  }

  // Part of step s, from kLead steps before the walk's first: writes pair s + 1 to the ring, asks for pair s + 3.
  NPR_DEVICE void advance(int s, const Walk& walk) {
    wait_copies<kRawStages - 1>();
    if (stages && s + 1 >= walk.begin - 1 && s + 1 < walk.end) convert(s + 1);
    fetch(s + 3, walk.end);
  }

  NPR_DEVICE void fetch(int s, int end) {
    if (s < end && inside(s)) {
      switch (source.image.type) {
        case Type::kUInt8: copy<uint8_t>(s); break;
        case Type::kFloat32: copy<uint32_t>(s); break;
        default: copy<uint16_t>(s); break;
      }
    }
    commit_copies();
  }

  template <typename Element>
  NPR_DEVICE void copy(int s) {
    constexpr int kBytes = 4 * sizeof(Element);
    const Image& x = source.image;
    const unsigned char* from = pixels + int64_t{2} * (2 * s + cell_row) * x.stride[2] * int64_t{sizeof(Element)};
    if (source.access == Access::kScalar) {
#pragma unroll
      for (int row = 0; row < 2; ++row)
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (k >= 2 * valid) break;
#pragma unroll
          for (int c = 0; c < 3; ++c) {
            const int64_t element = row * x.stride[2] + k * x.stride[3] + c * x.stride[1];
            const int flat = 3 * k + c;
            reinterpret_cast<Element*>(piece(s, 3 * row + flat / 4))[flat % 4] =
                load_global(reinterpret_cast<const Element*>(from) + element);
          }
        }
      return;
    }
    const int64_t next = source.access == Access::kPlanar ? x.stride[1] * int64_t{sizeof(Element)} : kBytes;
#pragma unroll
    for (int row = 0; row < 2; ++row)
#pragma unroll
      for (int i = 0; i < 3; ++i)
        copy_async<kBytes>(piece(s, 3 * row + i), from + row * x.stride[2] * int64_t{sizeof(Element)} + i * next);
  }

  NPR_DEVICE void convert(int s) {
    unsigned char* const rows = pair(s) + 2 * cell_row * pitch;
    const bool row_inside = inside(s);
#pragma unroll
    for (int cell = 0; cell < 2; ++cell) {
      float x[2][2][3];  // pixels; of uint8 all with the same constant added, which the differences cancel
      if (row_inside && source.access == Access::kPlanar) read<true>(s, cell, x);
      if (row_inside && source.access != Access::kPlanar) read<false>(s, cell, x);
      float anchor[3];
#pragma unroll
      for (int c = 0; c < 3; ++c) {
        const float upper = source.anchor & 1 ? x[0][1][c] : x[0][0][c];
        const float lower = source.anchor & 1 ? x[1][1][c] : x[1][0][c];
        anchor[c] = source.anchor & 2 ? lower : upper;
      }
#pragma unroll
      for (int row = 0; row < 2; ++row)
#pragma unroll
        for (int k = 0; k < 2; ++k) {
          unsigned char* const to =
              rows + row * pitch + record_offset<T, kSpread>(4 * column + 2 * cell + k, 2 * cell_row + row);
          const float(&p)[3] = x[row][k];
          if (row_inside && cell < valid) {
            Record<T>::store(to, p[0] - anchor[0], p[1] - anchor[1], p[2] - anchor[2], 1);
          } else {
            Record<T>::store(to, 0, 0, 0, 0);
          }
        }
    }
  }

  // One of the two cells.
  template <bool kPlanar>
  NPR_DEVICE void read(int s, int cell, float (&x)[2][2][3]) const {
#pragma unroll
    for (int row = 0; row < 2; ++row)
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        if (!kPlanar && i == 2 - 2 * cell) continue;  // six of the twelve elements are in two of the three pieces
        const unsigned char* const four = piece(s, 3 * row + i);
        float value[4];
        if (source.image.type == Type::kUInt8) {
          const uint32_t bytes = *reinterpret_cast<const uint32_t*>(four);
#pragma unroll
          for (int j = 0; j < 4; ++j)  // 2^15 + byte / 256, by placing the byte in the mantissa
            value[j] = as_float(byte_perm(bytes, 0x47000000u, 0x7440u + j));
        } else if (source.image.type == Type::kFloat32) {
          const float4 floats = *reinterpret_cast<const float4*>(four);
          value[0] = floats.x;
          value[1] = floats.y;
          value[2] = floats.z;
          value[3] = floats.w;
        } else {
          const uint2 halves = *reinterpret_cast<const uint2*>(four);
          const bool brain = source.image.type == Type::kBFloat16;
          value[0] = brain ? low_half<BFloat16>(halves.x) : low_half<Float16>(halves.x);
          value[1] = brain ? high_half<BFloat16>(halves.x) : high_half<Float16>(halves.x);
          value[2] = brain ? low_half<BFloat16>(halves.y) : low_half<Float16>(halves.y);
          value[3] = brain ? high_half<BFloat16>(halves.y) : high_half<Float16>(halves.y);
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int pixel = kPlanar ? j : (4 * i + j) / 3, channel = kPlanar ? i : (4 * i + j) % 3;
          if (pixel / 2 == cell) x[row][pixel % 2][channel] = value[j];
        }
      }
  }
};

// --- host ---

inline Source source_of(const Task& task) {
  const int64_t* stride = task.x.stride;
  const int bytes = 4 * element_bytes(task.x.type);
  const bool fours = reinterpret_cast<uintptr_t>(task.x.data) % bytes == 0 && task.width % 4 == 0 &&
                     stride[0] % 4 == 0 && stride[2] % 4 == 0;
  Access access = Access::kScalar;
  if (fours && stride[1] == 1 && stride[3] == 3) access = Access::kInterleaved;
  if (fours && stride[3] == 1 && stride[1] % 4 == 0) access = Access::kPlanar;
  return {task.x, access, task.anchor, static_cast<int>(task.height / 2), static_cast<int>(task.width / 2)};
}

// Strips as wide as `most_warps` allow, of equal widths.
inline Tiling tiling_of(const Task& task, int most_warps) {
  const int64_t rows = (task.height / 2 + 1) / 2, columns = (task.width / 2 + 1) / 2;
  const int64_t most = 8 * most_warps;
  const int64_t strips = columns <= most ? 1 : (columns - 1 + most - 2) / (most - 1);
  const int64_t width = (columns - 1 + strips - 1) / strips + 1;
  return {task.batch, static_cast<int>(rows), static_cast<int>(columns), static_cast<int>(strips),
          static_cast<int>((width + 7) / 8 * 8)};
}

// The factors on the differences as they are staged.
template <typename Number>
std::array<Number, 3> staged_scale(const Task& task) {
  const double unit = task.x.type == Type::kUInt8 ? 256 : 1;
  return {static_cast<Number>(task.scale[0] * unit), static_cast<Number>(task.scale[1] * unit),
          static_cast<Number>(task.scale[2] * unit)};
}

}  // namespace npr::cuda
