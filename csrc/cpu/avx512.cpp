// Skylake-X, Zen 4 and later: 32 registers of 64 bytes.
#if defined(__x86_64__)
#define NPR_INSTRUCTION_SET avx512
#define NPR_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,f16c"
#define NPR_VECTOR_BYTES 64
#define NPR_CHANNEL_VECTORS 4
#define NPR_GRADIENT_TAPS 6
#define NPR_HAS_INTEGER_DOT
#include "instruction_set.h"
#endif
