// The schemas of every operator, in one place; each device's file registers its kernels for them.
//
// `anchor` is a pixel's index in its cell, -1 for the mean, -2 for the maximum (common/geometry.h). `scale` has one
// factor, or one per channel. Parameters come in the type that is computed in: float64, or float32 for all the others;
// `dtype` is the type of the result.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(npr_kernels, m) {
  m.def("npr(Tensor x, int grid_size, int anchor) -> Tensor");
  m.def("npr_backward(Tensor grad, Tensor x, int grid_size, int anchor) -> Tensor");
  m.def(
      "npr_conv2d(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, int grid_size, int anchor, "
      "float[] scale, ScalarType dtype, bool channels_last) -> Tensor");
  m.def(
      "npr_conv2d_grad_weight(Tensor grad, Tensor x, int[] kernel, int[] stride, int[] padding, int grid_size, "
      "int anchor, float[] scale) -> Tensor");
  m.def(
      "npr_conv2d_grad_input(Tensor grad, Tensor x, Tensor weight, int[] stride, int[] padding, int grid_size, "
      "int anchor, float[] scale) -> Tensor");
  m.def(
      "npr_stem(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, int grid_size, int anchor, "
      "float[] scale, ScalarType dtype) -> Tensor");
  m.def(
      "npr_moments(Tensor x, int[] kernel, int[] stride, int[] padding, int grid_size, int anchor, float[] scale) "
      "-> (Tensor, Tensor)");
  m.def(
      "npr_stem_argmax(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, int grid_size, int anchor, "
      "float[] scale, ScalarType dtype) -> (Tensor, Tensor)");
  m.def(
      "npr_stem_grad_weight(Tensor grad, Tensor argmax, Tensor x, int[] kernel, int[] stride, int[] padding, "
      "int grid_size, int anchor, float[] scale) -> (Tensor, Tensor)");
  // Residual bottlenecks in evaluation mode, one after another: for each a stride, three layers of weights from
  // pack_weights and their (channels,) float32 biases. The second layer is one matrix over the channels of 3x3 pixels, or
  // the 16 of Winograd's F(2x2, 3x3), in a block of integers the 36 of F(4x4, 3x3) as int16, one after another. The
  // shortcut is the input itself, or, where the third layer has the input's channels among its own, part of that layer.
  // A block has four factors, empty but for one of int8 weights, which reads uint8: one (channels,) float32 for each
  // layer's sums, one for the shortcut, empty where that is a convolution. `averaged`: instead of the result its mean
  // over the pixels, (N, channels, 1, 1) float32.
  m.def(
      "bottlenecks(Tensor x, Tensor[] weights, Tensor[] biases, Tensor[] factors, int[] strides, bool averaged) "
      "-> Tensor");
  // A bottleneck behind its first convolution, and the first convolution of the next block, on Hopper. middle (N, H, W,
  // channels), that convolution's result, and x (N, H', W', channels), the block's input of the result's size: bfloat16,
  // contiguous. weights: flat, as npr_kernels/trunk/hopper_bottleneck.py packs them; biases float32. First result: every
  // kept-th row and column (1 or 2), (N, H'', W'', channels); with `kept` 0 instead sums over pixels in float32,
  // (N, sums, channels). Second: what the next block's first convolution gives, empty without next_bias.
  m.def(
      "hopper_bottleneck(Tensor middle, Tensor x, Tensor weights, Tensor bias2, Tensor bias3, Tensor? next_bias, "
      "int stride, int kept) -> (Tensor, Tensor)");
  // (channels, inputs) float32 in the order, and as long as this instruction set wants it.
  m.def("pack_weights(Tensor weight, ScalarType dtype) -> Tensor");
  // Whether this processor has bottlenecks of `dtype`.
  m.def("serves_bottlenecks(ScalarType dtype) -> bool");
  // The largest quantised activation of bottlenecks of int8, 0 where there are none.
  m.def("most_level() -> int");
  // Of a JPEG decoded to (H, W, 3) uint8 pixels: how often each of the 4x4 lowest coefficients of luminance is so many of
  // its `steps`, (4, 4) float32, without sign, in `blocks` of the 8x8 blocks, evenly, or in all; the last of the bins: or
  // more. Then for each gap, (G, 4) `places` (in it, below and above it in the histograms, and the owner of the gap) with
  // the (G,) float64 share of what is above, what it holds and what its surroundings let expect; and of both, summed for
  // each owner, half the Poisson deviance where there is less than a third: (owners,) float64.
  m.def(
      "coefficient_gaps(Tensor pixels, Tensor steps, Tensor places, Tensor shares, int owners, int blocks, int bins) "
      "-> Tensor");
  m.def("cpu_capability() -> str");
}
