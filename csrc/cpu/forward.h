// The forward kernels: NPR, NPR with convolution, and the fused stem.

// Returns how many columns may be read, counted from the first column of padding, if output pixels are computed in
// blocks of `columns`.
inline int64_t reach(const Task& task, int64_t columns) {
  const Convolution& convolution = task.convolution;
  return (convolution.out_width - 1 + columns) * convolution.stride_width + convolution.kernel_width;
}

// Writes one row (W, C), with `pitch` elements per pixel, to an image with any strides.
template <typename T, typename D>
inline void store_row(const T* __restrict row, int64_t pitch, int64_t width, int64_t channels, D* __restrict out,
                      int64_t stride_column, int64_t stride_channel) {
  if (stride_channel == 1) {
    for (int64_t x = 0; x < width; ++x)
      for (int64_t c = 0; c < channels; ++c) out[x * stride_column + c] = narrow<D>(row[x * pitch + c]);
    return;
  }
  constexpr int64_t kTile = 16;  // so many pixels stay in the first-level cache while their planes are written
  for (int64_t first = 0; first < width; first += kTile) {
    const int64_t last = first + kTile < width ? first + kTile : width;
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t x = first; x < last; ++x)
        out[x * stride_column + c * stride_channel] = narrow<D>(row[x * pitch + c]);
  }
}

template <typename T>
inline void store_row(const T* row, int64_t pitch, int64_t width, int64_t first_channel, int64_t channels,
                      const MutableImage& out, int64_t n, int64_t y) {
  visit_type(out.type, [&](auto tag) {
    using D = decltype(tag);
    D* target = static_cast<D*>(out.data) + n * out.stride[0] + y * out.stride[2] + first_channel * out.stride[1];
    store_row(row, pitch, width, channels, target, out.stride[3], out.stride[1]);
  });
}

template <typename T>
void npr_rows(const Task& task, int64_t begin, int64_t end) {
  const Grid& grid = task.grid;
  NprRows<T> rows(task, grid.size, 0, 0);
  for (int64_t cell_row = begin; cell_row < end; ++cell_row) {
    const int64_t n = cell_row / grid.cell_rows(), first = cell_row % grid.cell_rows() * grid.size;
    for (int64_t y = first; y < first + grid.size; ++y)
      store_row<T>(rows.row(n, y), grid.channels, grid.width, 0, grid.channels, task.out, n, y);
  }
}

template <typename Element>
void conv_rows(const Task& task, int64_t begin, int64_t end) {
  using T = typename Arithmetic<Element>::Computed;
  constexpr int64_t kChunk = Taps<Element>::kChunk;
  constexpr int kColumns = 4;
  const Convolution& convolution = task.convolution;
  const Taps<Element> taps(task);
  NprRows<Element> npr(task, convolution.kernel_height, convolution.padding_width, reach(task, kColumns));
  Buffer<const Element*> rows(convolution.kernel_height);
  const Element* const* row_sets[1] = {rows};
  const int64_t step = convolution.stride_width * task.grid.channels;
  // A whole chunk of channels is written in place if the type and the layout fit. Otherwise it goes through a buffer.
  const bool in_place = task.out.stride[1] == 1 && convolution.out_channels % kChunk == 0 &&
                        task.out.type == (sizeof(T) == 8 ? Type::kFloat64 : Type::kFloat32);
  const int64_t padded_width = (convolution.out_width + kColumns - 1) / kColumns * kColumns;
  Buffer<T> buffer(in_place ? 0 : padded_width * kChunk);

  for (int64_t index = begin; index < end; ++index) {
    const int64_t n = index / convolution.out_height, y = index % convolution.out_height;
    for (int64_t k = 0; k < convolution.kernel_height; ++k)
      rows[k] = npr.row(n, y * convolution.stride_height - convolution.padding_height + k);
    for (int64_t chunk = 0; chunk < taps.chunks(); ++chunk) {
      T* target = buffer;
      int64_t pitch = kChunk;
      if (in_place) {
        target = static_cast<T*>(task.out.data) + n * task.out.stride[0] + y * task.out.stride[2] + chunk * kChunk;
        pitch = task.out.stride[3];
      }
      for (int64_t x = 0; x < convolution.out_width; x += kColumns) {
        Block<Element, 1, kColumns> block;
        block.compute(taps, taps.weights(chunk), row_sets, x * step, step);
        const int64_t columns = !in_place || x + kColumns <= convolution.out_width ? kColumns : convolution.out_width - x;
#pragma GCC unroll 16
        for (int q = 0; q < kColumns; ++q)
          if (q < columns)
#pragma GCC unroll 16
            for (int v = 0; v < kChannelVectors; ++v)
              store(target + (x + q) * pitch + v * kLanes<T>, block.sum[0][q][v] + load(taps.bias(chunk) + v * kLanes<T>));
      }
      if (!in_place) {
        const int64_t left = convolution.out_channels - chunk * kChunk;
        store_row<T>(target, pitch, convolution.out_width, chunk * kChunk, left < kChunk ? left : kChunk, task.out, n, y);
      }
    }
  }
}

