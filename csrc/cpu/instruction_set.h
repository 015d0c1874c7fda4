// The kernels of one instruction set. An instruction-set file sets the compiler's target and the constants below in a
// namespace of its own, then includes this. No header of the standard library may come in here: its inline functions
// would be compiled for that target, and the linker might hand them to a machine that lacks it.
//
//   kVectorBytes      size of a vector register
//   kChannelVectors   vectors of output channels that one block computes
//   kMaxTaps          taps of the weight gradient held in registers

#include "vector.h"
#include "arithmetic.h"
#include "npr_rows.h"
#include "forward.h"
#include "gradients.h"

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

// Products in bfloat16 are used only where eager bfloat16 would do no better: the differences of uint8 pixels are exact
// and the result is bfloat16, so the weights' rounding is all that is lost.
inline bool products_in_bfloat16(const Task& task) {
  return task.x.type == Type::kUInt8 && task.grid.anchor >= 0 && task.out.type == Type::kBFloat16;
}

inline void conv_any(const Task& task, int64_t begin, int64_t end) {
#ifdef NPR_HAS_BFLOAT16_DOT
  if (products_in_bfloat16(task)) return conv_rows<BFloat16>(task, begin, end);
#endif
  task.in_double ? conv_rows<double>(task, begin, end) : conv_rows<float>(task, begin, end);
}

inline void stem_any(const Task& task, int64_t begin, int64_t end) {
#ifdef NPR_HAS_BFLOAT16_DOT
  if (products_in_bfloat16(task)) return stem_rows<BFloat16>(task, begin, end);
#endif
  task.in_double ? stem_rows<double>(task, begin, end) : stem_rows<float>(task, begin, end);
}

#define NPR_KERNELS_OF(name) \
  Kernels { name, npr_any, npr_backward_any, conv_grad_input_any, conv_any, conv_grad_weight_any, stem_any }
