// Runs the stems, the convolution, the moments, the bottlenecks and the means of the chosen kernels on pseudo-random
// pixels and prints checksums: a way to compare processors, or emulated ones, without torch. Built and run by
// test_portability.py.
#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "../../csrc/cpu/kernels.h"

namespace {

using namespace npr::cpu;

// Every value has a weight of its place, so that none may stand where another belongs.
void print(const char* what, const char* which, const std::vector<float>& out) {
  double sum = 0, squares = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    sum += out[i] * static_cast<double>(i % 97 + 1);
    squares += static_cast<double>(out[i]) * out[i] * static_cast<double>(i % 89 + 1);
  }
  std::printf("%s %s %s %.6g %.6g\n", kernels().name, what, which, sum, squares);
}

// Values of one type as the kernels keep them: whole multiples of 1/64 below 4, or levels, both exact in bfloat16.
int64_t bytes_of(Type type) {
  return type == Type::kFloat32 ? 4 : type == Type::kBFloat16 ? 2 : 1;
}

std::vector<char> encoded(const std::vector<float>& values, Type type) {
  const size_t bytes = static_cast<size_t>(bytes_of(type));
  std::vector<char> out(values.size() * bytes);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(values[i]);
    const uint32_t word = type == Type::kFloat32    ? bits
                          : type == Type::kBFloat16 ? bits >> 16
                                                    : static_cast<uint32_t>(values[i]);
    std::memcpy(&out[i * bytes], &word, bytes);  // of a little-endian machine
  }
  return out;
}

std::vector<float> decoded(const std::vector<char>& values, Type type) {
  const size_t bytes = static_cast<size_t>(bytes_of(type));
  std::vector<float> out(values.size() / bytes);
  for (size_t i = 0; i < out.size(); ++i) {
    uint32_t word = 0;
    std::memcpy(&word, &values[i * bytes], bytes);
    out[i] = type == Type::kFloat32    ? std::bit_cast<float>(word)
             : type == Type::kBFloat16 ? std::bit_cast<float>(word << 16)
                                       : static_cast<float>(word);
  }
  return out;
}

// A bottleneck of 64 channels on 9 x 10 pixels; `average`: only the sums of its rows.
struct Block {
  const char* name;
  int64_t strip, stride;
  bool project, average;

