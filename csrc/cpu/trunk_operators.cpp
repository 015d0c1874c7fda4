// The CPU operators for the part of the network after the stem.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <vector>

#include "../common/checks.h"
#include "kernels.h"

namespace npr::cpu {
namespace {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;

// A thread gets at least so many strips of rows.
constexpr int64_t kGrain = 2;
constexpr int64_t kMostSide = 1 << 16;  // of the squares that are averaged over

Weight weight_type(ScalarType dtype) {
  STD_TORCH_CHECK(dtype == ScalarType::Float || (dtype == ScalarType::BFloat16 && kernels().bfloat16_products) ||
                      ((dtype == ScalarType::Char || dtype == ScalarType::Short) && kernels().max_quantised_value > 0),
                  "bottlenecks are float32, or bfloat16, int8 and int16 where the processor has dot products of them");
  return dtype == ScalarType::Float      ? Weight::kFloat32
         : dtype == ScalarType::BFloat16 ? Weight::kBFloat16
         : dtype == ScalarType::Char     ? Weight::kInt8
                                         : Weight::kInt16;
}

// Returns the type of the activations of a block whose first layer has weights of `dtype`.
Type type_of(ScalarType dtype) {
  const Weight weight = weight_type(dtype);
  STD_TORCH_CHECK(weight != Weight::kInt16, "only the second layer's weights can be int16");
  return weight == Weight::kFloat32 ? Type::kFloat32 : weight == Weight::kBFloat16 ? Type::kBFloat16 : Type::kUInt8;
}

int64_t bytes_of(Type type) { return type == Type::kFloat32 ? 4 : type == Type::kBFloat16 ? 2 : 1; }

bool serves_bottlenecks(ScalarType dtype) {
  return dtype == ScalarType::Float || (dtype == ScalarType::BFloat16 && kernels().bfloat16_products) ||
         (dtype == ScalarType::Char && kernels().max_quantised_value > 0);
}

int64_t max_quantised_value() { return kernels().max_quantised_value; }

Tensor pack_weights(const Tensor& weight, ScalarType dtype) {
  STD_TORCH_CHECK(weight.dim() == 2 && weight.is_cpu() && weight.is_contiguous() && weight.scalar_type() == ScalarType::Float,
                  "weight must be (channels, inputs) float32, contiguous, on the CPU");
  const int64_t channels = weight.size(0), inputs = weight.size(1);
  const Weight type = weight_type(dtype);
  STD_TORCH_CHECK(channels % kernels().block_channels == 0 && inputs % 4 == 0, "weight must have a multiple of ",
                  kernels().block_channels, " channels and of 4 inputs, got ", channels, "x", inputs);
  Tensor packed = torch::stable::empty({channels * inputs}, dtype, std::nullopt, weight.device());
  kernels().pack_weights(static_cast<const float*>(weight.const_data_ptr()), channels, inputs, type,
                         packed.mutable_data_ptr());
  return packed;
}

// Memory for the activations between two bottlenecks. Each calling thread keeps its memory from call to call, because
// requesting some megabytes from the system for every batch would cost more than the faster arithmetic saves.
class Scratch {
 public:
  void* reserve(int64_t bytes) {
    if (bytes > bytes_) {
      data_.reset(std::aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64)));
      bytes_ = data_ ? bytes : 0;
      if (!data_) throw std::bad_alloc();
    }
    return data_.get();
  }

  // Frees very large memory, because very large images are rare.
  void shrink() {
    if (bytes_ > kKept) data_.reset(), bytes_ = 0;
  }

 private:
  static constexpr int64_t kKept = int64_t{1} << 26;
  struct Free {
    void operator()(void* data) const { std::free(data); }
  };
  std::unique_ptr<void, Free> data_;
  int64_t bytes_ = 0;
};

