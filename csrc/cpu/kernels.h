// The interface between the operators (operators.cpp) and the kernels, which are compiled once per instruction set.
// Plain data only: nothing here may instantiate inline code that the linker could share between instruction sets.
#pragma once

#include <cstdint>

#include "../common/geometry.h"

namespace npr::cpu {

enum class Type : int { kUInt8, kFloat32, kFloat64, kBFloat16, kFloat16 };

// What the weights of a bottleneck are packed as.
enum class Weight : int { kFloat32, kBFloat16, kInt8, kInt16 };

// A tensor of shape (N, C, H, W), (strides in elements) without ownership.
struct Image {
  const void* data;
  Type type;
  int64_t stride[4];
};

struct MutableImage {
  void* data;
  Type type;
  int64_t stride[4];
};

// Everything one call needs. `weight` is (O, C, KH, KW) contiguous and, like `bias` (O, may be null) and `scale`
// (one factor per channel), of the type that the kernels compute in: double if `in_double`, float otherwise.
struct Task {
  Grid grid;
  Convolution convolution;
  bool in_double;
  Image x;
  Image grad;          // gradient of the operator's output; gradients only
  Image argmax;        // as the stem with argmax left it; its gradient only
  MutableImage out;    // the result
  MutableImage out_argmax;  // bytes, with channels side by side; the stem with argmax only
  const void* weight;
  const void* bias;
  const void* scale;
};

// A residual bottleneck: x (N, H, W, in_channels) of `type` to out (N, out_height, out_width, channels[2]) of `out_type`,
// both dense; or, where `sums` is not null, only the sums over each row's pixels (N, out_height, channels[2]). Weights are
// packed by Kernels::pack_weights; `project` says that the last layer's inputs are those of the second followed by the
// block's own, that is, that the shortcut is a convolution. A `strip` of output rows is computed together: one, or, where
// the second layer's weights are those of Winograd's F(strip x strip, 3x3), which needs stride 1, two, for kUInt8 four.
//
// Where `type` is kUInt8, activations are levels, whole numbers from 0 to `most_level`, and weights int8, Winograd's
// int16. Each sum is multiplied by its channel's factor before the bias is added; a shortcut without a convolution by its
// channel's of factors[3].
struct BottleneckTask {
  int64_t batch, in_channels, height, width;
  int64_t out_height, out_width, stride;
  int64_t channels[3];
  bool project;
  int64_t strip;
  // The same, kFloat32 or kBFloat16 where `bfloat16_products`; where there is a `most_level` also kUInt8 with kUInt8 on
  // the other side, or kBFloat16, or, without `bfloat16_products`, kFloat32.
  Type type, out_type;
  const void* x;
  void* out;
  float* sums;
  const void* weights[3];
  const float* biases[3];
  const float* factors[4];
};

// Each kernel computes a range of independent rows, so that the caller can spread ranges over threads.
struct Kernels {
  const char* name;
  // Rows of cells, counted through the batch: [begin, end) of batch * cell_rows.
  void (*npr)(const Task&, int64_t begin, int64_t end);
  void (*npr_backward)(const Task&, int64_t begin, int64_t end);
  void (*conv_grad_input)(const Task&, int64_t begin, int64_t end);
  // Output rows: [begin, end) of batch * out_height.
  void (*conv)(const Task&, int64_t begin, int64_t end);
  // Output rows; adds the range's share to `sum` (C * KH * KW, O), double.
  void (*conv_grad_weight)(const Task&, int64_t begin, int64_t end, double* sum);
  // Output rows; adds the range's share of the patches' moments, without scale: to `sum` (C * KH * KW), and its
  // products (C * KH * KW, C * KH * KW) behind it, of which the upper triangle is filled. Channels come last in a patch.
  void (*moments)(const Task&, int64_t begin, int64_t end, double* sum);
  // Pooled rows: [begin, end) of batch * pooled_size(out_height).
  void (*stem)(const Task&, int64_t begin, int64_t end);
  void (*stem_argmax)(const Task&, int64_t begin, int64_t end);
  // Rows of the convolution's output, which never existed: [begin, end) of batch * out_height; adds as conv_grad_weight
  // does, and the sums of the gradient (O) behind it.
  void (*stem_grad_weight)(const Task&, int64_t begin, int64_t end, double* sum);
  // Strips: [begin, end) of batch * ceil(out_height / strip).
  void (*bottleneck)(const BottleneckTask&, int64_t begin, int64_t end);
  // (channels, inputs) float32, row-major, to the order that `bottleneck` reads; channels a multiple of block_channels.
  // kBFloat16 where `bfloat16_products`, kInt8 and kInt16 where there is a `most_level`.
  void (*pack_weights)(const float* weight, int64_t channels, int64_t inputs, Weight type, void* packed);
  int64_t block_channels;
  bool bfloat16_products;  // whether bottlenecks can be bfloat16
  int64_t most_level;      // the largest level, 0 where bottlenecks cannot be of levels
};

// Throws std::bad_alloc, for kernels, which may not include what it is declared in.
[[noreturn]] void out_of_memory();

// The kernels for this machine: the best instruction set it has, or the one NPR_KERNELS_CPU_CAPABILITY names.
const Kernels& kernels();

}  // namespace npr::cpu
