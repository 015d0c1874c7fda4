// The CPU operators of NPR and the stem. They turn tensors into tasks for the kernels and distribute the rows over
// torch's threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>
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

void check_parameters(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias) {
  const ScalarType type = weight.scalar_type();
  STD_TORCH_CHECK(weight.dim() == 4 && weight.is_cpu() && weight.is_contiguous(), "weight must be (O, C, KH, KW), contiguous");
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, "weight must be float32 or float64");
  STD_TORCH_CHECK(weight.size(1) == x.size(1), "weight expects ", weight.size(1), " channels, x has ", x.size(1));
  if (!bias) return;
  check_shape("bias", *bias, {weight.size(0)});
  STD_TORCH_CHECK(bias->is_cpu() && bias->is_contiguous() && bias->scalar_type() == type, "bias must be as weight, contiguous");
}

// The task of a convolution, and the memory that the task points to.
struct ConvolutionCall {
  Task task{};
  std::vector<double> scale;  // one factor per channel
  std::vector<float> scale_in_float;
};

ConvolutionCall prepare(const Tensor& x, int64_t out_channels, int64_t kernel_height, int64_t kernel_width, bool in_double,
                        const Ints& stride, const Ints& padding, int64_t grid_size, int64_t anchor,
                        const std::vector<double>& factors) {
  ConvolutionCall call;
  Task& task = call.task;
  task.grid = check_grid(x, grid_size, anchor);
  task.convolution = check_convolution(task.grid, out_channels, kernel_height, kernel_width, stride, padding);
  task.in_double = in_double;
  task.x = image("x", x);
  STD_TORCH_CHECK(factors.size() == 1 || static_cast<int64_t>(factors.size()) == task.grid.channels,
                  "scale must be one factor or one per channel");
  for (int64_t c = 0; c < task.grid.channels; ++c) {
    call.scale.push_back(factors[factors.size() == 1 ? 0 : static_cast<size_t>(c)]);
    call.scale_in_float.push_back(static_cast<float>(call.scale.back()));
  }
  task.scale = in_double ? static_cast<const void*>(call.scale.data()) : call.scale_in_float.data();
  return call;
}

ConvolutionCall prepare(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
                        const Ints& padding, int64_t grid_size, int64_t anchor, const std::vector<double>& factors) {
  STD_TORCH_CHECK(x.dim() == 4, "x must have the shape (N, C, H, W), got ", x.dim(), " dimensions");
  check_parameters(x, weight, bias);
  ConvolutionCall call = prepare(x, weight.size(0), weight.size(2), weight.size(3),
                                 weight.scalar_type() == ScalarType::Double, stride, padding, grid_size, anchor, factors);
  call.task.weight = weight.const_data_ptr();
  call.task.bias = bias ? bias->const_data_ptr() : nullptr;
  return call;
}

void check_gradient(const Tensor& grad, const Task& task) {
  const Convolution& convolution = task.convolution;
  check_shape("grad", grad, {task.grid.batch, convolution.out_channels, convolution.out_height, convolution.out_width});
}

// Returns a tensor for the gradient of x. It is zero at the trimmed pixels.
Tensor new_gradient(const Tensor& x, const Grid& grid) {
  Tensor out = new_tensor(x, {x.size(0), x.size(1), x.size(2), x.size(3)}, x.scalar_type());
  if (grid.height != x.size(2) || grid.width != x.size(3)) torch::stable::zero_(out);
  return out;
}

// A thread gets at least so many rows.
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
  Tensor out = new_gradient(x, grid);
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
  ConvolutionCall call = prepare(x, weight, bias, stride, padding, grid_size, anchor, factors);
  const Convolution& convolution = call.task.convolution;
  Tensor out = new_tensor(x, {x.size(0), convolution.out_channels, convolution.out_height, convolution.out_width}, dtype,
                          channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  call.task.out = mutable_image(out);
  for_rows(x.size(0) * convolution.out_height, kernels().conv, call.task);
  return out;
}

Tensor npr_stem(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
                const Ints& padding, int64_t grid_size, int64_t anchor, const std::vector<double>& factors,
                ScalarType dtype) {
  ConvolutionCall call = prepare(x, weight, bias, stride, padding, grid_size, anchor, factors);
  const int64_t height = pooled_size(call.task.convolution.out_height);
  const int64_t width = pooled_size(call.task.convolution.out_width);
  Tensor out = new_tensor(x, {x.size(0), weight.size(0), height, width}, dtype, MemoryFormat::ChannelsLast);
  call.task.out = mutable_image(out);
  for_rows(x.size(0) * height, kernels().stem, call.task);
  return out;
}

