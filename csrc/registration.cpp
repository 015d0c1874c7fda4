// The schemas of all operators. The files of each device register its kernels for them.
//
// `anchor` is the index of a pixel in its cell, -1 for the mean or -2 for the maximum (common/geometry.h). `scale` has
// one factor, or one factor per channel. Weights and biases have the type in which the kernels compute: float64, or
// float32 for all other types of x. `dtype` is the type of the result.
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
  // Computes residual bottlenecks in evaluation mode, one after another. x has the type of the first block's
  // activations; if that is uint8, the result must be averaged.
  //   strides: one per block.
  //   weights: three layers per block, from pack_weights. The second layer is one matrix for the channels of 3x3
  //     pixels, or 16 matrices for Winograd's F(2x2, 3x3), or, in a block of integers, 36 matrices of int16 for F(4x4,
  //     3x3). If the third layer also has weights for the channels of the block's input, the shortcut is a convolution
  //     and part of that layer. Otherwise the shortcut is the input itself.
  //   biases: three per block, (channels,) float32.
  //   factors: four per block, (channels,) float32. They are empty unless the block has int8 weights and reads uint8.
  //     Three multiply the sums of the layers. The fourth multiplies the shortcut; it is empty if the shortcut is a
  //     convolution.
  //   averaged: return the mean over the pixels, (N, channels, 1, 1) float32, instead of the result.
  m.def(
      "bottlenecks(Tensor x, Tensor[] weights, Tensor[] biases, Tensor[] factors, int[] strides, bool averaged) "
      "-> Tensor");
  // Averages x (N, C, H, W), channels_last and not negative, over squares of side x side pixels, in the type of x. With
  // factors (C,) the results are whole numbers, uint8, as `bottlenecks` reads them: means multiplied by factors.
  m.def("average_pool(Tensor x, int side, Tensor? factors) -> Tensor");
  // Computes a bottleneck from the result of its first convolution, and then the first convolution of the next block,
  // on Hopper GPUs.
  //   middle: (N, H, W, channels), the result of the block's first convolution. x: (N, H', W', channels), every
  //     stride-th row and column of the block's input. Both are bfloat16 and contiguous.
  //   weights: one flat tensor in the order of npr_kernels/trunk/hopper_bottleneck.py. Biases: float32.
  //   kept: 1 or 2 returns every kept-th row and column of the block's result, (N, H'', W'', channels). 0 returns sums
  //     over pixels instead, (N, sums, channels) float32.
  // The second result is that of the next block's first convolution. It is empty without next_bias.
  m.def(
      "hopper_bottleneck(Tensor middle, Tensor x, Tensor weights, Tensor bias2, Tensor bias3, Tensor? next_bias, "
      "int stride, int kept) -> (Tensor, Tensor)");
  // Puts weights (channels, inputs) float32 into the order and padding that this instruction set reads.
  m.def("pack_weights(Tensor weight, ScalarType dtype) -> Tensor");
  // Returns whether this processor can compute bottlenecks of `dtype`.
  m.def("serves_bottlenecks(ScalarType dtype) -> bool");
  // Returns the largest quantised activation of int8 bottlenecks, or 0 if this processor has none.
  m.def("max_quantised_value() -> int");
  // Looks for gaps in the histograms of JPEG coefficients, which an earlier compression leaves.
  //   pixels: a decoded JPEG, (H, W, 3) uint8.
  //   steps: (4, 4) float32, the quantisation steps of the 4x4 lowest luminance coefficients. For each coefficient
  //     there is a histogram of its absolute value, counted in steps, over at most `blocks` evenly spaced 8x8 blocks. A
  //     histogram has `bins` bins; the last one is open-ended.
  //   places: (G, 4) int64, one row per gap: the histogram bins in the gap, below it and above it, and the gap's owner.
  //     Each frequency has `candidates` owners, numbered frequency * candidates + candidate.
  //   shares: (G,) float64. The count expected in a gap is interpolated between the bins below and above it; this is
  //     the weight of the bin above.
  // Observed and expected counts are summed over the gaps of each owner. An owner has half the Poisson deviance between
  // the sums if less than a third of the expected count was observed, else 0. The result is the largest of each frequency.
  m.def(
      "coefficient_gaps(Tensor pixels, Tensor steps, Tensor places, Tensor shares, int frequencies, int candidates, "
      "int blocks, int bins) -> float[]");
  // Counts the cells of images (P, H, W, 3) uint8 whose first and last pixel differ, until there are `enough`.
  m.def("detailed_cells(Tensor parts, int grid_size, int enough) -> int");
  m.def("cpu_capability() -> str");
  m.def("has_vnni() -> bool");
}
