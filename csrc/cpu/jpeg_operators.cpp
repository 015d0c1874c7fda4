// Looks for gaps in the histograms of a JPEG's coefficients, which an earlier compression leaves
// (npr_model/imaging/recompression.py explains how). All of it is one call, because screening uses a thread per core,
// and small steps in Python would run one after another.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../common/checks.h"

namespace npr::cpu {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kSide = 8;  // side of a block
constexpr int64_t kLow = 4;   // number of frequencies in each direction
constexpr int64_t kMostBins = 4096, kMostCandidates = 4096;

// Four numbers, one per horizontal frequency.
using Floats = float __attribute__((vector_size(4 * kLow)));
using Integers = int32_t __attribute__((vector_size(4 * kLow)));

// What the luminance and the transform of a block are computed from.
struct Constants {
  float luminance[3][256];  // contribution of each value of red, green and blue
  Floats basis[kSide];      // ITU-T T.81, A.3.3
};

Constants make_constants() {
  Constants made;
  const float weights[3] = {0.299f, 0.587f, 0.114f};
  for (int channel = 0; channel < 3; ++channel)
    for (int value = 0; value < 256; ++value) made.luminance[channel][value] = weights[channel] * static_cast<float>(value);
  for (int64_t place = 0; place < kSide; ++place)
    for (int64_t f = 0; f < kLow; ++f) {
      const double cosine = std::cos(static_cast<double>((2 * place + 1) * f) * std::acos(-1.0) / 16);
      made.basis[place][f] = static_cast<float>((f == 0 ? std::sqrt(0.125) : 0.5) * cosine);
    }
  return made;
}

// Rounds numbers from 0 to 2^22 to the nearest integers, halves to even ones. Near 2^23 a float's last bit counts ones.
Integers rounded(Floats numbers) {
  const Floats shift = Floats{} + 8388608.0f, shifted = numbers + shift;
  return std::bit_cast<Integers>(shifted) - std::bit_cast<Integers>(shift);
}

// Returns a histogram per coefficient, (kLow, kLow, bins): how often its magnitude, rounded to steps, has each value in
// at most `most_blocks` blocks.
std::vector<int64_t> histograms_of(const uint8_t* image, int64_t height, int64_t width, const float* step,
                                   int64_t most_blocks, int64_t bins) {
  static const Constants constants = make_constants();
  const auto& [red, green, blue] = constants.luminance;
  const int64_t columns = width / kSide, blocks = height / kSide * columns, chosen = std::min(blocks, most_blocks);
  const double evenly = static_cast<double>(blocks) / static_cast<double>(chosen);
  const Floats last_bin = Floats{} + static_cast<float>(bins - 1);
  Floats steps[kLow];
  std::memcpy(steps, step, sizeof(steps));
  std::vector<int64_t> counts(static_cast<size_t>(kLow * kLow * bins));
  for (int64_t i = 0; i < chosen; ++i) {
    const auto block = static_cast<int64_t>(static_cast<double>(i) * evenly);
    const uint8_t* corner = image + (block / columns * width + block % columns) * kSide * 3;
    Floats coefficients[kLow] = {};  // (vertical)
    for (int64_t y = 0; y < kSide; ++y) {
      Floats row = {};
      for (int64_t x = 0; x < kSide; ++x) {
        const uint8_t* pixel = corner + (y * width + x) * 3;
        row += (red[pixel[0]] + green[pixel[1]] + blue[pixel[2]]) * constants.basis[x];
      }
      for (int64_t v = 0; v < kLow; ++v) coefficients[v] += constants.basis[y][v] * row;
    }
    int64_t* count = counts.data();
    for (int64_t v = 0; v < kLow; ++v) {
      const Floats magnitude = (coefficients[v] < 0.0f ? -coefficients[v] : coefficients[v]) / steps[v];
      const Integers bin = rounded(magnitude < last_bin ? magnitude : last_bin);
      for (int64_t f = 0; f < kLow; ++f, count += bins) ++count[bin[f]];
    }
  }
  return counts;
}

// A gap: its place in the histograms, those of the values below and above it, and its owner.
struct Place {
  int64_t number, below, above, owner;
};

bool is_dense(const Tensor& tensor, ScalarType dtype, int64_t dimensions) {
  return tensor.dim() == dimensions && tensor.is_cpu() && tensor.is_contiguous() && tensor.scalar_type() == dtype;
}

std::vector<double> coefficient_gaps(const Tensor& pixels, const Tensor& steps, const Tensor& places, const Tensor& shares,
                                     int64_t frequencies, int64_t candidates, int64_t most_blocks, int64_t bins) {
  STD_TORCH_CHECK(is_dense(pixels, ScalarType::Byte, 3) && pixels.size(2) == 3, "pixels must be (H, W, 3) uint8, contiguous");
  STD_TORCH_CHECK(is_dense(steps, ScalarType::Float, 2) && steps.size(0) == kLow && steps.size(1) == kLow,
                  "steps must be (4, 4) float32, contiguous");
  STD_TORCH_CHECK(is_dense(places, ScalarType::Long, 2) && places.size(1) == 4, "places must be (G, 4) int64, contiguous");
  STD_TORCH_CHECK(is_dense(shares, ScalarType::Double, 1) && shares.size(0) == places.size(0),
                  "shares must be (G,) float64, contiguous");
  STD_TORCH_CHECK(most_blocks >= 0 && bins >= 1 && bins <= kMostBins,
                  "blocks cannot be negative, and there must be a bin, and no more than ", kMostBins);
  STD_TORCH_CHECK(frequencies >= 0 && frequencies <= kLow * kLow && candidates >= 0 && candidates <= kMostCandidates,
                  "frequencies must be 0 to ", kLow * kLow, ", and candidates 0 to ", kMostCandidates);
  const int64_t owners = frequencies * candidates;
  const auto* step = static_cast<const float*>(steps.const_data_ptr());
  STD_TORCH_CHECK(std::all_of(step, step + kLow * kLow, [](float one) { return one >= 1; }), "steps must be at least 1");
  const auto* place = static_cast<const Place*>(places.const_data_ptr());
  const int64_t gaps = places.size(0);
  const int64_t size = kLow * kLow * bins;
  const auto is_in = [](int64_t index, int64_t end) { return index >= 0 && index < end; };
  const auto is_valid = [&](const Place& one) {
    return is_in(one.number, size) && is_in(one.below, size) && is_in(one.above, size) && is_in(one.owner, owners);
  };
  STD_TORCH_CHECK(std::all_of(place, place + gaps, is_valid), "a place is in no histogram");

  const std::vector<int64_t> counts = histograms_of(static_cast<const uint8_t*>(pixels.const_data_ptr()), pixels.size(0),
                                                    pixels.size(1), step, most_blocks, bins);
  // Few owners have less than a third of what is expected. Interpolation without logarithms never expects less, so it
  // rules out most owners quickly.
  const auto* share = static_cast<const double*>(shares.const_data_ptr());
  std::vector<double> bound(static_cast<size_t>(owners)), found(bound.size()), expected(bound.size());
  for (int64_t gap = 0; gap < gaps; ++gap) {
    const auto [number, below, above, owner] = place[gap];
    bound[owner] += (1 - share[gap]) * static_cast<double>(counts[below]) + share[gap] * static_cast<double>(counts[above]);
    found[owner] += static_cast<double>(counts[number]);
  }
  constexpr double kRounding = 1 + 1e-9;
  const auto logarithm = [&](int64_t bin) { return std::log(static_cast<double>(counts[bin]) + 0.5); };
  for (int64_t gap = 0; gap < gaps; ++gap) {
    const auto [number, below, above, owner] = place[gap];
    if (3 * found[owner] < kRounding * bound[owner])
      expected[owner] += std::exp((1 - share[gap]) * logarithm(below) + share[gap] * logarithm(above)) - 0.5;
  }
  std::vector<double> deviances(static_cast<size_t>(frequencies));
  for (int64_t owner = 0; owner < owners; ++owner) {
    const double were = found[owner], should = expected[owner];
    double& largest = deviances[owner / candidates];
    if (3 * were < should) largest = std::max(largest, should - were + were * std::log(std::max(were, 1.0) / should));
  }
  return deviances;
}

}  // namespace
}  // namespace npr::cpu

STABLE_TORCH_LIBRARY_IMPL(npr_kernels, CPU, m) {
  m.impl("coefficient_gaps", TORCH_BOX(&npr::cpu::coefficient_gaps));
}
