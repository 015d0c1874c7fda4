// The CPU operators: tensors in, tasks for the kernels, rows spread over torch's threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "../common/checks.h"
#include "kernels.h"

namespace npr::cpu {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

Type type_of(const char* name, ScalarType type) {
  switch (type) {
    case ScalarType::Byte: return Type::kUInt8;
    case ScalarType::Float: return Type::kFloat32;
    case ScalarType::Double: return Type::kFloat64;
    case ScalarType::BFloat16: return Type::kBFloat16;
    case ScalarType::Half: return Type::kFloat16;
    default: STD_TORCH_CHECK(false, name, " has a dtype that the cpu kernels lack");
  }
}

Image image(const char* name, const Tensor& x) {
  STD_TORCH_CHECK(x.is_cpu(), name, " must be on the CPU");
  return {x.const_data_ptr(), type_of(name, x.scalar_type()), {x.stride(0), x.stride(1), x.stride(2), x.stride(3)}};
}

MutableImage mutable_image(Tensor& x) {
  return {x.mutable_data_ptr(), type_of("the result", x.scalar_type()), {x.stride(0), x.stride(1), x.stride(2), x.stride(3)}};
}

Tensor new_tensor(const Tensor& like, const Ints& shape, ScalarType dtype, MemoryFormat format = MemoryFormat::Contiguous) {
  return torch::stable::empty(shape, dtype, std::nullopt, like.device(), std::nullopt, format);
}

// One factor per channel, in the type computed in.
class Scale {
 public:
  Scale(const std::vector<double>& factors, const Grid& grid) {
    STD_TORCH_CHECK(factors.size() == 1 || static_cast<int64_t>(factors.size()) == grid.channels,
                    "scale must be one factor or one per channel");
    for (int64_t c = 0; c < grid.channels; ++c) {
      doubles_.push_back(factors[factors.size() == 1 ? 0 : static_cast<size_t>(c)]);
      floats_.push_back(static_cast<float>(doubles_.back()));
    }
  }
  const void* data(bool in_double) const {
    return in_double ? static_cast<const void*>(doubles_.data()) : static_cast<const void*>(floats_.data());
  }

 private:
  std::vector<double> doubles_;
  std::vector<float> floats_;
};

void check_parameters(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  const ScalarType type = weight.scalar_type();
  STD_TORCH_CHECK(weight.dim() == 4 && weight.is_cpu() && weight.is_contiguous(), "weight must be (O, C, KH, KW), contiguous");
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "weight must be float32 or float64");
  STD_TORCH_CHECK(weight.size(1) == x.size(1), "weight expects ", weight.size(1), " channels, x has ", x.size(1));
  if (!bias) return;
  check_shape("bias", *bias, {weight.size(0)});
  STD_TORCH_CHECK(bias->is_cpu() && bias->is_contiguous() && bias->scalar_type() == type, "bias must be as weight, contiguous");
}

// Rows below this number are not worth a second thread.
constexpr int64_t kGrain = 4;

template <typename Kernel>
void for_rows(int64_t rows, Kernel kernel, const Task& task) {
  if (rows == 0) return;
  torch::stable::parallel_for(0, rows, kGrain, [&](int64_t begin, int64_t end) { kernel(task, begin, end); });
}

Tensor npr(const Tensor& x, int64_t grid_size, int64_t anchor) {
  const Grid grid = check_grid(x, grid_size, anchor);
  const ScalarType dtype = x.scalar_type() == ScalarType::Byte ? ScalarType::Float : x.scalar_type();
  Tensor out = new_tensor(x, {grid.batch, grid.channels, grid.height, grid.width}, dtype);
  Task task{};
  task.grid = grid;
  task.in_double = dtype == ScalarType::Double;
  task.x = image("x", x);
  task.out = mutable_image(out);
  for_rows(grid.batch * grid.cell_rows(), kernels().npr, task);
  return out;
}

