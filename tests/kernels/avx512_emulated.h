// The AVX-512 intrinsics that csrc/cpu uses, lane by lane in plain C++, from Intel's description of each: the kernels of
// those processors can then run anywhere. Only what is asked of them is here: masks are all ones, or they are of all lanes.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

typedef int64_t __m128i __attribute__((vector_size(16), may_alias));
typedef int64_t __m256i __attribute__((vector_size(32), may_alias));
typedef int64_t __m512i __attribute__((vector_size(64), may_alias));
typedef float __m512 __attribute__((vector_size(64), may_alias));
typedef uint16_t __m512bh __attribute__((vector_size(64), may_alias));
typedef uint16_t __m256bh __attribute__((vector_size(32), may_alias));

namespace emulated {

template <typename To, typename From>
inline To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}
template <typename T>
inline T load(const void* p) {
  T value;
  std::memcpy(&value, p, sizeof(value));
  return value;
}
// The elements of a register.
template <typename Lane, int kCount>
struct Lanes {
  Lane lane[kCount];
};
template <typename Lane, typename Register>
inline Lanes<Lane, sizeof(Register) / sizeof(Lane)> lanes(const Register& from) {
  return as<Lanes<Lane, sizeof(Register) / sizeof(Lane)>>(from);
}
inline int64_t clamp(int64_t value, int64_t least, int64_t most) { return value < least ? least : value > most ? most : value; }
// Narrows two registers in turns of 128 bits, as the `packs` instructions do.
template <typename From, typename To, int kFrom>
inline __m512i pack(__m512i a, __m512i b, int64_t least, int64_t most) {
  const auto low = lanes<From>(a), high = lanes<From>(b);
  Lanes<To, 2 * kFrom> out;
  constexpr int kQuarter = kFrom / 4;
  for (int quarter = 0; quarter < 4; ++quarter)
    for (int i = 0; i < kQuarter; ++i) {
      out.lane[quarter * 2 * kQuarter + i] = static_cast<To>(clamp(low.lane[quarter * kQuarter + i], least, most));
      out.lane[quarter * 2 * kQuarter + kQuarter + i] = static_cast<To>(clamp(high.lane[quarter * kQuarter + i], least, most));
    }
  return as<__m512i>(out);
}
inline float of_bfloat16(uint16_t bits) { return as<float>(static_cast<uint32_t>(bits) << 16); }

}  // namespace emulated

inline __m128i _mm_loadu_si128(const void* p) { return emulated::load<__m128i>(p); }
inline __m256i _mm256_loadu_si256(const void* p) { return emulated::load<__m256i>(p); }
inline __m512i _mm512_loadu_si512(const void* p) { return emulated::load<__m512i>(p); }
inline void _mm_storeu_si128(void* p, __m128i v) { std::memcpy(p, &v, sizeof(v)); }
inline void _mm256_storeu_si256(void* p, __m256i v) { std::memcpy(p, &v, sizeof(v)); }
inline void _mm512_storeu_si512(void* p, __m512i v) { std::memcpy(p, &v, sizeof(v)); }

inline __m512 _mm512_set1_ps(float value) { return value - __m512{}; }
inline __m512i _mm512_set1_epi32(int32_t value) {
  emulated::Lanes<int32_t, 16> out;
  for (int32_t& lane : out.lane) lane = value;
  return emulated::as<__m512i>(out);
}
inline __m512i _mm512_set1_epi16(int16_t value) {
  emulated::Lanes<int16_t, 32> out;
  for (int16_t& lane : out.lane) lane = value;
  return emulated::as<__m512i>(out);
}
template <typename... Values>
inline __m512i _mm512_setr_epi32(Values... values) {
  return emulated::as<__m512i>(emulated::Lanes<int32_t, 16>{{values...}});
}

