// Pieces that all Metal kernels share: threadgroup arrays, 8x8 fragments, rows, loads.
#pragma once

#include <metal_simdgroup_matrix>
#include <metal_stdlib>

#include "kernels/metal/arguments.h"
#include "kernels/params.h"
#include "kernels/tile_bytes.h"

// Declares `type name[count]` in threadgroup memory; only in the body of a kernel. The software device brings its own.
#ifdef SOFTWARE_METAL_THREADGROUP
#define SDPA_THREADGROUP(type, name, count) SOFTWARE_METAL_THREADGROUP(type, name, count)
#else
#define SDPA_THREADGROUP(type, name, count) threadgroup type name[count]
#endif

// A loop whose index picks registers, so it must be unrolled: an array indexed at run time lives in memory.
#define SDPA_FOR(i, n) _Pragma("clang loop unroll(full)") for (int i = 0; i < (n); ++i)

namespace sdpa {

using namespace metal;

constant int kMaskKind [[function_constant(kConstantMaskKind)]];
constant int kMaskType [[function_constant(kConstantMaskType)]];
constant bool kCausal [[function_constant(kConstantCausal)]];
constant bool kSoftcap [[function_constant(kConstantSoftcap)]];
constant bool kSinks [[function_constant(kConstantSinks)]];
constant bool kLse [[function_constant(kConstantLse)]];
constant bool kCarry [[function_constant(kConstantCarry)]];
constant bool kOutF32 [[function_constant(kConstantOutF32)]];
constant bool kVector [[function_constant(kConstantVector)]];
constant bool kWindow [[function_constant(kConstantWindow)]];

// The place of a lane in an 8x8 fragment: it holds the elements (row, col) and (row, col + 1) of A, B and C alike.
// Bits of the lane: row = b4 b2 b1, col = b3 b0 0; so the lanes of a row differ in bits 0 and 3.
struct Lane {
  int row, col;
};

inline Lane lane_of(uint lane) {
  const int i = int(lane);
  return {((i >> 4) & 1) * 4 + ((i >> 1) & 3), ((i >> 3) & 1) * 4 + (i & 1) * 2};
}

inline float row_max(float x) {
  x = max(x, simd_shuffle_xor(x, 1));
  return max(x, simd_shuffle_xor(x, 8));
}

inline float row_sum(float x) {
  x += simd_shuffle_xor(x, 1);
  return x + simd_shuffle_xor(x, 8);
}

template <typename T>
inline vec<T, 2> pair(T x, T y) {
  vec<T, 2> v;
  v[0] = x;
  v[1] = y;
  return v;
}

// C += A B on 8x8 fragments, accumulated in float.
template <typename TA, typename TB>
inline void multiply_add(thread float2& C, vec<TA, 2> A, vec<TB, 2> B) {
  simdgroup_matrix<TA, 8, 8> a;
  simdgroup_matrix<TB, 8, 8> b;
  simdgroup_matrix<float, 8, 8> c;
  reinterpret_cast<thread vec<TA, 2>&>(a.thread_elements()) = A;
  reinterpret_cast<thread vec<TB, 2>&>(b.thread_elements()) = B;
  reinterpret_cast<thread float2&>(c.thread_elements()) = C;
  simdgroup_multiply_accumulate(c, a, b, c);
  C = reinterpret_cast<thread float2&>(c.thread_elements());
}

// W elements side by side, W = 1, 2 or 4: one load.
template <typename T, int W>
inline void read(threadgroup const T* p, thread T* x) {
  if (W == 4) {
    const vec<T, 4> v = *(threadgroup const vec<T, 4>*)p;
    SDPA_FOR (i, W) x[i] = v[i];
  } else if (W == 2) {
    const vec<T, 2> v = *(threadgroup const vec<T, 2>*)p;
    SDPA_FOR (i, W) x[i] = v[i];
  } else {
    x[0] = *p;
  }
}

// The widest chunk that fragments of 8 can be grouped by.
constexpr int chunk_width(int fragments) {
  return fragments % 4 == 0 ? 4 : fragments % 2 == 0 ? 2 : 1;
}

// A row of a tile in memory: one query position of one head of a GQA group.
struct Row {
  int position, head;
  bool valid;
};

inline Row row_of(int r, int rows, int hkv, int group) {
  const int inside = min(r, rows - 1);
  const int position = inside / group;
  return {position, hkv * group + inside - position * group, r < rows};
}

// Of O and lse.
inline int64_t output_row(constant Params& p, int b, Row row) {
  return (int64_t(b) * p.Hq + row.head) * p.Lq + row.position;
}

// Four elements of a row of n at column `col`; zero beyond its end.
template <typename T>
inline vec<T, 4> load4(device const T* row, int64_t stride, int col, int n) {
  if (kVector && col + 4 <= n) return *(device const vec<T, 4>*)(row + col);
  vec<T, 4> x = vec<T, 4>(T(0));
  SDPA_FOR (i, 4)
    if (col + i < n) x[i] = row[int64_t(col + i) * stride];
  return x;
}

// W elements of a contiguous row of n at column `col`.
template <typename T, int W>
inline void store(device T* row, int col, int n, thread const float* x) {
  if (W == 4 && n % 4 == 0) {
    vec<T, 4> v;
    SDPA_FOR (i, 4) v[i] = T(x[i % W]);
    if (col < n) *(device vec<T, 4>*)(row + col) = v;
    return;
  }
  SDPA_FOR (i, W)
    if (col + i < n) row[col + i] = T(x[i]);
}

// 4 bytes of a row of n at column `col`; zero beyond its end.
template <typename T>
inline uint load_word(device const T* row, int64_t stride, int col, int n) {
  const T x = col < n ? row[int64_t(col) * stride] : T(0);
  const T y = col + 1 < n ? row[int64_t(col + 1) * stride] : T(0);
  return as_type<uint>(pair(x, y));
}

inline uint load_word(device const float* row, int64_t stride, int col, int n) {
  return col < n ? as_type<uint>(row[int64_t(col) * stride]) : 0u;
}

// 16 bytes of a row of n at column `col`, as they lie; zero beyond its end.
template <typename T>
inline uint4 load_bits(device const T* row, int64_t stride, int col, int n) {
  constexpr int W = 16 / sizeof(T);
  if (kVector && col + W <= n) return *(device const uint4*)(row + col);
  uint4 bits;
  SDPA_FOR (i, 4) bits[i] = load_word(row, stride, col + i * W / 4, n);
  return bits;
}

// Keys [0, keys) of a block of K or V into threadgroup memory [BK, LD], zero beyond `keys` and beyond column n.
// All loads come before the first store, so that they are under way together: a rolled loop would wait for each.
template <typename T, int COLS, int LD, int BK, int THREADS>
inline void load_block(device const T* src, int64_t row_stride, int64_t col_stride, int keys, int n,
                       threadgroup uint4* dst, int thread_index) {
  constexpr int W = 16 / sizeof(T), kChunks = COLS / W, kAll = BK * kChunks;
  constexpr int kSteps = (kAll + THREADS - 1) / THREADS;
  static_assert(COLS % W == 0 && LD % W == 0, "rows are whole chunks of 16 bytes");
  uint4 x[kSteps];
  SDPA_FOR (i, kSteps) {
    const int c = thread_index + i * THREADS, row = c / kChunks, col = (c - row * kChunks) * W;
    const bool there = row < keys && (kAll % THREADS == 0 || c < kAll);
    x[i] = there ? load_bits(src + row * row_stride, col_stride, col, n) : uint4(0u);
  }
  SDPA_FOR (i, kSteps) {
    const int c = thread_index + i * THREADS, row = c / kChunks, col = (c - row * kChunks) * W;
    if (kAll % THREADS == 0 || c < kAll) dst[(row * LD + col) / W] = x[i];
  }
}

}  // namespace sdpa
