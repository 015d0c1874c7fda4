// Haswell, Zen and later: 16 registers of 32 bytes.
#if defined(__x86_64__)

#include <immintrin.h>
#include <stdlib.h>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

namespace npr::cpu::avx2 {
namespace {

constexpr int kVectorBytes = 32;
constexpr int kChannelVectors = 2;
constexpr int kMaxTaps = 4;
#include "instruction_set.h"

}  // namespace

extern const Kernels table;
const Kernels table = NPR_KERNELS_OF("avx2");

}  // namespace npr::cpu::avx2

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
