// Patches as operands of the tensor cores: what a position of the convolution sees, 32 components in four tiles of eight.
//
// ldmatrix hands out whole cells, that is two pixels of a row of four components each. A position sees the two pixels of
// its own cell's columns in three rows, and left of them one pixel in each. The anchor of its cell is always 0, so its place
// is free, and what is left of the cells fits into four tiles (the halves are of a left and of a right pixel):
//   0: own columns, the row above the cell                 1: own columns, the cell's row without the anchor
//   2: beside the anchor; left of it all in the row above  3: left in the anchor's row; left in the cell's other row
// Lane (g, t) = (lane / 4, lane % 4) has component g of a tile, so that lanes from 16 on hold the right pixels.
#pragma once

#include "staging.h"

namespace npr::cuda {

constexpr int kPatchTiles = 4;

struct Patch {
  bool right;     // whether this lane holds components of right pixels
  bool own;       // whether it holds those beside the anchor
  int from;       // the lane with the same channel of a right pixel

  NPR_DEVICE explicit Patch(int anchor)
      : right(thread_index() % 32 >= 16), own(right == ((anchor & 1) == 0)), from(thread_index() % 32 | 16) {}

  // Tiles 2 and 3. The operands are cells: `beside` the position's own in the anchor's row, the others left of it, in the
  // row above, in the anchor's row and in the other row of the cell.
  NPR_DEVICE uint32_t second(uint32_t beside, uint32_t above) const {
    const uint32_t moved = shuffle(above, from);
    return own ? beside : moved;
  }
  NPR_DEVICE uint32_t third(uint32_t anchors, uint32_t other) const {
    const uint32_t moved = shuffle(anchors, from);
    return right ? other : moved;
  }

  // Where to find a product: the component (8 * tile + column) of index k = channel * 9 + tap, or of the constant 1 (27).
  // -1: it is always 0.
  static NPR_DEVICE int component(int k, int anchor) {
    if (k == 27) return 8 + 3;
    const int channel = k / 9, dy = k % 9 / 3 - 1, dx = k % 3 - 1, row = anchor >> 1, column = anchor & 1;
    if (dy == row && dx == column) return -1;
    int tile = 0, place = dx;
    if (dx >= 0) {
      tile = dy < 0 ? 0 : dy == row ? 2 : 1;
    } else {
      tile = dy < 0 ? 2 : 3;
      place = dy < 0 ? column : dy == row ? 0 : 1;
    }
    return 8 * tile + 4 * place + channel;
  }
};

}  // namespace npr::cuda