  void run(const char* kind, Type type, Type out_type) const {
    constexpr int64_t kInner = 64, kHeight = 9, kWidth = 10, kPixels = kHeight * kWidth;
    uint32_t state = 1;
    const bool whole = type == Type::kUInt8, smooth = strip > 1;
    const auto values = [&](int64_t count, int most, float unit) {
      std::vector<float> made(static_cast<size_t>(count));
      for (auto& value : made) {
        state = state * 1664525u + 1013904223u;
        value = unit * static_cast<float>(static_cast<int>((state >> 8) % static_cast<uint32_t>(2 * most + 1)) - most);
      }
      return made;
    };
    // A matrix for each place of a transformed tile, or the whole.
    const auto pack = [&](int64_t inputs, int64_t matrices, Weight weight, int64_t bytes, int most) {
      std::vector<char> packed(static_cast<size_t>(kInner * inputs * matrices * bytes));
      for (int64_t i = 0; i < matrices; ++i)
        kernels().pack_weights(values(kInner * inputs, most, whole ? 1.f : 1 / 64.f).data(), kInner, inputs, weight,
                               packed.data() + i * kInner * inputs * bytes);
      return packed;
    };
    const Weight weight = type == Type::kFloat32      ? Weight::kFloat32
                          : type == Type::kBFloat16   ? Weight::kBFloat16
                                                      : Weight::kInt8;
    const int64_t bytes = bytes_of(type), places = smooth ? (strip + 2) * (strip + 2) : 1;
    std::vector<float> image = values(kPixels * kInner, whole ? 63 : 64, whole ? 1.f : 1 / 64.f);
    if (whole)
      for (auto& value : image) value += 63;  // to 126, and what follows stays below: some processors have 127 levels
    const std::vector<char> x = encoded(image, type);
    const bool wide = whole && smooth;
    const std::vector<char> packed[] = {pack(kInner, 1, weight, bytes, whole ? 64 : 16),
                                        pack(smooth ? kInner : 9 * kInner, places, wide ? Weight::kInt16 : weight,
                                             wide ? 2 : bytes, wide ? 1500 : whole ? 64 : 16),
                                        pack(project ? 2 * kInner : kInner, 1, weight, bytes, whole ? 64 : 16)};
    const std::vector<float> biases = values(kInner, 40, out_type == Type::kUInt8 || whole ? 1.f : 1 / 64.f);
    const std::vector<float> outer(kInner, 0.0003f), inner(kInner, wide ? 0.0000005f : 0.0001f), shortcut(kInner, 0.5f);
    const int64_t out_height = (kHeight - 1) / stride + 1, out_width = (kWidth - 1) / stride + 1;
    std::vector<char> out(static_cast<size_t>(out_height * out_width * kInner * bytes_of(out_type)));
    std::vector<float> sums(static_cast<size_t>(out_height * kInner));
    BottleneckTask task{1, kInner, kHeight, kWidth, out_height, out_width, stride, {kInner, kInner, kInner}, project,
                        strip, type, out_type, x.data(), average ? nullptr : out.data(),
                        average ? sums.data() : nullptr, {packed[0].data(), packed[1].data(), packed[2].data()},
                        {biases.data(), biases.data(), biases.data()}, {}};
    if (whole) {
      const float* const factors[] = {outer.data(), inner.data(), outer.data(), project ? nullptr : shortcut.data()};
      std::copy(factors, factors + 4, task.factors);
    }
    kernels().bottleneck(task, 0, (out_height + strip - 1) / strip);
    print(kind, name, average ? sums : decoded(out, out_type));
  }
};

// Means over squares of 2 x 2 pixels of two images of 9 x 11 pixels and 64 channels; as levels below 120, times 30.
void pool(const char* kind, Type type, Type out_type) {
  constexpr int64_t kBatch = 2, kHeight = 9, kWidth = 11, kChannels = 64, kOutHeight = 5, kOutWidth = 6;
  std::vector<float> image(kBatch * kHeight * kWidth * kChannels);
  uint32_t state = 1;
  for (auto& value : image) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>((state >> 8) % 256) / 64.f;
  }
  const std::vector<char> x = encoded(image, type);
  std::vector<char> out(static_cast<size_t>(kBatch * kOutHeight * kOutWidth * kChannels * bytes_of(out_type)));
  const std::vector<float> factors(kChannels, 30.f);
  const bool levels = out_type == Type::kUInt8;
  const AveragePoolTask task{kBatch, kHeight, kWidth, kChannels, 2, type, out_type, x.data(), out.data(),
                             levels ? factors.data() : nullptr};
  kernels().average_pool(task, 0, kBatch * kOutHeight);
  print(kind, "pool", decoded(out, out_type));
}

}  // namespace

