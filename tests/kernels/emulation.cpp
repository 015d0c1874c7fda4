// The CUDA kernels on emulated threads (emulation.h), for tests/kernels/test_cuda_emulated.py.
#include "../../csrc/cuda/stem.cu"

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
  float scale[4];
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

const char* emulated_stem(const CallTask* task, const float* weight, const float* bias, void* out, int out_type,
                          uint8_t* argmax) {
  return stem({task->task(), weight, bias, out, static_cast<Type>(out_type), argmax}, nullptr);
}

}
