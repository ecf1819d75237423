// Attention of at most 8 rows (one row fragment) against many keys: bound by reading K and V, so both are read once,
// from where they lie straight into fragments. Rows are positions of all heads of a GQA group: they share every byte.
//
//   grid       (row tiles, KV heads, splits of the keys): see Part
//   threads    32 * WM * WD: WM simdgroups take different keys, WD share them and split D and DV
//   memory     decode_threadgroup_bytes(): Qs [8, D + pad], later Os [WM, 8, columns]; Xs (partial scores); states
//   registers  of a lane, in 32 bits, estimated: O DV / WD / 4; Q 8 for each 128 bytes of D / WD where O and Q take at
//              most 72, else it stays in Qs and 8 are read at a time; S BK / 4; K, for 128 bytes of each key, BK. So
//              16-bit  64: 44   128: 68   (192, 128): 76   256: 82   512: 68   (576, 512): 76
//              float   64: 52   128: 84   (192, 128): 60   256: 82   512: 84   (576, 512): 92
//              and about 20 for addresses, (m, l) and bias
//
// Timetable of a simdgroup; steps of BK keys, the WM simdgroups taking turns:
//
//   bias = mask, causality, window       nothing is read of keys that no row sees
//   S  = Q K[j]^T over my D              fragments of 8 keys
//   WD > 1: Xs <- S, barrier, S += Xs of the others; Xs has two halves, so that one barrier a step is enough
//   P  = softmax(S);  O = O * alpha + P V[j] over my DV
//
// At the end the WM results are merged through Os, sinks and carry with them, some columns of DV at a time.
#pragma once

#include "kernels/metal/mask.h"
#include "kernels/metal/stream.h"

namespace sdpa {

template <typename T, int D, int DV, int BQ, int BK, int WM, int WD>
[[kernel, max_total_threads_per_threadgroup(32 * WM * WD)]] void decode(
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
  constexpr int W = 16 / sizeof(T);  // elements a lane loads at once
  constexpr int F = BK / 8;          // fragments of S
  constexpr int GK = decode_groups(sizeof(T), D, WD), GV = DV / (4 * W * WD);
  constexpr int LDQ = padded_row(D, sizeof(T));
  constexpr bool kKeepsQuery = decode_keeps_query(sizeof(T), D, DV, WD);
  constexpr int kColumns = decode_merged_columns(DV, WM), kMine = kColumns / WD;  // a round's, mine
  constexpr int kBytesQ = 8 * LDQ * int(sizeof(T)), kBytesO = WM * 8 * kColumns * 4;
  constexpr int kExchange = WD > 1 ? WM * WD * F * 32 : 1;  // of one half of Xs
  static_assert(BQ == 8, "the rows are one fragment");
  static_assert(BK == 8 * F, "a step is whole fragments");
  static_assert(WD == 1 || WD == 2 || WD == 4, "scores are exchanged with one or three others");
  static_assert(D % (8 * W) == 0, "D is whole groups of 128 bytes");
  static_assert(DV == GV * 4 * W * WD, "each simdgroup owns whole groups of DV");
  static_assert(DV % kColumns == 0 && kMine % (4 * W) == 0, "a merge round is whole groups");
  static_assert(decode_threadgroup_bytes(sizeof(T), D, DV, BK, WM, WD) <= kMaxThreadgroupBytes,
                "the tile fits threadgroup memory");

  SDPA_THREADGROUP(uint4, stage, (kBytesQ > kBytesO ? kBytesQ : kBytesO) / 16);
  SDPA_THREADGROUP(float2, Xs, 2 * kExchange);  // [2, WM, WD, F, lane]
  SDPA_THREADGROUP(float2, states, WM * 8);     // (m, l) of each simdgroup's rows
  SDPA_THREADGROUP(float, carried, 8);          // what the carried O is multiplied by

  const int thread_index = int(simdgroup * 32 + lane);
  const int wm = int(simdgroup) / WD, wd = int(simdgroup) % WD;
  const Lane at = lane_of(lane);
  const int head = part.head0 + int(group.y), b = head / p.Hkv, hkv = head % p.Hkv;
  const int split = int(group.z);
  const int rows = p.Lq * p.group;
  const int row0 = (part.row_tile0 + part.row_tiles - 1 - int(group.x)) * 8;
  const int first_position = row0 / p.group;
  const int last_position = (min(row0 + 8, rows) - 1) / p.group;
  const KeyRange keys = key_range(p, part, split, first_position, last_position);
  const Operand<T> Kh = {K + b * p.Ks.batch + hkv * p.Ks.head, p.Ks.row, p.Ks.col, wd * 8 * W, p.D};
  const Operand<T> Vh = {V + b * p.Vs.batch + hkv * p.Vs.head, p.Vs.row, p.Vs.col, wd * (DV / WD),
                         p.Dv};
  const bool full = kVector && p.D == D && p.Dv == DV;

  const Row my = row_of(row0 + at.row, rows, hkv, p.group);
  const int64_t my_row = output_row(p, b, my);
  const int64_t split_row = part.splits > 1 ? int64_t(split) * p.B * p.Hq * p.Lq : 0;
  const bool with_carry = kCarry && part.with_carry && split == 0;
  const float old = with_carry && my.valid ? carry_lse[my_row] : -INFINITY;

  // Qs <- Q, zero beyond the rows and beyond D
  for (int c = thread_index; c < 8 * (D / W); c += kThreads) {
    const int r = c / (D / W), d = (c - r * (D / W)) * W;
    const Row row = row_of(row0 + r, rows, hkv, p.group);
    device const T* Q_row = Q + b * p.Qs.batch + row.head * p.Qs.head + row.position * p.Qs.row;
    stage[(r * LDQ + d) / W] = load_bits(Q_row, p.Qs.col, d, row.valid ? p.D : 0);
  }
  // device memory too: O may be written over Q
  threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);
  threadgroup const uint4* Q_lane = stage + at.row * (LDQ / W) + wd * 8 + at.col;
  vec<T, 2> Qt[kKeepsQuery ? GK * W : 1];
  if (kKeepsQuery) {
    SDPA_FOR (g, GK)
      if (!decode_may_lack(sizeof(T), D, g, WD) || (g * WD + wd) * 8 * W < D)
        read_query<T>(Q_lane + g * WD * 8, Qt + (kKeepsQuery ? g * W : 0));
  }

