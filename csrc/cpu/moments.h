// Computes the first and second moments of the patches that the convolution sees. The batch-norm statistics of the
// convolution's output follow from them.

// Multiplies kSide planes by kSide other planes and sums each product over `count` positions, a multiple of the lanes.
template <int kSide>
inline void multiply_planes(const double* a, const double* b, int64_t count, double (&result)[kSide][kSide]) {
  Vector<double> sum[kSide][kSide] = {};
  for (int64_t i = 0; i < count; i += kLanes<double>) {
    Vector<double> right[kSide];
#pragma GCC unroll 16
    for (int k = 0; k < kSide; ++k) right[k] = load(b + k * count + i);
#pragma GCC unroll 16
    for (int j = 0; j < kSide; ++j) {
      const Vector<double> left = load(a + j * count + i);
#pragma GCC unroll 16
      for (int k = 0; k < kSide; ++k) sum[j][k] += left * right[k];
    }
  }
  for (int j = 0; j < kSide; ++j)
    for (int k = 0; k < kSide; ++k) {
      result[j][k] = 0;
      for (int64_t lane = 0; lane < kLanes<double>; ++lane) result[j][k] += sum[j][k][lane];
    }
}

// Patches are stored as one plane per element, with a run of positions in each plane. All sums are double, because
// variances are small differences of these large numbers.
class Moments {
 public:
  explicit Moments(const Task& task, double* sum)
      : size_(task.convolution.kernel_height * task.convolution.kernel_width * task.grid.channels),
        first_(sum),
        second_(sum + size_),
        elements_(task),
        planes_((elements_.count() + kSide) * kRun) {}

  // Adds the positions [0, width) of a row. Position x sees `row_length` elements from each `rows[k] + x * step`.
  template <typename T>
  void add_row(const T* const* rows, int64_t width, int64_t step, int64_t row_length) {
    for (int64_t x = 0; x < width;) {
      const int64_t room = kRun - filled_, count = width - x < room ? width - x : room;
      for (int64_t i = 0; i < elements_.count(); ++i) {
        const T* source = rows[elements_[i] / row_length] + elements_[i] % row_length + x * step;
        double* plane = planes_ + i * kRun + filled_;
        for (int64_t p = 0; p < count; ++p) plane[p] = static_cast<double>(source[p * step]);
      }
      x += count;
      filled_ += count;
      if (filled_ == kRun) add_run();
    }
  }

  void finish() {
    for (int64_t i = 0; i < elements_.count(); ++i)
      for (int64_t p = filled_; p < kRun; ++p) planes_[i * kRun + p] = 0;
    add_run();
  }

 private:
  static constexpr int64_t kRun = 256;
  static constexpr int kSide = kChannelVectors == 4 ? 4 : 3;  // the sums fit into 32 or 16 registers

  void add_run() {
    const int64_t count = elements_.count();
    for (int64_t i = 0; i < count; i += kSide) {
      for (int64_t j = i; j < count; j += kSide) {
        double products[kSide][kSide];
        multiply_planes<kSide>(planes_ + i * kRun, planes_ + j * kRun, kRun, products);
        for (int k = 0; k < kSide && i + k < count; ++k)
          for (int l = 0; l < kSide && j + l < count; ++l)
            second_[elements_[i + k] * size_ + elements_[j + l]] += products[k][l];
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      Vector<double> sum{};
      for (int64_t p = 0; p < kRun; p += kLanes<double>) sum += load(planes_ + i * kRun + p);
      for (int64_t lane = 0; lane < kLanes<double>; ++lane) first_[elements_[i]] += sum[lane];
    }
    filled_ = 0;
  }

  int64_t size_, filled_ = 0;
  double *first_, *second_;
  PatchElements elements_;
  Buffer<double> planes_;
};

template <typename T>
void moments_rows(const Task& task, int64_t begin, int64_t end, double* sum) {
  const Convolution& convolution = task.convolution;
  NprRows<T> npr(task, convolution.kernel_height, convolution.padding_width, reach(task, 1));
  Buffer<const T*> rows(convolution.kernel_height);
  Moments moments(task, sum);
  for (int64_t index = begin; index < end; ++index) {
    const int64_t n = index / convolution.out_height, y = index % convolution.out_height;
    for (int64_t k = 0; k < convolution.kernel_height; ++k)
      rows[k] = npr.row(n, y * convolution.stride_height - convolution.padding_height + k);
    moments.add_row<T>(rows, convolution.out_width, convolution.stride_width * task.grid.channels,
                    convolution.kernel_width * task.grid.channels);
  }
  moments.finish();
}
