// Attention of few rows against many keys: bound by reading K and V, so the rows of one KV head, positions of all heads
// of the GQA group, lie in one tile and share every byte, and the keys are split over the grid.
//
//   grid       (row tiles, KV heads, splits of the keys): see Part
//   threads    DecodeTile::threads(): WM x WN warps; WM take different rows, WN different keys of Q K^T and columns of P V
//   memory     DecodeTile::shared_bytes(): Q [BQ, D], P [BQ, BK], an exchange [BQ, WN], and a ring of blocks of BK keys
//   K and V    of T (dense.cuh), or 4 or 8 bits to an element (quantized.cuh, SDPA_BITS)
//
// The ring holds K[0] V[0] K[1] V[1] ..., each block copied `stages` - 1 blocks ahead of its use.
// Timetable of a step of BK keys:
//
//   wait for K[j], barrier, copy the next block over V[j - 1]
//   S = Q K[j]^T of my rows and keys; their maxima to the exchange
//   barrier; m = the maxima of all keys; P = softmax(S) to shared memory
//   wait for V[j], barrier, copy the next block over K[j]
//   O = O * alpha + P V[j] of my rows and columns
#pragma once

#if SDPA_BITS
#include "kernels/cuda/quantized.cuh"
#else
#include "kernels/cuda/dense.cuh"
#endif

