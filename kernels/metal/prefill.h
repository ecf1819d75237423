// Flash attention with simdgroup matrices, for tiles of BQ rows.
//
//   grid       (row tiles, KV heads, splits of the keys): see Part
//   threads    32 * WM * WD: WM simdgroups over the rows, WD over the head dimension
//   memory     prefill_threadgroup_bytes(): Ks [BK, D + pad], Vs [BK, DV + pad], Xs (partial scores), flags
//   registers  a simdgroup owns M = BQ / (8 WM) row fragments and 1 / WD of D and of DV:
//              Q: M D/WD elements of T, O: M DV/WD floats, S: M BK floats, each / 4 a lane
//
// Timetable of one key block j; each barrier serves both directions, so that loads overlap multiplies:
//
//   Vs <- V[j]              S = Q Ks^T over my D; Xs <- S
//   ---------------------------------------- barrier: Vs, Xs written; Ks free
//   Ks <- K[j + 1]          S += Xs of the others; P = softmax(S); O = O * alpha + P Vs
//   ---------------------------------------- barrier: Ks written; Vs, Xs free
//
// Where K and V share a buffer (float from D 512 on) they take turns, with two more barriers.
//
// A fragment loaded from Ks or Vs feeds M multiplies. Inside a group of W fragments the head dimension is permuted so
// that a lane's elements lie side by side in memory: fragment i, coordinate c of a group stands for d = c * W + i of
// Q and K. For V and O, two columns to a lane, it stands for dv = (c / 2) * W + 2 i + c % 2.
#pragma once

#include "kernels/metal/lookahead.h"

