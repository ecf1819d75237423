// Random operands for sanitized_kernels.cpp: each is a block of the heap of just its bytes.
#pragma once

#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <random>

#include "kernels/params.h"

namespace sdpa::cpu {

struct Free {
  void operator()(char* p) const { std::free(p); }
};

// Bytes of 0xff: NaN in every dtype.
struct Block {
  std::unique_ptr<char, Free> data;
  Block() = default;
  explicit Block(size_t bytes, size_t alignment = 64)
      : data(static_cast<char*>(alignment ? std::aligned_alloc(alignment, bytes)
                                          : std::malloc(bytes))) {
    std::memset(data.get(), 0xff, bytes);
  }
  template <typename T = void>
  T* at() const {
    return reinterpret_cast<T*>(data.get());
  }
};

inline int bytes_of(DType dtype) { return dtype == DType::F32 ? 4 : 2; }
inline Block values(int64_t n, DType dtype) { return Block(n * bytes_of(dtype), 0); }
inline Block floats(int64_t n) { return Block(n * sizeof(float), 0); }

struct Operand {
  Strides s;
  Block block;
};

struct Random {
  std::mt19937 engine;
  int below(int n) { return int(engine() % unsigned(n)); }
  bool once_in(int n) { return below(n) == 0; }
  int one_of(std::initializer_list<int> from) { return from.begin()[below(int(from.size()))]; }

  // About 1 and of either sign; bits of the sign and the fraction alone are random.
  void fill(void* to, int64_t n, DType dtype) {
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t bits = engine();
      if (dtype == DType::F32) static_cast<uint32_t*>(to)[i] = (bits & 0x807fffff) | 0x3f000000;
      if (dtype == DType::F16) static_cast<uint16_t*>(to)[i] = (bits & 0x83ff) | 0x3800;
      if (dtype == DType::BF16) static_cast<uint16_t*>(to)[i] = (bits & 0x807f) | 0x3f00;
    }
  }

  // [b, h, l, d]: contiguous, heads within rows, columns apart, or one head for all
  Operand operand(int64_t b, int64_t h, int64_t l, int64_t d, DType dtype) {
    const Strides layouts[] = {{h * l * d, l * d, d, 1},
                               {l * h * d, d, h * d, 1},
                               {h * d * l, d * l, 1, l},
                               {l * d, 0, d, 1}};
    const Strides s = layouts[below(4)];
    const int64_t n = (b - 1) * s.batch + (h - 1) * s.head + (l - 1) * s.row + (d - 1) * s.col + 1;
    Operand x{s, values(n, dtype)};
    fill(x.block.at(), n, dtype);
    return x;
  }
};

}  // namespace sdpa::cpu