// Checks weights and biases and returns the task of one bottleneck for an input of the given size. The caller sets the
// input and the output.
BottleneckTask prepare(int64_t batch, int64_t in_channels, int64_t height, int64_t width, const Tensor* weights,
                       const Tensor* biases, int64_t stride) {
  STD_TORCH_CHECK(stride == 1 || stride == 2, "stride must be 1 or 2, got ", stride);
  BottleneckTask task{};
  const ScalarType dtype = weights[0].scalar_type();
  task.type = task.out_type = type_of(dtype);
  task.batch = batch, task.in_channels = in_channels, task.height = height, task.width = width, task.stride = stride;
  task.out_height = (height - 1) / stride + 1;
  task.out_width = (width - 1) / stride + 1;
  for (size_t i = 0; i < 3; ++i) {
    STD_TORCH_CHECK(biases[i].dim() == 1 && biases[i].is_cpu() && biases[i].is_contiguous() &&
                        biases[i].scalar_type() == ScalarType::Float && biases[i].size(0) % kernels().block_channels == 0,
                    "biases must be (channels,) float32 on the CPU, of whole blocks of channels");
    const bool wider = i == 1 && task.type == Type::kUInt8 && weights[i].scalar_type() == ScalarType::Short;
    STD_TORCH_CHECK(weights[i].is_cpu() && weights[i].is_contiguous() && (wider || weights[i].scalar_type() == dtype),
                    "weights must be packed, all of a block for one dtype");
    task.channels[i] = biases[i].size(0);
    task.biases[i] = static_cast<const float*>(biases[i].const_data_ptr());
    task.weights[i] = weights[i].const_data_ptr();
  }
  const int64_t inner = task.channels[0], out_channels = task.channels[2];
  const int64_t taps = inner > 0 ? weights[1].numel() / (inner * inner) : 0;  // or elements of a transformed tile
  const Weight second = weight_type(weights[1].scalar_type());
  task.strip = taps == 9 ? 1 : second == Weight::kInt16 ? 4 : 2;
  task.project = weights[2].numel() == out_channels * (inner + in_channels);
  STD_TORCH_CHECK(task.channels[1] == inner && weights[0].numel() == inner * in_channels &&
                      weights[1].numel() == taps * inner * inner &&
                      (taps == 9 || taps == (task.strip + 2) * (task.strip + 2)) &&
                      (task.project || weights[2].numel() == out_channels * inner),
                  "weights do not fit the biases and the channels of x");
  STD_TORCH_CHECK(task.strip == 1 ? weights[1].scalar_type() == dtype : second != Weight::kInt8,
                  "the second layer's weights must be of the block's dtype, or, for F(4x4, 3x3) on levels, int16");
  STD_TORCH_CHECK(task.strip == 1 || stride == 1, "a Winograd convolution needs stride 1, got ", stride);
  STD_TORCH_CHECK(task.project || (out_channels == in_channels && stride == 1),
                  "a shortcut without a convolution needs stride 1 and as many channels out as in");
  return task;
}

void take_factors(BottleneckTask& task, const Tensor* factors) {
  for (size_t i = 0; i < 4; ++i) {
    const bool none = task.type != Type::kUInt8 || (i == 3 && task.project);
    const int64_t expected = none ? 0 : task.channels[std::min<size_t>(i, 2)];
    STD_TORCH_CHECK(factors[i].dim() == 1 && factors[i].is_cpu() && factors[i].is_contiguous() &&
                        factors[i].scalar_type() == ScalarType::Float && factors[i].size(0) == expected,
                    "factors must be (channels,) float32 on the CPU, three and the shortcut's, of a block of int8 weights");
    if (!none) task.factors[i] = static_cast<const float*>(factors[i].const_data_ptr());
  }
}

int64_t out_bytes(const BottleneckTask& task) {
  return task.batch * task.channels[2] * task.out_height * task.out_width * bytes_of(task.out_type);
}

