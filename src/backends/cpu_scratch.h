// Memory of one evaluation on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <mlx/allocator.h>
#include <mlx/backend/cpu/encoder.h>

#include "src/launch.h"

namespace sdpa::cpu {

// Scratch from MLX's allocator, so that its memory figures include it; freed when the stream has done what was dispatched.
template <typename T>
T* scratch(int64_t bytes, mlx::core::cpu::CommandEncoder& encoder) {
  constexpr size_t kAlign = 64;
  mlx::core::array block(
      {int(std::max<int64_t>((bytes + kAlign - 1) / kAlign + 1, 1)), int(kAlign / 4)},
      mlx::core::uint32, nullptr, {});
  block.set_data(mlx::core::allocator::malloc(block.nbytes()));
  encoder.add_temporary(block);
  auto address = reinterpret_cast<uintptr_t>(block.data<uint32_t>());
  return reinterpret_cast<T*>((address + kAlign - 1) / kAlign * kAlign);
}

// Memory of an output. malloc maps what is this large for itself (M_MMAP_THRESHOLD_MAX, mallopt(3)), each time anew: in
// pages of 4 KiB, 8192 faults for every 32 MiB.
inline void allocate_output(mlx::core::array& x) {
  allocate(x);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr size_t kMapped = 32 << 20;
  if (x.nbytes() < kMapped) return;
  const auto page = uintptr_t(sysconf(_SC_PAGESIZE)),
             at = reinterpret_cast<uintptr_t>(x.data<char>());
  const uintptr_t begin = (at + page - 1) / page * page, end = (at + x.nbytes()) / page * page;
  madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // may be refused
#endif
}

}  // namespace sdpa::cpu