// Returns `size` numbers that a kernel sums over rows. Every thread sums its own rows. The sums are then added in
// order, so the result is the same in every run with the same number of threads.
template <typename Kernel>
std::vector<double> sum_of_parts(const Task& task, int64_t rows, int64_t size, Kernel kernel) {
  const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), rows / kGrain));
  std::vector<double> sums(static_cast<size_t>(parts * size));
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part)
      kernel(task, rows * part / parts, rows * (part + 1) / parts, sums.data() + part * size);
  });
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t i = 0; i < size; ++i) sums[static_cast<size_t>(i)] += sums[static_cast<size_t>(part * size + i)];
  return sums;
}

Tensor from_double(const Tensor& like, const Ints& shape, bool in_double, const std::vector<double>& values) {
  Tensor out = new_tensor(like, shape, in_double ? ScalarType::Double : ScalarType::Float);
  if (in_double) {
    std::copy(values.begin(), values.end(), static_cast<double*>(out.mutable_data_ptr()));
  } else {
    std::transform(values.begin(), values.end(), static_cast<float*>(out.mutable_data_ptr()),
                   [](double value) { return static_cast<float>(value); });
  }
  return out;
}

// Computes the gradient of a weight of `shape` from the products without scale, (KH, KW, C, O).
Tensor weight_gradient(const Tensor& like, const ConvolutionCall& call, const std::vector<double>& products,
                       const Ints& shape) {
  const int64_t out_channels = shape[0], channels = shape[1], taps = shape[2] * shape[3];
  std::vector<double> values(static_cast<size_t>(out_channels * channels * taps));
  for (int64_t o = 0; o < out_channels; ++o)
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t k = 0; k < taps; ++k)
        values[static_cast<size_t>((o * channels + c) * taps + k)] =
            products[static_cast<size_t>((k * channels + c) * out_channels + o)] * call.scale[static_cast<size_t>(c)];
  return from_double(like, shape, call.task.in_double, values);
}

Tensor npr_conv2d_grad_weight(const Tensor& grad, const Tensor& x, const Ints& kernel, const Ints& stride,
                              const Ints& padding, int64_t grid_size, int64_t anchor, const std::vector<double>& factors) {
  STD_TORCH_CHECK(kernel.size() == 2 && grad.dim() == 4, "kernel must be two numbers and grad (N, O, H_out, W_out)");
  ConvolutionCall call = prepare(x, grad.size(1), kernel[0], kernel[1], grad.scalar_type() == ScalarType::Double, stride,
                                 padding, grid_size, anchor, factors);
  check_gradient(grad, call.task);
  call.task.grad = image("grad", grad);

  const Ints shape = {grad.size(1), x.size(1), kernel[0], kernel[1]};
  const auto sums = sum_of_parts(call.task, x.size(0) * call.task.convolution.out_height,
                                 shape[0] * shape[1] * shape[2] * shape[3], kernels().conv_grad_weight);
  return weight_gradient(x, call, sums, shape);
}

Tensor npr_conv2d_grad_input(const Tensor& grad, const Tensor& x, const Tensor& weight, const Ints& stride,
                             const Ints& padding, int64_t grid_size, int64_t anchor, const std::vector<double>& factors) {
  ConvolutionCall call = prepare(x, weight, std::nullopt, stride, padding, grid_size, anchor, factors);
  check_gradient(grad, call.task);
  Tensor out = new_gradient(x, call.task.grid);
  call.task.grad = image("grad", grad);
  call.task.out = mutable_image(out);
  for_rows(x.size(0) * call.task.grid.cell_rows(), kernels().conv_grad_input, call.task);
  return out;
}

std::tuple<Tensor, Tensor> npr_moments(const Tensor& x, const Ints& kernel, const Ints& stride, const Ints& padding,
                                       int64_t grid_size, int64_t anchor, const std::vector<double>& factors) {
  STD_TORCH_CHECK(kernel.size() == 2, "kernel must be two numbers");
  // Differences of bytes are exact in float, but differences to a mean are not.
  const bool in_double = x.scalar_type() == ScalarType::Double ||
                         (x.scalar_type() == ScalarType::Byte && anchor == kAnchorMean);
  ConvolutionCall call = prepare(x, 1, kernel[0], kernel[1], in_double, stride, padding, grid_size, anchor, factors);
  const int64_t channels = x.size(1), taps = kernel[0] * kernel[1], size = taps * channels;
  const auto sums = sum_of_parts(call.task, x.size(0) * call.task.convolution.out_height, size * (size + 1), kernels().moments);

  std::vector<double> first(static_cast<size_t>(size)), second(static_cast<size_t>(size * size));
  for (int64_t i = 0; i < size; ++i) {  // from (KH, KW, C), channels last, to (C, KH, KW)
    const int64_t row = i % channels * taps + i / channels;
    const double scale = call.scale[static_cast<size_t>(i % channels)];
    first[static_cast<size_t>(row)] = sums[static_cast<size_t>(i)] * scale;
    for (int64_t j = 0; j < size; ++j) {
      const int64_t column = j % channels * taps + j / channels;
      second[static_cast<size_t>(row * size + column)] =
          sums[static_cast<size_t>(size + std::min(i, j) * size + std::max(i, j))] *
          (scale * call.scale[static_cast<size_t>(j % channels)]);
    }
  }
  return {from_double(x, {size}, true, first), from_double(x, {size, size}, true, second)};
}

