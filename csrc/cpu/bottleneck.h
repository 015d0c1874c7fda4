// A residual bottleneck in evaluation mode, its batch norms folded: 1x1, 3x3 and 1x1 convolutions, the shortcut and
// the ReLUs in one pass. Only a few rows of what lies between the convolutions exist at a time, in the caches of the core
// that made them; the image is read once and the result written once.
//
// With stride 1 the 3x3 convolution is Winograd's F(2x2, 3x3) (Lavin and Gray, 2016): 16 products where 36 would be
// needed. Its sums and transforms are float32; in bfloat16 the transformed values are what is rounded.
//
// uint8 activations are multiplied by int8 weights and summed exactly, in 32 bits; a factor for each channel brings a sum
// to the scale of what is stored. As activations come from ReLUs, none is negative, and each channel has its own step.

// `length` elements of each pixel that take part in a product; those of the next pixel begin `step` elements further.
template <typename Element>
struct Run {
  const Element* data;
  int64_t length, step;
};

constexpr int64_t kBlockChannels = kChannelVectors * kLanes<float>;  // output channels computed at a time
constexpr int kBlockPixels = 6;

inline Vector<float> load_widened(const float* p) { return load(p); }
inline Vector<float> load_widened(const BFloat16* p) {
  typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2), aligned(2), may_alias));
  typedef uint32_t Words __attribute__((vector_size(kVectorBytes)));
  return (Vector<float>)(__builtin_convertvector(*reinterpret_cast<const Halves*>(p), Words) << 16);
}

// A sum as what it stands for.
inline Vector<float> real(Vector<float> sum, const float*, int64_t) { return sum; }

#ifdef NPR_HAS_INT8_DOT
inline Vector<float> load_widened(const uint8_t* p) { return __builtin_convertvector(load_bytes<float>(p), Vector<float>); }
inline Vector<float> real(Vector<int32_t> sum, const float* factor, int64_t channel) {
  return __builtin_convertvector(sum, Vector<float>) * load(factor + channel);
}
#endif

inline Vector<float> relu(Vector<float> v) { return Vector<float>{} > v ? Vector<float>{} : v; }  // NaN stays

// ReLU and store kBlockChannels values; to uint8 by rounding, what is larger becomes 255.
template <typename Output>
inline void store_rectified(Output* out, const Vector<float> (&values)[kChannelVectors]) {
#pragma GCC unroll 16
  for (int v = 0; v < kChannelVectors; ++v) store_narrow<Output, float>(out + v * kLanes<float>, relu(values[v]));
}
#ifdef NPR_HAS_INT8_DOT
template <>
inline void store_rectified<uint8_t>(uint8_t* out, const Vector<float> (&values)[kChannelVectors]) {
  static_assert(kChannelVectors == 4);
  __m512i whole[4];
#pragma GCC unroll 4
  for (int v = 0; v < 4; ++v)  // what no int32 holds would become negative; the plain forms make GCC 12 warn
    whole[v] = _mm512_maskz_cvtps_epi32(0xffff, _mm512_maskz_min_ps(0xffff, (__m512)values[v], _mm512_set1_ps(255)));
  // Narrowing saturates, so that it is the ReLU as well. It works in quarters: of their words the first are those of
  // the first vector, and so on.
  const __m512i low = _mm512_maskz_packs_epi32(~0u, whole[0], whole[1]), high = _mm512_maskz_packs_epi32(~0u, whole[2], whole[3]);
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  _mm512_storeu_si512(out, _mm512_maskz_permutexvar_epi32(0xffff, order, _mm512_maskz_packus_epi16(~0ull, low, high)));
}
#endif

// What becomes of the sums of a pixel's kBlockChannels channels from `channel` on. `offset`: of the first in a row with
// `channels` elements a pixel.
struct Keep {
  float* out;
  inline void operator()(int64_t offset, int64_t, const Vector<float> (&sums)[kChannelVectors]) const {
#pragma GCC unroll 16
    for (int v = 0; v < kChannelVectors; ++v) store(out + offset + v * kLanes<float>, sums[v]);
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
      if constexpr (sizeof(Element) == 1) added *= load(shortcut_factor + c);
      values[v] = real(sums[v], factor, c) + load(bias + c) + added;
    }
    store_rectified(out + offset, values);
  }
};

