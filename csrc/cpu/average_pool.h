// Averages over squares of pixels, which may be cut off at the lower and right edges.

// Computes the rows [begin, end) of batch * out_height. A mean is multiplied by the factor of its channel, if there are
// factors; a negative one becomes 0, as in all results that are stored as levels.
template <typename Element, typename Output>
void average_pool_rows(const AveragePoolTask& task, int64_t begin, int64_t end) {
  const int64_t channels = task.channels, side = task.side, pitch = task.width * channels;
  const int64_t out_height = (task.height + side - 1) / side, out_width = (task.width + side - 1) / side;
  Output* out = static_cast<Output*>(task.out) + begin * out_width * channels;
  for (int64_t index = begin; index < end; ++index) {
    const int64_t n = index / out_height, top = index % out_height * side;
    const int64_t rows = task.height - top < side ? task.height - top : side;
    const Element* strip = static_cast<const Element*>(task.x) + (n * task.height + top) * pitch;
    for (int64_t left = 0; left < task.width; left += side, out += channels) {
      const int64_t columns = task.width - left < side ? task.width - left : side;
      const Vector<float> share = broadcast<float>(1.0f / static_cast<float>(rows * columns));
      for (int64_t c = 0; c < channels; c += kBlockChannels) {
        Vector<float> sum[kChannelVectors] = {};
        for (int64_t y = 0; y < rows; ++y)
          for (int64_t x = 0; x < columns; ++x)
#pragma GCC unroll 16
            for (int v = 0; v < kChannelVectors; ++v)
              sum[v] += load_widened(strip + y * pitch + (left + x) * channels + c + v * kLanes<float>);
#pragma GCC unroll 16
        for (int v = 0; v < kChannelVectors; ++v) {
          sum[v] *= share;
          if (task.factor) sum[v] *= load(task.factor + c + v * kLanes<float>);
        }
        store_rectified(out + c, sum);
      }
    }
  }
}