Tensor npr_backward(const Tensor& grad, const Tensor& x, int64_t grid_size, int64_t anchor) {
  const Grid grid = check_grid(x, grid_size, anchor);
  check_shape("grad", grad, {grid.batch, grid.channels, grid.height, grid.width});
  Tensor out = new_tensor(x, {x.size(0), x.size(1), x.size(2), x.size(3)}, x.scalar_type());
  if (grid.height != x.size(2) || grid.width != x.size(3)) torch::stable::zero_(out);  // what was trimmed
  Task task{};
  task.grid = grid;
  task.in_double = x.scalar_type() == ScalarType::Double;
  task.x = image("x", x);
  task.grad = image("grad", grad);
  task.out = mutable_image(out);
  for_rows(grid.batch * grid.cell_rows(), kernels().npr_backward, task);
  return out;
}

Tensor npr_conv2d(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
                  const Ints& padding, int64_t grid_size, int64_t anchor, const std::vector<double>& factors,
                  ScalarType dtype, bool channels_last) {
  const Grid grid = check_grid(x, grid_size, anchor);
  check_parameters(x, weight, bias);
  const Convolution convolution = check_convolution(grid, weight.size(0), weight.size(2), weight.size(3), stride, padding);
  const Scale scale(factors, grid);
  Tensor out = new_tensor(x, {grid.batch, convolution.out_channels, convolution.out_height, convolution.out_width}, dtype,
                          channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  Task task{};
  task.grid = grid;
  task.convolution = convolution;
  task.in_double = weight.scalar_type() == ScalarType::Double;
  task.x = image("x", x);
  task.out = mutable_image(out);
  task.weight = weight.const_data_ptr();
  task.bias = bias ? bias->const_data_ptr() : nullptr;
  task.scale = scale.data(task.in_double);
  for_rows(grid.batch * convolution.out_height, kernels().conv, task);
  return out;
}

Tensor npr_stem(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
                const Ints& padding, int64_t grid_size, int64_t anchor, const std::vector<double>& factors,
                ScalarType dtype) {
  const Grid grid = check_grid(x, grid_size, anchor);
  check_parameters(x, weight, bias);
  const Convolution convolution = check_convolution(grid, weight.size(0), weight.size(2), weight.size(3), stride, padding);
  const Scale scale(factors, grid);
  const int64_t height = pooled_size(convolution.out_height), width = pooled_size(convolution.out_width);
  Tensor out = new_tensor(x, {grid.batch, convolution.out_channels, height, width}, dtype, MemoryFormat::ChannelsLast);
  Task task{};
  task.grid = grid;
  task.convolution = convolution;
  task.in_double = weight.scalar_type() == ScalarType::Double;
  task.x = image("x", x);
  task.out = mutable_image(out);
  task.weight = weight.const_data_ptr();
  task.bias = bias ? bias->const_data_ptr() : nullptr;
  task.scale = scale.data(task.in_double);
  for_rows(grid.batch * height, kernels().stem, task);
  return out;
}

Tensor npr_conv2d_grad_weight(const Tensor& grad, const Tensor& x, const Ints& kernel, const Ints& stride,
                              const Ints& padding, int64_t grid_size, int64_t anchor, const std::vector<double>& factors) {
  STD_TORCH_CHECK(kernel.size() == 2 && grad.dim() == 4, "kernel must be two numbers and grad (N, O, H_out, W_out)");
  const Grid grid = check_grid(x, grid_size, anchor);
  const Convolution convolution = check_convolution(grid, grad.size(1), kernel[0], kernel[1], stride, padding);
  check_shape("grad", grad, {grid.batch, convolution.out_channels, convolution.out_height, convolution.out_width});
  const Scale scale(factors, grid);
  Task task{};
  task.grid = grid;
  task.convolution = convolution;
  task.in_double = grad.scalar_type() == ScalarType::Double;
  task.x = image("x", x);
  task.grad = image("grad", grad);

  // Every thread sums its own rows; the sums are then added in order, so a result repeats for a number of threads.
  const int64_t rows = grid.batch * convolution.out_height, taps = grid.channels * kernel[0] * kernel[1];
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), rows / kGrain));
  std::vector<double> sums(static_cast<size_t>(parts * taps * convolution.out_channels));
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part)
      kernels().conv_grad_weight(task, rows * part / parts, rows * (part + 1) / parts,
                                 sums.data() + part * taps * convolution.out_channels);
  });

  Tensor out = new_tensor(x, {convolution.out_channels, grid.channels, kernel[0], kernel[1]},
                          task.in_double ? ScalarType::Double : ScalarType::Float);
  for (int64_t o = 0; o < convolution.out_channels; ++o)
    for (int64_t c = 0; c < grid.channels; ++c)
      for (int64_t k = 0; k < kernel[0] * kernel[1]; ++k) {
        double sum = 0;
        for (int64_t part = 0; part < parts; ++part)
          sum += sums[static_cast<size_t>(((part * kernel[0] * kernel[1] + k) * grid.channels + c) * convolution.out_channels + o)];
        sum *= factors[factors.size() == 1 ? 0 : static_cast<size_t>(c)];
        const int64_t index = (o * grid.channels + c) * kernel[0] * kernel[1] + k;
        if (task.in_double) {
          static_cast<double*>(out.mutable_data_ptr())[index] = sum;
        } else {
          static_cast<float*>(out.mutable_data_ptr())[index] = static_cast<float>(sum);
        }
      }
  return out;
}

