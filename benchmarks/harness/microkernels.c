// What one core can do at most: independent chains of multiply-adds, enough to hide their latency, in registers.
// Compiled for the machine it runs on by machine.py. Each function returns the operations done.
#include <stdint.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
#define CHAINS 12 /* and two operands fit into 16 registers; latency times throughput is 8 to 10 */

typedef float Vector __attribute__((vector_size(BYTES)));

double fma_chains(int64_t rounds, float factor, float term, float* sink) {
  Vector sum[CHAINS], a, b;
  for (int lane = 0; lane < BYTES / 4; ++lane) a[lane] = factor, b[lane] = term;
  for (int i = 0; i < CHAINS; ++i) sum[i] = b + (float)i;
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; ++i) sum[i] = sum[i] * a + b;
  }
  for (int i = 0; i < CHAINS; ++i) *sink += sum[i][0];
  return (double)rounds * CHAINS * (BYTES / 4) * 2;
}

#if defined(__AVX512BF16__)
#include <immintrin.h>

double bf16_dot_chains(int64_t rounds, float factor, float term, float* sink) {
  __m512 sum[CHAINS];
  const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(factor), _mm512_set1_ps(factor));
  const __m512bh b = _mm512_cvtne2ps_pbh(_mm512_set1_ps(term), _mm512_set1_ps(term));
  for (int i = 0; i < CHAINS; ++i) sum[i] = _mm512_set1_ps(term * i);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; ++i) sum[i] = _mm512_dpbf16_ps(sum[i], a, b);
  }
  for (int i = 0; i < CHAINS; ++i) *sink += _mm512_cvtss_f32(sum[i]);
  return (double)rounds * CHAINS * 32 * 2;
}
#endif

#if defined(__AVX512VNNI__)
#include <immintrin.h>

double int8_dot_chains(int64_t rounds, float factor, float term, float* sink) {
  __m512i sum[CHAINS];
  const __m512i a = _mm512_set1_epi8((char)(100 * factor)), b = _mm512_set1_epi8((char)(100 * term));
  for (int i = 0; i < CHAINS; ++i) sum[i] = _mm512_set1_epi32(i);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (int i = 0; i < CHAINS; ++i) sum[i] = _mm512_dpbusd_epi32(sum[i], a, b);
  }
  for (int i = 0; i < CHAINS; ++i) *sink += _mm512_reduce_add_epi32(sum[i]);
  return (double)rounds * CHAINS * 64 * 2;
}
#endif