  const int64_t my_mask =
      kMaskKind == int(MaskKind::None) ? 0 : mask_row(p, b, my) + at.col * p.Ms.col;
  RowState state = empty_row();  // l is the lane's own part of the sum until the end
  float2 Ot[GV * (W / 2)];
  SDPA_FOR (i, GV * (W / 2)) Ot[i] = float2(0.f);

  int half_of_Xs = 0;
  for (int first = keys.begin; first < keys.end; first += WM * BK) {
    const int key = first + wm * BK, n = min(BK, keys.end - key);
    const bool open = n == BK && all_seen(p, key, BK, first_position, last_position);

    // Which scores count, and what the mask adds to them
    float2 bias[F];
    bool hidden = n <= 0;
    if (!hidden && (!open || kMaskKind != int(MaskKind::None))) {
      bool any = false;
      const int64_t step_mask = my_mask + key * p.Ms.col;
      SDPA_FOR (f, F)
        SDPA_FOR (e, 2) {
          const int k = key + f * 8 + at.col + e;
          float x = -INFINITY;
          if (my.valid && k < keys.end && seen(p, my.position, k))
            x = kMaskKind == int(MaskKind::None)
                    ? 0.f
                    : mask_value(mask, step_mask + (f * 8 + e) * p.Ms.col);
          bias[f][e] = x;
          any = any || x != -INFINITY;
        }
      if (kMaskKind != int(MaskKind::None)) hidden = !simd_any(any);
    }

    // S = Q K[j]^T over my D
    float2 St[F];
    SDPA_FOR (f, F) St[f] = float2(0.f);
    if (!hidden) {
      if (full && n == BK)
        multiply_keys<T, D, WD, GK, F, kKeepsQuery, true>(Kh, key, n, at, Qt, Q_lane, St);
      else
        multiply_keys<T, D, WD, GK, F, kKeepsQuery, false>(Kh, key, n, at, Qt, Q_lane, St);
    }
    if (WD > 1) {
      // The order of the sum is the same for all simdgroups of a step: so are their P and l.
      threadgroup float2* X = Xs + half_of_Xs * kExchange + int(lane);
      half_of_Xs ^= 1;
      SDPA_FOR (f, F) X[(int(simdgroup) * F + f) * 32] = St[f];
      threadgroup_barrier(mem_flags::mem_threadgroup);
      SDPA_FOR (f, F) {
        St[f] += X[(int(simdgroup ^ 1) * F + f) * 32];
        if (WD == 4)
          St[f] += X[(int(simdgroup ^ 2) * F + f) * 32] + X[(int(simdgroup ^ 3) * F + f) * 32];
      }
    }
    if (hidden) continue;

    // P = exp2(S - m), O = O * alpha
    float m = state.m;
    SDPA_FOR (f, F)
      SDPA_FOR (e, 2) {
        float s = score(St[f][e], p.scale, p.softcap);
        if (!open || kMaskKind != int(MaskKind::None))
          s = bias[f][e] == -INFINITY ? -INFINITY : s + bias[f][e];
        St[f][e] = s;
        m = max(m, s);
      }
    m = row_max(m);
    const float to = reference_of(m), alpha = fast::exp2(state.m - to);
    float l = state.l * alpha;
    SDPA_FOR (f, F) {
      St[f] = pair(fast::exp2(St[f][0] - to), fast::exp2(St[f][1] - to));
      l += St[f][0] + St[f][1];
    }
    state = {m, l};
    if (simd_any(alpha != 1.f)) {
      SDPA_FOR (i, GV * (W / 2)) Ot[i] *= alpha;
    }

    // O += P V[j] over my DV
    if (full && n == BK)
      multiply_values<T, GV, F, true>(Vh, key, n, at, St, Ot);
    else
      multiply_values<T, GV, F, false>(Vh, key, n, at, St, Ot);
  }

