// Sizes of one call, the same for every device. All counts are 64-bit: batches of large images exceed 2^31 elements.
#pragma once

#include <cstdint>

namespace npr {

// Codes of the anchors that are not a pixel's index; the same as in npr_kernels/backends.
constexpr int64_t kAnchorMean = -1;
constexpr int64_t kAnchorMax = -2;

// How an image is cut into cells. height and width are trimmed to whole cells.
struct Grid {
  int64_t batch, channels, height, width;
  int64_t size;    // side of a cell
  int64_t anchor;  // row-major index in the cell, or one of the codes above

  int64_t cell_rows() const { return height / size; }
  int64_t cell_columns() const { return width / size; }
};

// The convolution over the NPR map.
struct Convolution {
  int64_t out_channels, out_height, out_width;
  int64_t kernel_height, kernel_width;
  int64_t stride_height, stride_width;
  int64_t padding_height, padding_width;
};

// The stem's max-pool: 3x3, stride 2, padding 1.
constexpr int64_t pooled_size(int64_t size) { return (size + 2 - 3) / 2 + 1; }

// What the training stem keeps of a pooling window: the row-major position of its maximum, 0 .. 8 (the first of equals,
// as in torch's max-pool), or this where the maximum is not positive, so that the ReLU lets no gradient through.
constexpr int kNoArgmax = 9;

}  // namespace npr
