// Memory of one evaluation on the CPU.
#pragma once

#include <algorithm>
#include <cstdint>

#include <mlx/allocator.h>
#include <mlx/backend/cpu/encoder.h>

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

}  // namespace sdpa::cpu
