// The multiply-accumulate step of the convolutions: a fused multiply-add of float or double, or a dot product if the
// processor has one. Dot products take pairs of bfloat16 and sum in float32, or pairs of int16 or groups of four bytes
// and sum in 32 bits. Bytes are at least a third faster than pairs of int16, even without VNNI. Without VNNI they take
// three instructions, and the sum of two products must fit into 16 bits.

template <typename Element>
struct Arithmetic {  // float, double
  using Computed = Element;
  using Sum = Vector<Element>;
  static constexpr int64_t kPack = 1;  // products per lane and instruction

  static inline Vector<Element> repeat(const Element* p) { return broadcast<Element>(*p); }
  static inline void accumulate(Vector<Element>& sum, Vector<Element> a, Vector<Element> b) { sum += a * b; }
  static inline Vector<Element> load_weights(const Element* p) { return load(p); }
};

#ifdef NPR_HAS_BFLOAT16_DOT
template <>
struct Arithmetic<BFloat16> {
  using Computed = float;
  using Sum = Vector<float>;
  static constexpr int64_t kPack = 2;

  static inline __m512bh repeat(const BFloat16* p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, sizeof(pair));
    return (__m512bh)_mm512_set1_epi32(pair);
  }
  static inline void accumulate(Vector<float>& sum, __m512bh a, __m512bh b) {
    sum = (Vector<float>)_mm512_dpbf16_ps((__m512)sum, a, b);
  }
  static inline __m512bh load_weights(const BFloat16* p) { return (__m512bh)_mm512_loadu_si512(p); }
};
#endif

#ifdef NPR_HAS_INTEGER_DOT
template <>
struct Arithmetic<int16_t> {
  using Sum = Vector<int32_t>;
  static constexpr int64_t kPack = 2;

  static inline Vector<int16_t> repeat(const int16_t* p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, sizeof(pair));
    return (Vector<int16_t>)broadcast(pair);
  }
  static inline void accumulate(Vector<int32_t>& sum, Vector<int16_t> a, Vector<int16_t> b) {
#if defined(NPR_HAS_VNNI)
    sum = (Vector<int32_t>)_mm512_dpwssd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif NPR_VECTOR_BYTES == 64
    sum += (Vector<int32_t>)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#else
    sum += (Vector<int32_t>)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#endif
  }
  static inline Vector<int16_t> load_weights(const int16_t* p) { return load(p); }
};
#endif

#ifdef NPR_HAS_INTEGER_DOT
template <>
struct Arithmetic<uint8_t> {  // the weights are int8
  using Sum = Vector<int32_t>;
  static constexpr int64_t kPack = 4;

  static inline Vector<int32_t> repeat(const uint8_t* p) {
    int32_t four;
    __builtin_memcpy(&four, p, sizeof(four));
    return broadcast(four);
  }
  static inline void accumulate(Vector<int32_t>& sum, Vector<int32_t> a, Vector<int32_t> b) {
#if defined(NPR_HAS_VNNI)
    sum = (Vector<int32_t>)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)a, (__m512i)b);
#elif NPR_VECTOR_BYTES == 64
    sum += (Vector<int32_t>)_mm512_madd_epi16(_mm512_maddubs_epi16((__m512i)a, (__m512i)b), _mm512_set1_epi16(1));
#else
    sum += (Vector<int32_t>)_mm256_madd_epi16(_mm256_maddubs_epi16((__m256i)a, (__m256i)b), _mm256_set1_epi16(1));
#endif
  }
  static inline Vector<int32_t> load_weights(const uint8_t* p) { return load(reinterpret_cast<const int32_t*>(p)); }
};
#endif

// A run of taps that are neighbours in one NPR row. Offset and length count elements.
struct Segment {
  int64_t kernel_row, offset, length;
};

// Returns whether a tap always sees the anchor pixel, where NPR is zero. With the paper's grid, anchor and stride this
// is true for one tap of nine.
inline bool sees_anchor(const Task& task, int64_t ky, int64_t kx) {
  const Grid& grid = task.grid;
  const Convolution& convolution = task.convolution;
  if (grid.anchor < 0 || convolution.stride_height % grid.size || convolution.stride_width % grid.size) return false;
  const auto position = [&](int64_t tap, int64_t padding) { return (tap - padding % grid.size + grid.size) % grid.size; };
  return position(ky, convolution.padding_height) == grid.anchor / grid.size &&
         position(kx, convolution.padding_width) == grid.anchor % grid.size;
}

// The indices of a patch's elements (KH, KW, C), without the taps that always see the anchor.
class PatchElements {
 public:
  explicit PatchElements(const Task& task)
      : indices_(task.convolution.kernel_height * task.convolution.kernel_width * task.grid.channels) {
    const int64_t channels = task.grid.channels, kernel_width = task.convolution.kernel_width;
    for (int64_t tap = 0; tap < task.convolution.kernel_height * kernel_width; ++tap) {
      if (sees_anchor(task, tap / kernel_width, tap % kernel_width)) continue;
      for (int64_t c = 0; c < channels; ++c) indices_[count_++] = tap * channels + c;
    }
  }

  int64_t count() const { return count_; }
  int64_t operator[](int64_t i) const { return indices_[i]; }

