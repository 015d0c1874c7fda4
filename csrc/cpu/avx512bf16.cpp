// Cooper Lake, Sapphire Rapids, Zen 4 and later: AVX-512 with dot products of bfloat16 pairs and of bytes.
#if defined(__x86_64__)
#define NPR_INSTRUCTION_SET avx512bf16
#define NPR_TARGET "avx512bf16,avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx512cd,avx2,fma,f16c"
#define NPR_VECTOR_BYTES 64
#define NPR_CHANNEL_VECTORS 4
#define NPR_GRADIENT_TAPS 6
#define NPR_HAS_BFLOAT16_DOT
#define NPR_HAS_INTEGER_DOT
#define NPR_HAS_VNNI
#include "instruction_set.h"
#endif
