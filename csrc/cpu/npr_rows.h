// Computes rows of the NPR map when they are needed and keeps only a few of them, so the map is never in memory as a
// whole.

// Reads one row of an image as (W, C), converted to T (or copied if T is uint8_t).
template <typename T, typename S>
inline void load_row(const S* __restrict source, int64_t stride_column, int64_t stride_channel, int64_t width,
                     int64_t channels, T* __restrict row) {
  if (stride_channel == 1 && stride_column == channels) {
    for (int64_t i = 0; i < width * channels; ++i) row[i] = widen<T>(source[i]);
  } else if (channels == 3 && stride_column == 1) {  // planes: PyTorch's contiguous layout
    const S* __restrict green = source + stride_channel;
    const S* __restrict blue = green + stride_channel;
    for (int64_t x = 0; x < width; ++x) {
      row[3 * x] = widen<T>(source[x]);
      row[3 * x + 1] = widen<T>(green[x]);
      row[3 * x + 2] = widen<T>(blue[x]);
    }
  } else {
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t x = 0; x < width; ++x)
        row[x * channels + c] = widen<T>(source[x * stride_column + c * stride_channel]);
  }
}

template <typename T>
inline void load_row(const Image& image, int64_t n, int64_t y, int64_t width, int64_t channels, T* row) {
  visit_type(image.type, [&](auto tag) {
    using S = decltype(tag);
    const S* source = static_cast<const S*>(image.data) + n * image.stride[0] + y * image.stride[2];
    load_row(source, image.stride[3], image.stride[1], width, channels, row);
  });
}

// Repeats the anchor pixels of one row over the columns of their cells: (W, C) -> (W, C).
template <typename T>
inline void repeat_anchor(const T* __restrict row, int64_t column, const Grid& grid, T* __restrict anchors) {
  const int64_t channels = grid.channels, count = grid.width * channels;
  int64_t cell = 0;
#ifndef __clang__  // which has no shuffle by a mask that is known only at run time
  if (channels == 3 && grid.size == 2) {  // two cells per shuffle; the next store overwrites lanes 12 .. 15
    using Index = typename IntegerOfSize<sizeof(T)>::type;
    typedef T Lanes __attribute__((vector_size(16 * sizeof(T)), aligned(alignof(T)), may_alias));
    typedef Index Mask __attribute__((vector_size(16 * sizeof(T))));
    const Index a = static_cast<Index>(3 * column), b = static_cast<Index>(6 + a);
    const Mask mask = {a, Index(a + 1), Index(a + 2), a, Index(a + 1), Index(a + 2), b, Index(b + 1),
                       Index(b + 2), b, Index(b + 1), Index(b + 2), 0, 0, 0, 0};
    for (; cell * 6 + 16 <= count; cell += 2) {
      const Lanes lanes = *reinterpret_cast<const Lanes*>(row + cell * 6);
      *reinterpret_cast<Lanes*>(anchors + cell * 6) = __builtin_shuffle(lanes, mask);
    }
  }
#endif
  for (; cell < grid.cell_columns(); ++cell)
    for (int64_t i = 0; i < grid.size; ++i)
      for (int64_t c = 0; c < channels; ++c)
        anchors[(cell * grid.size + i) * channels + c] = row[(cell * grid.size + column) * channels + c];
}

// Computes the mean or the maximum of each cell and repeats it over the cell's columns. `rows` holds the rows of the
// cells, `pitch` elements apart.
template <typename T>
inline void repeat_statistic(const T* rows, int64_t pitch, const Grid& grid, T* anchors) {
  const int64_t channels = grid.channels, size = grid.size;
  for (int64_t cell = 0; cell < grid.cell_columns(); ++cell)
    for (int64_t c = 0; c < channels; ++c) {
      const T* first = rows + cell * size * channels + c;
      T sum = 0, largest = *first;
      for (int64_t i = 0; i < size; ++i)
        for (int64_t j = 0; j < size; ++j) {
          const T value = first[i * pitch + j * channels];
          sum += value;
          largest = (value > largest) | (value != value) ? value : largest;
        }
      const T anchor = grid.anchor == kAnchorMean ? sum / static_cast<T>(size * size) : largest;
      for (int64_t j = 0; j < size; ++j) anchors[(cell * size + j) * channels + c] = anchor;
    }
}

inline void subtract(const uint8_t* __restrict x, const uint8_t* __restrict a, int64_t count, BFloat16* __restrict out) {
  for (int64_t i = 0; i < count; ++i)  // |difference| <= 255 has eight significant bits, so it is exact in bfloat16
    out[i].bits = static_cast<uint16_t>(bits_of(static_cast<float>(x[i] - a[i])) >> 16);
}
template <typename T>
inline void subtract(const uint8_t* __restrict x, const uint8_t* __restrict a, int64_t count, T* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<T>(x[i] - a[i]);
}
template <typename T>
inline void subtract(const T* __restrict x, const T* __restrict a, int64_t count, T* __restrict out) {
  for (int64_t i = 0; i < count; ++i) out[i] = x[i] - a[i];
}

