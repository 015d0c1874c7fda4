// Stages the image for the kernels. Pairs of cell rows are stored in a ring in shared memory, as differences from the
// anchors.
//
// A block walks down a strip of pooled columns. Step s of the walk computes pooled row s. It needs the convolution rows
// 2s and 2s + 1, which read the cell rows 2s - 1 (its lower pixels), 2s and 2s + 1. So the ring holds three pairs of
// cell rows: pair s and the end of pair s - 1 are read while pair s + 1 is written. Asynchronous copies of 16 bytes
// bring raw pixels three steps ahead. A warp stages the pixels of its own eight pooled columns: each lane converts one
// of sixteen cells in one of the two cell rows. So every warp has the same work, and only the lanes of a warp have to
// wait for each other's copies.
//
// A record is one pixel: its three differences and the constant 1, which multiplies the bias or counts positions.
// Outside the image, all four are 0. Differences of uint8 pixels are float16 numbers, divided by 256. They are exact,
// and they need no conversion, because the bits 0x4400 | byte are the float16 number 4 + byte / 256.
#pragma once

#include <array>

#include "instructions.h"
#include "kernels.h"

namespace npr::cuda {

struct Source {
  Image image;
  bool planar;  // whether the image is planar; else it is channels_last
  int anchor;
  int cell_rows, cell_columns;  // this is also the size of the convolution's output
};

// How pooled pixels are distributed. A strip is `width` pooled columns of one image. Neighbouring strips overlap by
// kOverlap columns, and only the left strip writes their results. The right strip needs the last of these columns as
// the left neighbour of its own columns, and it has to begin at a piece of 16 bytes. Every block takes an equal share
// of the rows of all strips.
struct Tiling {
  int64_t batch;
  int rows, columns;  // pooled
  int strips, width;  // strips per image; width is a multiple of 8, because each warp has eight pooled columns
};

constexpr int kOverlap = 4;

// The walks of one block. Each walk covers the rows [begin, end) of a strip. `left` counts the rows of later walks.
struct Walk {
  int image;
  int column;  // first pooled column of the strip
  int first;   // first column of the strip whose results are written
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
    column = index * (tiling.width - kOverlap);
    first = index > 0 ? kOverlap : 0;
    return true;
  }
};

template <typename T>
struct Record {  // 16-bit numbers: two words, with the differences (first, second) and (third, 1)
  using Words = uint2;
  static constexpr int kBytes = 8;
  static NPR_DEVICE int spread(int row, int group) { return row + (group >> 2); }
  static NPR_DEVICE Words of(float a, float b, float c, float one) { return {pack<T>(a, b), pack<T>(c, one)}; }
};
template <>
struct Record<float> {
  using Words = uint4;
  static constexpr int kBytes = 16;
  static NPR_DEVICE int spread(int, int group) { return group >> 1; }
  static NPR_DEVICE Words of(float a, float b, float c, float one) {
    return {as_bits(a), as_bits(b), as_bits(c), as_bits(one)};
  }
};

// Returns the offset of pixel `pixel` in a row. `row` counts from the first row of a pair; only its value modulo 4
// matters.
template <typename T, bool kSpread>
NPR_DEVICE int record_offset(int pixel, int row) {
  const int group = pixel >> 2;
  const int turn = kSpread ? Record<T>::spread(row, group) : 0;
  return ((group + 1) * 4 + ((pixel + turn) & 3)) * Record<T>::kBytes;
}

constexpr int kPairRows = 4;    // pixel rows in a pair of cell rows
constexpr int kPairs = 3;       // pairs in the ring
constexpr int kRawStages = 2;   // steps whose raw pixels are being copied
constexpr int kLead = 4;        // steps before the first of a walk, in which its first pairs are loaded
constexpr int kRowElements = 96;  // elements in a warp's 32 pixels of a row
constexpr int kPieceBytes = 16;

NPR_CONSTANT int element_bytes(Type type) { return type == Type::kUInt8 ? 1 : type == Type::kFloat32 ? 4 : 2; }
NPR_CONSTANT int64_t raw_bytes(Type type, int width) {
  return static_cast<int64_t>(kRawStages) * kPairRows * kRowElements * element_bytes(type) * (width / 8);
}

// The ring as rows of pixels. Pixel p of a strip (-4 .. 4 * width - 1) is in group p / 4; a group belongs to one pooled
// column. `spread` rotates the four pixels within a group. So there are no bank conflicts when neighbouring cells are
// written, or when every fourth pixel of three rows is read. The records on the left of the strip are always 0. They
// are the padding of the image, or belong to a column whose results are not written.
template <typename T, bool kSpread>
struct PixelRows {
  using Words = typename Record<T>::Words;
  const int pitch;
  int write[4];  // offsets in a pair: the anchor, its neighbour in the row, its neighbour in the column, the diagonal pixel

