// The bottleneck (bottleneck.h) with Winograd's algorithm for the 3x3 convolution of stride 1 (Lavin and Gray, 2016).
//
// Real numbers use F(2x2, 3x3), which needs 16 products instead of 36. Sums and transforms are float32; in bfloat16,
// the transformed values are rounded. (F(4x4, 3x3) is faster in float32, but its rounding errors exceed the tolerance
// of npr_kernels/tolerance.py.) Transformed levels are exact in 16 bits, so they can use F(4x4, 3x3): 36 products
// instead of 144.

// A `Tiles` class has the Winograd transforms in one dimension. transform_input maps values of the first convolution's
// output to the values that are multiplied by the transformed weights. transform_output maps the products to results.
// F(2x2, 3x3) has four values and two results.
template <typename Element>
struct TilesOfTwo {
  static constexpr int kOutputs = 2;
  using First = float;
  using Factor = Element;
  using Product = float;

  static inline Vector<float> load_first(const float* p) { return load(p); }
  static inline void store_factor(Element* out, Vector<float> v) { store_narrow<Element, float>(out, v); }

  static inline void transform_input(const Vector<float> (&d)[4], Vector<float> (&out)[4]) {
    out[0] = d[0] - d[2];
    out[1] = d[1] + d[2];
    out[2] = d[2] - d[1];
    out[3] = d[1] - d[3];
  }
  static inline void transform_output(const Vector<float> (&m)[4], Vector<float> (&out)[2]) {
    out[0] = m[0] + m[1] + m[2];
    out[1] = m[1] - m[2] - m[3];
  }
};

#ifdef NPR_HAS_INTEGER_DOT
// F(4x4, 3x3) for levels, at the points 0, 1, -1, 2, -2 and infinity. Both transforms together enlarge a level by at
// most 68, so the values fit into 16 bits.
struct TilesOfFour {
  static constexpr int kOutputs = 4;
  using First = uint8_t;
  using Factor = int16_t;
  using Product = int32_t;

  static inline Vector<int16_t> load_first(const uint8_t* p) {
#if NPR_VECTOR_BYTES == 64
    return (Vector<int16_t>)_mm512_maskz_cvtepu8_epi16(~0u, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#else
    return (Vector<int16_t>)_mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#endif
  }
  static inline void store_factor(int16_t* out, Vector<int16_t> v) { store(out, v); }

  static inline void transform_input(const Vector<int16_t> (&d)[6], Vector<int16_t> (&out)[6]) {
    const Vector<int16_t> even = d[4] - 4 * d[2], odd = d[3] - 4 * d[1];
    const Vector<int16_t> near = d[4] - d[2], far = 2 * (d[3] - d[1]);
    out[0] = 4 * (d[0] - d[2]) + near;
    out[1] = even + odd;
    out[2] = even - odd;
    out[3] = near + far;
    out[4] = near - far;
    out[5] = 4 * (d[1] - d[3]) + (d[5] - d[3]);
  }
  // Returns four times the results. WEIGHTS_TO_FOUR in npr_kernels/trunk/cpu_bottleneck.py transforms the weights so that
  // all their elements have a similar magnitude.
  static inline void transform_output(const Vector<float> (&m)[6], Vector<float> (&out)[4]) {
    const Vector<float> s = m[1] + m[2], t = m[1] - m[2], u = (m[3] + m[4]) * (2.0f / 3), v = (m[3] - m[4]) * (4.0f / 3);
    out[0] = m[0] + s + u;
    out[1] = t + v;
    out[2] = s + 4 * u;
    out[3] = t + 4 * v + 4 * m[5];
  }
};
#endif

// Computes the bottleneck in tiles of kOutputs x kOutputs pixels of the 3x3 convolution. A strip of tiles covers
// kOutputs output rows. Enough strips are computed at once that each weight, once read, serves kTiles tiles.
template <typename Tiles, typename Element, typename Output>
class Winograd {
 public:
  explicit Winograd(const BottleneckTask& task)
      : task_(task),
        width_(task.channels[0]),
        tiles_((task.width + kOutputs - 1) / kOutputs),
        strips_at_once_((kTiles + tiles_ - 1) / tiles_),
        pitch_(strips_at_once_ * tiles_ * width_ + kLineElements),
        first_(task, kInputs, kOutputs * tiles_ + 2),
        last_(task),
        inputs_(kInputs * kInputs * pitch_),
        products_(kInputs * kInputs * pitch_),
        second_(kOutputs * kOutputs * tiles_ * width_) {}