namespace sdpa {

template <typename T, int D, int DV, int BQ, int BK, int WM, int WD>
[[kernel, max_total_threads_per_threadgroup(32 * WM * WD)]] void prefill(
    device const T* Q [[buffer(kBufferQ)]],            // [B, Hq, Lq, D]
    device const T* K [[buffer(kBufferK)]],            // [B, Hkv, Lk, D]
    device const T* V [[buffer(kBufferV)]],            // [B, Hkv, Lk, Dv]
    device uchar* O [[buffer(kBufferO)]],              // [B, Hq, Lq, Dv] T or float
    device float* lse [[buffer(kBufferLse)]],          // [B, Hq, Lq]
    device const uchar* mask [[buffer(kBufferMask)]],  // [B, Hq, Lq, Lk]
    device const T* sinks [[buffer(kBufferSinks)]],    // [B, Hq]
    device const float* carry_O [[buffer(kBufferCarryO)]],
    device const float* carry_lse [[buffer(kBufferCarryLse)]],
    constant Params& p [[buffer(kBufferParams)]], constant Part& part [[buffer(kBufferPart)]],
    uint3 group [[threadgroup_position_in_grid]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  constexpr int kThreads = 32 * WM * WD;
  constexpr int M = BQ / (8 * WM), N = BK / 8;             // fragments of S in rows, in keys
  constexpr int KD = D / (8 * WD), KV = DV / (8 * WD);     // fragments of my D, of my DV
  constexpr int W = chunk_width(KD), WV = KV % 2 ? 2 : 4;  // elements a lane loads at once
  constexpr int LDK = padded_row(D, sizeof(T)), LDV = padded_row(DV, sizeof(T));
  constexpr bool kShared = prefill_shares_kv(sizeof(T), D, DV, BQ, BK, WD);
  constexpr int kWide = 16 / sizeof(T);                // elements a lane stages at once
  constexpr int kVs = kShared ? 0 : BK * LDK / kWide;  // where Vs starts
  constexpr int kStage = BK * (!kShared ? LDK + LDV : LDK > LDV ? LDK : LDV) / kWide;
  constexpr int kExchange = WD > 1 ? WM * WD * M * N * 32 : 1;
  static_assert(BQ == 8 * WM * M, "each simdgroup owns whole 8-row fragments");
  static_assert(BK == 8 * N, "a key block is whole fragments");
  static_assert(D == 8 * WD * KD && DV == 8 * WD * KV, "the head dimension splits into fragments");
  static_assert(prefill_threadgroup_bytes(sizeof(T), D, DV, BQ, BK, WD) <= kMaxThreadgroupBytes,
                "the tile fits threadgroup memory");

  using T4 = vec<T, 4>;
  SDPA_THREADGROUP(uint4, stage, kStage);
  SDPA_THREADGROUP(float2, Xs, kExchange);  // [WM, WD, M, N, lane]
  SDPA_THREADGROUP(uint, flags, kMaskBlocks);
  threadgroup const T* Ks = (threadgroup const T*)stage;
  threadgroup const T* Vs = (threadgroup const T*)(stage + kVs);

  const int thread_index = int(simdgroup * 32 + lane);
  const int wm = int(simdgroup) / WD, wd = int(simdgroup) % WD;
  const Lane at = lane_of(lane);
  const int tile = part.row_tile0 + part.row_tiles - 1 - int(group.x);
  const int head = part.head0 + int(group.y), b = head / p.Hkv, hkv = head % p.Hkv;
  const int split = int(group.z);
  const int rows = p.Lq * p.group, row0 = tile * BQ;
  const int last_row = min(row0 + BQ, rows) - 1;
  const int first_position = row0 / p.group, last_position = last_row / p.group;
  const KeyRange keys = key_range(p, part, split, first_position, last_position);
  const int blocks = keys.end > keys.begin ? (keys.end - keys.begin + BK - 1) / BK : 0;
  device const T* K_head = K + b * p.Ks.batch + hkv * p.Ks.head;
  device const T* V_head = V + b * p.Vs.batch + hkv * p.Vs.head;

  const int d0 = wd * (D / WD);                      // my D starts here
  const int dv0 = wd * (DV / WD) + at.col / 2 * WV;  // my DV, and my columns of it

  const bool carried = kCarry && part.with_carry && split == 0;

  // My rows, my part of Q, and what is carried in.
  int position[M];
  int64_t my_mask[M];
  RowState state[M];
  vec<T, 2> Qt[M][KD];
  float2 Ot[M][KV];
  SDPA_FOR (i, M) {
    const Row my = row_of(row0 + (wm * M + i) * 8 + at.row, rows, hkv, p.group);
    position[i] = my.position;
    my_mask[i] = kMaskKind == int(MaskKind::None) ? 0 : mask_row(p, b, my) + at.col * p.Ms.col;
    device const T* Q_row = Q + b * p.Qs.batch + my.head * p.Qs.head + my.position * p.Qs.row;
    SDPA_FOR (g, KD / W) {
      const int d = d0 + g * 8 * W + at.col * W;
      T x[2 * W];
      if (W == 4) {
        SDPA_FOR (e, W / 2) {
          const T4 four = load4(Q_row, p.Qs.col, d + e * 4, my.valid ? p.D : 0);
          SDPA_FOR (f, 4) x[(e * 4 + f) % (2 * W)] = four[f];
        }
      } else {
        SDPA_FOR (e, 2 * W) x[e] = my.valid && d + e < p.D ? Q_row[(d + e) * p.Qs.col] : T(0);
      }
      SDPA_FOR (f, W) Qt[i][g * W + f] = pair(x[f], x[W + f]);
    }

    state[i] = empty_row();
    SDPA_FOR (f, KV) Ot[i][f] = float2(0.f);
    if (carried && my.valid) {
      const int64_t out_row = output_row(p, b, my);
      state[i] = carried_row(carry_lse[out_row]);
      SDPA_FOR (f, KV)
        SDPA_FOR (e, 2) {
          const int dv = dv0 + f / (WV / 2) * 4 * WV + f % (WV / 2) * 2 + e;
          if (dv < p.Dv) Ot[i][f][e] = carry_O[out_row * p.Dv + dv];
        }
    }
    if (kSinks && part.with_sinks && split == 0) {
      const float sink = float(sinks[b * p.sink_batch + my.head * p.sink_head]);
      const float alpha = add_sink(state[i], sink);
      SDPA_FOR (f, KV) Ot[i][f] *= alpha;
    }
    // lanes add up l on their own until the end: one of a row starts with what there is
    if (at.col != 0) state[i].l = 0.f;
  }

  Lookahead ahead = {0, 0};
  const MaskTile mask_tile = {b, hkv, row0, keys, blocks};
  int block = next_visible<BQ, BK, WM * WD>(0, ahead, p, mask, mask_tile, flags, lane, simdgroup);
  if (block < blocks) {
    const int key = keys.begin + block * BK;
    load_block<T, D, LDK, BK, kThreads>(K_head + key * p.Ks.row, p.Ks.row, p.Ks.col, keys.end - key,
                                        p.D, stage, thread_index);
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  while (block < blocks) {
    const int key = keys.begin + block * BK;
    if (!kShared)
      load_block<T, DV, LDV, BK, kThreads>(V_head + key * p.Vs.row, p.Vs.row, p.Vs.col,
                                           keys.end - key, p.Dv, stage + kVs, thread_index);

    // S = Q K[j]^T over my D
    float2 St[M][N];
    SDPA_FOR (i, M)
      SDPA_FOR (n, N) St[i][n] = float2(0.f);
    SDPA_FOR (n, N) {
      SDPA_FOR (g, KD / W) {
        threadgroup const T* K_row = Ks + (n * 8 + at.col) * LDK + d0 + g * 8 * W + at.row * W;
        T x[W], y[W];
        read<T, W>(K_row, x);
        read<T, W>(K_row + LDK, y);
        SDPA_FOR (f, W)
          SDPA_FOR (i, M) multiply_add<T>(St[i][n], Qt[i][g * W + f], pair(x[f], y[f]));
      }
    }
    if (WD > 1) {
      threadgroup float2* X = Xs + int(simdgroup) * M * N * 32 + int(lane);
      SDPA_FOR (i, M)
        SDPA_FOR (n, N) X[(i * N + n) * 32] = St[i][n];
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    const int next =
        next_visible<BQ, BK, WM * WD>(block + 1, ahead, p, mask, mask_tile, flags, lane, simdgroup);
    if (kShared) {
      load_block<T, DV, LDV, BK, kThreads>(V_head + key * p.Vs.row, p.Vs.row, p.Vs.col,
                                           keys.end - key, p.Dv, stage, thread_index);
    } else if (next < blocks) {
      const int key = keys.begin + next * BK;
      load_block<T, D, LDK, BK, kThreads>(K_head + key * p.Ks.row, p.Ks.row, p.Ks.col,
                                          keys.end - key, p.D, stage, thread_index);
    }

    // The order of the sum is the same for all simdgroups of a row: so are their P and l.
    if (WD > 1) {
      threadgroup const float2* X = Xs + wm * WD * M * N * 32 + int(lane);
      constexpr int kTile = M * N * 32;
      SDPA_FOR (i, M)
        SDPA_FOR (n, N) {
          threadgroup const float2* x = X + (i * N + n) * 32;
          St[i][n] += x[(wd ^ 1) * kTile];
          if (WD == 4) St[i][n] += x[(wd ^ 2) * kTile] + x[(wd ^ 3) * kTile];
        }
    }

    // P = exp2(S - m), O = O * alpha
    const bool whole = key + BK <= keys.end && all_seen(p, key, BK, first_position, last_position);
    vec<T, 2> Pt[M][N];
    SDPA_FOR (i, M) {
      const int64_t block_mask = my_mask[i] + key * p.Ms.col;
      float m = state[i].m;
      SDPA_FOR (n, N)
        SDPA_FOR (e, 2) {
          const int k = key + n * 8 + at.col + e;
          float s = score(St[i][n][e], p.scale, p.softcap);
          if (!whole && (k >= keys.end || !seen(p, position[i], k))) s = -INFINITY;
          if (kMaskKind != int(MaskKind::None) && k < keys.end) {
            const float bias = mask_value(mask, block_mask + (n * 8 + e) * p.Ms.col);
            s = bias == -INFINITY ? -INFINITY : s + bias;
          }
          St[i][n][e] = s;
          m = max(m, s);
        }
      m = row_max(m);
      const float to = reference_of(m), alpha = fast::exp2(state[i].m - to);
      float l = 0.f;
      SDPA_FOR (n, N) {
        const float2 P = pair(fast::exp2(St[i][n][0] - to), fast::exp2(St[i][n][1] - to));
        l += P[0] + P[1];
        Pt[i][n] = pair(T(P[0]), T(P[1]));
      }
      state[i] = {m, state[i].l * alpha + l};
      if (simd_any(alpha != 1.f))
        SDPA_FOR (f, KV) Ot[i][f] *= alpha;
    }

    // O += P V[j]
    if (kShared) threadgroup_barrier(mem_flags::mem_threadgroup);
    SDPA_FOR (n, N) {
      SDPA_FOR (g, KV / (WV / 2)) {
        T x[WV];
        read<T, WV>(Vs + (n * 8 + at.row) * LDV + dv0 + g * 4 * WV, x);
        SDPA_FOR (f, WV / 2)
          SDPA_FOR (i, M)
            multiply_add<T>(Ot[i][g * (WV / 2) + f], Pt[i][n], pair(x[2 * f], x[2 * f + 1]));
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (kShared && next < blocks) {
      const int key = keys.begin + next * BK;
      load_block<T, D, LDK, BK, kThreads>(K_head + key * p.Ks.row, p.Ks.row, p.Ks.col,
                                          keys.end - key, p.D, stage, thread_index);
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    block = next;
  }

  // O = O / l
  SDPA_FOR (i, M) {
    state[i].l = row_sum(state[i].l);
    const float inverse = inverse_sum(state[i]);
    const bool empty = state[i].l == 0.f;
    const Row my = row_of(row0 + (wm * M + i) * 8 + at.row, rows, hkv, p.group);
    if (!my.valid) continue;
    int64_t out_row = output_row(p, b, my);
    if (part.splits > 1) out_row += int64_t(split) * p.B * p.Hq * p.Lq;
    SDPA_FOR (g, KV / (WV / 2)) {
      float x[WV];
      // a row that saw nothing may hold 0 * Inf of hidden values
      SDPA_FOR (f, WV) x[f] = empty ? 0.f : Ot[i][g * (WV / 2) + f / 2][f % 2] * inverse;
      const int dv = dv0 + g * 4 * WV;
      if (kOutF32)
        store<float, WV>((device float*)O + out_row * p.Dv, dv, p.Dv, x);
      else
        store<T, WV>((device T*)O + out_row * p.Dv, dv, p.Dv, x);
    }
    if (kLse && wd == 0 && at.col == 0) lse[out_row] = lse_of(state[i]);
  }
}

}  // namespace sdpa
