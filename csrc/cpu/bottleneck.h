// A residual bottleneck in evaluation mode, its batch norms folded: 1x1, 3x3 and 1x1 convolutions, the shortcut and
// the ReLUs in one pass. Only three rows of the first convolution's output and one of the second's exist at a time, in
// the caches of the core that made them; the image is read once and the result written once.

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

// One convolution's weights, as pack_weights orders them, and bias; the outputs have `channels` elements a pixel.
template <typename Element>
struct Layer {
  const Element* weights;
  const float* bias;
  int64_t channels;
};

// out = relu(runs x weights + bias (+ shortcut)) for P pixels and one block of channels, summed in registers.
template <int P, typename Element>
inline void convolve_block(const Run<Element>* runs, int run_count, const Element* weight, const float* bias,
                           const Element* shortcut, Element* out, int64_t pixel, int64_t channels) {
  constexpr int64_t kPack = Arithmetic<Element>::kPack;
  Vector<float> sum[P][kChannelVectors];
#pragma GCC unroll 16
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
    for (int v = 0; v < kChannelVectors; ++v) sum[p][v] = Vector<float>{};

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
  for (int p = 0; p < P; ++p)
#pragma GCC unroll 16
    for (int v = 0; v < kChannelVectors; ++v) {
      const int64_t offset = (pixel + p) * channels + v * kLanes<float>;
      Vector<float> result = sum[p][v] + load(bias + v * kLanes<float>);
      if (shortcut) result += load_widened(shortcut + offset);
      store_narrow<Element, float>(out + offset, Vector<float>{} > result ? Vector<float>{} : result);  // NaN stays
    }
}

// One row of `width` pixels, all output channels.
template <typename Element>
void convolve_row(const Run<Element>* runs, int run_count, const Layer<Element>& layer, const Element* shortcut,
                  Element* out, int64_t width) {
  int64_t inputs = 0;
  for (int run = 0; run < run_count; ++run) inputs += runs[run].length;
  for (int64_t c = 0; c < layer.channels; c += kBlockChannels) {
    const auto block = [&]<int P>(int64_t pixel) __attribute__((always_inline)) {
      convolve_block<P, Element>(runs, run_count, layer.weights + c * inputs, layer.bias + c,
                                 shortcut ? shortcut + c : nullptr, out + c, pixel, layer.channels);
    };
    int64_t pixel = 0;
    for (; pixel + kBlockPixels <= width; pixel += kBlockPixels) block.template operator()<kBlockPixels>(pixel);
    switch (width - pixel) {
      case 5: block.template operator()<5>(pixel); break;
      case 4: block.template operator()<4>(pixel); break;
      case 3: block.template operator()<3>(pixel); break;
      case 2: block.template operator()<2>(pixel); break;
      case 1: block.template operator()<1>(pixel); break;
    }
  }
}

template <typename Element>
void bottleneck_rows(const BottleneckTask& task, int64_t begin, int64_t end) {
  const int64_t width = task.channels[0], out_channels = task.channels[2];
  const auto layer = [&](int i) {
    return Layer<Element>{static_cast<const Element*>(task.weights[i]), task.biases[i], task.channels[i]};
  };
  const Layer<Element> layers[3] = {layer(0), layer(1), layer(2)};
  const int64_t input_pitch = task.width * task.in_channels, output_pitch = task.out_width * out_channels;
  const Element* const x = static_cast<const Element*>(task.x);
  Element* const out = static_cast<Element*>(task.out);

  // Rows of the first convolution's output with a pixel of zeros on either side, row y in slot y % 3.
  const int64_t pitch = (task.width + 2) * width;
  Buffer<Element> first(3 * pitch), zeros(pitch), second(task.out_width * width);
  int64_t made = 0;  // rows of the current image made so far

  for (int64_t index = begin; index < end; ++index) {
    const int64_t n = index / task.out_height, y = index % task.out_height;
    const int64_t top = y * task.stride - 1;  // row under the first row of the 3x3 kernel
    if (index == begin || y == 0) made = top < 0 ? 0 : top;
    const Element* image = x + n * task.height * input_pitch;
    for (; made <= top + 2 && made < task.height; ++made) {
      const Run<Element> run{image + made * input_pitch, task.in_channels, task.in_channels};
      convolve_row<Element>(&run, 1, layers[0], nullptr, first + made % 3 * pitch + width, task.width);
    }

    Run<Element> taps[3];
    for (int64_t k = 0; k < 3; ++k) {
      const bool inside = top + k >= 0 && top + k < task.height;
      taps[k] = {inside ? first + (top + k) % 3 * pitch : zeros + 0, 3 * width, task.stride * width};
    }
    convolve_row<Element>(taps, 3, layers[1], nullptr, second, task.out_width);

    const Element* source = image + y * task.stride * input_pitch;
    const Run<Element> last[2] = {{second, width, width}, {source, task.in_channels, task.stride * task.in_channels}};
    convolve_row<Element>(last, task.project ? 2 : 1, layers[2], task.project ? nullptr : source,
                          out + index * output_pitch, task.out_width);
  }
}

// (O, K) row-major to the order convolve_block reads: blocks of channels, then packs of inputs, then channels.
template <typename Element>
void pack_weights_as(const float* weight, int64_t channels, int64_t inputs, Element* packed) {
  constexpr int64_t kPack = Arithmetic<Element>::kPack;
  for (int64_t c = 0; c < channels; c += kBlockChannels)
    for (int64_t i = 0; i < inputs; i += kPack)
      for (int64_t lane = 0; lane < kBlockChannels; ++lane)
        for (int64_t k = 0; k < kPack; ++k) *packed++ = narrow<Element>(weight[(c + lane) * inputs + i + k]);
}
