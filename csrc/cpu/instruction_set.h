// Compiles all kernels for one instruction set, in their own namespace. The file of an instruction set defines these
// macros and then includes this file:
//
//   NPR_INSTRUCTION_SET    name of the instruction set
//   NPR_TARGET             the compiler's names for its features; not defined for the compiler's default target
//   NPR_VECTOR_BYTES       size of a vector register
//   NPR_CHANNEL_VECTORS    number of vectors of output channels that one block computes
//   NPR_GRADIENT_TAPS      number of taps of the weight gradient that are held in registers
//   NPR_HAS_BFLOAT16_DOT   defined if there are dot products of bfloat16 pairs
//   NPR_HAS_INTEGER_DOT    defined if there are dot products of int16 pairs, and of pairs of uint8 and int8 that
//                          saturate at 16 bits
//   NPR_HAS_VNNI           defined if there are also dot products of four uint8 and int8, summed in 32 bits
//
// No standard header may be included after NPR_PUSH_TARGET. Its inline functions would be compiled for that target, and
// the linker might use them on a machine that lacks the instruction set.
#include <stdlib.h>

#include "kernels.h"

#if defined(NPR_TARGET)
#include <immintrin.h>
#define NPR_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define NPR_PUSH_TARGET(names) \
  NPR_PRAGMA(clang attribute push(__attribute__((target(names))), apply_to = function))
#define NPR_POP_TARGET _Pragma("clang attribute pop")
#else
#define NPR_PUSH_TARGET(names) _Pragma("GCC push_options") NPR_PRAGMA(GCC target(names))
#define NPR_POP_TARGET _Pragma("GCC pop_options")
#endif
NPR_PUSH_TARGET(NPR_TARGET)
#endif

