// Attention of up to 8 rows of a KV head against many keys in MLX's affine quantization, 4 or 8 bits to an element.
//
//   grid       (1, KV heads, splits of the keys): see Part
//   threads    PackedTile::threads(): warps that take blocks of 16 keys in turns, each with its own m, l and O
//   memory     PackedTile::shared_bytes(): Q as fragments, a ring of blocks for every warp; at the end O of every warp
//
// Keys are the rows of both products, so that 8 rows of Q fill the columns of an mma:
//
//   S^T [16 keys, 8 rows] = K Q^T        O^T [columns, 8 rows] += V^T P^T
//
// The ring of a warp holds K[0] V[0] K[1] V[1] ...; until the end, warps do not wait for each other.
#pragma once

#include "kernels/cuda/packed_products.cuh"

namespace sdpa {

// Over the lanes that share rows: those that differ in i.
__device__ inline float column_max(float x) {
  SDPA_FOR (bit, 3) x = fmaxf(x, __shfl_xor_sync(~0u, x, 4 << bit));
  return x;
}
__device__ inline float column_sum(float x) {
  SDPA_FOR (bit, 3) x += __shfl_xor_sync(~0u, x, 4 << bit);
  return x;
}

// sum += weight * x; a warp that saw nothing has weight 0 and may hold 0 * Inf of hidden values.
__device__ inline void add_four(float4& sum, float weight, float4 x) {
  const bool counts = weight != 0.f;
  sum.x += counts ? weight * x.x : 0.f;
  sum.y += counts ? weight * x.y : 0.f;
  sum.z += counts ? weight * x.z : 0.f;
  sum.w += counts ? weight * x.w : 0.f;
}

__device__ inline void attend(const Arguments& a) {
  extern __shared__ __align__(16) char memory[];
  const Params& p = a.p;
  const Part& part = a.part;
  const unsigned Q = shared_address(memory), sums_at = Q + kTile.query_bytes;
  float* const sums = reinterpret_cast<float*>(memory + kTile.query_bytes);  // [groups, BQ]
  float2* const states =
      reinterpret_cast<float2*>(memory + kTile.query_bytes + kTile.sums_bytes);  // [warps, BQ]
  const unsigned rings = Q + kTile.fixed_bytes();

  const int thread = int(threadIdx.x), lane = thread & 31, warp = thread / 32;
  const Place at = {lane, lane / 4, lane % 4};
  const int head = part.head0 + int(blockIdx.y), b = head / p.Hkv, hkv = head % p.Hkv;
  const int split = int(blockIdx.z);
  const int rows = p.Lq * p.group;
  const int last_position = (rows - 1) / p.group;
  const KeyRange keys = key_range(p, part, split, 0, last_position);
  const int blocks = keys.end > keys.begin ? (keys.end - keys.begin + BK - 1) / BK : 0;
  const int steps = blocks > warp ? (blocks - warp + kWarps - 1) / kWarps : 0;
  const Operand<D> K(a.K, p.Ks, a.K_groups, b, hkv, p.D);
  const Operand<DV> V(a.V, p.Vs, a.V_groups, b, hkv, p.Dv);
  const unsigned ring = rings + warp * kTile.warp_bytes();

  // Q, on its way before K and V are; a group's columns are those of neighbouring lanes.
  constexpr int kGroupLanes = kGroup / 8, kRowLanes = kGroups<D> * kGroupLanes;
  constexpr int kQ = (BQ * kRowLanes + kThreads - 1) / kThreads;
  uint4 my_Q[kQ];
  SDPA_FOR (i, kQ) {
    const int c = thread + i * kThreads, r = c / kRowLanes, d = c % kRowLanes * 8;
    const Row row = row_of(r, rows, hkv, p.group);
    const T* Q_row = static_cast<const T*>(a.Q) + b * p.Qs.batch + row.head * p.Qs.head +
                     row.position * p.Qs.row;
    if (SDPA_VECTOR && row.valid && d + 8 <= p.D)
      my_Q[i] = *reinterpret_cast<const uint4*>(Q_row + d);
    else
      my_Q[i] = gather_16_bytes(Q_row, p.Qs.col, d, row.valid ? p.D : 0);
  }

  // Block 2j of the ring is K[j], 2j + 1 is V[j]; its copies are one group, empty beyond the last.
  const int last_key = keys.begin + ((steps - 1) * kWarps + warp) * BK;
  int ahead_key = keys.begin + warp * BK;
  unsigned free = ring;
  const auto next = [&](unsigned& block) {
    block += kTile.block_bytes;
    if (block == ring + kTile.stages * kTile.block_bytes) block = ring;
  };
  const auto copy_next = [&](bool of_keys) {
    if (ahead_key <= last_key) {
      if (of_keys)
        K.copy(ahead_key, keys.end, free, lane);
      else
        V.copy(ahead_key, keys.end, free, lane);
    }
    if (!of_keys) ahead_key += kWarps * BK;
    commit_copies();
    next(free);
  };
#pragma unroll 1
  for (int i = 1; i < kTile.stages; ++i) copy_next(i % 2 == 1);
  constexpr bool kAheadOfKeys = kTile.stages % 2 == 1;  // what is copied while K[j] is used

  SDPA_FOR (i, kQ) {
    const int c = thread + i * kThreads, r = c / kRowLanes, d = c % kRowLanes * 8;
    if (BQ * kRowLanes % kThreads != 0 && r >= BQ) break;
    float sum = sum_of_elements(my_Q[i]);
    SDPA_FOR (bit, 5)
      if (1 << bit < kGroupLanes) sum += __shfl_xor_sync(~0u, sum, 1 << bit);
    if (c % kGroupLanes == 0) sums[d / kGroup * BQ + r] = sum;
    if (d < D) store_query(memory, r, d, my_Q[i]);
  }
  __syncthreads();

  // My rows: 2t and 2t + 1.
  int position[2];
  int64_t my_mask[2];
  RowState state[2];  // l is the lane's own part of the sum until the end
  SDPA_FOR (r, 2) {
    const Row row = row_of(at.t * 2 + r, rows, hkv, p.group);
    position[r] = row.position;
    my_mask[r] = kMasked ? mask_row(p, b, row) : 0;
    state[r] = empty_row();
  }
  float O[kTilesV][4] = {};

  // 8 rows of 16 bytes: keys 0 to 7 of two neighbours in lanes 0 to 7 and 16 to 23, keys 8 to 15 in the others
  const unsigned my_words = (lane & 15) * kTile.row_bytes + (lane >> 4) * 16;
  unsigned used = ring;
  int key = keys.begin + warp * BK;
  for (int step = 0; step < steps; ++step, key += kWarps * BK) {
    // S^T = K[j] Q^T
    wait_copies<kTile.stages - 2>();
    __syncwarp();
    copy_next(kAheadOfKeys);
    float S[4] = {};
    multiply_keys(Q, sums_at, used, used + my_words, at, S);
    next(used);

    const bool open = !kMasked && key + BK <= keys.end && all_seen(p, key, BK, 0, last_position);
    SDPA_FOR (e, 4) S[e] = score(S[e], p.scale, p.softcap);
    if (!open)
      SDPA_FOR (e, 4)
        S[e] = masked(a, S[e], key + at.i + e / 2 * 8, keys.end, position[e % 2], my_mask[e % 2]);

    // O = O * alpha, where a maximum has risen
    const float most[2] = {fmaxf(S[0], S[2]), fmaxf(S[1], S[3])};
    if (__any_sync(~0u, most[0] > state[0].m + kSlack || most[1] > state[1].m + kSlack)) {
      float alpha[2];
      SDPA_FOR (r, 2) {
        const float m = fmaxf(state[r].m, column_max(most[r]));
        alpha[r] = fast_exp2(state[r].m - reference_of(m));
        state[r] = {m, state[r].l * alpha[r]};
      }
      SDPA_FOR (m, kTilesV)
        SDPA_FOR (e, 4) O[m][e] *= alpha[e % 2];
    }

    // P = exp2(S - m)
    SDPA_FOR (e, 4) {
      S[e] = fast_exp2(S[e] - reference_of(state[e % 2].m));
      state[e % 2].l += S[e];
    }
    const unsigned b0 = transposed(pack<T>(S[0], S[1])), b1 = transposed(pack<T>(S[2], S[3]));

    // O^T += V[j]^T P^T
    wait_copies<kTile.stages - 2>();
    __syncwarp();
    copy_next(!kAheadOfKeys);
    multiply_values(used, used + my_words, at, b0, b1, O);
    next(used);
  }

  // O, m and l of all warps to shared memory, O where the ring of the warp was
  SDPA_FOR (r, 2) {
    const float l = column_sum(state[r].l);
    if (at.i == 0) states[warp * BQ + at.t * 2 + r] = {state[r].m, l};
  }
  __syncwarp();  // the last block may still be read by other lanes
  store_partial(ring, O, at);
  __syncthreads();

  // O = sum_w exp2(m_w - m) O_w / l, rows by warps
  for (int r = warp; r < BQ; r += kWarps) {
    const Row row = row_of(r, rows, hkv, p.group);
    if (!row.valid) break;
    RowState total = empty_row();
    float weight[kWarps];
    SDPA_FOR (w, kWarps) total.m = fmaxf(total.m, states[w * BQ + r].x);
    SDPA_FOR (w, kWarps) {
      weight[w] = fast_exp2(states[w * BQ + r].x - reference_of(total.m));
      total.l += weight[w] * states[w * BQ + r].y;
    }
    const float factor = finish_row(a, b, split, row, total);
    const int64_t out_row = split_row(p, b, split, row);
    if (a.lse && lane == 0) a.lse[out_row] = lse_of(total);
    SDPA_FOR (j, (DV + 127) / 128) {
      const int dv = j * 128 + lane * 4;
      if (dv >= p.Dv) break;
      float4 sum = {0.f, 0.f, 0.f, 0.f};
      SDPA_FOR (w, kWarps)
        add_four(sum, weight[w],
                 load_four(rings + w * kTile.warp_bytes() + r * kTile.partial_row_bytes + dv * 4));
      store_pair_of_output(a, out_row, dv, sum.x * factor, sum.y * factor);
      store_pair_of_output(a, out_row, dv + 2, sum.z * factor, sum.w * factor);
    }
  }
}

}  // namespace sdpa

extern "C" __global__ void __launch_bounds__(sdpa::kThreads, 1)
    sdpa_kernel(const __grid_constant__ sdpa::Arguments a) {
  sdpa::attend(a);
}
