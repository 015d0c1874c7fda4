// The max-pool of the stem. The outputs of the convolution are kept as words that compare like the numbers, and the
// maxima of these words are taken.
#pragma once

#include "instructions.h"

namespace npr::cuda {
namespace {

// The convolution's outputs for two channels. Their words compare as signed integers like the numbers, if these are
// positive (instructions.h). Two 16-bit numbers share one word, or have the upper halves of two words if the argmax is
// needed.
template <typename T, bool kArgmax>
struct Pair {
  static constexpr int kWords = sizeof(T) == 4 || kArgmax ? 2 : 1;
  uint32_t word[kWords];
  static NPR_DEVICE Pair of(float a, float b) {
    if constexpr (sizeof(T) == 4) return {{as_bits(a), as_bits(b)}};
    else if constexpr (kArgmax) return {{pack<T>(0, a), pack<T>(0, b)}};
    else return {{pack<T>(a, b)}};
  }
  static NPR_DEVICE Pair of(uint32_t pair) {  // two 16-bit numbers
    if constexpr (kArgmax) return {{byte_perm(pair, 0, 0x1044), pair & 0xffff0000u}};
    else return {{pair}};
  }
};

// Multiplies two stored words.
template <typename T>
NPR_DEVICE uint32_t product(uint32_t a, uint32_t b) {
  if constexpr (sizeof(T) == 4) return as_bits(as_float(a) * as_float(b));
  else return multiply_halves<T>(a, b);
}

// The largest values of two channels so far. column() takes the maximum of three rows. row() takes the maximum of three
// columns and 0. value() returns the words to store.
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

// With the argmax, a candidate is the pair (value, 8 - position in the window). Pairs compare in this order, so the
// first of equal values wins. 8 - position = 3 (2 - row) + (2 - column); each term is added when the row or the column
// is known. The last candidate is (0, 17). It wins if no value is positive, and its position is |8 - 17| = 9.
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
  NPR_DEVICE uint32_t codes() const { return byte_perm(word[0], word[1], 0x7740); }  // two codes in the lower two bytes
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
