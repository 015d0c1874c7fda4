// The CUDA kernels on emulated threads (emulation.h), for tests/kernels/backends/test_cuda_emulated.py.
#include "../../../csrc/cuda/kernels.h"
#include "../../../csrc/cuda/instructions.h"

namespace {

using namespace npr::cuda;

struct CallImage {
  const void* data;
  int64_t type, stride[4];
  Image image() const { return {data, static_cast<Type>(type), {stride[0], stride[1], stride[2], stride[3]}}; }
};

struct CallTask {
  CallImage x;
  int64_t batch, height, width, anchor, out_channels;
  double scale[3];
  Task task() const {
    return {x.image(), batch, height, width, static_cast<int>(anchor), {scale[0], scale[1], scale[2]}, out_channels};
  }
};

}  // namespace

extern "C" {

void emulate(int processors, unsigned seed) {
  emulation::processors = processors;
  emulation::random_order.seed(seed);
}

bool emulated_readable(const CallImage* x, int64_t batch) { return readable(x->image(), batch); }

const char* emulated_stem(const CallTask* task, const void* weight, const void* bias, int weight_type, int bias_type,
                          void* out, int out_type, uint8_t* argmax) {
  return stem({task->task(), {weight, static_cast<Type>(weight_type)}, {bias, static_cast<Type>(bias_type)}, out,
               static_cast<Type>(out_type), argmax}, nullptr);
}

const char* emulated_moments(const CallTask* task, double* first, double* second, double* partial) {
  return moments({task->task(), first, second, partial}, nullptr);
}

const char* emulated_stem_grad_weight(const CallTask* task, const void* grad, int grad_type, const uint8_t* argmax,
                                      float* products, float* sums, double* partial) {
  return stem_grad_weight({task->task(), {grad, static_cast<Type>(grad_type)}, argmax, products, sums, partial}, nullptr);
}

// sizes: those of Bottleneck, from batch on.
const char* emulated_bottleneck(const void* middle, const void* x, const void* weights, const float* bias2,
                                const float* bias3, const float* next_bias, void* y, void* next_middle, float* sums,
                                const int* sizes) {
  return bottleneck({middle, x, weights, bias2, bias3, next_bias, y, next_middle, sums, sizes[0], sizes[1], sizes[2],
                     sizes[3], sizes[4], sizes[5], sizes[6], sizes[7]}, nullptr);
}

}