// Rows of the NPR map as (W + padding, C), with zeros around them. Element is float, double, or BFloat16 for uint8
// images.
template <typename Element>
class NprRows {
 public:
  using T = typename Arithmetic<Element>::Computed;

  // `span`: number of consecutive rows that are needed at once. `padding`: columns of zeros on the left of the map.
  // `reach`: number of columns that may be read, counted from the first column of the padding.
  NprRows(const Task& task, int64_t span, int64_t padding, int64_t reach)
      : task_(task),
        grid_(task.grid),
        width_(grid_.width * grid_.channels),
        pitch_(((padding + grid_.width > reach ? padding + grid_.width : reach) * grid_.channels + 127) / 64 * 64),
        offset_(padding * grid_.channels),
        slots_((span + grid_.size - 2) / grid_.size + 1),
        of_bytes_(task.x.type == Type::kUInt8 && grid_.anchor >= 0),
        rows_(slots_ * grid_.size * pitch_),
        zeros_(pitch_),
        staged_(of_bytes_ ? 0 : grid_.size * pitch_),
        staged_bytes_(of_bytes_ ? grid_.size * pitch_ : 0),
        anchors_(pitch_),
        anchor_bytes_(pitch_),
        held_(slots_) {
    for (int64_t i = 0; i < slots_; ++i) held_[i] = -1;
  }

  // Returns row y of image n, beginning with the first column of padding. It is zero outside the image. The pointer is
  // valid until `span` later rows were requested.
  const Element* row(int64_t n, int64_t y) {
    if (y < 0 || y >= grid_.height) return zeros_;
    const int64_t cell_row = n * grid_.cell_rows() + y / grid_.size, slot = cell_row % slots_;
    if (held_[slot] != cell_row) {
      fill(n, y / grid_.size, rows_ + slot * grid_.size * pitch_);
      held_[slot] = cell_row;
    }
    return rows_ + (slot * grid_.size + y % grid_.size) * pitch_;
  }

  const Element* zeros() const { return zeros_; }

  // Returns whether all rows so far were finite.
  bool finite() const { return finite_; }

 private:
  void fill(int64_t n, int64_t cell_row, Element* rows) {
    const int64_t anchor_row = grid_.anchor / grid_.size, anchor_column = grid_.anchor % grid_.size;
    if (of_bytes_) {
      const bool direct = task_.x.stride[1] == 1 && task_.x.stride[3] == grid_.channels;
      const auto source = [&](int64_t i) -> const uint8_t* {
        const int64_t y = cell_row * grid_.size + i;
        if (direct) return static_cast<const uint8_t*>(task_.x.data) + n * task_.x.stride[0] + y * task_.x.stride[2];
        uint8_t* staged = staged_bytes_ + i * pitch_;
        load_row(static_cast<const uint8_t*>(task_.x.data) + n * task_.x.stride[0] + y * task_.x.stride[2],
                 task_.x.stride[3], task_.x.stride[1], grid_.width, grid_.channels, staged);
        return staged;
      };
      repeat_anchor<uint8_t>(source(anchor_row), anchor_column, grid_, anchor_bytes_);
      for (int64_t i = 0; i < grid_.size; ++i)
        subtract(source(i), static_cast<const uint8_t*>(anchor_bytes_), width_, rows + i * pitch_ + offset_);
      return;
    }
    if constexpr (sizeof(Element) == sizeof(T)) {
      for (int64_t i = 0; i < grid_.size; ++i)
        load_row<T>(task_.x, n, cell_row * grid_.size + i, grid_.width, grid_.channels, staged_ + i * pitch_);
      if (grid_.anchor >= 0) {
        repeat_anchor<T>(staged_ + anchor_row * pitch_, anchor_column, grid_, anchors_);
      } else {
        repeat_statistic<T>(staged_, pitch_, grid_, anchors_);
      }
      for (int64_t i = 0; i < grid_.size; ++i) {
        T* out = rows + i * pitch_ + offset_;
        subtract(static_cast<const T*>(staged_ + i * pitch_), static_cast<const T*>(anchors_), width_, out);
        Vector<T> zero{};
        for (int64_t j = 0; j < width_; j += kLanes<T>) zero += load(out + j) * T(0);  // NaN * 0 and inf * 0 are NaN
        for (int64_t lane = 0; lane < kLanes<T>; ++lane) finite_ &= zero[lane] == 0;
      }
    }
  }

  const Task& task_;
  const Grid& grid_;
  int64_t width_, pitch_, offset_, slots_;
  bool of_bytes_;
  bool finite_ = true;
  Buffer<Element> rows_, zeros_;
  Buffer<T> staged_;
  Buffer<uint8_t> staged_bytes_;
  Buffer<T> anchors_;
  Buffer<uint8_t> anchor_bytes_;
  Buffer<int64_t> held_;
};
