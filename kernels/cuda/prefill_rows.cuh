// Prefill where a warp holds all columns of its rows of O (up to 256).
//
// Shared memory: Q [BQ, D] where registers do not hold it, and a ring of blocks K[0] V[0] K[1] V[1] ..., each copied
// `stages` - 1 blocks ahead of its use. Timetable of key block j:
//
//   wait for K[j], barrier, copy the next block over V[j - 1]
//   S = Q K[j]^T; m, alpha; O = O * alpha
//   wait for V[j], barrier, copy the next block over K[j]
//   P = exp2(S - m), O += P V[j], 16 keys at a time
#pragma once

#include "kernels/cuda/prefill_scores.cuh"

namespace sdpa {

constexpr bool kQueryInShared = kTile.query_bytes > 0;

// Q to shared memory.
__device__ inline void copy_query(const Arguments& a, const Work& work, unsigned to, int thread) {
  constexpr int kAcross = D / 8 % 8 == 0 ? 8 : 4, kDown = kThreads / kAcross;
  const int col0 = thread % kAcross * 8;
#pragma unroll 1
  for (int r = thread / kAcross; r < BQ; r += kDown) {
    const Row row = row_of(work.row0 + r, work.rows, work.hkv, a.p.group);
    const T* from = query_row(a, work, row);
#pragma unroll kCopies
    for (int c = col0; c < D; c += kAcross * 8)
      copy_chunk(to + r * kTile.k_row_bytes + c * 2, from, a.p.Qs.col, c, row.valid ? a.p.D : 0);
  }
}

struct RowsOfWarp {
  const Arguments& a;
  const Work work;
  const int lane, row;  // the first row of my warp in the tile
  const unsigned Q_at;  // where lanes load Q from
  float O[MT][FV][4], S[MT][FK][4];
  RowState state[MT][2];  // l is the lane's own part of the sum until the end
  unsigned Q[MT][FD][4];

  // S = Q K^T
  __device__ __forceinline__ void multiply_keys(unsigned K) {
    const unsigned keys =
        K + ((lane & 7) + (lane >> 4) * 8) * kTile.k_row_bytes + (lane >> 3 & 1) * 16;
    SDPA_FOR (m, MT)
      SDPA_FOR (f, FK)
        SDPA_FOR (e, 4) S[m][f][e] = 0.f;
    SDPA_FOR (d, FD) {
      if constexpr (kQueryInShared)
        SDPA_FOR (m, MT) load_matrices(Q[m][0], Q_at + m * 16 * kTile.k_row_bytes + d * 32);
      SDPA_FOR (f, FK / 2) {
        unsigned b[4];
        load_matrices(b, keys + f * 16 * kTile.k_row_bytes + d * 32);
        SDPA_FOR (m, MT) {
          multiply_add<T>(S[m][f * 2], Q[m][kQueryInShared ? 0 : d], b[0], b[1]);
          multiply_add<T>(S[m][f * 2 + 1], Q[m][kQueryInShared ? 0 : d], b[2], b[3]);
        }
      }
    }
  }

  // m; O = O * alpha. Returns what turns S into base 2: a block without masks is scaled in the exponent.
  __device__ __forceinline__ float update_maxima(int key) {
    const Params& p = a.p;
    float factor = p.scale * kLog2e;
    const bool open = all_open(p, work, key);
    if (SDPA_SOFTCAP || !open || !(factor > 0.f)) {
      factor = 1.f;
      SDPA_FOR (m, MT)
        SDPA_FOR (h, 2) {
          SDPA_FOR (f, FK)
            SDPA_FOR (e, 2) S[m][f][h * 2 + e] = score(S[m][f][h * 2 + e], p.scale, p.softcap);
          if (!open)
            hide_keys(a, work, row + m * 16 + h * 8 + lane / 4, key, lane % 4,
                      [&](int f, int e) -> float& { return S[m][f][h * 2 + e]; });
        }
    }
    float alpha[MT][2];
    bool moved = false;
    SDPA_FOR (m, MT)
      SDPA_FOR (h, 2) {
        float most = S[m][0][h * 2];
        SDPA_FOR (f, FK)
          SDPA_FOR (e, 2) most = fmaxf(most, S[m][f][h * 2 + e]);
        most = row_max(most) * factor;
        RowState& my = state[m][h];
        const bool rises = most > my.m + kSlack;
        alpha[m][h] = rises ? fast_exp2(my.m - most) : 1.f;
        if (rises) my.m = most;
        my.l *= alpha[m][h];
        moved = moved || rises;
      }
    if (__any_sync(~0u, moved))
      SDPA_FOR (m, MT)
        SDPA_FOR (f, FV)
          SDPA_FOR (e, 4) O[m][f][e] *= alpha[m][e / 2];
    return factor;
  }