// Computes the means over the pixels of each image, (N, channels), from the sums over the pixels of each row.
void average(const BottleneckTask& task, float* means) {
  const int64_t channels = task.channels[2];
  for (int64_t n = 0; n < task.batch; ++n)
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0;
      for (int64_t y = 0; y < task.out_height; ++y) sum += task.sums[(n * task.out_height + y) * channels + c];
      means[n * channels + c] = static_cast<float>(sum / (static_cast<double>(task.out_height) * task.out_width));
    }
}

bool dense_channels_last(const Tensor& x) {
  // The stride of a dimension of size 1 has no meaning.
  const auto dense = [&](int64_t dimension, int64_t stride) { return x.size(dimension) <= 1 || x.stride(dimension) == stride; };
  const int64_t channels = x.size(1), row = x.size(3) * channels;
  return dense(1, 1) && dense(3, channels) && dense(2, row) && dense(0, x.size(2) * row);
}

Tensor average_pool(const Tensor& x, int64_t side, const std::optional<Tensor>& factors) {
  STD_TORCH_CHECK(x.dim() == 4 && x.is_cpu() && dense_channels_last(x),
                  "x must have the shape (N, C, H, W), be dense in channels_last and on the CPU");
  STD_TORCH_CHECK(side >= 1 && side <= kMostSide && x.size(1) % kernels().block_channels == 0,
                  "side must be 1 to ", kMostSide, ", and x must have a multiple of ",
                  kernels().block_channels, " channels, got ", side, " and ", x.size(1));
  AveragePoolTask task{x.size(0), x.size(2), x.size(3), x.size(1), side};
  task.type = task.out_type = type_of(x.scalar_type());
  STD_TORCH_CHECK(task.type != Type::kUInt8, "x must be float32 or bfloat16");
  if (factors) {
    STD_TORCH_CHECK(kernels().max_quantised_value > 0 &&
                        task.type == (kernels().bfloat16_products ? Type::kBFloat16 : Type::kFloat32),
                    "only bfloat16, or, without products of it, float32 can be quantised, where the processor has int8 products");
    STD_TORCH_CHECK(factors->dim() == 1 && factors->size(0) == task.channels && factors->is_cpu() && factors->is_contiguous() &&
                        factors->scalar_type() == ScalarType::Float,
                    "factors must be (channels,) float32 on the CPU");
    task.out_type = Type::kUInt8;
    task.factor = static_cast<const float*>(factors->const_data_ptr());
  }
  const int64_t out_height = (task.height + side - 1) / side, out_width = (task.width + side - 1) / side;
  Tensor out = torch::stable::empty({task.batch, task.channels, out_height, out_width},
                                    factors ? ScalarType::Byte : x.scalar_type(), std::nullopt, x.device(), std::nullopt,
                                    MemoryFormat::ChannelsLast);
  task.x = x.const_data_ptr();
  task.out = out.mutable_data_ptr();
  torch::stable::parallel_for(0, task.batch * out_height, kGrain,
                              [&](int64_t begin, int64_t end) { kernels().average_pool(task, begin, end); });
  return out;
}