 private:
  int64_t count_ = 0;
  Buffer<int64_t> indices_;
};

// The taps of a convolution without those that always see the anchor, and their scaled weights. The weights have the
// output channels last, padded to whole vectors.
template <typename Element>
class Taps {
 public:
  using T = typename Arithmetic<Element>::Computed;
  static constexpr int64_t kPack = Arithmetic<Element>::kPack;
  static constexpr int64_t kChunk = kChannelVectors * kLanes<T>;  // output channels computed at a time

  explicit Taps(const Task& task)
      : chunks_((task.convolution.out_channels + kChunk - 1) / kChunk),
        segments_(task.convolution.kernel_height * task.convolution.kernel_width),
        bias_(chunks_ * kChunk) {
    const Convolution& convolution = task.convolution;
    const int64_t channels = task.grid.channels;
    for (int64_t ky = 0; ky < convolution.kernel_height; ++ky)
      for (int64_t kx = 0; kx < convolution.kernel_width; ++kx) {
        if (sees_anchor(task, ky, kx)) continue;
        Segment* last = count_ ? segments_ + (count_ - 1) : nullptr;
        if (last && last->kernel_row == ky && last->offset + last->length == kx * channels) {
          last->length += channels;
        } else {
          segments_[count_++] = {ky, kx * channels, channels};
        }
      }
    for (int64_t s = 0; s < count_; ++s) units_ += (segments_[s].length + kPack - 1) / kPack;
    weights_.allocate(chunks_ * units_ * kPack * kChunk);
    pack(task);
    if (task.bias)
      for (int64_t o = 0; o < convolution.out_channels; ++o) bias_[o] = static_cast<const T*>(task.bias)[o];
  }

  int64_t chunks() const { return chunks_; }
  int64_t count() const { return count_; }
  const Segment& operator[](int64_t i) const { return segments_[i]; }
  const Element* weights(int64_t chunk) const { return weights_ + chunk * units_ * kPack * kChunk; }
  const T* bias(int64_t chunk) const { return bias_ + chunk * kChunk; }
  bool finite() const { return finite_; }

 private:
  void pack(const Task& task) {
    const Convolution& convolution = task.convolution;
    const int64_t channels = task.grid.channels, kernel = convolution.kernel_height * convolution.kernel_width;
    const T* source = static_cast<const T*>(task.weight);
    const T* scale = static_cast<const T*>(task.scale);
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      Element* unit = weights_ + chunk * units_ * kPack * kChunk;
      for (int64_t s = 0; s < count_; ++s)
        for (int64_t i = 0; i < segments_[s].length; ++i) {
          const int64_t element = segments_[s].offset + i, c = element % channels, kx = element / channels;
          const int64_t tap = segments_[s].kernel_row * convolution.kernel_width + kx;
          for (int64_t lane = 0; lane < kChunk; ++lane) {
            const int64_t o = chunk * kChunk + lane;
            if (o >= convolution.out_channels) break;
            const T value = source[(o * channels + c) * kernel + tap] * scale[c];
            finite_ &= value - value == 0;
            unit[lane * kPack + i % kPack] = narrow<Element>(value);
          }
          if (i % kPack == kPack - 1 || i == segments_[s].length - 1) unit += kPack * kChunk;
        }
    }
  }

  int64_t chunks_, count_ = 0, units_ = 0;
  bool finite_ = true;
  Buffer<Segment> segments_;
  Buffer<T> bias_;
  Buffer<Element> weights_;
};

// Computes R rows x Q columns of output pixels for one chunk of channels; the sums stay in registers. `rows[r][k]` is
// the NPR row that kernel row k reads for output row r. `x` is the offset of the first output pixel in it, and `step`
// the distance to the next one.
template <typename Element, int R, int Q>
struct Block {
  using T = typename Arithmetic<Element>::Computed;
  static constexpr int64_t kPack = Arithmetic<Element>::kPack;

  Vector<T> sum[R][Q][kChannelVectors];

  __attribute__((always_inline)) inline void compute(const Taps<Element>& taps, const Element* weight, const Element* const* const* rows, int64_t x,
                      int64_t step) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
      for (int q = 0; q < Q; ++q)
#pragma GCC unroll 16
        for (int v = 0; v < kChannelVectors; ++v) sum[r][q][v] = Vector<T>{};
    for (int64_t s = 0; s < taps.count(); ++s) {
      const Segment& segment = taps[s];
      const Element* patch[R];
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) patch[r] = rows[r][segment.kernel_row] + segment.offset + x;
      for (int64_t i = 0; i < segment.length; i += kPack) {
        decltype(Arithmetic<Element>::load_weights(weight)) w[kChannelVectors];
#pragma GCC unroll 16
        for (int v = 0; v < kChannelVectors; ++v)
          w[v] = Arithmetic<Element>::load_weights(weight + v * kLanes<T> * kPack);
        weight += kChannelVectors * kLanes<T> * kPack;
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 16
          for (int q = 0; q < Q; ++q) {
            const auto pixel = Arithmetic<Element>::repeat(patch[r] + q * step + i);
#pragma GCC unroll 16
            for (int v = 0; v < kChannelVectors; ++v) Arithmetic<Element>::accumulate(sum[r][q][v], pixel, w[v]);
          }
      }
    }
  }
};