  static NPR_CONSTANT int pitch_of(int width) { return (width + 1) * 4 * Record<T>::kBytes; }
  static NPR_CONSTANT int64_t ring_bytes(int width) { return int64_t{kPairs} * kPairRows * pitch_of(width); }

  NPR_DEVICE PixelRows(const Source& source, uint32_t ring, int width) : pitch(pitch_of(width)) {
    const int lane = thread_index() % 32, pixel = 2 * (16 * (thread_index() / 32) + lane % 16);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 2 * (lane / 16) + ((i / 2) ^ (source.anchor >> 1)), column = (i % 2) ^ (source.anchor & 1);
      write[i] = row * pitch + record_offset<T, kSpread>(pixel + column, row);
    }
    for (int row = thread_index(); row < kPairs * kPairRows; row += block_threads())
      for (int k = 0; k < 4; ++k) store_shared(ring + static_cast<uint32_t>(row * pitch + k * Record<T>::kBytes), Words{});
  }
  NPR_DEVICE uint32_t pair_bytes() const { return static_cast<uint32_t>(kPairRows * pitch); }

  NPR_DEVICE void clear(uint32_t pair, uint32_t /* after */) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) store_shared(pair + static_cast<uint32_t>(write[i]), Words{});
  }
  // Stores the four records of a cell, in the order of `write`. They go into `pair`. A layout may store records that
  // only cells below need in the pair `after` it.
  NPR_DEVICE void store(uint32_t pair, uint32_t /* after */, const Words (&record)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) store_shared(pair + static_cast<uint32_t>(write[i]), record[i]);
  }
};

// The state of one thread of a block with 4 * width threads. T is the type of the records. kBytes means that the image
// is uint8; T has 16 bits then.
template <typename T, bool kBytes, typename Layout>
struct Stager {
  const Source& source;
  const Layout layout;
  uint32_t before, current, next;  // pairs s - 1, s and s + 1 of the ring
  const unsigned char* rows;       // in the pair to fetch next: the warp's first pixel, or this lane's piece if kBytes
  const uint32_t raw;    // memory for the warp's raw pixels, or for this lane's piece of them if kBytes
  uint32_t cell_rows;    // number of rows in which this lane's cell is inside the image (of pairs, if kBytes)
  uint32_t piece_pairs;  // the same for this lane's piece of bytes
  int pixels;            // number of pixels from the warp's first to the end of the row
  uint32_t read[2];     // offsets in the first raw stage: this lane's cell in two rows (its anchor's first, unless kBytes)
  uint32_t select[2];   // offsets of the anchor's column and of the other column

