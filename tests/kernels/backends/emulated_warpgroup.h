// The instructions of csrc/cuda/warpgroup.h for emulated threads. Products are computed as late as they may, when a thread
// waits for them, from what shared memory then holds, and an asynchronous copy spoils its target from its beginning on.
#pragma once

#include <map>
#include <vector>

#define NPR_HAS_WARPGROUPS 1

namespace npr::cuda {
namespace emulation {

struct Matrix {  // of shared memory
  uint32_t address;
  int across, down;
  template <typename T>
  float at(int row, int k) const {
    const uint32_t offset = address + static_cast<uint32_t>(row / 8 * down + k / 8 * across + row % 8 * 16 + k % 8 * 2);
    uint16_t bits;
    std::memcpy(&bits, block.shared + offset, 2);
    return to_float<T>(bits);
  }
};

struct Product {  // of one warp: 16 of the 64 rows
  int columns = 0, first_row = 0;
  bool in_registers = false;
  float* d[kLanes];
  uint32_t* halves[kLanes];  // or these: sums of float16, of factors of float16
  bool adds = true;
  uint32_t a[kLanes][4];
  uint64_t a_matrix = 0, b_matrix = 0;
};

inline Matrix decoded(uint64_t matrix) {
  const auto field = [&](int bit) { return static_cast<uint32_t>(matrix >> bit & 0x3fff) << 4; };
  return {field(0), static_cast<int>(field(16)), static_cast<int>(field(32))};
}

struct Products {
  Product meeting;
  bool begun = false;
  std::vector<std::vector<Product>> pending{1};  // between two end_products each; computed once they are waited for
};
inline Products& products() {
  static std::vector<Products> of_warps(32);
  return of_warps[static_cast<size_t>(block.current->index / kLanes)];
}

inline void compute_halves(const Product& product) {
  const Matrix b_matrix = decoded(product.b_matrix);
  for (int column = 0; column < product.columns; ++column)
    for (int row = 0; row < 16; ++row) {
      uint32_t& word = product.halves[row % 8 * 4 + column % 8 / 2][column / 8 * 2 + row / 8];
      const int shift = column % 2 * 16;
      double sum = product.adds ? to_float<Float16>(static_cast<uint16_t>(word >> shift)) : 0;
      for (int k = 0; k < 16; ++k) {
        const uint32_t pair = product.a[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
        sum += double{k % 2 == 0 ? low_half<Float16>(pair) : high_half<Float16>(pair)} * b_matrix.at<Float16>(column, k);
      }
      word = (word & ~(0xffffu << shift)) | static_cast<uint32_t>(to_bits<Float16>(static_cast<float>(sum))) << shift;
    }
}

inline void compute(const Product& product) {
  if (product.d[0] == nullptr) return compute_halves(product);
  const Matrix a_matrix = decoded(product.a_matrix), b_matrix = decoded(product.b_matrix);
  float a[16][16];
  for (int row = 0; row < 16; ++row)
    for (int k = 0; k < 16; ++k) {
      const uint32_t word = product.a[row % 8 * 4 + k % 8 / 2][row / 8 + k / 8 * 2];
      a[row][k] = !product.in_registers ? a_matrix.at<BFloat16>(product.first_row + row, k)
                  : k % 2 == 0          ? low_half<BFloat16>(word)
                                        : high_half<BFloat16>(word);
    }
  for (int column = 0; column < product.columns; ++column) {
    float b[16];
    for (int k = 0; k < 16; ++k) b[k] = b_matrix.at<BFloat16>(column, k);
    for (int row = 0; row < 16; ++row) {
      float& d = product.d[row % 8 * 4 + column % 8 / 2][column / 8 * 4 + row / 8 * 2 + column % 2];
      for (int k = 0; k < 16; ++k) d += a[row][k] * b[k];
    }
  }
}

inline void issue(float* d, int columns, const uint32_t* a, uint64_t a_matrix, uint64_t b_matrix,
                  uint32_t* halves = nullptr, bool adds = true) {
  static const char instruction = 0;
  Products& mine = products();
  Product& meeting = mine.meeting;
  if (!mine.begun) fail("products without begin_products");
  if (my_warp().arrived == 0) {
    meeting.columns = columns;
    meeting.first_row = block.current->index / kLanes % 4 * 16;
    meeting.in_registers = a != nullptr;
    meeting.a_matrix = a_matrix;
    meeting.b_matrix = b_matrix;
    meeting.adds = adds;
  } else if (meeting.a_matrix != a_matrix || meeting.b_matrix != b_matrix) {
    fail("the lanes of a warp name different matrices");
  }
  meeting.d[my_lane()] = d;
  meeting.halves[my_lane()] = halves;
  if (a != nullptr) std::memcpy(meeting.a[my_lane()], a, sizeof meeting.a[0]);
  together(&instruction, [&](Warp&) { mine.pending.back().push_back(meeting); });
}

}  // namespace emulation

inline const char* without_warpgroups() { return nullptr; }

inline int uniform(int value) { return value; }

inline void store_global(unsigned char* to, uint4 value) { std::memcpy(to, &value, sizeof value); }

inline void copy_async_or_zero(uint32_t address, const unsigned char* from, bool read) {
  static const unsigned char zeros[16] = {};
  std::memset(emulation::block.shared + address, 0xff, 16);
  copy_async<16>(address, read ? from : zeros);
}

inline void fence_shared() {}

namespace emulation {
struct Barrier {
  unsigned char* to;
  const unsigned char* from;
  size_t bytes;
  uint32_t turns, landed;
};
inline std::map<uint32_t, Barrier> barriers;  // by address, of the block that runs
}  // namespace emulation

inline void make_barrier(uint32_t barrier) { emulation::barriers[barrier] = {}; }
inline void copy_bulk(uint32_t to, const unsigned char* from, int bytes, uint32_t barrier) {
  emulation::Barrier& at = emulation::barriers.at(barrier);
  if (to % 16 || reinterpret_cast<uintptr_t>(from) % 16 || bytes % 16) emulation::fail("a bulk copy is not aligned");
  if (at.turns != at.landed) emulation::fail("a barrier has two copies at once");
  at = {emulation::block.shared + to, from, static_cast<size_t>(bytes), at.turns + 1, at.landed};
  std::memset(at.to, 0xff, at.bytes);
}
inline void await_bulk(uint32_t barrier, uint32_t parity) {
  emulation::Barrier& at = emulation::barriers.at(barrier);
  while (at.turns % 2 == parity) emulation::yield();  // for another warp to begin the copy
  if (at.turns == at.landed) return;
  std::memcpy(at.to, at.from, at.bytes);
  ++at.landed;
}

inline bool count_in(uint32_t counter, int most) {
  const uint32_t count = load_shared<uint32_t>(counter) + 1;
  const bool last = count == static_cast<uint32_t>(most);
  store_shared(counter, last ? 0 : count);
  return last;
}

inline void synchronize_group(int group) {
  if (group != emulation::block.current->index / emulation::kWarpgroup) emulation::fail("the barrier of another warpgroup");
  emulation::block.current->at_barrier = emulation::block.current->of_group = true;
  emulation::yield();
}

inline uint32_t pack_relu(float low, float high) {
  const auto relu = [](float value) { return value <= 0 ? 0.0f : value; };
  return pack<BFloat16>(relu(low), relu(high));
}

inline void store_transposed(uint32_t column, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  static const char instruction = 0;
  if (column % 16) emulation::fail("a column for stmatrix is not aligned");
  emulation::Warp& warp = emulation::my_warp();
  const int me = emulation::my_lane();
  warp.in[me][0] = a;
  warp.in[me][1] = b;
  warp.in[me][2] = c;
  warp.in[me][3] = d;
  warp.in[me][4] = column;
  emulation::together(&instruction, [](emulation::Warp& w) {
    for (auto lane = 0; lane < emulation::kLanes; ++lane)
      for (int m = 0; m < 4; ++m)
        for (int i = 0; i < 2; ++i) {
          const uint16_t half = static_cast<uint16_t>(w.in[lane][m] >> 16 * i);
          std::memcpy(emulation::block.shared + w.in[8 * m + lane % 4 * 2 + i][4] + lane / 4 * 2, &half, 2);
        }
  });
}

inline uint64_t matrix(uint32_t address, int across, int down) {
  if (address % 16 || across % 16 || down % 16) emulation::fail("a matrix is not aligned");
  return static_cast<uint64_t>((address & 0x3ffff) >> 4) | static_cast<uint64_t>(across >> 4) << 16 |
         static_cast<uint64_t>(down >> 4) << 32;
}

inline void begin_products() { emulation::products().begun = true; }
inline void end_products() {
  static const char instruction = 0;
  emulation::Products& mine = emulation::products();
  emulation::together(&instruction, [&](emulation::Warp&) {
    mine.begun = false;
    mine.pending.emplace_back();
  });
}

namespace emulation {
// Computes all products except those of the newest `newest` end_products.
inline void await(size_t newest) {
  static const char instruction = 0;
  Products& mine = products();
  if (mine.begun) fail("a wait for products that have not ended");
  together(&instruction, [&](Warp&) {
    for (; mine.pending.size() > newest + 1; mine.pending.erase(mine.pending.begin()))
      for (const Product& product : mine.pending.front()) compute(product);
  });
}
}  // namespace emulation

inline void await_older_products() { emulation::await(1); }
template <typename Sum, int kSums>
void await_products(Sum (&)[kSums]) {
  emulation::await(0);
}

template <int kSums>
void multiply(float (&d)[kSums], uint64_t a, uint64_t b) {
  emulation::issue(d, 2 * kSums, nullptr, a, b);
}
template <int kSums>
void multiply(float (&d)[kSums], const uint32_t (&a)[4], uint64_t b) {
  emulation::issue(d, 2 * kSums, a, 0, b);
}

template <bool kAdds>
void multiply(uint32_t (&d)[16], const uint32_t (&a)[4], uint64_t b) {
  emulation::issue(nullptr, 64, a, 0, b, d, kAdds);
}

}  // namespace npr::cuda