namespace npr::cpu::NPR_INSTRUCTION_SET {
namespace {

constexpr int kVectorBytes = NPR_VECTOR_BYTES;
constexpr int kChannelVectors = NPR_CHANNEL_VECTORS;
constexpr int kGradientTaps = NPR_GRADIENT_TAPS;
#if defined(NPR_HAS_VNNI)
constexpr int64_t kMostLevel = 255;
#elif defined(NPR_HAS_INTEGER_DOT)
constexpr int64_t kMostLevel = 127;  // the sum of two products 127 * 127 fits into 16 bits
#else
constexpr int64_t kMostLevel = 0;
#endif

#include "vector.h"
#include "arithmetic.h"
#include "npr_rows.h"
#include "forward.h"
#include "gradients.h"
#include "moments.h"
#include "bottleneck.h"
#include "winograd.h"
#include "average_pool.h"

inline void npr_any(const Task& task, int64_t begin, int64_t end) {
  task.in_double ? npr_rows<double>(task, begin, end) : npr_rows<float>(task, begin, end);
}

inline void npr_backward_any(const Task& task, int64_t begin, int64_t end) {
  task.in_double ? npr_backward_rows<double>(task, begin, end) : npr_backward_rows<float>(task, begin, end);
}

inline void conv_grad_input_any(const Task& task, int64_t begin, int64_t end) {
  task.in_double ? conv_grad_input_rows<double>(task, begin, end) : conv_grad_input_rows<float>(task, begin, end);
}

inline void conv_grad_weight_any(const Task& task, int64_t begin, int64_t end, double* sum) {
  task.in_double ? conv_grad_weight_rows<double>(task, begin, end, sum)
                 : conv_grad_weight_rows<float>(task, begin, end, sum);
}

inline void stem_grad_weight_any(const Task& task, int64_t begin, int64_t end, double* sum) {
  task.in_double ? stem_grad_weight_rows<double>(task, begin, end, sum)
                 : stem_grad_weight_rows<float>(task, begin, end, sum);
}

inline void moments_any(const Task& task, int64_t begin, int64_t end, double* sum) {
  task.in_double ? moments_rows<double>(task, begin, end, sum) : moments_rows<float>(task, begin, end, sum);
}

// Products are computed in bfloat16 only if eager bfloat16 is not more accurate. That is the case for uint8 pixels and
// a bfloat16 result: the differences are exact in bfloat16, so only the rounding of the weights adds an error.
inline bool products_in_bfloat16(const Task& task) {
  return task.x.type == Type::kUInt8 && task.grid.anchor >= 0 && task.out.type == Type::kBFloat16 && !task.in_double;
}

inline void conv_any(const Task& task, int64_t begin, int64_t end) {
#ifdef NPR_HAS_BFLOAT16_DOT
  if (products_in_bfloat16(task)) return conv_rows<BFloat16>(task, begin, end);
#endif
  task.in_double ? conv_rows<double>(task, begin, end) : conv_rows<float>(task, begin, end);
}

template <bool Argmax>
inline void stem_any(const Task& task, int64_t begin, int64_t end) {
#ifdef NPR_HAS_BFLOAT16_DOT
  if (products_in_bfloat16(task)) return stem_rows<BFloat16, Argmax>(task, begin, end);
#endif
  task.in_double ? stem_rows<double, Argmax>(task, begin, end) : stem_rows<float, Argmax>(task, begin, end);
}

#ifdef NPR_HAS_BFLOAT16_DOT
constexpr bool kBFloat16Products = true;
#else
constexpr bool kBFloat16Products = false;
#endif

template <typename Element, typename Output = Element>
void bottleneck_rows(const BottleneckTask& task, int64_t begin, int64_t end) {
  if (task.strip == 1) return bottleneck_direct<Element, Output>(task, begin, end);
#ifdef NPR_HAS_INTEGER_DOT
  if constexpr (kIsLevel<Element>) return Winograd<TilesOfFour, Element, Output>(task).run(begin, end);
#endif
  if constexpr (!kIsLevel<Element>) Winograd<TilesOfTwo<Element>, Element, Output>(task).run(begin, end);
}

inline void bottleneck_any(const BottleneckTask& task, int64_t begin, int64_t end) {
#ifdef NPR_HAS_INTEGER_DOT
  if (task.type == Type::kUInt8)
    return task.out_type == Type::kUInt8 ? bottleneck_rows<uint8_t>(task, begin, end)
                                         : bottleneck_rows<uint8_t, Real>(task, begin, end);
  if (task.out_type == Type::kUInt8) return bottleneck_rows<Real, uint8_t>(task, begin, end);
#endif
#ifdef NPR_HAS_BFLOAT16_DOT
  if (task.type == Type::kBFloat16) return bottleneck_rows<BFloat16>(task, begin, end);
#endif
  bottleneck_rows<float>(task, begin, end);
}

inline void average_pool_any(const AveragePoolTask& task, int64_t begin, int64_t end) {
#ifdef NPR_HAS_INTEGER_DOT
  if (task.out_type == Type::kUInt8) return average_pool_rows<Real, uint8_t>(task, begin, end);
#endif
#ifdef NPR_HAS_BFLOAT16_DOT
  if (task.type == Type::kBFloat16) return average_pool_rows<BFloat16, BFloat16>(task, begin, end);
#endif
  average_pool_rows<float, float>(task, begin, end);
}

inline void pack_weights_any(const float* weight, int64_t channels, int64_t inputs, Weight type, void* packed) {
#ifdef NPR_HAS_INTEGER_DOT
  if (type == Weight::kInt8) return pack_weights_as<uint8_t>(weight, channels, inputs, static_cast<int8_t*>(packed));
  if (type == Weight::kInt16) return pack_weights_as<int16_t>(weight, channels, inputs, static_cast<int16_t*>(packed));
#endif
#ifdef NPR_HAS_BFLOAT16_DOT
  if (type == Weight::kBFloat16)
    return pack_weights_as<BFloat16>(weight, channels, inputs, static_cast<BFloat16*>(packed));
#endif
  pack_weights_as<float>(weight, channels, inputs, static_cast<float*>(packed));
}

}  // namespace

#define NPR_STRING_OF(name) #name
#define NPR_STRING(name) NPR_STRING_OF(name)
extern const Kernels table;
const Kernels table = {NPR_STRING(NPR_INSTRUCTION_SET), npr_any, npr_backward_any, conv_grad_input_any,
                       conv_any, conv_grad_weight_any, moments_any, stem_any<false>, stem_any<true>, stem_grad_weight_any,
                       bottleneck_any, average_pool_any, pack_weights_any, kBlockChannels, kBFloat16Products, kMostLevel};

}  // namespace npr::cpu::NPR_INSTRUCTION_SET

#if defined(NPR_TARGET)
NPR_POP_TARGET
#endif
