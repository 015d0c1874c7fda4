// What the stem of uint8 images needs on Hopper: a layout of the ring from which warpgroup instructions read the records
// themselves, and the products of one row of the convolution.
//
// A product has 64 channels as rows, whose weights are in registers, and 64 positions of the convolution as columns. It
// sums 16 terms, so two products are needed for the eight taps with four numbers each. The positions of a warpgroup are
// eight runs of eight neighbours. Tile j of a product has position j of every run. So a lane has all positions of two
// runs in its two halves, and the max-pool along a row needs no other lanes, except for the first window of a run.
#pragma once

#include "stem_convolution.h"
#include "warpgroup.h"

namespace npr::cuda {
namespace {

constexpr int kRun = 8;  // positions in a run, and runs of a warpgroup

// The ring for these products. For each position, there are three slots with two records each:
//   corners: the pixels (-1, 1) and (1, 1) around the anchor of the position's own cell
//   sides:   the pixels (0, -1) and (0, 1)
//   ends:    the pixels (-1, 0) and (1, 0)
// The other two corners are in the slot of the position on the left. For anchors other than 0, the first pixel of the cell
// takes the place of the anchor, as in tap_of(). A tile has a slot for every run. The corners have one more tile, with the
// left neighbours of the runs. Each tile ends with an unused slot, so that the eight slots of a run are in different banks.
// The records on the left of the strip are always 0.
struct RunRows {
  using Words = uint2;
  static constexpr int kSlot = 16, kRecord = 8, kTile = (kRun + 1) * kSlot;
  static constexpr int kCorners = kTile, kSides = (kRun + 1) * kTile, kEnds = kSides + kRun * kTile;
  static constexpr int kGroup = kEnds + kRun * kTile;  // bytes of a warpgroup in a row
  const int anchor;
  const int row_bytes;
  uint32_t corner[2];  // offsets of this cell's two corner records, in the order in which they are stored
  uint32_t side[2];    // offsets of its two side records
  bool odd_run;        // whether the cell's own corner record is the first in this order
  bool copies;         // whether the corner records are needed twice, for the next run, too
  uint32_t beyond;     // distance to these copies

  static NPR_CONSTANT int64_t ring_bytes(int width) { return int64_t{kPairs} * 2 * (width / 32) * kGroup; }

  NPR_DEVICE RunRows(const Source& source, uint32_t ring, int width)
      : anchor(source.anchor), row_bytes(width / 32 * kGroup) {
    const int lane = thread_index() % 32, row = lane / 16, position = thread_index() / 32 * 16 + lane % 16;
    odd_run = position & kRun;
    const bool last = position == 2 * width - 1;
    const int mine = offset(position), next = last ? mine + kSlot : offset(position + 1);
    const int own = row * row_bytes + kCorners + mine, under = (1 - row) * row_bytes + kCorners + mine;
    const int right = row * row_bytes + kSides + next;
    // Half of the lanes store their second record first, so that they use other banks than the others.
    for (int i = 0; i < 2; ++i) {
      const bool second = odd_run == (i == 1);
      corner[i] = static_cast<uint32_t>(second ? own + kRecord : under);
      side[i] = static_cast<uint32_t>(second ? own + kRecord + kSides - kCorners : right);
    }
    copies = position % kRun == kRun - 1 && !last;
    beyond = static_cast<uint32_t>(next - kTile - mine);
    if (thread_index() < kPairs * 2) {
      const uint32_t to = ring + static_cast<uint32_t>(thread_index() * row_bytes);
      store_shared(to, uint4{0, 0, 0, 0});
      store_shared(to + kSides, uint2{0, 0});
    }
  }
  NPR_DEVICE uint32_t pair_bytes() const { return static_cast<uint32_t>(2 * row_bytes); }

  // Returns the offset of a position in an array.
  static NPR_DEVICE int offset(int position) {
    const int run = position / kRun;
    return run / kRun * kGroup + position % kRun * kTile + run % kRun * kSlot;
  }

