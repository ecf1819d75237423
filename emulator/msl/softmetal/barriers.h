// metal_compute: barriers.
#pragma once

#include "types.h"

namespace metal {

enum class mem_flags : unsigned {
  mem_none = 0,
  mem_device = 1,
  mem_threadgroup = 2,
  mem_texture = 4
};

constexpr mem_flags operator|(mem_flags a, mem_flags b) {
  return mem_flags(unsigned(a) | unsigned(b));
}

METAL_FUNC void threadgroup_barrier(mem_flags flags) {
  softmetal_threadgroup_barrier(unsigned(flags), SOFTMETAL_SITE);
}
METAL_FUNC void simdgroup_barrier(mem_flags flags) {
  softmetal_simdgroup_barrier(unsigned(flags), SOFTMETAL_SITE);
}

}  // namespace metal