inline __m512 _mm512_dpbf16_ps(__m512 sum, __m512bh a, __m512bh b) {
  for (int i = 0; i < 16; ++i)  // the odd one first
    for (int k = 1; k >= 0; --k) sum[i] += emulated::of_bfloat16(a[2 * i + k]) * emulated::of_bfloat16(b[2 * i + k]);
  return sum;
}
inline __m256bh _mm512_cvtneps_pbh(__m512 v) {
  __m256bh out;
  for (int i = 0; i < 16; ++i) {
    const uint32_t bits = emulated::as<uint32_t>(static_cast<float>(v[i]));
    out[i] = static_cast<uint16_t>(v[i] != v[i] ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
  }
  return out;
}
inline __m512i _mm512_dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
  auto out = emulated::lanes<int32_t>(sum);
  const auto bytes = emulated::lanes<uint8_t>(a);
  const auto weights = emulated::lanes<int8_t>(b);
  for (int i = 0; i < 64; ++i) out.lane[i / 4] += int32_t{bytes.lane[i]} * int32_t{weights.lane[i]};
  return emulated::as<__m512i>(out);
}
inline __m512i _mm512_dpwssd_epi32(__m512i sum, __m512i a, __m512i b) {
  auto out = emulated::lanes<int32_t>(sum);
  const auto left = emulated::lanes<int16_t>(a), right = emulated::lanes<int16_t>(b);
  for (int i = 0; i < 32; ++i) out.lane[i / 2] += int32_t{left.lane[i]} * int32_t{right.lane[i]};
  return emulated::as<__m512i>(out);
}
inline __m512i _mm512_maddubs_epi16(__m512i a, __m512i b) {
  const auto bytes = emulated::lanes<uint8_t>(a);
  const auto weights = emulated::lanes<int8_t>(b);
  emulated::Lanes<int16_t, 32> out;
  for (int i = 0; i < 32; ++i) {
    int64_t sum = 0;
    for (int k = 2 * i; k < 2 * i + 2; ++k) sum += int64_t{bytes.lane[k]} * int64_t{weights.lane[k]};
    out.lane[i] = static_cast<int16_t>(emulated::clamp(sum, INT16_MIN, INT16_MAX));
  }
  return emulated::as<__m512i>(out);
}
inline __m512i _mm512_madd_epi16(__m512i a, __m512i b) { return _mm512_dpwssd_epi32(__m512i{}, a, b); }

inline __m512 _mm512_maskz_min_ps(uint16_t, __m512 a, __m512 b) { return a < b ? a : b; }
inline __m512i _mm512_maskz_cvtps_epi32(uint16_t, __m512 v) {
  emulated::Lanes<int32_t, 16> out;
  for (int i = 0; i < 16; ++i)
    out.lane[i] = std::fabs(v[i]) < 2147483648.0f ? static_cast<int32_t>(std::nearbyint(v[i])) : INT32_MIN;
  return emulated::as<__m512i>(out);
}
template <typename Lane>
inline __m128i narrowed(__m512i v, int64_t most) {
  const auto in = emulated::lanes<Lane>(v);
  emulated::Lanes<uint8_t, 16> out;
  for (int i = 0; i < 16; ++i) out.lane[i] = static_cast<uint8_t>(in.lane[i] > most ? most : in.lane[i]);
  return emulated::as<__m128i>(out);
}
inline __m128i _mm512_maskz_cvtepi32_epi8(uint16_t, __m512i v) { return narrowed<int32_t>(v, INT64_MAX); }
inline __m128i _mm512_maskz_cvtusepi32_epi8(uint16_t, __m512i v) { return narrowed<uint32_t>(v, 255); }
inline __m512i _mm512_maskz_cvtepu8_epi32(uint16_t, __m128i v) {
  const auto in = emulated::lanes<uint8_t>(v);
  emulated::Lanes<int32_t, 16> out;
  for (int i = 0; i < 16; ++i) out.lane[i] = in.lane[i];
  return emulated::as<__m512i>(out);
}
inline __m512i _mm512_maskz_cvtepu8_epi16(uint32_t, __m256i v) {
  const auto in = emulated::lanes<uint8_t>(v);
  emulated::Lanes<int16_t, 32> out;
  for (int i = 0; i < 32; ++i) out.lane[i] = in.lane[i];
  return emulated::as<__m512i>(out);
}
inline __m512i _mm512_maskz_packs_epi32(uint32_t, __m512i a, __m512i b) {
  return emulated::pack<int32_t, int16_t, 16>(a, b, INT16_MIN, INT16_MAX);
}
inline __m512i _mm512_maskz_packus_epi16(uint64_t, __m512i a, __m512i b) {
  return emulated::pack<int16_t, uint8_t, 32>(a, b, 0, UINT8_MAX);
}
inline __m512i _mm512_maskz_permutexvar_epi32(uint16_t, __m512i order, __m512i v) {
  const auto in = emulated::lanes<int32_t>(v), places = emulated::lanes<int32_t>(order);
  emulated::Lanes<int32_t, 16> out;
  for (int i = 0; i < 16; ++i) out.lane[i] = in.lane[places.lane[i] & 15];
  return emulated::as<__m512i>(out);
}
