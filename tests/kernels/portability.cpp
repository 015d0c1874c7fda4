// Runs the stems, the convolution, the moments and the bottlenecks of the chosen kernels on pseudo-random pixels and prints
// checksums: a way to compare processors, or emulated ones, without torch. Built and run by test_portability.py.
#include <cstdint>
#include <cstdio>
#include <vector>

#include "../../csrc/cpu/kernels.h"

namespace {

using namespace npr::cpu;

void print(const char* what, int64_t which, const std::vector<float>& out) {
  double sum = 0, squares = 0;
  for (float value : out) sum += value, squares += static_cast<double>(value) * value;
  std::printf("%s %s %ld %.3f %.3f\n", kernels().name, what, static_cast<long>(which), sum, squares);
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
      print(stem ? "stem" : "conv", anchor, out);
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

  constexpr int64_t kInner = 64, kSide = 9;
  const auto random = [&](int64_t count, float factor) {
    std::vector<float> values(static_cast<size_t>(count));
    for (auto& value : values) value = factor * (static_cast<float>(next() % 2001) / 1000.f - 1.f);
    return values;
  };
  const auto whole = [&](int64_t count, int most) {
    std::vector<float> values(static_cast<size_t>(count));
    for (auto& value : values) value = static_cast<float>(static_cast<int>(next() % (2 * most + 1)) - most);
    return values;
  };
  // A matrix for each place of a transformed tile, or the whole.
  const auto pack = [&](const std::vector<float>& weights, int64_t matrices, Weight type, int64_t bytes) {
    std::vector<char> packed(weights.size() * static_cast<size_t>(bytes));
    const int64_t inputs = static_cast<int64_t>(weights.size()) / kInner / matrices;
    for (int64_t i = 0; i < matrices; ++i)
      kernels().pack_weights(weights.data() + i * kInner * inputs, kInner, inputs, type, packed.data() + i * kInner * inputs * bytes);
    return packed;
  };

  const std::vector<float> image = random(kSide * kSide * kInner, 1.f), biases = random(kInner, 1.f);
  for (int64_t strip : {1, 2}) {  // direct, Winograd's
    const std::vector<char> packed[] = {pack(random(kInner * kInner, 0.1f), 1, Weight::kFloat32, 4),
                                        pack(random((strip == 1 ? 9 : 16) * kInner * kInner, 0.1f), strip == 1 ? 1 : 16, Weight::kFloat32, 4),
                                        pack(random(kInner * kInner, 0.1f), 1, Weight::kFloat32, 4)};
    std::vector<float> out(image.size());
    BottleneckTask block{1, kInner, kSide, kSide, kSide, kSide, 1, {kInner, kInner, kInner}, false, strip,
                         Type::kFloat32, Type::kFloat32, image.data(), out.data(), {}, {packed[0].data(), packed[1].data(), packed[2].data()},
                         {biases.data(), biases.data(), biases.data()}, {}};
    kernels().bottleneck(block, 0, (kSide + strip - 1) / strip);
    print("bottleneck", strip, out);
  }

  // The same on levels, where there are such: bytes or int16.
  const int64_t bytes = kernels().level_bytes;
  if (bytes == 0) return 0;
  std::vector<char> levels(image.size() * static_cast<size_t>(bytes)), out(levels.size());
  for (size_t i = 0; i < image.size(); ++i) levels[i * static_cast<size_t>(bytes)] = static_cast<char>(next() % 256);
  const std::vector<float> level_biases = whole(kInner, 40), shortcut(kInner, 0.75f), first(kInner, 0.0003f);
  const Weight type = bytes == 1 ? Weight::kInt8 : Weight::kInt16;
  for (int64_t strip : {1, 4}) {
    const std::vector<float> second(kInner, strip == 1 ? 0.0001f : 0.000005f);
    const std::vector<char> packed[] = {pack(whole(kInner * kInner, 127), 1, type, bytes),
                                        strip == 1 ? pack(whole(9 * kInner * kInner, 127), 1, type, bytes)
                                                   : pack(whole(36 * kInner * kInner, 1500), 36, Weight::kInt16, 2),
                                        pack(whole(kInner * kInner, 127), 1, type, bytes)};
    BottleneckTask block{1, kInner, kSide, kSide, kSide, kSide, 1, {kInner, kInner, kInner}, false, strip,
                         Type::kUInt8, Type::kUInt8, levels.data(), out.data(), {}, {packed[0].data(), packed[1].data(), packed[2].data()},
                         {level_biases.data(), level_biases.data(), level_biases.data()},
                         {first.data(), second.data(), first.data(), shortcut.data()}};
    kernels().bottleneck(block, 0, (kSide + strip - 1) / strip);
    std::vector<float> values(image.size());
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint8_t>(out[i * static_cast<size_t>(bytes)]);
    print("levels", strip, values);
  }
}