Tensor npr_conv2d_grad_input(const Tensor& grad, const Tensor& x, const Tensor& weight, const Ints& stride,
                             const Ints& padding, int64_t grid_size, int64_t anchor, const std::vector<double>& factors) {
  const Grid grid = check_grid(x, grid_size, anchor);
  check_parameters(x, weight, std::nullopt);
  const Convolution convolution = check_convolution(grid, weight.size(0), weight.size(2), weight.size(3), stride, padding);
  check_shape("grad", grad, {grid.batch, convolution.out_channels, convolution.out_height, convolution.out_width});
  const Scale scale(factors, grid);
  Tensor out = new_tensor(x, {x.size(0), x.size(1), x.size(2), x.size(3)}, x.scalar_type());
  if (grid.height != x.size(2) || grid.width != x.size(3)) torch::stable::zero_(out);  // what was trimmed
  Task task{};
  task.grid = grid;
  task.convolution = convolution;
  task.in_double = weight.scalar_type() == ScalarType::Double;
  task.x = image("x", x);
  task.grad = image("grad", grad);
  task.out = mutable_image(out);
  task.weight = weight.const_data_ptr();
  task.scale = scale.data(task.in_double);
  for_rows(grid.batch * grid.cell_rows(), kernels().conv_grad_input, task);
  return out;
}

std::string cpu_capability() { return kernels().name; }

}  // namespace
}  // namespace npr::cpu

STABLE_TORCH_LIBRARY_IMPL(npr_kernels, CPU, m) {
  m.impl("npr", TORCH_BOX(&npr::cpu::npr));
  m.impl("npr_backward", TORCH_BOX(&npr::cpu::npr_backward));
  m.impl("npr_conv2d", TORCH_BOX(&npr::cpu::npr_conv2d));
  m.impl("npr_conv2d_grad_weight", TORCH_BOX(&npr::cpu::npr_conv2d_grad_weight));
  m.impl("npr_conv2d_grad_input", TORCH_BOX(&npr::cpu::npr_conv2d_grad_input));
  m.impl("npr_stem", TORCH_BOX(&npr::cpu::npr_stem));
}

STABLE_TORCH_LIBRARY_IMPL(npr_kernels, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&npr::cpu::cpu_capability));
}
