// The gradients of NPR, and of NPR with convolution for the weight and the image.

// Rows of a tensor as (W, C), with channels padded to `pitch`. If the tensor has this layout already, nothing is
// copied.
template <typename T>
class PaddedRows {
 public:
  PaddedRows(const Image& image, int64_t width, int64_t channels, int64_t pitch)
      : image_(image),
        width_(width),
        channels_(channels),
        pitch_(pitch),
        in_place_(image.type == kOwnType && image.stride[1] == 1 && image.stride[3] == pitch && channels == pitch),
        planar_(in_place_ ? 0 : (width + 16) * channels),
        row_(in_place_ ? 0 : (width + 16) * pitch) {}

  const T* row(int64_t n, int64_t y) {
    if (in_place_) return static_cast<const T*>(image_.data) + n * image_.stride[0] + y * image_.stride[2];
    if (n == n_ && y == y_) return row_;
    n_ = n, y_ = y;
    if (channels_ == pitch_) {
      load_row<T>(image_, n, y, width_, channels_, row_);
    } else {
      load_row<T>(image_, n, y, width_, channels_, planar_);
      for (int64_t x = 0; x < width_; ++x)
        for (int64_t c = 0; c < channels_; ++c) row_[x * pitch_ + c] = planar_[x * channels_ + c];
    }
    return row_;
  }

 private:
  static constexpr Type kOwnType = sizeof(T) == 8 ? Type::kFloat64 : sizeof(T) == 4 ? Type::kFloat32 : Type::kUInt8;

  const Image& image_;
  int64_t width_, channels_, pitch_, n_ = -1, y_ = -1;
  bool in_place_;
  Buffer<T> planar_, row_;
};

// Rows of the gradient of the convolution's output, computed from the gradient of the pooled output: each value goes to
// the position of the maximum in its window. A row is (W, O), with channels padded to `pitch`. It is valid until the
// next row.
template <typename T>
class UnpooledRows {
 public:
  UnpooledRows(const Task& task, int64_t pitch)
      : pitch_(pitch),
        height_(pooled_size(task.convolution.out_height)),
        width_(pooled_size(task.convolution.out_width)),
        gradients_{{task.grad, width_, task.convolution.out_channels, pitch},
                   {task.grad, width_, task.convolution.out_channels, pitch}},
        argmax_{{task.argmax, width_, task.convolution.out_channels, pitch},
                {task.argmax, width_, task.convolution.out_channels, pitch}},
        row_(2 * width_ * pitch),
        sum_(pitch) {}

  const T* row(int64_t n, int64_t y) {
    const int64_t p = y / 2;
    if (y % 2 == 0) {  // the middle row of one row of windows
      unpool<1>(n, p, 3);
      sum(gradients_[p % 2].row(n, p), argmax_[p % 2].row(n, p));
    } else if (p + 1 < height_) {  // the last row of the windows above and the first row of the windows below
      unpool<2>(n, p, 6);
    } else {
      unpool<1>(n, p, 6);
    }
    return row_;
  }

  // Sums of the gradient. They are taken at even rows, so each row of windows counts once.
  const double* sums() const { return sum_; }

 private:
  // Fills the row from pooled row p. In its windows, the positions of this row begin at `first`. If Count is 2, pooled
  // row p + 1 is added; there the positions begin at 0.
  template <int Count>
  void unpool(int64_t n, int64_t p, int first) {
    const T* gradient[Count];
    const uint8_t* argmax[Count];
    for (int i = 0; i < Count; ++i) {
      gradient[i] = gradients_[(p + i) % 2].row(n, p + i);
      argmax[i] = argmax_[(p + i) % 2].row(n, p + i);
    }
    for (int64_t x = 0; x < width_; ++x)
      for (int64_t c = 0; c < pitch_; c += kLanes<T>) {
        Vector<T> target[3];
#pragma GCC unroll 2
        for (int i = 0; i < Count; ++i) {
          const Vector<T> value = load(gradient[i] + x * pitch_ + c);
          const Integers<T> position = load_bytes<T>(argmax[i] + x * pitch_ + c);
#pragma GCC unroll 3
          for (int k = 0; k < 3; ++k) {
            const Vector<T> sent = position == (i == 0 ? first : 0) + k ? value : Vector<T>{};
            target[k] = i == 0 ? sent : target[k] + sent;
          }
        }
        T* pixel = row_ + 2 * x * pitch_ + c;
        if (x > 0) store(pixel - pitch_, load(pixel - pitch_) + target[0]);
        store(pixel, target[1]);
        store(pixel + pitch_, target[2]);
      }
  }