  NPR_DEVICE void clear(uint32_t pair, uint32_t after) const { store(pair, after, Words{}, Words{}, Words{}); }
  NPR_DEVICE void store(uint32_t pair, uint32_t after, const Words (&r)[4]) const {
    Words right = r[1], bottom = r[2], diagonal = r[3];
    if (anchor > 0) {
      right = anchor == 1 ? r[1] : anchor == 2 ? r[3] : r[2];
      bottom = anchor == 1 ? r[3] : anchor == 2 ? r[2] : r[1];
      diagonal = anchor == 1 ? r[2] : anchor == 2 ? r[1] : r[3];
    }
    store(pair, after, right, bottom, diagonal);
  }

 private:
  NPR_DEVICE void store(uint32_t pair, uint32_t after, Words right, Words bottom, Words diagonal) const {
    // The other corner record of a lane in the second row is in the pair below.
    const int second_row = thread_index_anew() & 16, distance = static_cast<int>(after - pair) / 16;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const uint32_t to = pair + corner[i] + static_cast<uint32_t>((odd_run == (i == 1) ? 0 : second_row) * distance);
      store_shared(to, diagonal);
      store_shared(to + (kEnds - kCorners), bottom);
      store_shared(pair + side[i], right);
      if (copies) store_shared(to + beyond, diagonal);
    }
  }
};

// Bytes of a pixel's results for a chunk of channels, of the results of a row, of the words that one warpgroup passes to the
// next, and of those of all. The first warpgroup receives zeros. Even and odd steps have separate buffers.
constexpr int kPixelBytes = 128, kRunResults = 64 * kPixelBytes, kRunWords = 4 * 8 * 8, kRunExchange = 3 * kRunWords;

#ifdef NPR_HAS_WARPGROUPS

// The products of one warpgroup.
struct RunProducts {
  uint32_t weight[2][4];  // of channels g and g + 8 of a warp, as fragments
  const uint32_t group;  // offset of this warpgroup in a row

  NPR_DEVICE RunProducts(const Arguments& arguments, const unsigned char* table)
      : group(static_cast<uint32_t>(uniform(thread_index() / 128) * RunRows::kGroup)) {
    constexpr int kChannels = Kind<BFloat16, true, false>::kChunk;
    const int lane = thread_index() % 32, t = lane % 4, channel = thread_index() / 32 % 4 * 16 + lane / 4;
#pragma unroll
    for (int x = 0; x < 2; ++x)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        weight[x][i] = Weights<Float16, kChannels>(table, channel + i % 2 * 8, 4 * x + i / 2 * 2 + t / 2,
                                                   arguments.source.anchor).word(t % 2);
  }

  // Begins to compute the row at `row` in the ring.
  NPR_DEVICE void begin(uint32_t (&sum)[16], uint32_t row) const {
    using Rows = RunRows;
    const uint32_t start = (row + group) / 16;
    begin_products();
    multiply<false>(sum, weight[0], matrix(0, Rows::kTile, Rows::kTile) | start);
    multiply<true>(sum, weight[1], matrix(0, Rows::kEnds - Rows::kSides, Rows::kTile) | (start + Rows::kSides / 16));
    end_products();
  }
};

// The largest values of one row in the windows of two runs and of channels g (word 0) and g + 8 (word 1). The first window
// lacks its left column, which is the last column of the run on the left.
struct RunWindows {
  uint32_t window[kRun / 2][2], last[2];

  // `sum` is the row, and `end` the first position outside the image.
  RunWindows() = default;
  NPR_DEVICE RunWindows(const uint32_t (&sum)[16], bool all_inside, int end) {
    uint32_t value[16];
#pragma unroll
    for (int i = 0; i < 16; ++i) value[i] = sum[i];
    if (!all_inside) {  // If the number of convolution columns is odd, the last window has no odd column.
      const int thread = thread_index_anew(), after = end - (thread / 128 * 64 + thread % 4 * 16);
#pragma unroll
      for (int i = 2; i < 16; ++i)
        if (i & 2) value[i] &= after == i / 2 ? 0xffff0000u : after == kRun + i / 2 ? 0xffffu : 0xffffffffu;
    }
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      window[0][k] = max_halves(value[k], value[2 + k]);
#pragma unroll
      for (int i = 1; i < kRun / 2; ++i)
        window[i][k] = max3_halves(value[4 * i - 2 + k], value[4 * i + k], value[4 * i + 2 + k]);
      last[k] = value[14 + k];
    }
  }
};

#endif

}  // namespace
}  // namespace npr::cuda
