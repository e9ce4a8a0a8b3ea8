#include "cpu.h"

namespace mainspring {

std::vector<const Operations*> usable_operations() {
  std::vector<const Operations*> usable;
#if defined(MAINSPRING_X86)
  // The compiler's runtime also checks that the operating system saves the wide registers.
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16")) {
    usable.push_back(&avx512::operations);
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    usable.push_back(&avx2::operations);
  }
#endif
  usable.push_back(&portable::operations);
  return usable;
}

}  // namespace mainspring
