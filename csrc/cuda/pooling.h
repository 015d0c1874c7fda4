// The stem's pooling: the convolution's outputs as words that compare as the numbers do, and the maxima of them.
#pragma once

#include "instructions.h"

namespace npr::cuda {
namespace {

// Two channels' outputs of the convolution, in words whose order as signed integers is that of the numbers, as far as
// they are positive (instructions.h): of 16 bits both in one word, or, if the argmax is wanted, in the upper halves of two.
template <typename T, bool kArgmax>
struct Pair {
  static constexpr int kWords = sizeof(T) == 4 || kArgmax ? 2 : 1;
  uint32_t word[kWords];
  static NPR_DEVICE Pair of(float a, float b) {
    if constexpr (sizeof(T) == 4) return {{as_bits(a), as_bits(b)}};
    else if constexpr (kArgmax) return {{pack<T>(0, a), pack<T>(0, b)}};
    else return {{pack<T>(a, b)}};
  }
  static NPR_DEVICE Pair of(uint32_t pair) {  // of 16 bits both
    if constexpr (kArgmax) return {{byte_perm(pair, 0, 0x1044), pair & 0xffff0000u}};
    else return {{pair}};
  }
};

// The product of words as they are stored.
template <typename T>
NPR_DEVICE uint32_t product(uint32_t a, uint32_t b) {
  if constexpr (sizeof(T) == 4) return as_bits(as_float(a) * as_float(b));
  else return multiply_halves<T>(a, b);
}

// What the pooling keeps of two channels while it looks for a maximum. column() is the maximum of three rows, row() that
// of three columns and of 0; value() gives the words to be stored.
template <typename T, bool kArgmax>
struct Best;

template <typename T>
struct Best<T, false> {
  static constexpr int kWords = Pair<T, false>::kWords;
  uint32_t word[kWords];

  static NPR_DEVICE Best column(const Pair<T, false>& top, const Pair<T, false>& middle, const Pair<T, false>& bottom) {
    Best best;
#pragma unroll
    for (int i = 0; i < kWords; ++i)
      best.word[i] = sizeof(T) == 4 ? max3(top.word[i], middle.word[i], bottom.word[i])
                                    : max3_halves(top.word[i], middle.word[i], bottom.word[i]);
    return best;
  }
  static NPR_DEVICE Best row(const Best& left, const Best& middle, const Best& right) {
    Best best;
#pragma unroll
    for (int i = 0; i < kWords; ++i)
      best.word[i] = sizeof(T) == 4 ? max3_relu(left.word[i], middle.word[i], right.word[i])
                                    : max3_halves_relu(left.word[i], middle.word[i], right.word[i]);
    return best;
  }
  NPR_DEVICE uint32_t value(int i) const { return word[i]; }
};

// With the argmax a candidate is (value, 8 - position in the window), compared in that order, so that the first of
// equals wins. 8 - position = 3 (2 - row) + (2 - column), added where the row and the column become known. Last of all
// comes (0, 17), which wins where nothing is positive: |8 - 17| is 9.
constexpr uint32_t kNowhere = 17;

template <typename T>
struct Best<T, true> {  // 16-bit: value << 16 | 8 - position in one word
  static constexpr int kWords = 2;
  uint32_t word[2];

  static NPR_DEVICE Best column(const Pair<T, true>& top, const Pair<T, true>& middle, const Pair<T, true>& bottom) {
    Best best;
#pragma unroll
    for (int i = 0; i < 2; ++i) best.word[i] = add_max(top.word[i], 6, add_max(middle.word[i], 3, bottom.word[i]));
    return best;
  }
  static NPR_DEVICE Best row(const Best& left, const Best& middle, const Best& right) {
    Best best;
#pragma unroll
    for (int i = 0; i < 2; ++i)
      best.word[i] = max3(add_max(middle.word[i], 1, right.word[i]), left.word[i] + 2, kNowhere);
    return best;
  }
  NPR_DEVICE uint32_t value(int) const { return byte_perm(word[0], word[1], 0x7632); }
  NPR_DEVICE uint32_t codes() const { return byte_perm(word[0], word[1], 0x7740); }  // in the lower two bytes
};
template <>
struct Best<float, true> {  // words: value, value, 8 - position, 8 - position
  static constexpr int kWords = 4;
  uint32_t word[4];

  NPR_DEVICE void keep_greater(int i, uint32_t value, uint32_t code) {
    const int mine = static_cast<int>(word[i]), other = static_cast<int>(value);
    const bool greater = other > mine || (other == mine && code > word[2 + i]);
    word[i] = greater ? value : word[i];
    word[2 + i] = greater ? code : word[2 + i];
  }
  static NPR_DEVICE Best column(const Pair<float, true>& top, const Pair<float, true>& middle,
                                const Pair<float, true>& bottom) {
    Best best{{top.word[0], top.word[1], 6, 6}};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      best.keep_greater(i, middle.word[i], 3);
      best.keep_greater(i, bottom.word[i], 0);
    }
    return best;
  }
  static NPR_DEVICE Best row(const Best& left, const Best& middle, const Best& right) {
    Best best{{left.word[0], left.word[1], left.word[2] + 2, left.word[3] + 2}};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      best.keep_greater(i, middle.word[i], middle.word[2 + i] + 1);
      best.keep_greater(i, right.word[i], right.word[2 + i]);
      best.keep_greater(i, 0, kNowhere);
    }
    return best;
  }
  NPR_DEVICE uint32_t value(int i) const { return word[i]; }
  NPR_DEVICE uint32_t codes() const { return byte_perm(word[2], word[3], 0x7740); }
};

}  // namespace
}  // namespace npr::cuda
