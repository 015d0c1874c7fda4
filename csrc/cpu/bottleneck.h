// A residual bottleneck in evaluation mode, with its batch norms folded into the convolutions. The 1x1, 3x3 and 1x1
// convolutions, the shortcut and the ReLUs are one pass. Only a few rows between the convolutions exist at a time, in
// the caches of the core that computed them. The image is read once, and the result is written once.
//
// With stride 1, the 3x3 convolution is computed in Winograd's tiles (winograd.h).
//
// Quantised activations are called levels. They are whole numbers from 0 to kMostLevel, because they come from ReLUs. A
// level counts quantisation steps, and each channel has its own step. Levels are multiplied by integer weights and
// summed exactly in 32 bits. A factor per channel converts a sum to the scale of the stored result.

// Input of a product: `length` elements of each pixel. The elements of the next pixel begin `step` elements later.
template <typename Element>
struct Run {
  const Element* data;
  int64_t length, step;
};

constexpr int64_t kBlockChannels = kChannelVectors * kLanes<float>;  // output channels computed at a time
// Pixels computed at a time, as many as the registers allow. If a separate instruction sums the products, it needs some
// of the registers.
template <typename Element>
constexpr int kBlockPixels = sizeof(Element) < 4 && kVectorBytes == 32 ? 4 : 6;

inline Vector<float> load_widened(const float* p) { return load(p); }
inline Vector<float> load_widened(const BFloat16* p) {
  typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
  typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
  return (Vector<float>)(__builtin_convertvector(*reinterpret_cast<const Halves*>(p), Words) << 16);
}

#ifdef NPR_HAS_BFLOAT16_DOT
using Real = BFloat16;  // the type that is quantised
#else
using Real = float;
#endif
template <typename Element>
constexpr bool kIsLevel = false;
#ifdef NPR_HAS_INTEGER_DOT
template <>
constexpr bool kIsLevel<uint8_t> = true;
#endif

// Converts the sum of a convolution to the real number that it stands for.
inline Vector<float> real(Vector<float> sum, const float*, int64_t) { return sum; }

#ifdef NPR_HAS_INTEGER_DOT
inline Vector<float> load_widened(const uint8_t* p) { return __builtin_convertvector(load_bytes<float>(p), Vector<float>); }
inline Vector<float> real(Vector<int32_t> sum, const float* factor, int64_t channel) {
  return __builtin_convertvector(sum, Vector<float>) * load(factor + channel);
}
#endif

inline Vector<float> relu(Vector<float> v) { return Vector<float>{} > v ? Vector<float>{} : v; }  // NaN stays