// NPR, convolution, bias, ReLU and the 3x3 max-pool with stride 2. Two rows and two columns of the convolution are
// computed at a time; these four pixels complete one pooled pixel. Bias and ReLU commute with the maximum, so they are
// applied to the pooled pixel only. With Argmax, the position of each maximum is stored, too.
template <typename Element, bool Argmax>
class Stem {
 public:
  using T = typename Arithmetic<Element>::Computed;
  static constexpr int64_t kChunk = Taps<Element>::kChunk;

  explicit Stem(const Task& task)
      : task_(task),
        convolution_(task.convolution),
        height_(pooled_size(convolution_.out_height)),
        width_(pooled_size(convolution_.out_width)),
        taps_(task),
        npr_(task, convolution_.kernel_height + convolution_.stride_height, convolution_.padding_width, reach(task, 2)),
        upper_(convolution_.kernel_height),
        lower_(convolution_.kernel_height),
        above_(taps_.chunks() * width_ * kChunk),
        above_argmax_(Argmax ? taps_.chunks() * width_ * kChunk : 0) {}

  void run(int64_t begin, int64_t end) {
    for (int64_t index = begin; index < end; ++index) {
      const int64_t n = index / height_, y = index % height_;
      if (y == 0) {
        for (int64_t i = 0; i < taps_.chunks() * width_ * kChunk; ++i) above_[i] = -kInfinity;
      } else if (index == begin) {
        row(n, y - 1, false);  // computes the convolution row that this range shares with the range before it
      }
      row(n, y, true);
    }
  }

 private:
  static constexpr T kInfinity = static_cast<T>(__builtin_huge_val());

  void row(int64_t n, int64_t y, bool emit) {
    for (int64_t k = 0; k < convolution_.kernel_height; ++k) {
      const int64_t first = 2 * y * convolution_.stride_height - convolution_.padding_height + k;
      upper_[k] = npr_.row(n, first);
      lower_[k] = npr_.row(n, first + convolution_.stride_height);
    }
    visit_type(task_.out.type, [&](auto tag) {
      using D = decltype(tag);
      D* out = emit ? static_cast<D*>(task_.out.data) + n * task_.out.stride[0] + y * task_.out.stride[2] : nullptr;
      uint8_t* argmax = nullptr;
      if (Argmax && emit)
        argmax = static_cast<uint8_t*>(task_.out_argmax.data) + n * task_.out_argmax.stride[0] + y * task_.out_argmax.stride[2];
      const bool has_lower = 2 * y + 1 < convolution_.out_height;
      for (int64_t chunk = 0; chunk < taps_.chunks(); ++chunk) {
        // Comparisons drop NaN. A slower maximum keeps it, and is used if there may be a NaN.
        if (npr_.finite() && taps_.finite()) {
          pool<D, false>(chunk, out, argmax, has_lower);
        } else {
          pool<D, true>(chunk, out, argmax, has_lower);
        }
      }
    });
  }

  template <bool KeepNaN>
  static inline Vector<T> larger(Vector<T> a, Vector<T> b) {
    return KeepNaN ? maximum_nan<T>(a, b) : maximum<T>(a, b);
  }

  // Replaces `best` and its `position` by `candidate` and `at` if the candidate is larger. The candidate comes later in
  // the window, so `best` stays if they are equal.
  template <bool KeepNaN>
  static inline void choose(Vector<T>& best, Integers<T>& position, Vector<T> candidate, int at) {
    const Integers<T> larger = KeepNaN ? (candidate > best) | (candidate != candidate) : candidate > best;
    best = larger ? candidate : best;
    position = larger ? Integers<T>{} + at : position;
  }

