// Cooper Lake, Sapphire Rapids, Zen 4 and later: AVX-512 with dot products of bfloat16 pairs.
#if defined(__x86_64__)

#include <immintrin.h>
#include <stdlib.h>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,f16c")
#endif

namespace npr::cpu::avx512bf16 {
namespace {

constexpr int kVectorBytes = 64;
constexpr int kChannelVectors = 4;
constexpr int kMaxTaps = 6;
#define NPR_HAS_BFLOAT16_DOT
#include "instruction_set.h"

}  // namespace

extern const Kernels table;
const Kernels table = NPR_KERNELS_OF("avx512bf16");

}  // namespace npr::cpu::avx512bf16

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