  NPR_DEVICE Stager(const Source& source, uint32_t ring, uint32_t raw, int width)
      : source(source),
        layout(source, ring, width),
        before(ring),
        current(ring + layout.pair_bytes()),
        next(ring + 2 * layout.pair_bytes()),
        rows(nullptr),
        raw(raw + static_cast<uint32_t>(thread_index() / 32 * kRawStages * stage_bytes() + piece_offset())),
        cell_rows(0),
        piece_pairs(0),
        pixels(0) {
    const int lane = thread_index() % 32, cell = lane % 16;
    const int upper = source.anchor >> 1, left = source.anchor & 1, element = size();
    const int first = (source.planar ? 2 * cell : 6 * cell) * element;  // the first element of the cell in its row
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = 2 * (lane / 16) + (kBytes ? i : i ^ upper), column = i ^ left;
      read[i] = this->raw + static_cast<uint32_t>(row * kRowElements * element + first - piece_offset());
      select[i] = static_cast<uint32_t>((source.planar ? 1 : 3) * column * element);
    }
  }

  static NPR_DEVICE int piece_offset() { return kBytes ? thread_index() % 32 * kPieceBytes : 0; }
  NPR_DEVICE int size() const { return kBytes ? 1 : element_bytes(source.image.type); }
  NPR_DEVICE int stage_bytes() const { return kPairRows * kRowElements * size(); }
  NPR_DEVICE uint32_t raw_stage(int s) const { return static_cast<uint32_t>((s & 1) * stage_bytes()); }
  NPR_DEVICE int64_t row_bytes() const { return source.image.stride[2] * size(); }

  // Returns the number of pairs whose first or second row is inside the image.
  NPR_DEVICE uint32_t pairs(int row) const { return static_cast<uint32_t>(source.cell_rows + 1 - row) / 2; }

  NPR_DEVICE void start(const Walk& walk) {
    const Image& x = source.image;
    const int column = walk.column + thread_index() / 32 * 8;  // pooled
    const int64_t offset = walk.image * x.stride[0] + int64_t{4} * (walk.begin - 1) * x.stride[2] + 4 * column * x.stride[3];
    const int cells = source.cell_columns - 2 * column;
    const uint32_t inside = kBytes ? pairs(thread_index() % 32 / 16) : static_cast<uint32_t>(source.cell_rows);
    cell_rows = thread_index() % 16 < cells ? inside : 0;
    pixels = 2 * cells;
    rows = static_cast<const unsigned char*>(x.data) + offset * size();
    if constexpr (kBytes) {
      const Piece piece(*this, anew(thread_index() % 32));
      piece_pairs = piece.exists ? pairs(piece.row / 2) : 0;
      if (piece.exists) rows += piece.offset;
    }
  }

  // The part of a pair's rows that one piece of the raw stage holds; the stage has the rows one after another. A piece
  // begins before the end of its row, but may end after it.
  struct Piece {
    int row;
    bool exists;
    int64_t offset;  // in bytes, from the warp's first pixel of the first row

    NPR_DEVICE Piece(const Stager& stager, int index) {
      const int size = stager.size(), in_row = kRowElements * size / kPieceBytes, in_plane = in_row / 3;
      const bool planar = stager.source.planar;
      const int column = index % in_row, first = (planar ? column % in_plane : column) * (kPieceBytes / size);
      row = index / in_row;
      exists = row < kPairRows && first < (planar ? stager.pixels : 3 * stager.pixels);
      offset = row * stager.row_bytes() + first * size;
      if (planar) offset += column / in_plane * stager.source.image.stride[1] * size;
    }
  };

  // The staging part of step s: writes pair s + 1 to the ring and requests pair s + 3. It begins kLead steps before the
  // first step of the walk.
  NPR_DEVICE void advance(int s, const Walk& walk) {
    wait_copies<kRawStages - 1>();
    synchronize_warp();
    if (s + 1 >= walk.begin - 1) convert(s + 1);  // after the last pair, old pixels are converted; nothing uses them
    synchronize_warp();
    if (s + 3 < walk.end) fetch(s + 3);
    commit_copies();
    rows += 4 * row_bytes();
  }

  // Ends step s: the next pair becomes the current one.
  NPR_DEVICE void rotate() {
    const uint32_t free = before;
    before = current;
    current = next;
    next = free;
  }

  NPR_DEVICE void fetch(int s) {
    const uint32_t to = raw + raw_stage(s);
    if constexpr (kBytes) {
      if (static_cast<uint32_t>(s) < piece_pairs) copy_async<kPieceBytes>(to, rows);
    } else {
      const int lane = thread_index() % 32;
#pragma unroll 1
      for (int i = 0; i < 3; ++i) {
        const Piece piece(*this, lane + 32 * i);
        if (piece.exists && static_cast<uint32_t>(2 * s + piece.row / 2) < static_cast<uint32_t>(source.cell_rows))
          copy_async<kPieceBytes>(to + static_cast<uint32_t>((lane + 32 * i) * kPieceBytes), rows + piece.offset);
      }
    }
  }

  NPR_DEVICE void convert(int s) {
    if (static_cast<uint32_t>(kBytes ? s : 2 * s + thread_index() % 32 / 16) >= cell_rows) {
      layout.clear(next, before);
    } else if constexpr (kBytes) {
      convert_bytes(raw_stage(s));
    } else if (source.image.type == Type::kFloat32) {
      convert_floats<float>(raw_stage(s));
    } else if (source.image.type == Type::kBFloat16) {
      convert_floats<BFloat16>(raw_stage(s));
    } else {
      convert_floats<Float16>(raw_stage(s));
    }
  }

  NPR_DEVICE void convert_bytes(uint32_t stage) {
    // Words with 4 + byte / 256 for two channels, and for the third channel and the constant. The constant is 4 in the
    // anchor and 5 in the other pixels, so that its difference is 1.
    constexpr uint32_t kFour = 0x45004444u, kOne = 0x3c000000u, kFourOrFive = 0x01000000u;
    uint2 pixel[4];
    const auto load = [&](uint32_t offset) { return uint32_t{load_shared<uint16_t>(stage + read[0] + offset)}; };
    if (source.planar) {
      constexpr uint32_t kPlane = kRowElements / 3;
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        const uint32_t first = load(i * kRowElements), second = load(i * kRowElements + kPlane);
        const uint32_t third = load(i * kRowElements + 2 * kPlane), both = byte_perm(first, second, 0x5410);
        pixel[2 * i] = {byte_perm(both, kFour, 0x4240), byte_perm(third, kFour, 0x7640)};
        pixel[2 * i + 1] = {byte_perm(both, kFour, 0x4341), byte_perm(third, kFour, 0x7641)};
      }
    } else {
#pragma unroll
      for (uint32_t i = 0; i < 2; ++i) {
        const uint32_t first = load(i * kRowElements), second = load(i * kRowElements + 2);
        const uint32_t third = load(i * kRowElements + 4), both = byte_perm(second, third, 0x5410);
        pixel[2 * i] = {byte_perm(first, kFour, 0x4140), byte_perm(second, kFour, 0x7640)};
        pixel[2 * i + 1] = {byte_perm(both, kFour, 0x4241), byte_perm(third, kFour, 0x7641)};
      }
    }
    if (source.anchor > 0) {  // from the order of rows and columns to the order of Layout::write
      const auto exchange = [](bool wanted, uint2& a, uint2& b) {
        const uint2 c = a;
        a = wanted ? b : a;
        b = wanted ? c : b;
      };
      exchange(source.anchor & 1, pixel[0], pixel[1]);
      exchange(source.anchor & 1, pixel[2], pixel[3]);
      exchange(source.anchor & 2, pixel[0], pixel[2]);
      exchange(source.anchor & 2, pixel[1], pixel[3]);
    }
    pixel[0].y ^= kFourOrFive;
    uint2 record[4] = {uint2{0, staged(kOne)}};
