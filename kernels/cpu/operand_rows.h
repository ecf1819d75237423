// Rows of K or V of one KV head, one at a time, however the operand holds them.
#pragma once

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/simd.h"

namespace sdpa::cpu::SDPA_ISA {

template <typename T>
struct DenseRows {
  using E = T;

  const T* at;  // row 0
  int64_t step, col;

  DenseRows from(int key) const { return {at + key * step, step, col}; }

  // Row j, of n values; copied to tmp where the values are not contiguous.
  SDPA_INLINE const T* row(int j, int n, T* tmp) const {
    const T* p = at + j * step;
    if (col == 1) return p;
    for (int i = 0; i < n; ++i) tmp[i] = p[i * col];
    return tmp;
  }
};

template <typename T>
SDPA_INLINE DenseRows<T> dense_rows(const void* base, const Strides& s, int b, int head) {
  return {static_cast<const T*>(base) + b * s.batch + head * s.head, s.row, s.col};
}

}  // namespace sdpa::cpu::SDPA_ISA