namespace sdpa {

// My rows: h = 0 and 1 of fragment m.
__device__ inline int row_in_tile(Place at, int m, int h) {
  return at.wm * RM + m * 16 + h * 8 + at.i;
}

// Lanes that share the rows of a fragment differ in t.
__device__ inline float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ inline float row_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

__device__ inline Operand operand_of(const void* rows, const Strides& s,
                                     const QuantizedRows& groups, int b, int hkv, int n) {
  Operand x = {};
  const int64_t at = b * s.batch + hkv * s.head;
  if constexpr (SDPA_BITS) {
    const int64_t at_groups = b * groups.batch + hkv * groups.head;
    x.rows = static_cast<const unsigned*>(rows) + at;
    x.scales = static_cast<const T*>(groups.scales) + at_groups;
    x.biases = static_cast<const T*>(groups.biases) + at_groups;
    x.groups_row = groups.row;
    x.odd = int(reinterpret_cast<uint64_t>(x.scales) >> 1 & 1) |
            int(reinterpret_cast<uint64_t>(x.biases) & 2);
    x.odd_step = groups.row & 1 ? 3 : 0;
  } else {
    x.rows = static_cast<const T*>(rows) + at;
  }
  x.row = s.row, x.col = s.col, x.n = n;
  return x;
}

__device__ inline void decode(const Arguments& a) {
  extern __shared__ __align__(16) char memory[];
  const Params& p = a.p;
  const Part& part = a.part;
  const unsigned base = shared_address(memory);
  const int P_at = kTile.query_bytes(BQ), exchange_at = P_at + kTile.weights_bytes(BQ);
  const Shared shared = {base, base + P_at, base + exchange_at, base + kTile.fixed_bytes(BQ)};
  float* const exchange = reinterpret_cast<float*>(memory + exchange_at);  // [BQ, WN]

  const int thread = int(threadIdx.x), lane = thread & 31, warp = thread / 32;
  const Place at = {thread, lane, warp / WN, warp % WN, lane / 4, lane % 4};
  const int head = part.head0 + int(blockIdx.y), b = head / p.Hkv, hkv = head % p.Hkv;
  const int split = int(blockIdx.z);
  const int rows = p.Lq * p.group;
  const int row0 = (part.row_tile0 + part.row_tiles - 1 - int(blockIdx.x)) * BQ;
  const int first_position = row0 / p.group;
  const int last_position = (min(row0 + BQ, rows) - 1) / p.group;
  const KeyRange keys = key_range(p, part, split, first_position, last_position);
  const int steps = keys.end > keys.begin ? (keys.end - keys.begin + BK - 1) / BK : 0;
  const Operand K = operand_of(a.K, p.Ks, a.K_groups, b, hkv, p.D);
  const Operand V = operand_of(a.V, p.Vs, a.V_groups, b, hkv, p.Dv);

  // Block 2j of the ring is K[j], 2j + 1 is V[j]; its copies are one group, empty beyond the last.
  int ahead = 0, free = 0;
  const auto copy_next = [&] {
    const int key = keys.begin + ahead / 2 * BK;
    if (ahead < 2 * steps) {
      if (ahead % 2 == 0)
        copy_block<D>(K, key, keys.end, shared.block(free), at);
      else
        copy_block<DV>(V, key, keys.end, shared.block(free), at);
    }
    commit_copies();
    ++ahead;
    free = free + 1 == kTile.stages ? 0 : free + 1;
  };
#pragma unroll 1
  for (int i = 1; i < kTile.stages; ++i) copy_next();

  constexpr int kChunk = 16 / sizeof(T), kChunks = D / kChunk;
  for (int c = thread; c < BQ * kChunks; c += kThreads) {
    const int r = c / kChunks, d = (c - r * kChunks) * kChunk;
    const Row row = row_of(row0 + r, rows, hkv, p.group);
    const T* Q_row = static_cast<const T*>(a.Q) + b * p.Qs.batch + row.head * p.Qs.head +
                     row.position * p.Qs.row;
    uint4 x;
    if (SDPA_VECTOR && row.valid && d + kChunk <= p.D)
      x = *reinterpret_cast<const uint4*>(Q_row + d);
    else
      x = gather_16_bytes(Q_row, p.Qs.col, d, row.valid ? p.D : 0);
    store_query(reinterpret_cast<T*>(memory), r, d, x);
  }

  int position[MT][2];
  int64_t my_mask[MT][2];
  RowState state[MT][2];  // l is the lane's own part of the sum until the end
  SDPA_FOR (m, MT)
    SDPA_FOR (h, 2) {
      const Row row = row_of(row0 + row_in_tile(at, m, h), rows, hkv, p.group);
      position[m][h] = row.position;
      my_mask[m][h] = kMasked ? mask_row(p, b, row) : 0;
      state[m][h] = empty_row();
    }
  float O[MT][FV][4] = {};

  int used = 0;
  for (int step = 0; step < steps; ++step) {
    const int key = keys.begin + step * BK;
    const bool open =
        !kMasked && key + BK <= keys.end && all_seen(p, key, BK, first_position, last_position);

    // S = Q K[j]^T
    wait_copies<kTile.stages - 2>();
    __syncthreads();
    copy_next();
    float S[MT][FK][4] = {};
    multiply_keys(shared, shared.block(used), K, key, at, S);
    used = used + 1 == kTile.stages ? 0 : used + 1;
    SDPA_FOR (m, MT)
      SDPA_FOR (h, 2) {
        float most = -kInfinity;
        SDPA_FOR (f, FK)
          SDPA_FOR (e, 2) {
            float& s = S[m][f][h * 2 + e];
            s = score(s, p.scale, p.softcap);
            if (!open)
              s = masked(a, s, key + (at.wn * FK + f) * 8 + at.t * 2 + e, keys.end, position[m][h],
                         my_mask[m][h]);
            most = fmaxf(most, s);
          }
        most = row_max(most);
        if (at.t == 0) exchange[row_in_tile(at, m, h) * WN + at.wn] = most;
      }
    __syncthreads();

    // P = exp2(S - m), O = O * alpha
    float alpha[MT][2];
    bool moved = false;
    SDPA_FOR (m, MT)
      SDPA_FOR (h, 2) {
        const int r = row_in_tile(at, m, h);
        RowState& row = state[m][h];
        float most = row.m;
        SDPA_FOR (w, WN) most = fmaxf(most, exchange[r * WN + w]);
        const float to = reference_of(most);
        alpha[m][h] = fast_exp2(row.m - to);
        moved = moved || alpha[m][h] != 1.f;
        row.m = most;
        row.l *= alpha[m][h];
        SDPA_FOR (f, FK) {
          const float x = fast_exp2(S[m][f][h * 2] - to), y = fast_exp2(S[m][f][h * 2 + 1] - to);
          row.l += x + y;
          const int column = (at.wn * FK + f) * 8 + at.t * 2;
          store_pair<T>(shared.P + r * kTile.weights_row_bytes + column * int(sizeof(T)), x, y);
        }
      }
    if (__any_sync(~0u, moved))
      SDPA_FOR (m, MT)
        SDPA_FOR (f, FV)
          SDPA_FOR (e, 4) O[m][f][e] *= alpha[m][e / 2];

    // O += P V[j]
    wait_copies<kTile.stages - 2>();
    __syncthreads();
    copy_next();
    multiply_values(shared, shared.block(used), V, key, at, O);
    used = used + 1 == kTile.stages ? 0 : used + 1;
  }

  // l of all keys, and the sink
  __syncthreads();
  SDPA_FOR (m, MT)
    SDPA_FOR (h, 2) {
      const float l = row_sum(state[m][h].l);
      if (at.t == 0) exchange[row_in_tile(at, m, h) * WN + at.wn] = l;
    }
  __syncthreads();
  SDPA_FOR (m, MT)
    SDPA_FOR (h, 2) {
      const int r = row_in_tile(at, m, h);
      const Row row = row_of(row0 + r, rows, hkv, p.group);
      RowState total = {state[m][h].m, 0.f};
      SDPA_FOR (w, WN) total.l += exchange[r * WN + w];
      const bool none = total.l == 0.f;
      const float factor = finish_row(a, b, split, row, total);
      const int64_t out_row = split_row(p, b, split, row);
      if (!row.valid) continue;
      if (a.lse && at.wn == 0 && at.t == 0) a.lse[out_row] = lse_of(total);
      SDPA_FOR (f, FV)
        SDPA_FOR (e, 2) {
          const int dv = output_column(at.wn, f, at.t * 2 + e);
          // a row that saw nothing may hold 0 * Inf of hidden values
          if (dv < p.Dv)
            static_cast<Out*>(a.O)[out_row * p.Dv + dv] =
                from_float<Out>(none ? 0.f : O[m][f][h * 2 + e] * factor);
        }
    }
}

}  // namespace sdpa

extern "C" __global__ void __launch_bounds__(sdpa::kThreads, sdpa::kTile.ctas)
    sdpa_kernel(const __grid_constant__ sdpa::Arguments a) {
  sdpa::decode(a);
}
