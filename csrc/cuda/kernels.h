// The interface between the operators (operators.cpp) and the CUDA kernels: plain data, no torch types.
//
// All kernels serve the network's own geometry: three channels, cells of 2x2 pixels with one of them as the anchor, a
// 3x3 convolution of stride 2 and padding 1, and the 3x3/2 max-pool behind it. Pointers are device pointers.
#pragma once

#include <cstdint>

namespace npr::cuda {

enum class Type : int { kUInt8, kFloat32, kBFloat16, kFloat16 };

// A tensor of shape (N, C, H, W), (strides in elements) without ownership.
struct Image {
  const void* data;
  Type type;
  int64_t stride[4];
};

// Whether the kernels can read an image of three channels: planes or channels_last, rows that begin at multiples of 16
// bytes. They may end anywhere, as 16 bytes with one of a row's among them never reach beyond the memory that the image
// lies in.
inline bool readable(const Image& x, int64_t batch) {
  const int64_t bytes = x.type == Type::kUInt8 ? 1 : x.type == Type::kFloat32 ? 4 : 2;
  const auto aligned = [&](int64_t stride) { return stride * bytes % 16 == 0; };
  const bool channels_last = x.stride[1] == 1 && x.stride[3] == 3, planar = x.stride[3] == 1 && aligned(x.stride[1]);
  return (channels_last || planar) && reinterpret_cast<uintptr_t>(x.data) % 16 == 0 && aligned(x.stride[2]) &&
         (aligned(x.stride[0]) || batch <= 1);
}

struct Task {
  Image x;                       // readable
  int64_t batch, height, width;  // of x; height and width trimmed to whole cells
  int anchor;                    // row-major index in a cell, 0 .. 3
  double scale[3];               // factor on the NPR map, per channel
  int64_t out_channels;          // a multiple of 16
};

// Contiguous numbers of a floating point type; data is null where there are none.
struct Parameter {
  const void* data;
  Type type;
};

// pooled (N, O, Hp, Wp), channels_last, of type `out_type`; argmax alike in uint8, or null: nobody asks for it.
// weight (O, 3, 3, 3) and bias (O).
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

// grad: the pooled gradient (N, O, Hp, Wp), and argmax its positions: channels_last, dense, beginning at multiples of 16
// bytes. products (O, 3, 3, 3) and sums (O): float, contiguous. partial: gradient_partial(O) doubles per slot.
struct StemGradWeight {
  Task task;
  Parameter grad;
  const uint8_t* argmax;
  float* products;
  float* sums;
  double* partial;
};

// A residual bottleneck behind its first convolution, and the first convolution of the next block; bfloat16, dense
// channels_last. The result has four times as many channels as there are inside.
struct Bottleneck {
  const void* middle;   // (N, middle_channels, H, W): what the first convolution gave
  const void* x;        // of the result's size: the block's input, of which every stride-th row and column
  const void* weights;  // in the order of stages
  const float* bias2;
  const float* bias3;
  const float* next_bias;
  void* y;            // every kept-th row and column of the result
  void* next_middle;  // (N, next_channels, H', W')
  float* sums;        // where nothing is kept, (N, squares of 8x8 pixels, 4, channels): the result's, over their pixels
  int batch, height, width, middle_channels;
  int stride;         // 1 or 2
  int projected;      // channels of x, where the shortcut has a convolution, or 0
  int kept;           // 1, 2, or 0: nothing
  int next_channels;  // or 0
};

constexpr int64_t kMomentsPartial = 27 * 28;
constexpr int64_t gradient_partial(int64_t out_channels) { return (out_channels + 63) / 64 * 64 * 32; }

// Slots of partial sums that a reduction needs on the current device, the most it will write.
int64_t slots();

// Each launches on `stream` (a cudaStream_t) of the current device and returns what went wrong, or null.
const char* stem(const Stem& call, void* stream);
const char* moments(const Moments& call, void* stream);
const char* bottleneck(const Bottleneck& call, void* stream);
const char* stem_grad_weight(const StemGradWeight& call, void* stream);

}  // namespace npr::cuda