  void sum(const T* gradient, const uint8_t* argmax) {
    for (int64_t c = 0; c < pitch_; c += kLanes<T>) {
      Vector<T> sum{};
      for (int64_t x = 0; x < width_; ++x)
        sum += load_bytes<T>(argmax + x * pitch_ + c) != kNoArgmax ? load(gradient + x * pitch_ + c) : Vector<T>{};
      for (int64_t lane = 0; lane < kLanes<T>; ++lane) sum_[c + lane] += static_cast<double>(sum[lane]);
    }
  }

  int64_t pitch_, height_, width_;
  PaddedRows<T> gradients_[2];  // of even and odd rows of windows
  PaddedRows<uint8_t> argmax_[2];
  Buffer<T> row_;
  Buffer<double> sum_;
};

// Applies the transpose of NPR to one row of cells: the sum of the gradients of a cell is subtracted from the anchor's
// gradient. `rows` holds grid.size rows of gradients (W, C), `pitch` elements apart, and is changed in place. `x` holds
// the same rows of the image; only the anchor "max" needs it.
template <typename T>
inline void transpose_npr(const Grid& grid, T* rows, const T* x, int64_t pitch) {
  const int64_t channels = grid.channels, size = grid.size;
  for (int64_t cell = 0; cell < grid.cell_columns(); ++cell)
    for (int64_t c = 0; c < channels; ++c) {
      T* first = rows + cell * size * channels + c;
      T sum = 0;
      for (int64_t i = 0; i < size; ++i)
        for (int64_t j = 0; j < size; ++j) sum += first[i * pitch + j * channels];
      int64_t anchor = grid.anchor;
      if (anchor == kAnchorMean) {
        for (int64_t i = 0; i < size; ++i)
          for (int64_t j = 0; j < size; ++j) first[i * pitch + j * channels] -= sum / static_cast<T>(size * size);
        continue;
      }
      if (anchor == kAnchorMax) {  // the first of equal values in row-major order; NaN counts as the largest
        const T* pixel = x + cell * size * channels + c;
        T largest = *pixel;
        anchor = 0;
        for (int64_t k = 1; k < size * size; ++k) {
          const T value = pixel[k / size * pitch + k % size * channels];
          if (value > largest || value != value) largest = value, anchor = k;
        }
      }
      first[anchor / size * pitch + anchor % size * channels] -= sum;
    }
}

template <typename T>
void npr_backward_rows(const Task& task, int64_t begin, int64_t end) {
  const Grid& grid = task.grid;
  const int64_t pitch = grid.width * grid.channels;
  Buffer<T> rows(grid.size * pitch), x(grid.anchor == kAnchorMax ? grid.size * pitch : 0);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t n = index / grid.cell_rows(), first = index % grid.cell_rows() * grid.size;
    for (int64_t i = 0; i < grid.size; ++i) {
      load_row<T>(task.grad, n, first + i, grid.width, grid.channels, rows + i * pitch);
      if (grid.anchor == kAnchorMax) load_row<T>(task.x, n, first + i, grid.width, grid.channels, x + i * pitch);
    }
    transpose_npr<T>(grid, rows, x, pitch);
    for (int64_t i = 0; i < grid.size; ++i)
      store_row<T>(rows + i * pitch, grid.channels, grid.width, 0, grid.channels, task.out, n, first + i);
  }
}

// Number of channels after padding to whole chunks, which the weight gradient reads.
template <typename T>
inline int64_t padded_channels(const Task& task) {
  constexpr int64_t kChunk = kChannelVectors * kLanes<T>;
  return (task.convolution.out_channels + kChunk - 1) / kChunk * kChunk;
}

