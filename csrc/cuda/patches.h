// Patches as operands of the tensor cores: what a position of the convolution sees, 32 components in four tiles of eight,
// each two neighbouring pixels of four components.
//
// ldmatrix hands out 16 bytes of 16-bit numbers, two records, and transposes them. A position sees three pixels of its own
// cell, as the anchor is always 0, and of other cells the right column of the left one, the bottom row of the one above and
// the corner between. So the ring has three arrays of 16 bytes for each cell, and a position's tiles are
//   0: the right column of the cell on the left       1: the bottom row of the cell above
//   2: the bottom row of its own cell (or the right column, for anchor 2)
//   3: the pixel of its own that tile 2 lacks, and the corner of the cell above and left (for anchor 3, whose corners are
//      anchors, another own one).
#pragma once

#include "staging.h"

namespace npr::cuda {

constexpr int kPatchTiles = 4, kPatchBytes = 16;
enum PatchArray : int { kRightColumn, kBottomRow, kRest };

// Where to find a product: the component (8 * tile + column) of index k = channel * 9 + tap, or of the constant 1 (27).
// -1: it is always 0.
NPR_DEVICE int patch_component(int k, int anchor) {
  if (k == 27) return 8 * 3 + 3;
  const int channel = k / 9, dy = k % 9 / 3 - 1, dx = k % 3 - 1;
  int tile = 3, second = 0;
  if (dy < 0 && dx < 0) {
    if (anchor == 3) return -1;
    second = 1;
  } else if (dx < 0) {
    tile = 0;
    second = dy;
  } else if (dy < 0) {
    tile = 1;
    second = dx;
  } else if (2 * dy + dx == anchor) {
    return -1;
  } else if (anchor == 3 && dy == 0) {
    second = dx;
  } else if (2 * dy + dx != (anchor == 0)) {
    tile = 2;
    second = anchor == 2 ? dy : dx;
  }
  return 8 * tile + 4 * second + channel;
}

// The ring as those arrays: in a row of cells one behind the other, each with two cells more on the left, which are always 0,
// and one on the right. An array has an odd number of cells, so that every second one of two rows meets different banks.
template <typename T>
struct PatchRows {
  using Words = typename Record<T>::Words;
  static_assert(2 * Record<T>::kBytes == kPatchBytes);
  const int anchor;
  const int pitch;      // of an array
  const uint32_t own;   // this lane's cell in the first array of its row
  uint32_t last;        // where the last pixel of tile 3 goes to, and whether into the pair below
  bool below;

  static NPR_CONSTANT int pitch_of(int width) { return (2 * width + 3) * kPatchBytes; }
  static NPR_CONSTANT int64_t ring_bytes(int width) { return int64_t{kPairs} * 6 * pitch_of(width); }

  NPR_DEVICE PatchRows(const Source& source, uint32_t ring, int width)
      : anchor(source.anchor),
        pitch(pitch_of(width)),
        own(offset(thread_index() % 32 / 16, kRightColumn, thread_index() / 32 * 16 + thread_index() % 16)) {
    const int row = thread_index() % 32 / 16, cell = thread_index() / 32 * 16 + thread_index() % 16;
    below = anchor < 3 && row == 1;
    last = (anchor < 3 ? offset(1 - row, kRest, cell + 1) : offset(row, kRest, cell)) + Record<T>::kBytes;
    for (int i = thread_index(); i < kPairs * 6 * pitch / kPatchBytes; i += block_threads())
      store_shared(ring + static_cast<uint32_t>(i * kPatchBytes), uint4{0, 0, 0, 0});
  }
  NPR_DEVICE uint32_t pair_bytes() const { return static_cast<uint32_t>(6 * pitch); }

  // Of a cell in an array of a pair's first or second row; cells count from the strip's first.
  NPR_DEVICE uint32_t offset(int row, int array, int cell) const {
    return static_cast<uint32_t>((row * 3 + array) * pitch + (cell + 2) * kPatchBytes);
  }

  NPR_DEVICE void clear(uint32_t pair, uint32_t after) const { store(pair, after, {}, {}, {}, {}, {}, {}); }
  NPR_DEVICE void store(uint32_t pair, uint32_t after, const Words (&r)[4]) const {
    switch (anchor) {
      case 0: return store(pair, after, r[1], r[3], r[2], r[3], r[1], r[3]);
      case 1: return store(pair, after, r[0], r[2], r[3], r[2], r[1], r[2]);
      case 2: return store(pair, after, r[3], r[1], r[0], r[1], r[2], r[1]);
      default: return store(pair, after, r[2], r[0], r[1], r[0], r[3], r[2]);
    }
  }

 private:
  // The right column, the bottom row, and two pixels of tile 3.
  NPR_DEVICE void store(uint32_t pair, uint32_t after, Words top, Words corner, Words left, Words right, Words own_rest,
                        Words last_rest) const {
    const uint32_t cell = pair + own, next = static_cast<uint32_t>(pitch);
    store_shared(cell, uint4{top.x, top.y, corner.x, corner.y});
    store_shared(cell + next, uint4{left.x, left.y, right.x, right.y});
    store_shared(cell + 2 * next, own_rest);
    store_shared((below ? after : pair) + last, last_rest);
  }
};

}  // namespace npr::cuda
