// The interface between the operators (npr_operators.cpp, trunk_operators.cpp) and the kernels, which are compiled once
// per instruction set. It holds plain data only. Inline code is not allowed here, because the linker could share it
// between instruction sets.
#pragma once

#include <cstdint>

#include "../common/geometry.h"

namespace npr::cpu {

enum class Type : int { kUInt8, kFloat32, kFloat64, kBFloat16, kFloat16 };

// Types of the packed weights of a bottleneck.
enum class Weight : int { kFloat32, kBFloat16, kInt8, kInt16 };

// A view of a tensor (N, C, H, W), with strides in elements. It does not own the memory.
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

// The arguments of one call. `weight` is (O, C, KH, KW), contiguous. `bias` is (O) or null. `scale` has one factor per
// channel. All three have the type in which the kernels compute: double if `in_double`, else float.
struct Task {
  Grid grid;
  Convolution convolution;
  bool in_double;
  Image x;
  Image grad;          // gradient of the operator's output; only for gradients
  Image argmax;        // the result of the stem with argmax; only for its gradient
  MutableImage out;    // the result
  MutableImage out_argmax;  // bytes in channels_last; only for the stem with argmax
  const void* weight;
  const void* bias;
  const void* scale;
};

// A residual bottleneck. It maps x (N, H, W, in_channels) of `type` to out (N, out_height, out_width, channels[2]) of
// `out_type`; both are dense. If `sums` is not null, only the sums over the pixels of each row are written to it,
// (N, out_height, channels[2]).
//
// Kernels::pack_weights packs the weights. `project` means that the shortcut is a convolution: the last layer then
// reads the channels of the second layer followed by those of the block's input. `strip` is the number of output rows
// that are computed together. It is 1, or the size of a Winograd tile, F(strip x strip, 3x3), if the weights of the
// second layer are transformed for it: 2, or 4 for kUInt8. Winograd convolutions need stride 1.
//
// If `type` is kUInt8, activations are levels, which are whole numbers from 0 to `max_quantised_value`. Weights are int8, or
// int16 for Winograd. Each sum is multiplied by the factor of its channel before the bias is added. A shortcut that is
// no convolution is multiplied by factors[3] of its channel.
struct BottleneckTask {
  int64_t batch, in_channels, height, width;
  int64_t out_height, out_width, stride;
  int64_t channels[3];
  bool project;
  int64_t strip;
  // Both are usually equal: kFloat32, kBFloat16 if Kernels::bfloat16_products, or kUInt8 if Kernels::max_quantised_value > 0.
  // One of them can be kUInt8 while the other is kBFloat16, or kFloat32 if there are no bfloat16 products.
  Type type, out_type;
  const void* x;
  void* out;
  float* sums;
  const void* weights[3];
  const float* biases[3];
  const float* factors[4];
};

// The mean over squares of side x side pixels of x (batch, height, width, channels), which holds no negative values.
// The types are equal: kFloat32, or kBFloat16 if Kernels::bfloat16_products. Or x has one of them, and the result is
// kUInt8: levels of the mean, multiplied by `factor` (channels). Without factors it is null.
struct AveragePoolTask {
  int64_t batch, height, width, channels, side;
  Type type, out_type;
  const void* x;
  void* out;
  const float* factor;
};

// Each kernel computes a range of independent rows, so that the caller can distribute ranges over threads.
struct Kernels {
  const char* name;
  // These compute the rows of cells [begin, end) of batch * cell_rows.
  void (*npr)(const Task&, int64_t begin, int64_t end);
  void (*npr_backward)(const Task&, int64_t begin, int64_t end);
  void (*conv_grad_input)(const Task&, int64_t begin, int64_t end);
  // Computes the output rows [begin, end) of batch * out_height.
  void (*conv)(const Task&, int64_t begin, int64_t end);
  // Adds the contribution of the output rows [begin, end) to `sum`, (KH * KW * C, O) double.
  void (*conv_grad_weight)(const Task&, int64_t begin, int64_t end, double* sum);
  // Adds the moments of the patches of the output rows [begin, end), without scale, to `sum`: first the sums of the
  // elements of a patch (KH * KW * C), then the sums of their products (KH * KW * C, KH * KW * C), of which only the
  // upper triangle is filled.
  void (*moments)(const Task&, int64_t begin, int64_t end, double* sum);
  // These compute the pooled rows [begin, end) of batch * pooled_size(out_height).
  void (*stem)(const Task&, int64_t begin, int64_t end);
  void (*stem_argmax)(const Task&, int64_t begin, int64_t end);
  // Adds the contribution of the rows [begin, end) of batch * out_height of the convolution's output, which was never
  // stored. `sum` is that of conv_grad_weight, followed by the sums of the gradient (O).
  void (*stem_grad_weight)(const Task&, int64_t begin, int64_t end, double* sum);
  // Computes the strips [begin, end) of batch * ceil(out_height / strip).
  void (*bottleneck)(const BottleneckTask&, int64_t begin, int64_t end);
  // Computes the rows [begin, end) of batch * ceil(height / side). channels must be a multiple of block_channels.
  void (*average_pool)(const AveragePoolTask&, int64_t begin, int64_t end);
  // Puts weights (channels, inputs), row-major, into the order that `bottleneck` reads. channels must be a multiple of
  // block_channels. kBFloat16 needs `bfloat16_products`; kInt8 and kInt16 need `max_quantised_value` > 0.
  void (*pack_weights)(const float* weight, int64_t channels, int64_t inputs, Weight type, void* packed);
  int64_t block_channels;
  bool bfloat16_products;  // whether bottlenecks can be bfloat16
  int64_t max_quantised_value;      // the largest level, or 0 if bottlenecks cannot be quantised
};

// Throws std::bad_alloc. The kernels call it because they may not include the header that declares std::bad_alloc.
[[noreturn]] void out_of_memory();

// Returns the kernels for the best instruction set of this machine, or for the one that NPR_KERNELS_CPU_CAPABILITY
// names.
const Kernels& kernels();

}  // namespace npr::cpu