// runs x weights for P pixels and one block of channels, summed in registers.
template <int P, typename Element, typename Finish>
__attribute__((always_inline)) inline void multiply_block(const Run<Element>* runs, int run_count, const Element* weight,
                                                          int64_t pixel, int64_t channel, int64_t channels,
                                                          const Finish& finish) {
  constexpr int64_t kPack = Arithmetic<Element>::kPack;
  using Sum = typename Arithmetic<Element>::Sum;
  Sum sum[P][kChannelVectors];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
    for (int v = 0; v < kChannelVectors; ++v) sum[p][v] = Sum{};

  for (int run = 0; run < run_count; ++run) {
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

#pragma GCC unroll 16
  for (int p = 0; p < P; ++p) finish((pixel + p) * channels + channel, channel, sum[p]);
}

// One row of `width` pixels: all `channels` of runs x weights, each sum handed to `finish`.
template <typename Element, typename Finish>
void multiply_row(const Run<Element>* runs, int run_count, const Element* weights, int64_t width, int64_t channels,
                  const Finish& finish) {
  int64_t inputs = 0;
  for (int run = 0; run < run_count; ++run) inputs += runs[run].length;
  for (int64_t channel = 0; channel < channels; channel += kBlockChannels, weights += kBlockChannels * inputs) {
    int64_t pixel = 0;
    for (; pixel + kBlockPixels <= width; pixel += kBlockPixels)
      multiply_block<kBlockPixels>(runs, run_count, weights, pixel, channel, channels, finish);
    switch (width - pixel) {
      case 5: multiply_block<5>(runs, run_count, weights, pixel, channel, channels, finish); break;
      case 4: multiply_block<4>(runs, run_count, weights, pixel, channel, channels, finish); break;
      case 3: multiply_block<3>(runs, run_count, weights, pixel, channel, channels, finish); break;
      case 2: multiply_block<2>(runs, run_count, weights, pixel, channel, channels, finish); break;
      case 1: multiply_block<1>(runs, run_count, weights, pixel, channel, channels, finish); break;
    }
  }
}

// Rows of the first convolution's output with zeros around them, made when they are needed and kept for a few rows.
template <typename Element, typename Output>
class FirstRows {
 public:
  // `kept`: how many rows must be there at once. `columns`: pixels of a row that may be read, the zeros included.
  FirstRows(const BottleneckTask& task, int64_t kept, int64_t columns)
      : task_(task), kept_(kept), pitch_(columns * task.channels[0]), rows_(kept * pitch_), zeros_(pitch_), held_(kept) {
    for (int64_t i = 0; i < kept; ++i) held_[i] = -1;
  }

  // Row y of image n, from the pixel of zeros left of it on. Valid until `kept` later rows.
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

// The third convolution and the shortcut: rows of the result, or only their sums.
template <typename Element, typename Output>
class LastRows {
 public:
  explicit LastRows(const BottleneckTask& task) : task_(task), row_(task.sums ? task.out_width * task.channels[2] : 0) {}

  // Row y of image n, from the second convolution's row.
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

// Two output rows at a time, in tiles of 2x2 output pixels, each from 4x4 pixels of the first convolution's output.
template <typename Element, typename Output>
class Winograd {
 public:
  explicit Winograd(const BottleneckTask& task)
      : task_(task),
        width_(task.channels[0]),
        tiles_((task.width + 1) / 2),
        pitch_(tiles_ * width_ + kLineElements),
        first_(task, 4, 2 * tiles_ + 2),
        last_(task),
        inputs_(16 * pitch_),
        products_(16 * pitch_),
        second_(2 * 2 * tiles_ * width_) {}

  // Pairs of output rows: [begin, end) of batch * ceil(out_height / 2).
  void run(int64_t begin, int64_t end) {
    const int64_t pairs = (task_.out_height + 1) / 2;
    for (int64_t index = begin; index < end; ++index) {
      const int64_t n = index / pairs, y = index % pairs * 2;
      const float* rows[4];
      for (int64_t k = 0; k < 4; ++k) rows[k] = first_.row(n, y - 1 + k);
      for (int64_t tile = 0; tile < tiles_; ++tile) transform_input(rows, tile);
      const Element* weights = static_cast<const Element*>(task_.weights[1]);
      for (int64_t i = 0; i < 16; ++i) {
        const Run<Element> run{inputs_ + i * pitch_, width_, width_};
        multiply_row(&run, 1, weights + i * width_ * width_, tiles_, width_, Keep{products_ + i * pitch_});
      }
      for (int64_t tile = 0; tile < tiles_; ++tile) transform_output(tile);
      for (int64_t k = 0; k < 2 && y + k < task_.out_height; ++k)
        last_.make(n, y + k, second_ + k * 2 * tiles_ * width_);
    }
  }

 private:
  // transpose(B) d B for the 4x4 pixels d under one tile.
  void transform_input(const float* const* rows, int64_t tile) {
    for (int64_t c = 0; c < width_; c += kLanes<float>) {
      Vector<float> half[4][4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        Vector<float> d[4];
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) d[i] = load(rows[i] + (2 * tile + j) * width_ + c);
        half[0][j] = d[0] - d[2];
        half[1][j] = d[1] + d[2];
        half[2][j] = d[2] - d[1];
        half[3][j] = d[1] - d[3];
      }
      Element* out = inputs_ + tile * width_ + c;
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        store_narrow<Element, float>(out + (4 * i) * pitch_, half[i][0] - half[i][2]);
        store_narrow<Element, float>(out + (4 * i + 1) * pitch_, half[i][1] + half[i][2]);
        store_narrow<Element, float>(out + (4 * i + 2) * pitch_, half[i][2] - half[i][1]);
        store_narrow<Element, float>(out + (4 * i + 3) * pitch_, half[i][1] - half[i][3]);
      }
    }
  }

  // transpose(A) m A for the 4x4 products m of one tile, then bias and ReLU: 2x2 pixels.
  void transform_output(int64_t tile) {
    for (int64_t c = 0; c < width_; c += kLanes<float>) {
      const float* in = products_ + tile * width_ + c;
      const Vector<float> bias = load(task_.biases[1] + c);
      Vector<float> half[2][4];
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const Vector<float> m0 = load(in + j * pitch_), m1 = load(in + (4 + j) * pitch_);
        const Vector<float> m2 = load(in + (8 + j) * pitch_), m3 = load(in + (12 + j) * pitch_);
        half[0][j] = m0 + m1 + m2;
        half[1][j] = m1 - m2 - m3;
      }
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        Element* out = second_ + (i * tiles_ + tile) * 2 * width_ + c;
        store_narrow<Element, float>(out, relu(half[i][0] + half[i][1] + half[i][2] + bias));
        store_narrow<Element, float>(out + width_, relu(half[i][1] - half[i][2] - half[i][3] + bias));
      }
    }
  }

  static constexpr int64_t kLineElements = 32;  // a cache line and more: the 16 matrices must not share cache sets

  const BottleneckTask& task_;
  int64_t width_, tiles_, pitch_;
  FirstRows<Element, float> first_;
  LastRows<Element, Output> last_;
  Buffer<Element> inputs_;   // (16, tiles, width), pitch_ apart: one matrix for each place of the transformed 4x4
  Buffer<float> products_;   // the same
  Buffer<Element> second_;   // (2, 2 * tiles, width): two rows of the second convolution's output
};

template <typename Element, typename Output = Element>
void bottleneck_rows(const BottleneckTask& task, int64_t begin, int64_t end) {
  if constexpr (sizeof(Element) > 1) {
    if (task.winograd) return Winograd<Element, Output>(task).run(begin, end);
  }
  bottleneck_direct<Element, Output>(task, begin, end);
}

// (channels, inputs) row-major to the order multiply_block reads: blocks of channels, then packs of inputs, then channels.
template <typename Element, typename Weight = Element>
void pack_weights_as(const float* weight, int64_t channels, int64_t inputs, Weight* packed) {
  constexpr int64_t kPack = Arithmetic<Element>::kPack;
  for (int64_t c = 0; c < channels; c += kBlockChannels)
    for (int64_t i = 0; i < inputs; i += kPack)
      for (int64_t lane = 0; lane < kBlockChannels; ++lane)
        for (int64_t k = 0; k < kPack; ++k) *packed++ = narrow<Weight>(weight[(c + lane) * inputs + i + k]);
}
