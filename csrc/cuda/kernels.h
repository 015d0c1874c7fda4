// The interface between the operators (operators.cpp) and the CUDA kernels. It holds plain data and no torch types.
//
// All kernels are for the geometry of the detector: three channels, cells of 2x2 pixels with one pixel as the anchor, a
// 3x3 convolution with stride 2 and padding 1, and a 3x3 max-pool with stride 2. Pointers are device pointers.
#pragma once

#include <cstdint>

namespace npr::cuda {

enum class Type : int { kUInt8, kFloat32, kBFloat16, kFloat16 };

// A view of a tensor (N, C, H, W), with strides in elements. It does not own the memory.
struct Image {
  const void* data;
  Type type;
  int64_t stride[4];
};

// Returns whether the kernels can read an image of three channels. It must be planar or channels_last, and its rows
// must begin at multiples of 16 bytes. They may end anywhere: an aligned piece of 16 bytes that holds a byte of a row
// never reaches beyond the image's memory.
inline bool readable(const Image& x, int64_t batch) {
  const int64_t bytes = x.type == Type::kUInt8 ? 1 : x.type == Type::kFloat32 ? 4 : 2;
  const auto aligned = [&](int64_t stride) { return stride * bytes % 16 == 0; };
  const bool channels_last = x.stride[1] == 1 && x.stride[3] == 3, planar = x.stride[3] == 1 && aligned(x.stride[1]);
  return (channels_last || planar) && reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && aligned(x.stride[2]) &&
         (aligned(x.stride[0]) || batch <= 1);
}

struct Task {
  Image x;                       // must be readable()
  int64_t batch, height, width;  // size of x; height and width are trimmed to whole cells
  int anchor;                    // row-major index in a cell, 0 .. 3
  double scale[3];               // factor on the NPR map, per channel
  int64_t out_channels;          // a multiple of 16
};

// A contiguous array of floating point numbers. data is null if there is no array.
struct Parameter {
  const void* data;
  Type type;
};

// out: (N, O, Hp, Wp) of type `out_type`, channels_last. argmax: the same shape in uint8, or null if it is not needed.
// weight: (O, 3, 3, 3). bias: (O).
struct Stem {
  Task task;
  Parameter weight, bias;
  void* out;
  Type out_type;
  uint8_t* argmax;
};

// first (27) and second (27, 27): double, contiguous. partial: kMomentsPartial doubles per slot.
struct Moments {
  Task task;
  double* first;
  double* second;
  double* partial;
};

// grad: the gradient of the pooled output, (N, O, Hp, Wp). argmax: the positions of the maxima. Both are channels_last,
// dense and aligned to 16 bytes. products (O, 3, 3, 3) and sums (O): float, contiguous. partial: gradient_partial(O)
// doubles per slot.
struct StemGradWeight {
  Task task;
  Parameter grad;
  const uint8_t* argmax;
  float* products;
  float* sums;
  double* partial;
};

// The part of a residual bottleneck after its first convolution, and the first convolution of the next block. Tensors
// are bfloat16, channels_last and dense. The result has 4 * middle_channels channels.
struct Bottleneck {
  const void* middle;   // (N, middle_channels, H, W): the result of the first convolution
  const void* x;        // every stride-th row and column of the block's input, so it has the size of the result
  const void* weights;  // in the order of the stages
  const float* bias2;
  const float* bias3;
  const float* next_bias;
  void* y;            // every kept-th row and column of the result
  void* next_middle;  // (N, next_channels, H', W')
  float* sums;        // if kept is 0: sums of the result over pixels, (N, squares of 8x8 pixels, 4, channels)
  int batch, height, width, middle_channels;
  int stride;         // 1 or 2
  int projected;      // channels of x if the shortcut is a convolution, else 0
  int kept;           // 1, 2, or 0: nothing is written to y
  int next_channels;  // channels of next_middle, or 0 if there is no next block
};

constexpr int64_t kMomentsPartial = 27 * 28;
constexpr int64_t gradient_partial(int64_t out_channels) { return (out_channels + 63) / 64 * 64 * 32; }

// Returns how many slots of partial sums a reduction may write on the current device.
int64_t slots();

// Each function launches its kernels on `stream` (a cudaStream_t) of the current device. It returns an error message,
// or null on success.
const char* stem(const Stem& call, void* stream);
const char* moments(const Moments& call, void* stream);
const char* bottleneck(const Bottleneck& call, void* stream);
const char* stem_grad_weight(const StemGradWeight& call, void* stream);

}  // namespace npr::cuda