// Applies the ReLU and stores one vector, or the kBlockChannels values of a pixel. Levels are rounded, and larger
// values become kMostLevel.
template <typename Output>
inline void store_rectified(Output* out, Vector<float> value) {
  store_narrow<Output, float>(out, relu(value));
}
template <typename Output>
inline void store_rectified(Output* out, const Vector<float> (&values)[kChannelVectors]) {
#pragma GCC unroll 16
  for (int v = 0; v < kChannelVectors; ++v) store_rectified(out + v * kLanes<float>, values[v]);
}
#if defined(NPR_HAS_INTEGER_DOT) && NPR_VECTOR_BYTES == 32
template <>
inline void store_rectified<uint8_t>(uint8_t* out, Vector<float> value) {
  const __m256i whole = _mm256_cvtps_epi32(_mm256_min_ps((__m256)value, _mm256_set1_ps(kMostLevel)));  // see below
  const __m128i halves = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storeu_si64(out, _mm_packus_epi16(halves, halves));
}
template <>
inline void store_rectified<uint8_t>(uint8_t* out, const Vector<float> (&values)[kChannelVectors]) {
  static_assert(kChannelVectors == 2);
  __m256i whole[2];
#pragma GCC unroll 2
  for (int v = 0; v < 2; ++v)  // min: a value beyond int32 would become negative
    whole[v] = _mm256_cvtps_epi32(_mm256_min_ps((__m256)values[v], _mm256_set1_ps(kMostLevel)));
  // Narrowing saturates, so it also applies the ReLU. It works on each half of a vector.
  const __m256i halves = _mm256_permute4x64_epi64(_mm256_packs_epi32(whole[0], whole[1]), 0b11011000);
  const __m128i levels = _mm_packus_epi16(_mm256_castsi256_si128(halves), _mm256_extracti128_si256(halves, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), levels);
}
#endif
#if defined(NPR_HAS_INTEGER_DOT) && NPR_VECTOR_BYTES == 64
template <>
inline void store_rectified<uint8_t>(uint8_t* out, Vector<float> value) {
  const __m512 most = _mm512_set1_ps(kMostLevel);  // the forms without a mask make GCC 12 warn
  const __m512i whole = _mm512_maskz_cvtps_epi32(0xffff, (__m512)relu((Vector<float>)_mm512_maskz_min_ps(0xffff, (__m512)value, most)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_maskz_cvtusepi32_epi8(0xffff, whole));
}
template <>
inline void store_rectified<uint8_t>(uint8_t* out, const Vector<float> (&values)[kChannelVectors]) {
  static_assert(kChannelVectors == 4);
  __m512i whole[4];
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v)  // min: a value beyond int32 would become negative
    whole[v] = _mm512_maskz_cvtps_epi32(0xffff, _mm512_maskz_min_ps(0xffff, (__m512)values[v], _mm512_set1_ps(kMostLevel)));
  // Narrowing saturates, so it also applies the ReLU. It works on each quarter of a vector: the first word of each
  // quarter comes from the first vector, the second word from the second vector, and so on.
  const __m512i low = _mm512_maskz_packs_epi32(~0u, whole[0], whole[1]), high = _mm512_maskz_packs_epi32(~0u, whole[2], whole[3]);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(out, _mm512_maskz_permutexvar_epi32(0xffff, order, _mm512_maskz_packus_epi16(~0ull, low, high)));
}
#endif

// Function objects that store the sums of kBlockChannels channels of a pixel, beginning with `channel`. `offset` is the
// position of the first channel in the row.
template <typename Sum>
struct Keep {
  Sum* out;
  inline void operator()(int64_t offset, int64_t, const Vector<Sum> (&sums)[kChannelVectors]) const {
#pragma GCC unroll 16
    for (int v = 0; v < kChannelVectors; ++v) store(out + offset + v * kLanes<Sum>, sums[v]);
  }
};

template <typename Output>
struct Activate {
  const float *bias, *factor;
  Output* out;
  template <typename Sum>
  inline void operator()(int64_t offset, int64_t channel, const Sum (&sums)[kChannelVectors]) const {
    Vector<float> values[kChannelVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kChannelVectors; ++v) {
      const int64_t c = channel + v * kLanes<float>;
      values[v] = real(sums[v], factor, c) + load(bias + c);
    }
    store_rectified(out + offset, values);
  }
};

template <typename Element, typename Output>
struct AddAndActivate {
  const float *bias, *factor, *shortcut_factor;
  const Element* shortcut;
  Output* out;
  template <typename Sum>
  inline void operator()(int64_t offset, int64_t channel, const Sum (&sums)[kChannelVectors]) const {
    Vector<float> values[kChannelVectors];
#pragma GCC unroll 16
    for (int v = 0; v < kChannelVectors; ++v) {
      const int64_t c = channel + v * kLanes<float>;
      Vector<float> added = load_widened(shortcut + offset + v * kLanes<float>);
      if constexpr (kIsLevel<Element>) added *= load(shortcut_factor + c);
      values[v] = real(sums[v], factor, c) + load(bias + c) + added;
    }
    store_rectified(out + offset, values);
  }
};

