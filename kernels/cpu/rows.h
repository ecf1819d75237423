// Rows of a tile: query positions of one KV head with the heads of its GQA group running fastest, so that all of
// them share each key and value that is read.
#pragma once

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/simd.h"

namespace sdpa::cpu::SDPA_ISA {

// Calls f(T{}) with the type of the operands.
template <class F>
SDPA_INLINE auto visit(DType dtype, F f) {
  if (dtype == DType::F32) return f(float{});
  if (dtype == DType::F16) return f(f16{});
  return f(bf16{});
}

struct Row {
  int iq;    // query position
  int head;  // query head
};

SDPA_INLINE Row row_of(const Params& p, int hkv, int r) {
  return {r / p.group, hkv * p.group + r % p.group};
}

// Index of the row in [B, Hq, Lq].
SDPA_INLINE int64_t row_index(const Params& p, int b, Row row) {
  return (int64_t(b) * p.Hq + row.head) * p.Lq + row.iq;
}

// The row in an operand [B, Hq, Lq, columns].
template <typename T>
SDPA_INLINE const T* row_of_operand(const void* base, const Strides& s, int b, Row row) {
  return static_cast<const T*>(base) + b * s.batch + row.head * s.head + row.iq * s.row;
}

struct Keys {
  int begin, end;
};

// The keys that query position iq can see through the causal and the window mask.
SDPA_INLINE Keys visible_keys(const Params& p, int iq) {
  if (!p.causal) return {0, p.Lk};
  const int64_t position = int64_t(p.q_offset) + iq;
  const int64_t end = position + 1 < p.Lk ? position + 1 : p.Lk;
  const int64_t begin = p.window && position + 1 > p.window ? position + 1 - p.window : 0;
  return {int(begin), int(end)};
}

// The same of the tile [key, key + n), counted from its first key; it can begin before that.
SDPA_INLINE Keys visible_keys(const Params& p, int iq, int key, int n) {
  const Keys seen = visible_keys(p, iq);
  return {seen.begin - key, seen.end - key < n ? seen.end - key : n};
}

// The keys of the task that any of its rows can see.
SDPA_INLINE Keys task_keys(const Params& p, const Task& t) {
  const int begin = visible_keys(p, t.row0 / p.group).begin;
  const int end = visible_keys(p, (t.row0 + t.rows - 1) / p.group).end;
  return {begin > t.key0 ? begin : t.key0, end < t.key1 ? end : t.key1};
}

// Keys of the tile [key, key + n) that any of the R rows of the strip can see, counted from the tile's first key.
template <int R>
SDPA_INLINE Keys strip_keys(const Params& p, const Task& t, int strip, int key, int n) {
  const int last = (strip + 1) * R < t.rows ? (strip + 1) * R : t.rows;
  const int begin = visible_keys(p, (t.row0 + strip * R) / p.group).begin - key;
  const int end = visible_keys(p, (t.row0 + last - 1) / p.group).end - key;
  return {begin > 0 ? begin : 0, end < n ? end : n};
}

// Running state of the online softmax of a row, before any key: empty, the sink, or what earlier calls carried.
struct State {
  float m, l;  // running maximum; sum of exp(s - m)
};

template <typename T>
SDPA_INLINE State start_row(const Params& p, const Operands& x, const Task& t, Row row,
                            int dv_padded, float* O) {
  const int64_t index = row_index(p, t.b, row);
  const float lse = t.with_carry ? x.carry_lse[index] : -kInf;
  if (t.with_carry && lse != -kInf) {
    const float* carried = x.carry_O + index * p.Dv;
    for (int d = 0; d < dv_padded; ++d) O[d] = d < p.Dv ? carried[d] : 0.f;
    return {lse, 1.f};
  }
  for (int d = 0; d < dv_padded; ++d) O[d] = 0.f;
  if (!t.with_sinks) return {-kInf, 0.f};
  const float sink =
      widen(static_cast<const T*>(x.sinks)[t.b * p.sink_batch + row.head * p.sink_head]);
  return {sink, sink == -kInf ? 0.f : 1.f};
}

// O / l and lse = m + log(l); a row that saw no key gives 0 and -inf.
template <typename T>
SDPA_INLINE void finish_row(const Params& p, const Task& t, Row row, State s, const float* O) {
  const int64_t index = row_index(p, t.b, row);
  const bool empty = s.l == 0.f;
  const float inverse = 1.f / s.l;
  for (int d = 0; d < p.Dv; d += W) {
    const Vec o = empty ? Vec{} : load(O + d) * inverse;  // O can hold 0 * Inf of hidden values
    if (t.O_is_f32) {
      store_n(static_cast<float*>(t.O) + index * p.Dv + d, o, p.Dv - d);
    } else {
      store_n(static_cast<T*>(t.O) + index * p.Dv + d, o, p.Dv - d);
    }
  }
  if (t.lse) t.lse[index] = empty ? -kInf : s.m + __builtin_logf(s.l);
}

}  // namespace sdpa::cpu::SDPA_ISA
