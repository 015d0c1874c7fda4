// Counts the cells of an image that are not of one colour. Screening uses a thread per core, and small steps in Python
// would run one after another.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

#include "../common/checks.h"

namespace npr::cpu {
namespace {

int64_t detailed_cells(const Tensor& parts, int64_t grid_size, int64_t enough) {
  STD_TORCH_CHECK(parts.dim() == 4 && parts.size(3) == 3 && parts.is_cpu() && parts.is_contiguous() &&
                      parts.scalar_type() == torch::headeronly::ScalarType::Byte,
                  "parts must be (P, H, W, 3) uint8, contiguous");
  STD_TORCH_CHECK(grid_size >= 1, "grid_size must be at least 1, got ", grid_size);
  const int64_t height = parts.size(1), width = parts.size(2), down = height / grid_size, across = width / grid_size;
  if (across == 0) return 0;
  const auto* data = static_cast<const uint8_t*>(parts.const_data_ptr());
  const int64_t to_last = (grid_size - 1) * (width + 1) * 3;  // from the first pixel of a cell
  int64_t count = 0;
  for (int64_t row = 0; row < parts.size(0) * down && count < enough; ++row) {
    const uint8_t* first = data + (row / down * height + row % down * grid_size) * width * 3;
    for (int64_t cell = 0; cell < across; ++cell, first += grid_size * 3) {
      const uint8_t* last = first + to_last;
      count += first[0] != last[0] || first[1] != last[1] || first[2] != last[2];
    }
  }
  return count;
}

}  // namespace
}  // namespace npr::cpu

STABLE_TORCH_LIBRARY_IMPL(npr_kernels, CPU, m) {
  m.impl("detailed_cells", TORCH_BOX(&npr::cpu::detailed_cells));
}
