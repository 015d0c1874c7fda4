// Stores patches as operands of the tensor cores. A patch has 32 components: four tiles of two pixels, with four
// components per pixel.
//
// ldmatrix reads 16 bytes, which are two records of 16-bit numbers, and transposes them. A position of the convolution
// sees three pixels of its own cell, because the anchor is always 0. It also sees the right column of the cell on the
// left, the bottom row of the cell above, and the corner pixel of the cell above and left. So the ring has three arrays
// with 16 bytes per cell, and the tiles of a position are
//   0: the right column of the cell on the left       1: the bottom row of the cell above
//   2: the bottom row of its own cell (for anchor 2, the right column)
//   3: the pixel of its own cell that is not in tile 2, and the corner of the cell above and left (for anchor 3, this
//      corner is an anchor, so tile 3 has another pixel of its own cell).
#pragma once

#include "staging.h"

namespace npr::cuda {

constexpr int kPatchTiles = 4, kPatchBytes = 16;
enum PatchArray : int { kRightColumn, kBottomRow, kRest };

// Returns the component (8 * tile + column) of weight index k = channel * 9 + tap, or of the constant 1 (k = 27).
// Returns -1 if the component is always 0.
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

// The ring as these arrays. A row of cells has its three arrays one after another. Each array has two more cells on the
// left, which are always 0, and one more on the right. It has an odd number of cells, so that every second cell of two
// rows is in a different bank.
template <typename T>
struct PatchRows {
  using Words = typename Record<T>::Words;
  static_assert(2 * Record<T>::kBytes == kPatchBytes);
  const int anchor;
  const int pitch;      // bytes of an array
  const uint32_t own;   // offset of this lane's cell in the first array of its row
  uint32_t last;        // offset at which the last pixel of tile 3 is stored
  bool below;           // whether it is stored in the pair below

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

  // Returns the offset of a cell in an array of the first or second row of a pair. Cells count from the first of the
  // strip.
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
  // Stores the right column, the bottom row and two pixels of tile 3.
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