// Multiplies the runs by the weights for P pixels and one block of channels. The sums stay in registers. Those of float
// begin anew with each run and are added up at the end, because one long sum loses more digits.
template <int P, typename Element, typename Finish>
__attribute__((always_inline)) inline void multiply_block(const Run<Element>* runs, int run_count, const Element* weight,
                                                          int64_t pixel, int64_t channel, int64_t channels,
                                                          const Finish& finish) {
  constexpr int64_t kPack = Arithmetic<Element>::kPack;
  using Sum = typename Arithmetic<Element>::Sum;
  constexpr bool kParts = sizeof(Element) == sizeof(float);
  Sum sum[P][kChannelVectors], earlier[kParts ? P : 1][kChannelVectors] = {};
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
    for (int v = 0; v < kChannelVectors; ++v) sum[p][v] = Sum{};

  for (int run = 0; run < run_count; ++run) {
    if constexpr (kParts) {
      if (run > 0) {
#pragma GCC unroll 16
        for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
          for (int v = 0; v < kChannelVectors; ++v) {
            earlier[p][v] += sum[p][v];
            sum[p][v] = Sum{};
          }
      }
    }
    const int64_t step = runs[run].step;
    const Element* data = runs[run].data + pixel * step;
    for (int64_t i = 0; i < runs[run].length; i += kPack, weight += kBlockChannels * kPack) {
      decltype(Arithmetic<Element>::load_weights(weight)) w[kChannelVectors];
#pragma GCC unroll 16
      for (int v = 0; v < kChannelVectors; ++v)
        w[v] = Arithmetic<Element>::load_weights(weight + v * kLanes<float> * kPack);
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p) {
        const auto repeated = Arithmetic<Element>::repeat(data + p * step + i);
#pragma GCC unroll 16
        for (int v = 0; v < kChannelVectors; ++v) Arithmetic<Element>::accumulate(sum[p][v], repeated, w[v]);
      }
    }
  }

  if constexpr (kParts) {
    if (run_count > 1) {
#pragma GCC unroll 16
      for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
        for (int v = 0; v < kChannelVectors; ++v) sum[p][v] += earlier[p][v];
    }
  }
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) finish((pixel + p) * channels + channel, channel, sum[p]);
}

// Multiplies the runs by the weights for one row of `width` pixels and all `channels`, and passes each sum to `finish`.
template <typename Element, typename Finish>
void multiply_row(const Run<Element>* runs, int run_count, const Element* weights, int64_t width, int64_t channels,
                  const Finish& finish) {
  int64_t inputs = 0;
  for (int run = 0; run < run_count; ++run) inputs += runs[run].length;
  for (int64_t channel = 0; channel < channels; channel += kBlockChannels, weights += kBlockChannels * inputs) {
    int64_t pixel = 0;
    for (; pixel + kBlockPixels<Element> <= width; pixel += kBlockPixels<Element>)
      multiply_block<kBlockPixels<Element>>(runs, run_count, weights, pixel, channel, channels, finish);
    switch (width - pixel) {
      case 5: multiply_block<5>(runs, run_count, weights, pixel, channel, channels, finish); break;
      case 4: multiply_block<4>(runs, run_count, weights, pixel, channel, channels, finish); break;
      case 3: multiply_block<3>(runs, run_count, weights, pixel, channel, channels, finish); break;
      case 2: multiply_block<2>(runs, run_count, weights, pixel, channel, channels, finish); break;
      case 1: multiply_block<1>(runs, run_count, weights, pixel, channel, channels, finish); break;
    }
  }
}

// Rows of the first convolution's output, with zeros around them. A row is computed when it is needed, and a few are
// kept.
template <typename Element, typename Output>
class FirstRows {
 public:
  // `kept`: number of rows that are needed at once. `columns`: number of pixels of a row that may be read, with the
  // zeros.
  FirstRows(const BottleneckTask& task, int64_t kept, int64_t columns)
      : task_(task), kept_(kept), pitch_(columns * task.channels[0]), rows_(kept * pitch_), zeros_(pitch_), held_(kept) {
    for (int64_t i = 0; i < kept; ++i) held_[i] = -1;
  }

  // Returns row y of image n, beginning with the pixel of zeros on its left. The pointer is valid until `kept` later
  // rows were requested.
  const Output* row(int64_t n, int64_t y) {
    if (y < 0 || y >= task_.height) return zeros_;
    const int64_t index = n * task_.height + y, slot = index % kept_, channels = task_.channels[0];
    if (held_[slot] != index) {
      const int64_t pitch = task_.width * task_.in_channels;
      const Run<Element> run{static_cast<const Element*>(task_.x) + index * pitch, task_.in_channels, task_.in_channels};
      multiply_row(&run, 1, static_cast<const Element*>(task_.weights[0]), task_.width, channels,
                   Activate<Output>{task_.biases[0], task_.factors[0], rows_ + slot * pitch_ + channels});
      held_[slot] = index;
    }
    return rows_ + slot * pitch_;
  }

