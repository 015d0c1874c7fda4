// Haswell, Zen and later: 16 registers of 32 bytes.
#if defined(__x86_64__)
#define NPR_INSTRUCTION_SET avx2
#define NPR_TARGET "avx2,fma,f16c"
#define NPR_VECTOR_BYTES 32
#define NPR_CHANNEL_VECTORS 2
#define NPR_GRADIENT_TAPS 4
#define NPR_HAS_INTEGER_DOT
#include "instruction_set.h"
#endif
