// Chooses the kernels for the processor at run time.
#include <cstdlib>
#include <cstring>
#include <new>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace npr::cpu {

namespace portable { extern const Kernels table; }

#if defined(__x86_64__)
namespace avx2 { extern const Kernels table; }
namespace avx512 { extern const Kernels table; }
namespace avx512bf16 { extern const Kernels table; }
#endif

namespace {

struct Candidate {
  const Kernels* kernels;
  bool supported;
};

const Kernels& choose() {
  const Candidate candidates[] = {
#if defined(__x86_64__)
      {&avx512bf16::table, __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni") &&
                               __builtin_cpu_supports("avx512bw") &&
                               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")},
      {&avx512::table, __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                           __builtin_cpu_supports("avx512vl")},
      {&avx2::table, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")},
#endif
      {&portable::table, true},
  };
  const char* wanted = std::getenv("NPR_KERNELS_CPU_CAPABILITY");
  std::string names;
  for (const Candidate& candidate : candidates) {
    if (!candidate.supported) continue;
    if (!wanted || !*wanted || std::strcmp(wanted, candidate.kernels->name) == 0) return *candidate.kernels;
    names += std::string(names.empty() ? "" : ", ") + candidate.kernels->name;
  }
  throw std::runtime_error("NPR_KERNELS_CPU_CAPABILITY is '" + std::string(wanted) + "'; this machine has " + names);
}

}  // namespace

void out_of_memory() { throw std::bad_alloc(); }

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace npr::cpu
