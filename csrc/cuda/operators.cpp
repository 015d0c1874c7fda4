// The CUDA operators. They turn tensors into calls of the kernels, on the current stream of the image's device.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include "../common/checks.h"
#include "kernels.h"

// Part of torch's stable ABI. torch declares it only if it was built where CUDA's headers were found.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** ret_stream);

namespace npr::cuda {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Ints = std::vector<int64_t>;

Type type_of(const char* name, ScalarType type) {
  switch (type) {
    case ScalarType::Byte: return Type::kUInt8;
    case ScalarType::Float: return Type::kFloat32;
    case ScalarType::BFloat16: return Type::kBFloat16;
    case ScalarType::Half: return Type::kFloat16;
    default: STD_TORCH_CHECK(false, name, " has a dtype that the cuda kernels lack");
  }
}

void check_device(const char* name, const Tensor& tensor, const Tensor& x) {
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == x.get_device_index(), name,
                  " must be on x's CUDA device");
}

Image image(const char* name, const Tensor& x, const Tensor& beside) {
  check_device(name, x, beside);
  return {x.const_data_ptr(), type_of(name, x.scalar_type()), {x.stride(0), x.stride(1), x.stride(2), x.stride(3)}};
}

Tensor new_tensor(const Tensor& like, const Ints& shape, ScalarType dtype, MemoryFormat format = MemoryFormat::Contiguous) {
  return torch::stable::empty(shape, dtype, std::nullopt, like.device(), std::nullopt, format);
}

// Returns x, or a copy that the kernels can read: channels_last, with rows padded to a multiple of 16 pixels.
Tensor with_readable_rows(const Tensor& x) {
  if (readable(image("x", x, x), x.size(0))) return x;
  const int64_t pitch = (x.size(3) + 15) / 16 * 16;
  const Tensor rows = new_tensor(x, {x.size(0), x.size(2), pitch, x.size(1)}, x.scalar_type());
  Tensor padded = torch::stable::transpose(torch::stable::transpose(rows, 1, 3), 2, 3);
  Tensor copy = torch::stable::narrow(padded, 3, 0, x.size(3));
  torch::stable::copy_(copy, x);
  return copy;
}

// Returns a pooled tensor if its kernel can read it, else a copy: dense, channels_last and aligned to 16 bytes.
Tensor channels_last(const Tensor& tensor) {
  const int64_t channels = tensor.size(1), width = tensor.size(3), height = tensor.size(2);
  const bool dense = tensor.stride(1) == 1 && tensor.stride(3) == channels && tensor.stride(2) == width * channels &&
                     (tensor.size(0) <= 1 || tensor.stride(0) == height * width * channels);
  if (dense && reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0) return tensor;
  Tensor copy = new_tensor(tensor, {tensor.size(0), channels, height, width}, tensor.scalar_type(),
                           MemoryFormat::ChannelsLast);
  torch::stable::copy_(copy, tensor);
  return copy;
}

// The task, the image that it reads, and the size of the pooled result.
struct Prepared {
  Task task;
  Tensor x;
  int64_t pooled_height, pooled_width;
};

Prepared prepare(const Tensor& x, int64_t out_channels, const Ints& kernel, const Ints& stride, const Ints& padding,
                 int64_t grid_size, int64_t anchor, const std::vector<double>& factors) {
  const Grid grid = check_grid(x, grid_size, anchor);
  STD_TORCH_CHECK(kernel.size() == 2, "kernel must be two numbers");
  const Convolution convolution = check_convolution(grid, out_channels, kernel[0], kernel[1], stride, padding);
  STD_TORCH_CHECK(grid_size == 2 && anchor >= 0, "the cuda kernels serve grid_size 2 and an anchor index");
  STD_TORCH_CHECK(grid.channels == 3 && kernel == Ints({3, 3}) && stride == Ints({2, 2}) && padding == Ints({1, 1}),
                  "the cuda kernels serve 3 channels, kernel 3, stride 2 and padding 1");
  STD_TORCH_CHECK(out_channels % 16 == 0 && out_channels <= 128, "out_channels must be a multiple of 16 up to 128");
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();  // the most strips; elements are counted in 64 bits
  STD_TORCH_CHECK(grid.height < kMost / 4 && grid.width < kMost / 4, "x is too high or too wide");
  STD_TORCH_CHECK(grid.batch * (grid.width / 100 + 1) < kMost, "x has too many images");
  STD_TORCH_CHECK(factors.size() == 1 || factors.size() == 3, "scale must be one factor or one per channel");
  Prepared prepared{{}, with_readable_rows(x)};
  Task& task = prepared.task;
  task.x = image("x", prepared.x, x);
  task.batch = grid.batch;
  task.height = grid.height;
  task.width = grid.width;
  task.anchor = static_cast<int>(anchor);
  for (size_t c = 0; c < 3; ++c) task.scale[c] = factors[factors.size() == 1 ? 0 : c];
  task.out_channels = out_channels;
  prepared.pooled_height = pooled_size(convolution.out_height);
  prepared.pooled_width = pooled_size(convolution.out_width);
  return prepared;
}