std::tuple<Tensor, Tensor> npr_stem_argmax(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                           const Ints& stride, const Ints& padding, int64_t grid_size, int64_t anchor,
                                           const std::vector<double>& factors, ScalarType dtype) {
  ConvolutionCall call = prepare(x, weight, bias, stride, padding, grid_size, anchor, factors);
  const int64_t height = pooled_size(call.task.convolution.out_height);
  const Ints shape = {x.size(0), weight.size(0), height, pooled_size(call.task.convolution.out_width)};
  Tensor out = new_tensor(x, shape, dtype, MemoryFormat::ChannelsLast);
  Tensor argmax = new_tensor(x, shape, ScalarType::Byte, MemoryFormat::ChannelsLast);
  call.task.out = mutable_image(out);
  call.task.out_argmax = mutable_image(argmax);
  for_rows(x.size(0) * height, kernels().stem_argmax, call.task);
  return {out, argmax};
}

std::tuple<Tensor, Tensor> npr_stem_grad_weight(const Tensor& grad, const Tensor& argmax, const Tensor& x,
                                                const Ints& kernel, const Ints& stride, const Ints& padding,
                                                int64_t grid_size, int64_t anchor, const std::vector<double>& factors) {
  STD_TORCH_CHECK(kernel.size() == 2 && grad.dim() == 4, "kernel must be two numbers and grad (N, O, H_pooled, W_pooled)");
  ConvolutionCall call = prepare(x, grad.size(1), kernel[0], kernel[1], grad.scalar_type() == ScalarType::Double, stride,
                                 padding, grid_size, anchor, factors);
  const Convolution& convolution = call.task.convolution;
  const Ints pooled = {x.size(0), grad.size(1), pooled_size(convolution.out_height), pooled_size(convolution.out_width)};
  check_shape("grad", grad, pooled);
  check_shape("argmax", argmax, pooled);
  STD_TORCH_CHECK(argmax.scalar_type() == ScalarType::Byte, "argmax must be uint8");
  call.task.grad = image("grad", grad);
  call.task.argmax = image("argmax", argmax);

  const Ints shape = {grad.size(1), x.size(1), kernel[0], kernel[1]};
  const int64_t size = shape[0] * shape[1] * shape[2] * shape[3];
  const auto sums = sum_of_parts(call.task, x.size(0) * convolution.out_height, size + shape[0], kernels().stem_grad_weight);
  const std::vector<double> of_gradient(sums.begin() + size, sums.begin() + size + shape[0]);
  return {weight_gradient(x, call, sums, shape), from_double(x, {shape[0]}, call.task.in_double, of_gradient)};
}

std::string cpu_capability() { return kernels().name; }

// Returns whether the processor sums products of uint8 and int8 in 32 bits, whatever kernels were chosen.
bool has_vnni() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512vnni") || __builtin_cpu_supports("avxvnni");
#else
  return false;
#endif
}

}  // namespace
}  // namespace npr::cpu

STABLE_TORCH_LIBRARY_IMPL(npr_kernels, CPU, m) {
  m.impl("npr", TORCH_BOX(&npr::cpu::npr));
  m.impl("npr_backward", TORCH_BOX(&npr::cpu::npr_backward));
  m.impl("npr_conv2d", TORCH_BOX(&npr::cpu::npr_conv2d));
  m.impl("npr_conv2d_grad_weight", TORCH_BOX(&npr::cpu::npr_conv2d_grad_weight));
  m.impl("npr_conv2d_grad_input", TORCH_BOX(&npr::cpu::npr_conv2d_grad_input));
  m.impl("npr_stem", TORCH_BOX(&npr::cpu::npr_stem));
  m.impl("npr_moments", TORCH_BOX(&npr::cpu::npr_moments));
  m.impl("npr_stem_argmax", TORCH_BOX(&npr::cpu::npr_stem_argmax));
  m.impl("npr_stem_grad_weight", TORCH_BOX(&npr::cpu::npr_stem_grad_weight));
}

STABLE_TORCH_LIBRARY_IMPL(npr_kernels, CompositeExplicitAutograd, m) {
  m.impl("cpu_capability", TORCH_BOX(&npr::cpu::cpu_capability));
  m.impl("has_vnni", TORCH_BOX(&npr::cpu::has_vnni));
}