  // P = exp2(S - m), O += P V
  __device__ __forceinline__ void multiply_values(unsigned V, float factor) {
    const unsigned values = V + (lane & 15) * kTile.v_row_bytes + (lane >> 4) * 16;
    SDPA_FOR (k, BK / 16) {
      unsigned P[MT][4];
      SDPA_FOR (m, MT)
        SDPA_FOR (h, 2) {
          const float to = reference_of(state[m][h].m);
          SDPA_FOR (f, 2) {
            const float x = fast_exp2(fmaf(S[m][k * 2 + f][h * 2], factor, -to));
            const float y = fast_exp2(fmaf(S[m][k * 2 + f][h * 2 + 1], factor, -to));
            state[m][h].l += x + y;
            P[m][f * 2 + h] = pack<T>(x, y);
          }
        }
      SDPA_FOR (f, FV / 2) {
        unsigned b[4];
        load_transposed(b, values + k * 16 * kTile.v_row_bytes + f * 32);
        SDPA_FOR (m, MT) {
          multiply_add<T>(O[m][f * 2], P[m], b[0], b[1]);
          multiply_add<T>(O[m][f * 2 + 1], P[m], b[2], b[3]);
        }
      }
    }
  }

  // O = O / l
  __device__ __forceinline__ void store() {
    SDPA_FOR (m, MT)
      SDPA_FOR (h, 2) {
        const Row my =
            row_of(work.row0 + row + m * 16 + h * 8 + lane / 4, work.rows, work.hkv, a.p.group);
        RowState total = {state[m][h].m, row_sum(state[m][h].l)};
        const bool none = total.l == 0.f;
        const float factor = finish_row(a, work.b, work.split, my, total);
        if (!my.valid) continue;
        const int64_t out_row = split_row(a.p, work.b, work.split, my);
        if (a.lse && lane % 4 == 0) a.lse[out_row] = lse_of(total);
        SDPA_FOR (f, FV)  // a row that saw nothing may hold 0 * inf of hidden values
          store_pair_of_output(a, out_row, f * 8 + lane % 4 * 2,
                               none ? 0.f : O[m][f][h * 2] * factor,
                               none ? 0.f : O[m][f][h * 2 + 1] * factor);
      }
  }
};

__device__ inline void prefill(const Arguments& a) {
  extern __shared__ __align__(16) char memory[];
  const unsigned base = shared_address(memory), ring = base + kTile.query_bytes;
  const int thread = int(threadIdx.x), lane = thread & 31, row = thread / 32 * RM;
  const Work work = work_of(a.p, a.part);
  const Operand K = operand_of(a.K, a.p.Ks, work, a.p.D), V = operand_of(a.V, a.p.Vs, work, a.p.Dv);

  // Block 2j of the ring is K[j], 2j + 1 is V[j]; its copies are one group, empty beyond the last.
  int ahead = 0, free = 0, used = 0;
  const auto copy_next = [&] {
    const int key = work.keys.begin + ahead / 2 * BK;
    const unsigned to = ring + free * kTile.block_bytes;
    if (ahead < 2 * work.blocks) {
      if (ahead % 2 == 0)
        copy_block<D>(K, key, work.keys.end, to, thread);
      else
        copy_block<DV>(V, key, work.keys.end, to, thread);
    }
    commit_copies();
    ++ahead;
    free = free + 1 == kTile.stages ? 0 : free + 1;
  };
  const auto next_used = [&] {
    wait_copies<kTile.stages - 2>();
    __syncthreads();
    copy_next();
    const unsigned block = ring + used * kTile.block_bytes;
    used = used + 1 == kTile.stages ? 0 : used + 1;
    return block;
  };

  if constexpr (kQueryInShared) copy_query(a, work, base, thread);
#pragma unroll 1
  for (int i = 1; i < kTile.stages; ++i) copy_next();
  RowsOfWarp warp = {a, work, lane, row,
                     base + (row + (lane & 15)) * kTile.k_row_bytes + (lane >> 4) * 16};
  if constexpr (!kQueryInShared) load_query(a, work, row, 0, lane, warp.Q);
  SDPA_FOR (m, MT) {
    SDPA_FOR (h, 2) warp.state[m][h] = empty_row();
    SDPA_FOR (f, FV)
      SDPA_FOR (e, 4) warp.O[m][f][e] = 0.f;
  }

#pragma unroll 1
  for (int j = 0; j < work.blocks; ++j) {
    warp.multiply_keys(next_used());
    const float factor = warp.update_maxima(work.keys.begin + j * BK);
    warp.multiply_values(next_used(), factor);
  }
  warp.store();
}

}  // namespace sdpa
