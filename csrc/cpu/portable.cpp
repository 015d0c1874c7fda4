// Any processor: vectors of 16 bytes are SSE2 on x86-64 and NEON on aarch64.
#include <stdlib.h>

#include "kernels.h"

namespace npr::cpu::portable {
namespace {

constexpr int kVectorBytes = 16;
#if defined(__aarch64__)
constexpr int kChannelVectors = 4;  // 32 registers
constexpr int kMaxTaps = 6;
#else
constexpr int kChannelVectors = 2;  // 16 registers
constexpr int kMaxTaps = 4;
#endif
#include "instruction_set.h"

}  // namespace

extern const Kernels table;
const Kernels table = NPR_KERNELS_OF("portable");

}  // namespace npr::cpu::portable
