// The CPU operators of the network behind the stem.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <vector>

#include "../common/checks.h"
#include "kernels.h"

namespace npr::cpu {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

// Rows, or pairs of them, below this number are not worth a second thread.
constexpr int64_t kGrain = 2;

Type type_of(ScalarType dtype) {
  STD_TORCH_CHECK(dtype == ScalarType::Float || (dtype == ScalarType::BFloat16 && kernels().bfloat16_products),
                  "bottlenecks are float32, or bfloat16 where the processor has dot products of it");
  return dtype == ScalarType::BFloat16 ? Type::kBFloat16 : Type::kFloat32;
}

Tensor pack_weights(const Tensor& weight, ScalarType dtype) {
  STD_TORCH_CHECK(weight.dim() == 2 && weight.is_cpu() && weight.is_contiguous() && weight.scalar_type() == ScalarType::Float,
                  "weight must be (channels, inputs) float32, contiguous, on the CPU");
  const int64_t channels = weight.size(0), inputs = weight.size(1);
  const Type type = type_of(dtype);
  STD_TORCH_CHECK(channels % kernels().block_channels == 0 && inputs % 2 == 0, "weight must have a multiple of ",
                  kernels().block_channels, " channels and an even number of inputs, got ", channels, "x", inputs);
  Tensor packed = torch::stable::empty({channels * inputs}, dtype, std::nullopt, weight.device());
  kernels().pack_weights(static_cast<const float*>(weight.const_data_ptr()), channels, inputs, type,
                         packed.mutable_data_ptr());
  return packed;
}

Tensor bottleneck(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases, int64_t stride) {
  STD_TORCH_CHECK(x.dim() == 4 && x.is_cpu(), "x must have the shape (N, C, H, W) and be on the CPU");
  STD_TORCH_CHECK(weights.size() == 3 && biases.size() == 3, "there must be three layers of weights and biases");
  STD_TORCH_CHECK(stride == 1 || stride == 2, "stride must be 1 or 2, got ", stride);
  BottleneckTask task{};
  task.type = type_of(x.scalar_type());
  task.batch = x.size(0), task.in_channels = x.size(1), task.height = x.size(2), task.width = x.size(3);
  STD_TORCH_CHECK(task.height >= 1 && task.width >= 1 && task.in_channels % 2 == 0, "x must have pixels and an even number of channels");
  // Strides of dimensions of size 1 mean nothing.
  const auto dense = [&](int64_t dimension, int64_t stride) { return x.size(dimension) <= 1 || x.stride(dimension) == stride; };
  const int64_t row = task.width * task.in_channels;
  STD_TORCH_CHECK(dense(1, 1) && dense(3, task.in_channels) && dense(2, row) && dense(0, task.height * row),
                  "x must be dense in channels_last");
  task.stride = stride;
  task.out_height = (task.height - 1) / stride + 1;
  task.out_width = (task.width - 1) / stride + 1;
  for (size_t i = 0; i < 3; ++i) {
    STD_TORCH_CHECK(biases[i].dim() == 1 && biases[i].is_cpu() && biases[i].is_contiguous() &&
                        biases[i].scalar_type() == ScalarType::Float && biases[i].size(0) % kernels().block_channels == 0,
                    "biases must be (channels,) float32 on the CPU, of whole blocks of channels");
    STD_TORCH_CHECK(weights[i].is_cpu() && weights[i].is_contiguous() && weights[i].scalar_type() == x.scalar_type(),
                    "weights must be packed for the dtype of x");
    task.channels[i] = biases[i].size(0);
    task.biases[i] = static_cast<const float*>(biases[i].const_data_ptr());
    task.weights[i] = weights[i].const_data_ptr();
  }
  const int64_t width = task.channels[0], out_channels = task.channels[2];
  task.winograd = weights[1].numel() == width * 16 * width;
  task.project = weights[2].numel() == out_channels * (width + task.in_channels);
  STD_TORCH_CHECK(task.channels[1] == width && weights[0].numel() == width * task.in_channels &&
                      (task.winograd || weights[1].numel() == width * 9 * width) && (task.project || weights[2].numel() == out_channels * width),
                  "weights do not fit the biases and the channels of x");
  STD_TORCH_CHECK(!task.winograd || stride == 1, "F(2x2, 3x3) needs stride 1, got ", stride);
  STD_TORCH_CHECK(task.project || (out_channels == task.in_channels && stride == 1),
                  "a shortcut without a convolution needs stride 1 and as many channels out as in");

  Tensor out = torch::stable::empty({task.batch, out_channels, task.out_height, task.out_width}, x.scalar_type(), std::nullopt,
                                    x.device(), std::nullopt, MemoryFormat::ChannelsLast);
  task.x = x.const_data_ptr();
  task.out = out.mutable_data_ptr();
  const int64_t rows = task.batch * (task.winograd ? (task.out_height + 1) / 2 : task.out_height);
  if (rows)
    torch::stable::parallel_for(0, rows, kGrain, [&](int64_t begin, int64_t end) { kernels().bottleneck(task, begin, end); });
  return out;
}

}  // namespace
}  // namespace npr::cpu

STABLE_TORCH_LIBRARY_IMPL(npr_kernels, CPU, m) {
  m.impl("bottleneck", TORCH_BOX(&npr::cpu::bottleneck));
  m.impl("pack_weights", TORCH_BOX(&npr::cpu::pack_weights));
}