// Runs a launcher on the current stream of x's device.
template <typename Call>
void run(const Tensor& x, const char* (*launcher)(const Call&, void*), const Call& call) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
  const char* const error = launcher(call, stream);
  STD_TORCH_CHECK(error == nullptr, "CUDA: ", error);
}

using Guard = torch::stable::accelerator::DeviceGuard;

std::tuple<Tensor, Tensor> stem_with(bool argmax, const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                     const Ints& stride, const Ints& padding, int64_t grid_size, int64_t anchor,
                                     const std::vector<double>& factors, ScalarType dtype) {
  STD_TORCH_CHECK(x.dim() == 4 && weight.dim() == 4, "x and weight must have four dimensions");
  const Ints kernel{weight.size(2), weight.size(3)};
  Prepared prepared = prepare(x, weight.size(0), kernel, stride, padding, grid_size, anchor, factors);
  const auto parameter = [&](const char* name, const Tensor& tensor) {
    check_device(name, tensor, x);
    STD_TORCH_CHECK(tensor.is_contiguous() && tensor.scalar_type() != ScalarType::Byte, name,
                    " must be contiguous and floating point");
    return Parameter{tensor.const_data_ptr(), type_of(name, tensor.scalar_type())};
  };
  STD_TORCH_CHECK(weight.size(1) == 3, "weight expects ", weight.size(1), " channels, x has 3");
  if (bias) check_shape("bias", *bias, {weight.size(0)});
  const Guard guard(x.get_device_index());
  const Ints shape{x.size(0), weight.size(0), prepared.pooled_height, prepared.pooled_width};
  Tensor out = new_tensor(x, shape, dtype, MemoryFormat::ChannelsLast);
  Tensor positions = new_tensor(x, argmax ? shape : Ints{0}, ScalarType::Byte,
                                argmax ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  run(x, stem,
      Stem{prepared.task, parameter("weight", weight), bias ? parameter("bias", *bias) : Parameter{}, out.mutable_data_ptr(),
           type_of("the result", dtype), argmax ? static_cast<uint8_t*>(positions.mutable_data_ptr()) : nullptr});
  return {out, positions};
}

Tensor npr_stem(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Ints& stride,
                const Ints& padding, int64_t grid_size, int64_t anchor, const std::vector<double>& factors,
                ScalarType dtype) {
  return std::get<0>(stem_with(false, x, weight, bias, stride, padding, grid_size, anchor, factors, dtype));
}

std::tuple<Tensor, Tensor> npr_stem_argmax(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                                           const Ints& stride, const Ints& padding, int64_t grid_size, int64_t anchor,
                                           const std::vector<double>& factors, ScalarType dtype) {
  return stem_with(true, x, weight, bias, stride, padding, grid_size, anchor, factors, dtype);
}

std::tuple<Tensor, Tensor> npr_moments(const Tensor& x, const Ints& kernel, const Ints& stride, const Ints& padding,
                                       int64_t grid_size, int64_t anchor, const std::vector<double>& factors) {
  const Prepared prepared = prepare(x, 16, kernel, stride, padding, grid_size, anchor, factors);
  const Guard guard(x.get_device_index());
  Tensor first = new_tensor(x, {27}, ScalarType::Double), second = new_tensor(x, {27, 27}, ScalarType::Double);
  Tensor partial = new_tensor(x, {slots(), kMomentsPartial}, ScalarType::Double);
  run(x, moments,
      Moments{prepared.task, static_cast<double*>(first.mutable_data_ptr()),
              static_cast<double*>(second.mutable_data_ptr()), static_cast<double*>(partial.mutable_data_ptr())});
  return {first, second};
}

std::tuple<Tensor, Tensor> npr_stem_grad_weight(const Tensor& grad, const Tensor& argmax, const Tensor& x,
                                                const Ints& kernel, const Ints& stride, const Ints& padding,
                                                int64_t grid_size, int64_t anchor, const std::vector<double>& factors) {
  STD_TORCH_CHECK(grad.dim() == 4 && grad.scalar_type() != ScalarType::Byte, "grad must be floating point, (N, O, H, W)");
  const int64_t out_channels = grad.size(1);
  const Prepared prepared = prepare(x, out_channels, kernel, stride, padding, grid_size, anchor, factors);
  const Ints shape{x.size(0), out_channels, prepared.pooled_height, prepared.pooled_width};
  check_shape("grad", grad, shape);
  check_shape("argmax", argmax, shape);
  STD_TORCH_CHECK(argmax.scalar_type() == ScalarType::Byte, "argmax must be uint8");
  check_device("grad", grad, x);
  check_device("argmax", argmax, x);
  const Guard guard(x.get_device_index());
  const Tensor gradient = channels_last(grad), positions = channels_last(argmax);
  Tensor products = new_tensor(x, {out_channels, 3, 3, 3}, ScalarType::Float);
  Tensor sums = new_tensor(x, {out_channels}, ScalarType::Float);
  Tensor partial = new_tensor(x, {slots(), gradient_partial(out_channels)}, ScalarType::Double);
  run(x, stem_grad_weight,
      StemGradWeight{prepared.task, {gradient.const_data_ptr(), type_of("grad", gradient.scalar_type())},
                     static_cast<const uint8_t*>(positions.const_data_ptr()), static_cast<float*>(products.mutable_data_ptr()),
                     static_cast<float*>(sums.mutable_data_ptr()), static_cast<double*>(partial.mutable_data_ptr())});
  return {products, sums};
}

std::tuple<Tensor, Tensor> hopper_bottleneck(const Tensor& middle, const Tensor& x, const Tensor& weights, const Tensor& bias2,
                                             const Tensor& bias3, const std::optional<Tensor>& next_bias, int64_t stride,
                                             int64_t kept) {
  const auto check = [&](const char* name, const Tensor& tensor, ScalarType type) {
    check_device(name, tensor, middle);
    STD_TORCH_CHECK(tensor.is_contiguous() && tensor.scalar_type() == type, name, " must be contiguous and of another type");
    STD_TORCH_CHECK(reinterpret_cast<uintptr_t>(tensor.const_data_ptr()) % 16 == 0, name, " must begin at 16 bytes");
  };
  check("middle", middle, ScalarType::BFloat16);
  check("x", x, ScalarType::BFloat16);
  check("weights", weights, ScalarType::BFloat16);
  check("bias2", bias2, ScalarType::Float);
  check("bias3", bias3, ScalarType::Float);
  if (next_bias) check("next_bias", *next_bias, ScalarType::Float);
  STD_TORCH_CHECK(middle.dim() == 4 && x.dim() == 4, "middle and x must have four dimensions");
  STD_TORCH_CHECK((stride == 1 || stride == 2) && kept >= 0 && kept <= 2, "stride must be 1 or 2, kept 0, 1 or 2");
  const int64_t batch = middle.size(0), height = middle.size(1), width = middle.size(2), inside = middle.size(3);
  const int64_t inputs = x.size(3), outputs = 4 * inside, next = next_bias ? next_bias->size(0) : 0;
  const int64_t out_height = (height - 1) / stride + 1, out_width = (width - 1) / stride + 1;
  STD_TORCH_CHECK(height > 0 && width > 0, "middle has no pixels");
  check_shape("x", x, {batch, out_height, out_width, inputs});
  check_shape("bias2", bias2, {inside});
  check_shape("bias3", bias3, {outputs});
  const int64_t projected = inputs == outputs ? 0 : inputs;
  check_shape("weights", weights, {9 * inside * inside + outputs * (inside + projected + next)});
  const int64_t squares = ((out_height + 7) / 8) * ((out_width + 7) / 8);
  STD_TORCH_CHECK(height * width < (int64_t{1} << 31) && (batch + 1000) * squares < (int64_t{1} << 31), "x is too large");
  const Guard guard(middle.get_device_index());
  const ScalarType type = kept == 0 ? ScalarType::Float : ScalarType::BFloat16;
  Tensor result = new_tensor(middle, kept == 0 ? Ints{batch, 4 * squares, outputs}
                                               : Ints{batch, (out_height - 1) / kept + 1, (out_width - 1) / kept + 1, outputs}, type);
  Tensor next_middle = new_tensor(middle, next ? Ints{batch, out_height, out_width, next} : Ints{0}, ScalarType::BFloat16);
  if (batch > 0)
    run(middle, bottleneck,
        Bottleneck{middle.const_data_ptr(), x.const_data_ptr(), weights.const_data_ptr(),
                   static_cast<const float*>(bias2.const_data_ptr()), static_cast<const float*>(bias3.const_data_ptr()),
                   next_bias ? static_cast<const float*>(next_bias->const_data_ptr()) : nullptr,
                   kept == 0 ? nullptr : result.mutable_data_ptr(), next ? next_middle.mutable_data_ptr() : nullptr,
                   kept == 0 ? static_cast<float*>(result.mutable_data_ptr()) : nullptr, static_cast<int>(batch),
                   static_cast<int>(height), static_cast<int>(width), static_cast<int>(inside), static_cast<int>(stride),
                   static_cast<int>(projected), static_cast<int>(kept), static_cast<int>(next)});
  return {result, next_middle};
}

}  // namespace
}  // namespace npr::cuda

STABLE_TORCH_LIBRARY_IMPL(npr_kernels, CUDA, m) {
  m.impl("npr_stem", TORCH_BOX(&npr::cuda::npr_stem));
  m.impl("npr_stem_argmax", TORCH_BOX(&npr::cuda::npr_stem_argmax));
  m.impl("npr_moments", TORCH_BOX(&npr::cuda::npr_moments));
  m.impl("npr_stem_grad_weight", TORCH_BOX(&npr::cuda::npr_stem_grad_weight));
  m.impl("hopper_bottleneck", TORCH_BOX(&npr::cuda::hopper_bottleneck));
}
