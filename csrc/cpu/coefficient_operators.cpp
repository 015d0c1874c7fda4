// Looks for gaps in the histograms of a JPEG's coefficients, which an earlier compression leaves
// (npr_model/imaging/recompression.py explains how). All of it is one call, because screening uses a thread per core,
// and small steps in Python would run one after another.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../common/checks.h"

namespace npr::cpu {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kSide = 8;  // side of a block
constexpr int64_t kLow = 4;   // number of frequencies in each direction
constexpr int64_t kMostBins = 4096;

// Returns a histogram per coefficient, (kLow, kLow, bins): how often its magnitude, rounded to steps, has each value in
// at most `most_blocks` blocks.
std::vector<int64_t> histograms_of(const uint8_t* image, int64_t height, int64_t width, const float* step,
                                   int64_t most_blocks, int64_t bins) {
  float basis[kSide][kLow];  // ITU-T T.81, A.3.3
  for (int64_t place = 0; place < kSide; ++place)
    for (int64_t f = 0; f < kLow; ++f) {
      const double cosine = std::cos(static_cast<double>((2 * place + 1) * f) * std::acos(-1.0) / 16);
      basis[place][f] = static_cast<float>((f == 0 ? std::sqrt(0.125) : 0.5) * cosine);
    }
  const int64_t columns = width / kSide, blocks = height / kSide * columns, chosen = std::min(blocks, most_blocks);
  std::vector<int64_t> counts(static_cast<size_t>(kLow * kLow * bins));
  for (int64_t i = 0; i < chosen; ++i) {
    const double evenly = static_cast<double>(blocks) / static_cast<double>(chosen);
    const auto block = static_cast<int64_t>(static_cast<double>(i) * evenly);
    const uint8_t* corner = image + (block / columns * width + block % columns) * kSide * 3;
    float coefficients[kLow][kLow] = {};  // (vertical, horizontal)
    for (int64_t y = 0; y < kSide; ++y) {
      float row[kLow] = {};
      for (int64_t x = 0; x < kSide; ++x) {
        const uint8_t* pixel = corner + (y * width + x) * 3;
        const float luminance = 0.299f * pixel[0] + 0.587f * pixel[1] + 0.114f * pixel[2];
        for (int64_t f = 0; f < kLow; ++f) row[f] += luminance * basis[x][f];
      }
      for (int64_t v = 0; v < kLow; ++v)
        for (int64_t f = 0; f < kLow; ++f) coefficients[v][f] += basis[y][v] * row[f];
    }
    for (int64_t k = 0; k < kLow * kLow; ++k) {
      const float magnitude = std::fabs(coefficients[k / kLow][k % kLow]) / step[k];
      ++counts[static_cast<size_t>(k * bins + std::min<int64_t>(std::lrint(magnitude), bins - 1))];
    }
  }
  return counts;
}

bool is_dense(const Tensor& tensor, ScalarType dtype, int64_t dimensions) {
  return tensor.dim() == dimensions && tensor.is_cpu() && tensor.is_contiguous() && tensor.scalar_type() == dtype;
}

Tensor coefficient_gaps(const Tensor& pixels, const Tensor& steps, const Tensor& places, const Tensor& shares, int64_t owners,
                        int64_t most_blocks, int64_t bins) {
  STD_TORCH_CHECK(is_dense(pixels, ScalarType::Byte, 3) && pixels.size(2) == 3, "pixels must be (H, W, 3) uint8, contiguous");
  STD_TORCH_CHECK(is_dense(steps, ScalarType::Float, 2) && steps.size(0) == kLow && steps.size(1) == kLow,
                  "steps must be (4, 4) float32, contiguous");
  STD_TORCH_CHECK(is_dense(places, ScalarType::Long, 2) && places.size(1) == 4, "places must be (G, 4) int64, contiguous");
  STD_TORCH_CHECK(is_dense(shares, ScalarType::Double, 1) && shares.size(0) == places.size(0),
                  "shares must be (G,) float64, contiguous");
  STD_TORCH_CHECK(most_blocks >= 0 && owners >= 0 && bins >= 1 && bins <= kMostBins,
                  "blocks and owners cannot be negative, and there must be a bin, and no more than ", kMostBins);
  const auto* step = static_cast<const float*>(steps.const_data_ptr());
  STD_TORCH_CHECK(std::all_of(step, step + kLow * kLow, [](float one) { return one >= 1; }), "steps must be at least 1");
  const auto* place = static_cast<const int64_t*>(places.const_data_ptr());
  for (int64_t i = 0; i < 4 * places.size(0); ++i)
    STD_TORCH_CHECK(place[i] >= 0 && place[i] < (i % 4 == 3 ? owners : kLow * kLow * bins), "a place is in no histogram");

  const std::vector<int64_t> counts = histograms_of(static_cast<const uint8_t*>(pixels.const_data_ptr()), pixels.size(0),
                                                    pixels.size(1), step, most_blocks, bins);
  std::vector<double> logarithms(counts.size()), expected(static_cast<size_t>(owners)), found(static_cast<size_t>(owners));
  std::transform(counts.begin(), counts.end(), logarithms.begin(),
                 [](int64_t count) { return std::log(static_cast<double>(count) + 0.5); });
  const auto* share = static_cast<const double*>(shares.const_data_ptr());
  for (int64_t gap = 0; gap < places.size(0); ++gap, place += 4) {
    const auto number = static_cast<size_t>(place[0]), below = static_cast<size_t>(place[1]);
    const auto above = static_cast<size_t>(place[2]), owner = static_cast<size_t>(place[3]);
    expected[owner] += std::exp((1 - share[gap]) * logarithms[below] + share[gap] * logarithms[above]) - 0.5;
    found[owner] += static_cast<double>(counts[number]);
  }
  Tensor deviances = torch::stable::empty({owners}, ScalarType::Double, std::nullopt, pixels.device());
  auto* deviance = static_cast<double*>(deviances.mutable_data_ptr());
  for (size_t i = 0; i < expected.size(); ++i) {
    const double were = found[i], should = expected[i];
    deviance[i] = 3 * were < should ? should - were + were * std::log(std::max(were, 1.0) / should) : 0;
  }
  return deviances;
}

}  // namespace
}  // namespace npr::cpu

STABLE_TORCH_LIBRARY_IMPL(npr_kernels, CPU, m) {
  m.impl("coefficient_gaps", TORCH_BOX(&npr::cpu::coefficient_gaps));
}
