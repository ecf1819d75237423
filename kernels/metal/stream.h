// Fragments of K and V straight from device memory: each element is loaded once, in 16 bytes a lane, and multiplied.
//
// How 16 bytes of a lane feed fragments, W = 16 / sizeof(T): the head dimension is permuted within a group.
// Q, K: a group is 8 W wide, 128 bytes of a key; coordinate c of its fragment i stands for d = c * W + i.
// V, O: a group is 4 W wide, two columns a lane; coordinate c of fragment i stands for dv = (c / 2) * W + 2 i + c % 2.
#pragma once

#include "kernels/metal/tile.h"

namespace sdpa {

template <typename T>
inline void unpack(uint4 bits, thread T* x) {
  const vec<T, 4> low = as_type<vec<T, 4>>(bits.xy), high = as_type<vec<T, 4>>(bits.zw);
  SDPA_FOR (i, 4) x[i] = low[i];
  SDPA_FOR (i, 4) x[4 + i] = high[i];
}

inline void unpack(uint4 bits, thread float* x) {
  const float4 all = as_type<float4>(bits);
  SDPA_FOR (i, 4) x[i] = all[i];
}

// 16 bytes of a row of n elements from column `col` on; zero beyond its end. WHOLE: they are there, and aligned.
template <typename T, bool WHOLE>
inline void load16(device const T* row, int64_t stride, int col, int n, thread T* x) {
  unpack(WHOLE ? *(device const uint4*)(row + col) : load_bits(row, stride, col, n), x);
}

// The fragments of a group of my row of Qs.
template <typename T>
inline void read_query(threadgroup const uint4* Q_lane, thread vec<T, 2>* Qt) {
  constexpr int W = 16 / sizeof(T);
  T x[W], y[W];
  unpack(Q_lane[0], x);
  unpack(Q_lane[1], y);
  SDPA_FOR (i, W) Qt[i] = pair(x[i], y[i]);
}

// How a simdgroup sees K or V: a head of it, and of its n columns those from `first` on that are the simdgroup's.
template <typename T>
struct Operand {
  device const T* head;
  int64_t row, col;  // strides
  int first, n;
};

// Whether some simdgroups have no group g of D: the groups are dealt out one by one, and may not come out even.
constexpr bool decode_may_lack(int itemsize, int D, int g, int wd) {
  return (g + 1) * wd * 128 > D * itemsize;
}

// S += Q K^T over my D, for the keys [key, key + 8 F) of which the first `keys` exist.
template <typename T, int D, int WD, int G, int F, bool IN_REGISTERS, bool WHOLE>
inline void multiply_keys(Operand<T> K, int key, int keys, Lane at, thread const vec<T, 2>* Qt,
                          threadgroup const uint4* Q_lane, thread float2* St) {
  constexpr int W = 16 / sizeof(T);
  device const T* K_row = K.head + (key + at.col) * K.row;
  SDPA_FOR (g, G) {
    const int d = K.first + g * WD * 8 * W;
    if (decode_may_lack(sizeof(T), D, g, WD) && d >= D) continue;
    vec<T, 2> Qg[W];
    if (!IN_REGISTERS) read_query<T>(Q_lane + g * WD * 8, Qg);
    T even[F][W], odd[F][W];
    SDPA_FOR (f, F) {
      const int first = f * 8 + at.col, column = d + at.row * W;
      device const T* row = K_row + f * 8 * K.row;
      load16<T, WHOLE>(row, K.col, column, first < keys ? K.n : 0, even[f]);
      load16<T, WHOLE>(row + K.row, K.col, column, first + 1 < keys ? K.n : 0, odd[f]);
    }
    SDPA_FOR (i, W)
      SDPA_FOR (f, F)
        multiply_add(St[f], IN_REGISTERS ? Qt[g * W + i] : Qg[i], pair(even[f][i], odd[f][i]));
  }
}

// O += P V over my DV, for the keys [key, key + 8 F) of which the first `keys` exist.
template <typename T, int G, int F, bool WHOLE>
inline void multiply_values(Operand<T> V, int key, int keys, Lane at, thread const float2* P,
                            thread float2* Ot) {
  constexpr int W = 16 / sizeof(T);
  SDPA_FOR (f, F) {
    const int k = f * 8 + at.row;
    device const T* V_row = V.head + (key + k) * V.row;
    SDPA_FOR (g, G) {
      T x[W];
      load16<T, WHOLE>(V_row, V.col, V.first + g * 4 * W + at.col / 2 * W, k < keys ? V.n : 0, x);
      SDPA_FOR (i, W / 2) multiply_add(Ot[g * (W / 2) + i], P[f], pair(x[2 * i], x[2 * i + 1]));
    }
  }
}

// Groups of D of one simdgroup, rounded up: each is 128 bytes of a key.
constexpr int decode_groups(int itemsize, int D, int wd) {
  return (D * itemsize / 128 + wd - 1) / wd;
}

// Whether Q stays in registers beside O.
constexpr bool decode_keeps_query(int itemsize, int D, int DV, int wd) {
  return 8 * decode_groups(itemsize, D, wd) + DV / wd / 4 <= 72;
}

}  // namespace sdpa