  // Computes the strips [begin, end) of batch * ceil(out_height / kOutputs).
  void run(int64_t begin, int64_t end) {
    const int64_t strips = (task_.out_height + kOutputs - 1) / kOutputs;
    const Factor* weights = static_cast<const Factor*>(task_.weights[1]);
    for (; begin < end; begin += strips_at_once_) {
      const int64_t count = end - begin < strips_at_once_ ? end - begin : strips_at_once_;
      for (int64_t strip = 0; strip < count; ++strip) {
        const int64_t n = (begin + strip) / strips, y = (begin + strip) % strips * kOutputs;
        const First* rows[kInputs];
        for (int k = 0; k < kInputs; ++k) rows[k] = first_.row(n, y - 1 + k);
        for (int64_t tile = 0; tile < tiles_; ++tile) transform_input(rows, tile, inputs_ + (strip * tiles_ + tile) * width_);
      }
      for (int i = 0; i < kInputs * kInputs; ++i) {
        const Run<Factor> run{inputs_ + i * pitch_, width_, width_};
        multiply_row(&run, 1, weights + i * width_ * width_, count * tiles_, width_, Keep<Product>{products_ + i * pitch_});
      }
      for (int64_t strip = 0; strip < count; ++strip) {
        const int64_t n = (begin + strip) / strips, y = (begin + strip) % strips * kOutputs;
        for (int64_t tile = 0; tile < tiles_; ++tile) transform_output(products_ + (strip * tiles_ + tile) * width_, tile);
        for (int k = 0; k < kOutputs && y + k < task_.out_height; ++k)
          last_.make(n, y + k, second_ + k * kOutputs * tiles_ * width_);
      }
    }
  }

 private:
  static constexpr int kOutputs = Tiles::kOutputs, kInputs = kOutputs + 2;
  static constexpr int64_t kTiles = 16;
  static constexpr int64_t kLineElements = 32;  // at least a cache line, so that the matrices do not share cache sets
  using First = typename Tiles::First;
  using Factor = typename Tiles::Factor;
  using Product = typename Tiles::Product;

  // Transforms the input pixels of one tile in both directions.
  void transform_input(const First* const* rows, int64_t tile, Factor* out) {
    using Values = decltype(Tiles::load_first(rows[0]));
    constexpr int64_t kStep = sizeof(Values) / sizeof(Values{}[0]);
    for (int64_t c = 0; c < width_; c += kStep) {
      Values half[kInputs][kInputs];
#pragma GCC unroll 8
      for (int j = 0; j < kInputs; ++j) {
        Values d[kInputs], transformed[kInputs];
#pragma GCC unroll 8
        for (int i = 0; i < kInputs; ++i) d[i] = Tiles::load_first(rows[i] + (kOutputs * tile + j) * width_ + c);
        Tiles::transform_input(d, transformed);
#pragma GCC unroll 8
        for (int i = 0; i < kInputs; ++i) half[i][j] = transformed[i];
      }
#pragma GCC unroll 8
      for (int i = 0; i < kInputs; ++i) {
        Values transformed[kInputs];
        Tiles::transform_input(half[i], transformed);
#pragma GCC unroll 8
        for (int j = 0; j < kInputs; ++j) Tiles::store_factor(out + (kInputs * i + j) * pitch_ + c, transformed[j]);
      }
    }
  }

  // Transforms the products of one tile to pixels of the second convolution's output.
  void transform_output(const Product* products, int64_t tile) {
    for (int64_t c = 0; c < width_; c += kLanes<float>) {
      Vector<float> half[kOutputs][kInputs];
#pragma GCC unroll 8
      for (int j = 0; j < kInputs; ++j) {
        Vector<float> m[kInputs], transformed[kOutputs];
#pragma GCC unroll 8
        for (int i = 0; i < kInputs; ++i)
          m[i] = __builtin_convertvector(load(products + (kInputs * i + j) * pitch_ + c), Vector<float>);
        Tiles::transform_output(m, transformed);
#pragma GCC unroll 8
        for (int i = 0; i < kOutputs; ++i) half[i][j] = transformed[i];
      }
      const Vector<float> bias = load(task_.biases[1] + c);
#pragma GCC unroll 8
      for (int i = 0; i < kOutputs; ++i) {
        Vector<float> transformed[kOutputs];
        Tiles::transform_output(half[i], transformed);
        Element* out = second_ + (i * tiles_ + tile) * kOutputs * width_ + c;
#pragma GCC unroll 8
        for (int j = 0; j < kOutputs; ++j) {
          if constexpr (kIsLevel<Element>) transformed[j] *= load(task_.factors[1] + c);
          store_rectified(out + j * width_, transformed[j] + bias);
        }
      }
    }
  }

  const BottleneckTask& task_;
  int64_t width_, tiles_, strips_at_once_, pitch_;
  FirstRows<Element, First> first_;
  LastRows<Element, Output> last_;
  Buffer<Factor> inputs_;     // (kInputs^2, tiles, width), pitch_ apart: one matrix per element of a transformed tile
  Buffer<Product> products_;  // the same shape as inputs_
  Buffer<Element> second_;    // (kOutputs, kOutputs * tiles, width): rows of the second convolution's output
};