int main() {
  constexpr int64_t kBatch = 2, kChannels = 3, kHeight = 38, kWidth = 50, kOut = 70;
  uint32_t state = 1;
  const auto next = [&] { return (state = state * 1664525u + 1013904223u) >> 8; };
  std::vector<uint8_t> pixels(kBatch * kHeight * kWidth * kChannels);
  for (auto& pixel : pixels) pixel = static_cast<uint8_t>(next());
  std::vector<float> weight(kOut * kChannels * 9), bias(kOut), scale(kChannels, 0.01f);
  for (auto& w : weight) w = static_cast<float>(next() % 2001) / 1000.f - 1.f;
  for (auto& b : bias) b = static_cast<float>(next() % 2001) / 1000.f - 1.f;

  Task task{};
  task.convolution = {kOut, kHeight / 2, kWidth / 2, 3, 3, 2, 2, 1, 1};
  task.x = {pixels.data(), Type::kUInt8, {kHeight * kWidth * kChannels, 1, kWidth * kChannels, kChannels}};
  task.weight = weight.data();
  task.bias = bias.data();
  task.scale = scale.data();
  for (int64_t anchor : {int64_t{0}, int64_t{3}, npr::kAnchorMean, npr::kAnchorMax}) {
    task.grid = {kBatch, kChannels, kHeight, kWidth, 2, anchor};
    for (bool stem : {false, true}) {
      const int64_t height = stem ? npr::pooled_size(kHeight / 2) : kHeight / 2;
      const int64_t width = stem ? npr::pooled_size(kWidth / 2) : kWidth / 2;
      std::vector<float> out(kBatch * height * width * kOut);
      task.out = {out.data(), Type::kFloat32, {height * width * kOut, 1, width * kOut, kOut}};
      (stem ? kernels().stem : kernels().conv)(task, 0, kBatch * height);
      print(stem ? "stem" : "conv", std::to_string(anchor).c_str(), out);
    }

    const int64_t height = npr::pooled_size(kHeight / 2), width = npr::pooled_size(kWidth / 2);
    constexpr int64_t kPatch = kChannels * 9;
    std::vector<float> pooled(kBatch * height * width * kOut);
    std::vector<uint8_t> argmax(pooled.size());
    task.out = {pooled.data(), Type::kFloat32, {height * width * kOut, 1, width * kOut, kOut}};
    task.out_argmax = {argmax.data(), Type::kUInt8, {height * width * kOut, 1, width * kOut, kOut}};
    kernels().stem_argmax(task, 0, kBatch * height);
    task.grad = {pooled.data(), Type::kFloat32, {height * width * kOut, 1, width * kOut, kOut}};
    task.argmax = {argmax.data(), Type::kUInt8, {height * width * kOut, 1, width * kOut, kOut}};
    std::vector<double> products((kPatch + 1) * kOut), moments(kPatch * (kPatch + 1));
    kernels().stem_grad_weight(task, 0, kBatch * (kHeight / 2), products.data());
    kernels().moments(task, 0, kBatch * (kHeight / 2), moments.data());
    double of_products = 0, of_moments = 0;
    for (size_t i = 0; i < products.size(); ++i) of_products += products[i] * static_cast<double>(i % 7 + 1);
    for (size_t i = 0; i < moments.size(); ++i) {
      const bool filled = i < kPatch || i % kPatch >= i / kPatch - 1;  // sums, or the upper triangle of products
      if (filled) of_moments += moments[i] * static_cast<double>(i % 7 + 1);
    }
    std::printf("%s sums %ld %.6g %.6g\n", kernels().name, static_cast<long>(anchor), of_products, of_moments);
  }

  const bool bfloat16 = kernels().bfloat16_products, levels = kernels().max_quantised_value > 0;
  const Type real = bfloat16 ? Type::kBFloat16 : Type::kFloat32;
  for (const Block& block : {Block{"direct", 1, 1, false, false}, Block{"winograd", 2, 1, false, false},
                             Block{"strided", 1, 2, true, false}, Block{"average", 2, 1, true, true}}) {
    block.run("float32", Type::kFloat32, Type::kFloat32);
    if (bfloat16) block.run("bfloat16", Type::kBFloat16, Type::kBFloat16);
  }
  pool("float32", Type::kFloat32, Type::kFloat32);
  if (bfloat16) pool("bfloat16", Type::kBFloat16, Type::kBFloat16);
  if (!levels) return 0;
  pool("to_levels", real, Type::kUInt8);
  for (const Block& block : {Block{"direct", 1, 1, false, false}, Block{"winograd", 4, 1, false, false},
                             Block{"strided", 1, 2, true, false}})
    block.run("levels", Type::kUInt8, Type::kUInt8);
  Block{"strided", 1, 2, true, false}.run("to_levels", real, Type::kUInt8);
  Block{"winograd", 4, 1, true, false}.run("from_levels", Type::kUInt8, real);
  Block{"average", 4, 1, false, true}.run("from_levels", Type::kUInt8, real);
}
