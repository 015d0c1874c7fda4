// Any processor. Vectors of 16 bytes are SSE2 on x86-64 and NEON on aarch64.
#define NPR_INSTRUCTION_SET portable
#define NPR_VECTOR_BYTES 16
#if defined(__aarch64__)  // 32 registers
#define NPR_CHANNEL_VECTORS 4
#define NPR_GRADIENT_TAPS 6
#else  // 16
#define NPR_CHANNEL_VECTORS 2
#define NPR_GRADIENT_TAPS 4
#endif
#include "instruction_set.h"