#pragma unroll
    for (int i = 1; i < 4; ++i)
      record[i] = uint2{staged(subtract_halves(pixel[i].x, pixel[0].x)), staged(subtract_halves(pixel[i].y, pixel[0].y))};
    layout.store(next, before, record);
  }

  // Converts two differences of bytes to T. float16 and bfloat16 both hold them exactly.
  static NPR_DEVICE uint32_t staged(uint32_t halves) {
    if constexpr (std::is_same_v<T, Float16>) return halves;
    else return pack<T>(low_half<Float16>(halves), high_half<Float16>(halves));
  }

  template <typename Element>
  NPR_DEVICE void convert_floats(uint32_t stage) {
    constexpr uint32_t kSize = sizeof(Element);
    const uint32_t channel = source.planar ? kRowElements / 3 * kSize : kSize;
    float pixel[4][3];
#pragma unroll
    for (int i = 0; i < 4; ++i)
#pragma unroll
      for (int c = 0; c < 3; ++c)
        pixel[i][c] = load_number<Element>(stage + read[i / 2] + select[i % 2] +
                                           static_cast<uint32_t>(c) * channel);
    typename Record<T>::Words record[4];
#pragma unroll
    for (int i = 0; i < 4; ++i)
      record[i] = Record<T>::of(pixel[i][0] - pixel[0][0], pixel[i][1] - pixel[0][1], pixel[i][2] - pixel[0][2], 1);
    layout.store(next, before, record);
  }
};

// --- host ---

inline Source source_of(const Task& task) {
  return {task.x, task.x.stride[3] == 1, task.anchor, static_cast<int>(task.height / 2), static_cast<int>(task.width / 2)};
}

// Divides an image into strips of equal width, as wide as `most_warps` warps allow.
inline Tiling tiling_of(const Task& task, int most_warps) {
  const int64_t rows = (task.height / 2 + 1) / 2, columns = (task.width / 2 + 1) / 2;
  const int64_t most = 8 * most_warps;
  const int64_t strips = columns <= most ? 1 : (columns - kOverlap + most - kOverlap - 1) / (most - kOverlap);
  const int64_t width = strips == 1 ? columns : (columns - kOverlap + strips - 1) / strips + kOverlap;
  return {task.batch, static_cast<int>(rows), static_cast<int>(columns), static_cast<int>(strips),
          static_cast<int>((width + 7) / 8 * 8)};
}

// The factors for the staged differences.
template <typename Number>
std::array<Number, 3> staged_scale(const Task& task) {
  const double unit = task.x.type == Type::kUInt8 ? 256 : 1;
  return {static_cast<Number>(task.scale[0] * unit), static_cast<Number>(task.scale[1] * unit),
          static_cast<Number>(task.scale[2] * unit)};
}

}  // namespace npr::cuda
