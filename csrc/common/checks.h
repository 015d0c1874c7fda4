// Checks the arguments of operators and derives sizes from them. The Python layer has checked them already, with better
// messages. These checks protect the memory if torch.ops.npr_kernels is called directly.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <vector>

#include "geometry.h"

namespace npr {

using torch::stable::Tensor;

inline Grid check_grid(const Tensor& x, int64_t grid_size, int64_t anchor) {
  STD_TORCH_CHECK(x.dim() == 4, "x must have the shape (N, C, H, W), got ", x.dim(), " dimensions");
  STD_TORCH_CHECK(grid_size >= 2, "grid_size must be at least 2, got ", grid_size);
  STD_TORCH_CHECK(anchor >= kAnchorMax && anchor < grid_size * grid_size, "anchor is out of range: ", anchor);
  STD_TORCH_CHECK(x.size(2) >= grid_size && x.size(3) >= grid_size, "x is ", x.size(2), "x", x.size(3),
                  " pixels, smaller than one cell of ", grid_size, "x", grid_size);
  return {x.size(0), x.size(1), x.size(2) - x.size(2) % grid_size, x.size(3) - x.size(3) % grid_size, grid_size, anchor};
}

inline Convolution check_convolution(const Grid& grid, int64_t out_channels, int64_t kernel_height,
                                     int64_t kernel_width, const std::vector<int64_t>& stride,
                                     const std::vector<int64_t>& padding) {
  STD_TORCH_CHECK(stride.size() == 2 && stride[0] >= 1 && stride[1] >= 1, "stride must be two positive numbers");
  STD_TORCH_CHECK(padding.size() == 2 && padding[0] >= 0 && padding[1] >= 0, "padding must be two numbers >= 0");
  STD_TORCH_CHECK(out_channels >= 1 && kernel_height >= 1 && kernel_width >= 1, "weight must not be empty");
  const int64_t height = grid.height + 2 * padding[0] - kernel_height;
  const int64_t width = grid.width + 2 * padding[1] - kernel_width;
  STD_TORCH_CHECK(height >= 0 && width >= 0, "the kernel does not fit into the padded NPR map");
  return {out_channels, height / stride[0] + 1, width / stride[1] + 1, kernel_height, kernel_width,
          stride[0],    stride[1],              padding[0],            padding[1]};
}

inline void check_shape(const char* name, const Tensor& tensor, const std::vector<int64_t>& shape) {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  for (int64_t i = 0; same && i < tensor.dim(); ++i) same = tensor.size(i) == shape[static_cast<size_t>(i)];
  STD_TORCH_CHECK(same, name, " has the wrong shape");
}

}  // namespace npr