  // m and l of all keys, the sink and the carry
  state.l = row_sum(state.l);
  if (wd == 0 && at.col == 0) states[wm * 8 + at.row] = pair(state.m, state.l);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  RowState total = empty_row();
  for (int w = 0; w < WM; ++w) total.m = max(total.m, states[w * 8 + at.row][0]);
  for (int w = 0; w < WM; ++w) {
    const float2 other = states[w * 8 + at.row];
    total.l += other[1] * exp2(other[0] - reference_of(total.m));
  }
  if (kSinks && part.with_sinks && split == 0)
    add_sink(total, float(sinks[b * p.sink_batch + my.head * p.sink_head]));
  if (with_carry) add_sink(total, old);
  const float inverse = inverse_sum(total), to = reference_of(total.m);
  if (simdgroup == 0 && at.col == 0) {
    carried[at.row] = exp2(old * log2_e() - to) * inverse;
    if (kLse && my.valid) lse[split_row + my_row] = lse_of(total);
  }

  // O = sum of the simdgroups' O / l
  const float factor = exp2(state.m - to) * inverse;
  threadgroup float* Os = (threadgroup float*)stage;  // [WM, 8, kColumns]
  SDPA_FOR (round, DV / kColumns) {
    if (round > 0) threadgroup_barrier(mem_flags::mem_threadgroup);
    SDPA_FOR (i, kMine / 8) {
      const int g = i / (W / 2), column = g * 4 * W + at.col / 2 * W + i % (W / 2) * 2;
      threadgroup float* to_Os = Os + (wm * 8 + at.row) * kColumns + wd * kMine + column;
      // a simdgroup that saw nothing may hold 0 * Inf of hidden values
      const float2 x = Ot[round * (kMine / 8) + i] * factor;
      *(threadgroup float2*)to_Os = state.l == 0.f ? float2(0.f) : x;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int i = thread_index; i < 8 * kColumns; i += kThreads) {
      const int r = i / kColumns, column = i - r * kColumns;
      const int dv = column / kMine * (DV / WD) + round * kMine + column % kMine;
      const Row row = row_of(row0 + r, rows, hkv, p.group);
      if (!row.valid || dv >= p.Dv) continue;
      float x = 0.f;
      for (int w = 0; w < WM; ++w) x += Os[(w * 8 + r) * kColumns + column];
      const int64_t out_row = output_row(p, b, row);
      if (with_carry && carried[r] != 0.f) x += carried[r] * carry_O[out_row * p.Dv + dv];
      const int64_t to_O = (split_row + out_row) * p.Dv + dv;
      if (kOutF32)
        ((device float*)O)[to_O] = x;
      else
        ((device T*)O)[to_O] = T(x);
    }
  }
}

}  // namespace sdpa