// Adds the product of patch and gradient at every output pixel. A few elements of the patch and a chunk of channels
// stay in registers along a row. Then they are added to a sum in double, so that long sums of float lose no precision.
// `gradients.row(n, y)` is a row of the gradient as (W, O), with padded channels.
template <typename T, typename Gradients>
void add_grad_weight(const Task& task, int64_t begin, int64_t end, double* sum, Gradients& gradients) {
  constexpr int64_t kChunk = kChannelVectors * kLanes<T>;
  constexpr int kTaps = kGradientTaps;
  const Convolution& convolution = task.convolution;
  const int64_t channels = task.grid.channels, out_channels = convolution.out_channels;
  const int64_t pitch = padded_channels<T>(task), step = convolution.stride_width * channels;
  const int64_t row_length = convolution.kernel_width * channels;
  const PatchElements elements(task);
  NprRows<T> npr(task, convolution.kernel_height, convolution.padding_width, reach(task, 1));
  Buffer<const T*> rows(convolution.kernel_height);

  for (int64_t index = begin; index < end; ++index) {
    const int64_t n = index / convolution.out_height, y = index % convolution.out_height;
    for (int64_t k = 0; k < convolution.kernel_height; ++k)
      rows[k] = npr.row(n, y * convolution.stride_height - convolution.padding_height + k);
    const T* gradient_row = gradients.row(n, y);
    for (int64_t chunk = 0; chunk < pitch; chunk += kChunk)
      for (int64_t first = 0; first < elements.count(); first += kTaps) {
        const T* patch[kTaps];
        for (int t = 0; t < kTaps; ++t) {
          patch[t] = npr.zeros();
          if (first + t < elements.count())
            patch[t] = rows[elements[first + t] / row_length] + elements[first + t] % row_length;
        }
        Vector<T> products[kTaps][kChannelVectors] = {};
        const T* gradient = gradient_row + chunk;
        for (int64_t x = 0; x < convolution.out_width; ++x, gradient += pitch) {
          Vector<T> g[kChannelVectors];
#pragma GCC unroll 16
          for (int v = 0; v < kChannelVectors; ++v) g[v] = load(gradient + v * kLanes<T>);
#pragma GCC unroll 16
          for (int t = 0; t < kTaps; ++t) {
            const Vector<T> pixel = broadcast<T>(patch[t][x * step]);
#pragma GCC unroll 16
            for (int v = 0; v < kChannelVectors; ++v) products[t][v] += pixel * g[v];
          }
        }
        alignas(kVectorBytes) T lanes[kChunk];
        const int64_t left = out_channels - chunk, valid = left < kChunk ? left : kChunk;
        for (int t = 0; t < kTaps && first + t < elements.count(); ++t) {
          for (int v = 0; v < kChannelVectors; ++v)
            *reinterpret_cast<Vector<T>*>(lanes + v * kLanes<T>) = products[t][v];
          double* target = sum + elements[first + t] * out_channels + chunk;
          for (int64_t c = 0; c < valid; ++c) target[c] += static_cast<double>(lanes[c]);
        }
      }
  }
}

template <typename T>
void conv_grad_weight_rows(const Task& task, int64_t begin, int64_t end, double* sum) {
  const Convolution& convolution = task.convolution;
  PaddedRows<T> gradients(task.grad, convolution.out_width, convolution.out_channels, padded_channels<T>(task));
  add_grad_weight<T>(task, begin, end, sum, gradients);
}

template <typename T>
void stem_grad_weight_rows(const Task& task, int64_t begin, int64_t end, double* sum) {
  const Convolution& convolution = task.convolution;
  UnpooledRows<T> gradients(task, padded_channels<T>(task));
  add_grad_weight<T>(task, begin, end, sum, gradients);
  double* target = sum + convolution.kernel_height * convolution.kernel_width * task.grid.channels * convolution.out_channels;
  for (int64_t o = 0; o < convolution.out_channels; ++o) target[o] += gradients.sums()[o];
}

