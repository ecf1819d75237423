// How decode reads K and V and multiplies them by Q and P: widened to float32; or, on instruction sets that multiply
// pairs of bfloat16 and add them up in float32, in such pairs, of neighbouring columns in K and of two keys in V.
#pragma once

#include <type_traits>

#include "kernels/cpu/simd.h"

#if defined(__AVX512BF16__)
#include "kernels/cpu/pair_pack.h"
#endif

namespace sdpa::cpu::SDPA_ISA {

// Rows of K or V: row j at `at + j * step`.
template <typename T>
struct Matrix {
  const T* at;
  int64_t step;

  const T* operator[](int64_t j) const { return at + j * step; }
};

template <typename T>
struct Widened {
  using E = float;  // of Q and P
  // Values of K a vector, keys of V a vector, columns of V that are read at a time.
  static constexpr int kValues = W, kKeys = 1, kColumns = W;
#if defined(__F16C__) || defined(__ARM_NEON)
  static constexpr bool kCheap = true;  // to widen, in the place of keeping it in a register
#else
  static constexpr bool kCheap = !std::is_same_v<T, f16>;
#endif

  SDPA_INLINE static Vec load(const T* k) { return cpu::SDPA_ISA::load(k); }
  SDPA_INLINE static Vec load_n(const T* k, int n) { return cpu::SDPA_ISA::load_n(k, n); }
  SDPA_INLINE static Vec load_own(const float* q) { return cpu::SDPA_ISA::load(q); }
  SDPA_INLINE static Vec splat_keys(const float* p) { return splat(*p); }
  SDPA_INLINE static Vec add(Vec sum, Vec a, Vec b) { return sum + a * b; }

  // C vectors of key j, of which V has `columns`.
  template <bool All, bool Whole, int C>
  SDPA_INLINE static void load_keys(const Matrix<T>& V, int j, int columns, Vec (&v)[C]) {
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c)
      v[c] = Whole ? load(V[j] + c * W) : load_n(V[j] + c * W, columns - c * W);
  }
};

#if defined(__AVX512BF16__)
struct Paired {  // subnormal values count as 0
  using E = bf16;
  static constexpr int kValues = 2 * W, kKeys = 2, kColumns = 2 * W;
  static constexpr bool kCheap = true;

  SDPA_INLINE static Vec load(const bf16* k) { return bits_as<Vec>(_mm512_loadu_si512(k)); }
  SDPA_INLINE static Vec load_n(const bf16* k, int n) { return load_pairs(k, n); }
  SDPA_INLINE static Vec load_own(const bf16* q) { return load(q); }
  SDPA_INLINE static Vec splat_keys(const bf16* p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, sizeof(pair));
    return bits_as<Vec>(_mm512_set1_epi32(pair));
  }
  SDPA_INLINE static Vec add(Vec sum, Vec a, Vec b) {
    return bits_as<Vec>(
        _mm512_dpbf16_ps(bits_as<__m512>(sum), bits_as<__m512bh>(a), bits_as<__m512bh>(b)));
  }

  // C vectors of the keys j and j + 1 side by side, of which V has `columns`;
  // zeros for j + 1 unless there are all keys of the vector.
  template <bool All, bool Whole, int C>
  SDPA_INLINE static void load_keys(const Matrix<bf16>& V, int j, int columns, Vec (&v)[C]) {
#pragma GCC unroll 4
    for (int c = 0; c < C; c += 2) {
      const int d = c * W;
      const Vec a = Whole ? load(V[j] + d) : load_n(V[j] + d, columns - d);
      Vec b{};
      if constexpr (All) b = Whole ? load(V[j + 1] + d) : load_n(V[j + 1] + d, columns - d);
      v[c] = interleave<0>(a, b);
      v[c + 1] = interleave<W>(a, b);
    }
  }

 private:
  // Columns [first, first + W) of a and of b in turns.
  template <int first>
  SDPA_INLINE static Vec interleave(Vec a, Vec b) {
    const IVec index = (iota() + first) * 0x10001 + (2 * W << 16);
    return bits_as<Vec>(_mm512_permutex2var_epi16(bits_as<__m512i>(a), bits_as<__m512i>(index),
                                                  bits_as<__m512i>(b)));
  }
};
#endif

template <typename T>
struct OperandOf {
  using type = Widened<T>;
};
#if defined(__AVX512BF16__)
template <>
struct OperandOf<bf16> {
  using type = Paired;
};
#endif
template <typename T>
using Operand = typename OperandOf<T>::type;

}  // namespace sdpa::cpu::SDPA_ISA
