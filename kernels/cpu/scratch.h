// One thread's scratch memory, cut into the tiles of a kernel.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/simd.h"

namespace sdpa::cpu::SDPA_ISA {

// Takes pieces that begin at cache lines. With a null base it only counts their bytes.
class Scratch {
 public:
  explicit Scratch(void* base) : base_(reinterpret_cast<uintptr_t>(base)) {}

  template <typename E = float>
  E* take(size_t n) {
    const uintptr_t at = base_ + bytes_;
    bytes_ += (n * sizeof(E) + 63) / 64 * 64;
    return reinterpret_cast<E*>(at);
  }
  size_t bytes() const { return bytes_; }

 private:
  uintptr_t base_;
  size_t bytes_ = 0;
};

}  // namespace sdpa::cpu::SDPA_ISA