// The dense path: each NPR pixel gathers its gradient from the output rows that saw it, one kernel row at a time. Then
// the transpose of NPR is applied.
template <typename T>
void conv_grad_input_rows(const Task& task, int64_t begin, int64_t end) {
  constexpr int kColumns = 8;
  constexpr int64_t kVector = kLanes<T>;
  const Grid& grid = task.grid;
  const Convolution& convolution = task.convolution;
  const int64_t channels = grid.channels, out_channels = convolution.out_channels;
  const int64_t row_length = convolution.kernel_width * channels, vectors = (row_length + kVector - 1) / kVector;
  const int64_t step = convolution.stride_width * channels;
  const int64_t pitch = reach(task, kColumns) * channels + grid.width * channels;  // padding, map and overhang

  // The weight of kernel row k as (vectors, O, lanes): for each output channel, its factors for the (KW, C) pixels of a
  // row.
  Buffer<T> weights(convolution.kernel_height * vectors * out_channels * kVector);
  for (int64_t k = 0; k < convolution.kernel_height; ++k)
    for (int64_t i = 0; i < row_length; ++i)
      for (int64_t o = 0; o < out_channels; ++o) {
        const int64_t c = i % channels, kx = i / channels;
        const int64_t source = ((o * channels + c) * convolution.kernel_height + k) * convolution.kernel_width + kx;
        weights[((k * vectors + i / kVector) * out_channels + o) * kVector + i % kVector] =
            static_cast<const T*>(task.weight)[source] * static_cast<const T*>(task.scale)[c];
      }

  PaddedRows<T> gradients(task.grad, convolution.out_width, out_channels, out_channels);
  Buffer<T> rows(grid.size * pitch), x(grid.anchor == kAnchorMax ? grid.size * pitch : 0);
  T* const map = rows + convolution.padding_width * channels;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t n = index / grid.cell_rows(), first = index % grid.cell_rows() * grid.size;
    __builtin_memset(static_cast<void*>(rows), 0, static_cast<size_t>(grid.size * pitch) * sizeof(T));
    for (int64_t i = 0; i < grid.size; ++i) {
      T* row = rows + i * pitch;
      for (int64_t k = 0; k < convolution.kernel_height; ++k) {
        const int64_t above = first + i + convolution.padding_height - k;
        if (above < 0 || above % convolution.stride_height || above / convolution.stride_height >= convolution.out_height)
          continue;
        const T* gradient = gradients.row(n, above / convolution.stride_height);
        for (int64_t vector = 0; vector < vectors; ++vector) {
          const T* weight = weights + (k * vectors + vector) * out_channels * kVector;
          const int64_t left = row_length - vector * kVector, valid = left < kVector ? left : kVector;
          for (int64_t column = 0; column < convolution.out_width; column += kColumns) {
            const int64_t rest = convolution.out_width - column, columns = rest < kColumns ? rest : kColumns;
            const T* pixel[kColumns];
            for (int q = 0; q < kColumns; ++q) pixel[q] = gradient + (column + (q < columns ? q : 0)) * out_channels;
            Vector<T> sum[kColumns] = {};
            for (int64_t o = 0; o < out_channels; ++o) {
              const Vector<T> w = load(weight + o * kVector);
#pragma GCC unroll 16
              for (int q = 0; q < kColumns; ++q) sum[q] += broadcast<T>(pixel[q][o]) * w;
            }
            for (int64_t q = 0; q < columns; ++q) {
              T* target = row + (column + q) * step + vector * kVector;
              for (int64_t lane = 0; lane < valid; ++lane) target[lane] += sum[q][lane];
            }
          }
        }
      }
      if (grid.anchor == kAnchorMax)
        load_row<T>(task.x, n, first + i, grid.width, channels, x + convolution.padding_width * channels + i * pitch);
    }
    transpose_npr<T>(grid, map, x + convolution.padding_width * channels, pitch);
    for (int64_t i = 0; i < grid.size; ++i)
      store_row<T>(map + i * pitch, channels, grid.width, 0, channels, task.out, n, first + i);
  }
}
