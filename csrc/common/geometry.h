// Sizes of one call, for every device. All counts are 64-bit because batches of large images exceed 2^31 elements.
#pragma once

#include <cstdint>

namespace npr {

// Codes for the anchors that are not a pixel index. npr_kernels/backends uses the same codes.
constexpr int64_t kAnchorMean = -1;
constexpr int64_t kAnchorMax = -2;

// The cells of an image. height and width are trimmed to whole cells.
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

// The training stem stores one byte per pooling window: the row-major position of the maximum, 0 .. 8 (the first of
// equal values, as in torch's max-pool). It stores kNoArgmax if the maximum is not positive, because the ReLU then
// passes no gradient.
constexpr int kNoArgmax = 9;

}  // namespace npr