  template <typename D, bool KeepNaN>
  void pool(int64_t chunk, D* out, uint8_t* argmax, bool has_lower) {
    const int64_t step = convolution_.stride_width * task_.grid.channels;
    const int64_t left_channels = convolution_.out_channels - chunk * kChunk;
    const int64_t channels = left_channels < kChunk ? left_channels : kChunk;
    const Vector<T> lowest = broadcast<T>(-kInfinity);
    const Element* const* row_sets[2] = {upper_, lower_};
    T* above = above_ + chunk * width_ * kChunk;
    auto* above_argmax = above_argmax_ + (Argmax ? chunk * width_ * kChunk : 0);
    // The column on the left. `left` is the maximum of both rows, or the upper row with Argmax; `left_lower` is the
    // lower row.
    Vector<T> left[kChannelVectors], left_lower[kChannelVectors];
    for (int v = 0; v < kChannelVectors; ++v) left[v] = left_lower[v] = lowest;
    D partial[kChunk];
    uint8_t partial_argmax[kChunk];

    for (int64_t x = 0; x < width_; ++x, above += kChunk) {
      D* const pooled = out && channels == kChunk ? out + x * task_.out.stride[3] + chunk * kChunk : partial;
      uint8_t* positions = partial_argmax;
      if (Argmax && argmax && channels == kChunk) positions = argmax + x * task_.out_argmax.stride[3] + chunk * kChunk;
      Block<Element, 2, 2> block;
      block.compute(taps_, taps_.weights(chunk), row_sets, 2 * x * step, step);
      const bool has_right = 2 * x + 1 < convolution_.out_width;
#pragma GCC unroll 16
      for (int v = 0; v < kChannelVectors; ++v) {
        auto& sum = block.sum;
        if (!has_right) sum[0][1][v] = sum[1][1][v] = lowest;
        if (!has_lower) sum[1][0][v] = sum[1][1][v] = lowest;
        Vector<T> best;
        [[maybe_unused]] Integers<T> position;
        if constexpr (Argmax) {  // candidates in the row-major order of the window
          best = load(above + v * kLanes<T>);
          position = load_bytes<T>(above_argmax + v * kLanes<T>);
          choose<KeepNaN>(best, position, left[v], 3);
          choose<KeepNaN>(best, position, sum[0][0][v], 4);
          choose<KeepNaN>(best, position, sum[0][1][v], 5);
          choose<KeepNaN>(best, position, left_lower[v], 6);
          choose<KeepNaN>(best, position, sum[1][0][v], 7);
          choose<KeepNaN>(best, position, sum[1][1][v], 8);
          Vector<T> lower = left_lower[v];
          Integers<T> lower_position{};
          choose<KeepNaN>(lower, lower_position, sum[1][0][v], 1);
          choose<KeepNaN>(lower, lower_position, sum[1][1][v], 2);
          store(above + v * kLanes<T>, lower);
          store_bytes<T>(above_argmax + v * kLanes<T>, lower_position);
          left[v] = sum[0][1][v];
        } else {
          const Vector<T> right = larger<KeepNaN>(sum[0][1][v], sum[1][1][v]);
          best = larger<KeepNaN>(sum[0][0][v], sum[1][0][v]);
          best = larger<KeepNaN>(best, right);
          best = larger<KeepNaN>(best, left[v]);
          best = larger<KeepNaN>(best, load(above + v * kLanes<T>));
          Vector<T> lower = larger<KeepNaN>(sum[1][0][v], sum[1][1][v]);
          store(above + v * kLanes<T>, larger<KeepNaN>(lower, left_lower[v]));
          left[v] = right;
        }
        left_lower[v] = sum[1][1][v];
        best += load(taps_.bias(chunk) + v * kLanes<T>);
        if constexpr (Argmax)
          store_bytes<T>(positions + v * kLanes<T>, best <= Vector<T>{} ? Integers<T>{} + kNoArgmax : position);
        store_narrow<D, T>(pooled + v * kLanes<T>, Vector<T>{} > best ? Vector<T>{} : best);  // ReLU; NaN stays
      }
      if (out && channels < kChunk)
        __builtin_memcpy(out + x * task_.out.stride[3] + chunk * kChunk, pooled, static_cast<size_t>(channels) * sizeof(D));
      if constexpr (Argmax) {
        if (argmax && channels < kChunk)
          __builtin_memcpy(argmax + x * task_.out_argmax.stride[3] + chunk * kChunk, positions, static_cast<size_t>(channels));
        above_argmax += kChunk;
      }
    }
  }

  const Task& task_;
  const Convolution& convolution_;
  int64_t height_, width_;
  Taps<Element> taps_;
  NprRows<Element> npr_;
  Buffer<const Element*> upper_, lower_;
  Buffer<T> above_;
  Buffer<uint8_t> above_argmax_;
};

template <typename Element, bool Argmax>
void stem_rows(const Task& task, int64_t begin, int64_t end) {
  Stem<Element, Argmax>(task).run(begin, end);
}
