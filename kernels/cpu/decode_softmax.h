// The online softmax of decode: a strip of R rows at once, on scores as the products leave them, N = kSums / R keys of all rows
// side by side: [n / N, R, N]. Rows meet in no lane, so that nothing is summed or moved across lanes from tile to tile.
#pragma once

#include "kernels/cpu/ahead.h"
#include "kernels/cpu/softmax.h"
#include "kernels/cpu/strip.h"
#include "kernels/cpu/transpose.h"

namespace sdpa::cpu::SDPA_ISA {

// The N lanes of row r
template <int R, typename T>
SDPA_INLINE void fill_lanes(T (&lanes)[kSums], int r, T value) {
  constexpr int N = kSums / R;
  for (int i = 0; i < N; ++i) lanes[r * N + i] = value;
}

// Running state of a strip by lanes: m alike in the N lanes of a row, l in N parts.
struct StripState {
  float m[kSums], l[kSums];

  template <int R>
  void start(int r, State row) {
    fill_lanes<R>(m, r, row.m);
    fill_lanes<R>(l, r, 0.f);
    l[r * (kSums / R)] = row.l;
  }
  template <int R>
  State row(int r) const {
    constexpr int N = kSums / R;
    float all = 0.f;
    for (int i = 0; i < N; ++i) all += l[r * N + i];
    return {m[r * N], all};
  }
};

// The keys of a tile that the row of each lane sees: begin <= j < end.
struct LaneKeys {
  int32_t begin[kSums], end[kSums];

  template <int R>
  void set(int r, Keys seen) {
    fill_lanes<R>(begin, r, seen.begin);
    fill_lanes<R>(end, r, seen.end);
  }
};

// The scores of a strip against a tile of keys.
struct StripTile {
  float* S;              // raw products q.k; overwritten
  int groups;            // of N keys
  const LaneKeys* seen;  // or null where all keys of all groups are
  const float* bias;     // from the mask array, or null
};

namespace strip_detail {

constexpr int V = kSums / W;  // vectors of a group

// a[v] = what all vectors i with i % V = v come to.
template <class Join>
SDPA_INLINE void join_vectors(Vec (&a)[kExpVectors]) {
#pragma GCC unroll 4
  for (int i = V; i < kExpVectors; ++i) a[i % V] = Join()(a[i], a[i % V]);
}

// The largest of each N lanes, in all of them.
template <int N, int S = 1>
SDPA_INLINE void largest_of_lanes(Vec (&a)[kExpVectors]) {
  if constexpr (S < N) {
    Vec b[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      if constexpr (S < W) {
        b[v] = swap_lanes<S>(a[v]);
      } else {
        b[v] = a[v ^ S / W];
      }
    }
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) a[v] = max_keep(b[v], a[v]);
    largest_of_lanes<N, 2 * S>(a);
  }
}

SDPA_INLINE IVec load_lanes(const int32_t* p) {
  IVec v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

// Vector i of softcap(scale * S) + bias, -inf where hidden.
template <int N>
SDPA_INLINE Vec adjust_vector(const Params& p, const StripTile& x, int i) {
  Vec s = adjust(p, load(x.S + i * W), p.scale, x.bias ? x.bias + i * W : nullptr);
  if (!x.seen) return s;
  const int lane = i % V * W;
  const IVec key = ((iota() + lane) & (N - 1)) + i / V * N;
  const IVec begin = load_lanes(x.seen->begin + lane), end = load_lanes(x.seen->end + lane);
  return select((key >= begin) & (key < end), s, splat(-kInf));
}

}  // namespace strip_detail

// m, l and P = exp(S - m) as online softmax has them, P in the order of S, whose place it may take;
// alpha = exp(m_old - m_new) by rows, the factor of O and l.
// lines: fetched meanwhile, by the first strip
template <int R, bool First, typename E>
SDPA_NOINLINE void softmax_strip(const Params& p, const StripTile& x, StripState& state, E* P,
                                 float (&alpha)[R], Lines lines) {
  using namespace strip_detail;
  constexpr int N = kSums / R;
  const bool raw = scale_waits(p, x.seen, x.bias);
  const float factor = raw ? p.scale : 1.f;
  Vec top[kExpVectors], total[kExpVectors] = {}, base[kExpVectors];
  for (Vec& t : top) t = splat(-kInf);
  if (raw) {
    for_vectors<V>(0, x.groups * V, [&](auto count, int i) __attribute__((always_inline)) {
      constexpr int M = count;
#pragma GCC unroll 4
      for (int k = 0; k < M; ++k) top[k] = max_keep(load(x.S + (i + k) * W), top[k]);
    });
  } else {
    for (int i = 0; i < x.groups * V; ++i) {
      const Vec s = adjust_vector<N>(p, x, i);
      store(x.S + i * W, s);
      top[i % V] = max_keep(s, top[i % V]);
    }
  }
  join_vectors<Larger>(top);
  largest_of_lanes<N>(top);

  float change[kSums];
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v) {
    const Vec before = load(state.m + v * W), t = top[v] * factor;
    const Vec m = select(t > before, t, before);
    base[v] = select(m == -kInf, Vec{}, m);  // -inf - -inf would be NaN
    store(state.m + v * W, m);
    store(change + v * W, exp(before - base[v]));
  }
#pragma GCC unroll 4
  for (int i = V; i < kExpVectors; ++i) base[i] = base[i % V];

  for_vectors<V>(0, x.groups * V, [&](auto count, int i) __attribute__((always_inline)) {
    constexpr int M = count;
    if (First) lines.fetch<M>();
    Vec e[M];
    weigh(x.S + i * W, factor, [&](int k) { return base[k]; }, P + i * W, e);
#pragma GCC unroll 4
    for (int k = 0; k < M; ++k) total[k] += e[k];
  });
  join_vectors<Plus>(total);
#pragma GCC unroll 2
  for (int v = 0; v < V; ++v)
    store(state.l + v * W, load(state.l + v * W) * load(change + v * W) + total[v]);
  for (int r = 0; r < R; ++r) alpha[r] = change[r * N];
}

}  // namespace sdpa::cpu::SDPA_ISA