Tensor bottlenecks(const Tensor& x, const std::vector<Tensor>& weights, const std::vector<Tensor>& biases,
                   const std::vector<Tensor>& factors, const std::vector<int64_t>& strides, bool averaged) {
  STD_TORCH_CHECK(x.dim() == 4 && x.is_cpu(), "x must have the shape (N, C, H, W) and be on the CPU");
  STD_TORCH_CHECK(!strides.empty() && weights.size() == 3 * strides.size() && biases.size() == weights.size(),
                  "there must be three layers of weights and biases for each stride");
  STD_TORCH_CHECK(factors.size() == 4 * strides.size(), "there must be four factors for each stride");
  const ScalarType dtype = x.scalar_type();
  const bool levels = dtype == ScalarType::Byte;
  const Type type = levels ? Type::kUInt8 : type_of(dtype);
  const int64_t batch = x.size(0), channels = x.size(1), height = x.size(2), width = x.size(3);
  STD_TORCH_CHECK(height >= 1 && width >= 1 && channels % 4 == 0, "x must have pixels and a multiple of 4 channels");
  STD_TORCH_CHECK(dense_channels_last(x), "x must be dense in channels_last");

  std::vector<BottleneckTask> tasks;
  int64_t between = 0;  // bytes of the largest result that is not the last
  for (size_t i = 0; i < strides.size(); ++i) {
    tasks.push_back(i == 0 ? prepare(batch, channels, height, width, &weights[0], &biases[0], strides[0])
                           : prepare(batch, tasks[i - 1].channels[2], tasks[i - 1].out_height, tasks[i - 1].out_width,
                                     &weights[3 * i], &biases[3 * i], strides[i]));
    take_factors(tasks[i], &factors[4 * i]);
    if (i == 0) continue;
    BottleneckTask& before = tasks[i - 1];
    before.out_type = tasks[i].type;
    const Type real = kernels().bfloat16_products ? Type::kBFloat16 : Type::kFloat32;
    STD_TORCH_CHECK(before.type == before.out_type || (before.type == real && before.out_type == Type::kUInt8),
                    "a block's result has the next block's type; only bfloat16, or, without products of it, float32 can be quantised");
    STD_TORCH_CHECK(before.type == before.out_type || before.project,
                    "a block whose result is quantised needs a shortcut with a convolution");
    between = std::max(between, out_bytes(before));
  }
  STD_TORCH_CHECK(tasks[0].type == type && (!levels || averaged), "x must have the first block's dtype, and if it is "
                  "uint8, the result must be averaged");
  BottleneckTask& last = tasks.back();
  last.out_type = levels ? (kernels().bfloat16_products ? Type::kBFloat16 : Type::kFloat32) : type;
  Tensor out = averaged ? torch::stable::empty({batch, last.channels[2], 1, 1}, ScalarType::Float, std::nullopt, x.device())
                        : torch::stable::empty({batch, last.channels[2], last.out_height, last.out_width}, dtype,
                                               std::nullopt, x.device(), std::nullopt, MemoryFormat::ChannelsLast);
  if (batch == 0) return out;

  thread_local Scratch scratch[2], row_sums;
  if (averaged) last.sums = static_cast<float*>(row_sums.reserve(batch * last.out_height * last.channels[2] * 4));
  const void* source = x.const_data_ptr();
  for (size_t i = 0; i < tasks.size(); ++i) {
    BottleneckTask& task = tasks[i];
    task.x = source;
    if (!task.sums) task.out = i + 1 == tasks.size() ? out.mutable_data_ptr() : scratch[i % 2].reserve(between);
    source = task.out;
    const int64_t strips = batch * ((task.out_height + task.strip - 1) / task.strip);
    torch::stable::parallel_for(0, strips, kGrain, [&](int64_t begin, int64_t end) { kernels().bottleneck(task, begin, end); });
  }
  if (averaged) average(last, static_cast<float*>(out.mutable_data_ptr()));
  for (Scratch& memory : scratch) memory.shrink();
  row_sums.shrink();
  return out;
}

}  // namespace
}  // namespace npr::cpu

STABLE_TORCH_LIBRARY_IMPL(npr_kernels, CPU, m) {
  m.impl("average_pool", TORCH_BOX(&npr::cpu::average_pool));
  m.impl("bottlenecks", TORCH_BOX(&npr::cpu::bottlenecks));
  m.impl("pack_weights", TORCH_BOX(&npr::cpu::pack_weights));
}

STABLE_TORCH_LIBRARY_IMPL(npr_kernels, CompositeExplicitAutograd, m) {
  m.impl("serves_bottlenecks", TORCH_BOX(&npr::cpu::serves_bottlenecks));
  m.impl("max_quantised_value", TORCH_BOX(&npr::cpu::max_quantised_value));
}