 private:
  const BottleneckTask& task_;
  int64_t kept_, pitch_;
  Buffer<Output> rows_, zeros_;
  Buffer<int64_t> held_;
};

// Computes the third convolution and the shortcut: rows of the result, or only their sums.
template <typename Element, typename Output>
class LastRows {
 public:
  explicit LastRows(const BottleneckTask& task) : task_(task), row_(task.sums ? task.out_width * task.channels[2] : 0) {}

  // Computes row y of image n from the row `second` of the second convolution.
  void make(int64_t n, int64_t y, const Element* second) {
    const int64_t width = task_.channels[1], channels = task_.channels[2], pitch = task_.width * task_.in_channels;
    const int64_t index = n * task_.out_height + y;
    const Element* source = static_cast<const Element*>(task_.x) + (n * task_.height + y * task_.stride) * pitch;
    const Element* weights = static_cast<const Element*>(task_.weights[2]);
    Output* out = task_.sums ? row_ : static_cast<Output*>(task_.out) + index * task_.out_width * channels;
    const Run<Element> runs[2] = {{second, width, width}, {source, task_.in_channels, task_.stride * task_.in_channels}};
    if (task_.project) {
      multiply_row(runs, 2, weights, task_.out_width, channels, Activate<Output>{task_.biases[2], task_.factors[2], out});
    } else {
      multiply_row(runs, 1, weights, task_.out_width, channels,
                   AddAndActivate<Element, Output>{task_.biases[2], task_.factors[2], task_.factors[3], source, out});
    }
    if (task_.sums) add_up(task_.sums + index * channels);
  }

 private:
  void add_up(float* sums) const {
    const int64_t channels = task_.channels[2];
    for (int64_t c = 0; c < channels; c += kBlockChannels) {
      Vector<float> sum[kChannelVectors] = {};
      for (int64_t pixel = 0; pixel < task_.out_width; ++pixel)
#pragma GCC unroll 16
        for (int v = 0; v < kChannelVectors; ++v) sum[v] += load_widened(row_ + pixel * channels + c + v * kLanes<float>);
#pragma GCC unroll 16
      for (int v = 0; v < kChannelVectors; ++v) store(sums + c + v * kLanes<float>, sum[v]);
    }
  }

  const BottleneckTask& task_;
  Buffer<Output> row_;
};

template <typename Element, typename Output>
void bottleneck_direct(const BottleneckTask& task, int64_t begin, int64_t end) {
  const int64_t width = task.channels[0];
  FirstRows<Element, Element> first(task, 3, task.width + 2);
  LastRows<Element, Output> last(task);
  Buffer<Element> second(task.out_width * width);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t n = index / task.out_height, y = index % task.out_height;
    Run<Element> taps[3];
    for (int64_t k = 0; k < 3; ++k) taps[k] = {first.row(n, y * task.stride - 1 + k), 3 * width, task.stride * width};
    multiply_row(taps, 3, static_cast<const Element*>(task.weights[1]), task.out_width, width,
                 Activate<Element>{task.biases[1], task.factors[1], second});
    last.make(n, y, second);
  }
}

// Puts weights (channels, inputs), row-major, into the order that multiply_block reads: blocks of channels, then packs
// of inputs, then channels.
template <typename Element, typename Packed = Element>
void pack_weights_as(const float* weight, int64_t channels, int64_t inputs, Packed* packed) {
  constexpr int64_t kPack = Arithmetic<Element>::kPack;
  for (int64_t c = 0; c < channels; c += kBlockChannels)
    for (int64_t i = 0; i < inputs; i += kPack)
      for (int64_t lane = 0; lane < kBlockChannels; ++lane)
        for (int64_t k = 0; k < kPack; ++k) *packed++ = narrow<Packed>(weight[(c + lane) * inputs + i + k]);
}
