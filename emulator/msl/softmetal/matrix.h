// metal_simdgroup_matrix: an 8x8 matrix lies in the 32 lanes of a simdgroup, two elements a lane.
//
// Lane b4 b3 b2 b1 b0 (bits) has row b4 b2 b1 and columns b3 b0 0 and b3 b0 1. Apple does not
// document it; MLX's kernels (steel/attn/mma.h, BaseMMAFrag::get_coord) rely on it.
#pragma once

#include "simdgroup.h"

namespace metal {

template <class T, int kRows, int kCols>
struct simdgroup_matrix {
  static_assert(kRows == 8 && kCols == 8, "there are 8x8 matrices only");
  static_assert(is_floating_point_v<T>, "of half, bfloat or float");
  typedef vec<T, 2> storage_type;

  storage_type elements;

  simdgroup_matrix() thread = default;
  explicit simdgroup_matrix(T diagonal) thread {
    const uint lane = softmetal_lane();
    const uint row = softmetal_row(lane), column = softmetal_column(lane);
    elements = storage_type{row == column ? diagonal : T(0), row == column + 1 ? diagonal : T(0)};
  }

  METAL_FUNC thread storage_type& thread_elements() thread { return elements; }
  METAL_FUNC thread const storage_type& thread_elements() const thread { return elements; }

  static METAL_FUNC uint softmetal_row(uint lane) { return (lane >> 4 & 1) * 4 + (lane >> 1 & 3); }
  static METAL_FUNC uint softmetal_column(uint lane) {
    return (lane >> 3 & 1) * 4 + (lane & 1) * 2;
  }
};

typedef simdgroup_matrix<half, 8, 8> simdgroup_half8x8;
typedef simdgroup_matrix<bfloat, 8, 8> simdgroup_bfloat8x8;
typedef simdgroup_matrix<float, 8, 8> simdgroup_float8x8;

template <class T, int kRows, int kCols>
METAL_FUNC simdgroup_matrix<T, kRows, kCols> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, kRows, kCols> m;
  m.elements = vec<T, 2>{value, value};
  return m;
}

// d = a @ b + c. The sums are floats, whatever the types of the operands.
template <class D, class A, class B, class C>
METAL_FUNC void simdgroup_multiply_accumulate(thread simdgroup_matrix<D, 8, 8>& d,
                                              thread const simdgroup_matrix<A, 8, 8>& a,
                                              thread const simdgroup_matrix<B, 8, 8>& b,
                                              thread const simdgroup_matrix<C, 8, 8>& c) {
  const softmetal::Pair sum = softmetal_multiply(
      float(a.elements[0]), float(a.elements[1]), float(b.elements[0]), float(b.elements[1]),
      float(c.elements[0]), float(c.elements[1]), SOFTMETAL_SITE);
  d.elements = vec<D, 2>{D(sum.x), D(sum.y)};
}

template <class D, class A, class B>
METAL_FUNC void simdgroup_multiply(thread simdgroup_matrix<D, 8, 8>& d,
                                   thread const simdgroup_matrix<A, 8, 8>& a,
                                   thread const simdgroup_matrix<B, 8, 8>& b) {
  simdgroup_matrix<float, 8, 8> zero;
  zero.elements = vec<float, 2>{0.0f, 0.0f};
  simdgroup_multiply_accumulate(d, a, b, zero);
}

template <class T>
METAL_FUNC simdgroup_matrix<T, 8, 8> operator*(thread const simdgroup_matrix<T, 8, 8>& a,
                                               thread const simdgroup_matrix<T, 8, 8>& b) {
  simdgroup_matrix<T, 8, 8> d;
  simdgroup_multiply(d, a, b);
  return d;
}

// Where this lane's two elements lie in memory.
METAL_FUNC vec<ulong, 2> softmetal_places(ulong elements_per_row, vec<ulong, 2> origin,
                                          bool transpose) {
  const uint lane = softmetal_lane();
  const uint row = simdgroup_float8x8::softmetal_row(lane);
  const uint column = simdgroup_float8x8::softmetal_column(lane);
  const ulong first = transpose ? column * elements_per_row + row : row * elements_per_row + column;
  const ulong base = origin.y * elements_per_row + origin.x;
  return vec<ulong, 2>{base + first, base + first + (transpose ? elements_per_row : 1)};
}

#define SOFTMETAL_MATRIX_MEMORY(space)                                                        \
  template <class T>                                                                          \
  METAL_FUNC void simdgroup_load(                                                             \
      thread simdgroup_matrix<T, 8, 8>& d, space const T* source, ulong elements_per_row = 8, \
      vec<ulong, 2> origin = vec<ulong, 2>(0ul), bool transpose = false) {                    \
    softmetal_together(SOFTMETAL_SITE);                                                       \
    const vec<ulong, 2> at = softmetal_places(elements_per_row, origin, transpose);           \
    d.elements = vec<T, 2>{source[at.x], source[at.y]};                                       \
  }                                                                                           \
  template <class T>                                                                          \
  METAL_FUNC void simdgroup_store(                                                            \
      thread const simdgroup_matrix<T, 8, 8>& s, space T* target, ulong elements_per_row = 8, \
      vec<ulong, 2> origin = vec<ulong, 2>(0ul), bool transpose = false) {                    \
    softmetal_together(SOFTMETAL_SITE);                                                       \
    const vec<ulong, 2> at = softmetal_places(elements_per_row, origin, transpose);           \
    target[at.x] = s.elements[0];                                                             \
    target[at.y] = s.elements[1];                                                             \
  }
SOFTMETAL_MATRIX_MEMORY(device)
SOFTMETAL_MATRIX_MEMORY(threadgroup)
#undef SOFTMETAL_MATRIX_MEMORY

}  // namespace metal
