// Prefill where WN warps share rows: each holds its columns of Q and O in registers, and K, V are read once by each.
//
// Shared memory: K[j] [BK, D], V[j] [BK, DV], partial scores on their way to the warp that adds them up, P [BQ, BK],
// alpha [BQ]. A warp adds up, masks and exponentiates the scores of 1 / WN of the rows. Timetable of step j, in which
// the softmax of a block runs beside the multiplies of the one before:
//
//   wait for K[j + 1], barrier: P[j], alpha written, V[j - 1] free; copy V[j]
//   O = O * alpha, partial S[j + 1] = Q K[j + 1]^T to the exchange, P[j] to registers
//   wait for V[j], barrier: exchange written, K[j + 1] free; copy K[j + 2]
//   O += P[j] V[j];  S[j + 1] = sum of the parts; m, alpha, P[j + 1] = exp2(S[j + 1] - m)
#pragma once

#include "kernels/cuda/prefill_scores.cuh"

namespace sdpa {

constexpr int RS = RM / WN, MS = RS / 8;  // rows of the softmax of a warp, its half fragments
constexpr int kWeightsRow = BK * 2;

static_assert(RS == 8 * MS && MT == 2, "each warp adds up whole half fragments");
static_assert(BK == 32, "the swizzle of P is for rows of 64 bytes");

// The address of 16 bytes of P: the 8 rows that are read at once lie in different banks.
__device__ inline unsigned weights_at(unsigned P, int row, int chunk) {
  return P + row * kWeightsRow + (chunk ^ (row >> 1 & 3)) * 16;
}

struct ColumnsOfWarp {
  const Arguments& a;
  const Work work;
  int lane, wm, wn;
  const unsigned K, V, P;
  float2* const exchange;  // [WM, WN to, WN - 1 from, MS, FK, lane]
  float* const alphas;     // [BQ]
  float O[MT][FV][4];
  unsigned Q[MT][FD][4];
  unsigned weights[MT][BK / 16][4];  // P[j]
  float s[MS][FK][2];                // the scores that are mine to add up
  float factor;                      // what turns them into base 2
  RowState state[MS];                // l is the lane's own part of the sum until the end

  __device__ __forceinline__ void forget() { lane = fresh(lane), wm = fresh(wm), wn = fresh(wn); }

  // Row g of my softmax in the tile.
  __device__ __forceinline__ int softmax_row(int g) const {
    return wm * RM + (wn * MS + g) * 8 + lane / 4;
  }

  // To the warp `to`, from the warp `slot` + 1 places after it.
  __device__ __forceinline__ float2* parts(int to, int slot) const {
    return exchange + ((wm * WN + to) * (WN - 1) + slot) * (MS * FK * 32) + lane;
  }

  // My part of S = Q K^T, 16 keys at a time: S of all of them and O and Q do not fit the registers
  __device__ __forceinline__ void multiply_keys() {
    SDPA_FOR (n, BK / 16) {
      const unsigned keys = K + (n * 16 + (lane & 7) + (lane >> 4) * 8) * kTile.k_row_bytes +
                            wn * FD * 32 + (lane >> 3 & 1) * 16;
      float S[MT][2][4] = {};
      SDPA_FOR (d, FD) {
        unsigned b[4];
        load_matrices(b, keys + d * 32);
        SDPA_FOR (m, MT) {
          multiply_add<T>(S[m][0], Q[m][d], b[0], b[1]);
          multiply_add<T>(S[m][1], Q[m][d], b[2], b[3]);
        }
      }
      SDPA_FOR (q, WN * MS) {  // half fragments
        const int to = q / MS, m = q / 2, h = q % 2, g = q % MS;
        if (to == wn) {
          SDPA_FOR (f, 2)
            SDPA_FOR (e, 2) s[g][n * 2 + f][e] = S[m][f][h * 2 + e];
        } else {
          float2* const part = parts(to, (wn - to - 1 + WN) % WN) + (g * FK + n * 2) * 32;
          SDPA_FOR (f, 2) part[f * 32] = {S[m][f][h * 2], S[m][f][h * 2 + 1]};
        }
      }
    }
  }

  // S of my rows, hidden where they do not see a key
  __device__ __forceinline__ void add_scores(int key) {
    SDPA_FOR (slot, WN - 1)
      SDPA_FOR (g, MS)
        SDPA_FOR (f, FK) {
          const float2 part = parts(wn, slot)[(g * FK + f) * 32];
          s[g][f][0] += part.x;
          s[g][f][1] += part.y;
        }
    factor = a.p.scale * kLog2e;
    const bool open = all_open(a.p, work, key);
    if (!SDPA_SOFTCAP && open && factor > 0.f) return;
    factor = 1.f;
    SDPA_FOR (g, MS) {
      SDPA_FOR (f, FK)
        SDPA_FOR (e, 2) s[g][f][e] = score(s[g][f][e], a.p.scale, a.p.softcap);
      if (!open)
        hide_keys(a, work, softmax_row(g), key, lane % 4,
                  [&](int f, int e) -> float& { return s[g][f][e]; });
    }
  }

  // m, alpha, P = exp2(S - m)
  __device__ __forceinline__ void softmax() {
    SDPA_FOR (g, MS) {
      float most = s[g][0][0];
      SDPA_FOR (f, FK)
        SDPA_FOR (e, 2) most = fmaxf(most, s[g][f][e]);
      most = row_max(most) * factor;
      RowState& my = state[g];
      const bool rises = most > my.m + kSlack;
      const float alpha = rises ? fast_exp2(my.m - most) : 1.f;
      if (rises) my.m = most;
      my.l *= alpha;
      const float to = reference_of(my.m);
      const int r = softmax_row(g);
      SDPA_FOR (f, FK) {
        const float x = fast_exp2(fmaf(s[g][f][0], factor, -to));
        const float y = fast_exp2(fmaf(s[g][f][1], factor, -to));
        my.l += x + y;
        store_4_bytes(weights_at(P, r, f) + lane % 4 * 4, pack<T>(x, y));
      }
      if (lane % 4 == 0) alphas[r] = alpha;
    }
  }

  // O = O * alpha
  __device__ __forceinline__ void rescale() {
    float alpha[MT][2];
    bool moved = false;
    SDPA_FOR (m, MT)
      SDPA_FOR (h, 2) {
        alpha[m][h] = alphas[wm * RM + m * 16 + h * 8 + lane / 4];
        moved = moved || alpha[m][h] != 1.f;
      }
    if (__any_sync(~0u, moved))
      SDPA_FOR (m, MT)
        SDPA_FOR (f, FV)
          SDPA_FOR (e, 4) O[m][f][e] *= alpha[m][e / 2];
  }

  __device__ __forceinline__ void load_weights() {
    SDPA_FOR (m, MT)
      SDPA_FOR (k, BK / 16)
        load_matrices(weights[m][k],
                      weights_at(P, wm * RM + m * 16 + (lane & 15), k * 2 + (lane >> 4)));
  }

  // O += P V of 16 keys
  __device__ __forceinline__ void multiply_values(int k) {
    const unsigned values =
        V + (k * 16 + (lane & 15)) * kTile.v_row_bytes + wn * FV * 16 + (lane >> 4) * 16;
    SDPA_FOR (f, FV / 2) {
      unsigned b[4];
      load_transposed(b, values + f * 32);
      SDPA_FOR (m, MT) {
        multiply_add<T>(O[m][f * 2], weights[m][k], b[0], b[1]);
        multiply_add<T>(O[m][f * 2 + 1], weights[m][k], b[2], b[3]);
      }
    }
  }

  // O = O / l: who added up a row tells what to multiply it by
  __device__ __forceinline__ void store() {
    SDPA_FOR (g, MS) {
      const int r = softmax_row(g);
      const Row my = row_of(work.row0 + r, work.rows, work.hkv, a.p.group);
      RowState total = {state[g].m, row_sum(state[g].l)};
      const bool none = total.l == 0.f;
      const float by = finish_row(a, work.b, work.split, my, total);
      if (lane % 4 == 0) {
        alphas[r] = none ? 0.f : by;
        if (a.lse && my.valid) a.lse[split_row(a.p, work.b, work.split, my)] = lse_of(total);
      }
    }
    __syncthreads();
    SDPA_FOR (m, MT)
      SDPA_FOR (h, 2) {
        const int r = wm * RM + m * 16 + h * 8 + lane / 4;
        const Row my = row_of(work.row0 + r, work.rows, work.hkv, a.p.group);
        if (!my.valid) continue;
        const float by = alphas[r];
        const int64_t out_row = split_row(a.p, work.b, work.split, my);
        SDPA_FOR (f, FV)  // a row that saw nothing may hold 0 * inf of hidden values
          store_pair_of_output(a, out_row, (wn * FV + f) * 8 + lane % 4 * 2,
                               by == 0.f ? 0.f : O[m][f][h * 2] * by,
                               by == 0.f ? 0.f : O[m][f][h * 2 + 1] * by);
      }
  }
};

__device__ inline void prefill(const Arguments& a) {
  extern __shared__ __align__(16) char memory[];
  const unsigned base = shared_address(memory);
  constexpr int V_at = BK * kTile.k_row_bytes, P_at = kTile.ring_bytes + kTile.exchange_bytes;
  const int thread = int(threadIdx.x), lane = thread & 31, warp = thread / 32;
  const Work work = work_of(a.p, a.part);
  const Operand K = operand_of(a.K, a.p.Ks, work, a.p.D), V = operand_of(a.V, a.p.Vs, work, a.p.Dv);

  ColumnsOfWarp my = {a,
                      work,
                      lane,
                      warp / WN,
                      warp % WN,
                      base,
                      base + V_at,
                      base + P_at,
                      reinterpret_cast<float2*>(memory + kTile.ring_bytes),
                      reinterpret_cast<float*>(memory + P_at + BQ * kWeightsRow)};
  const auto copy_keys = [&](int j) {
    if (j < work.blocks) copy_block<D>(K, work.keys.begin + j * BK, work.keys.end, base, thread);
    commit_copies();
  };
  copy_keys(0);
  load_query(a, work, my.wm * RM, my.wn * FD * 16, lane, my.Q);
  SDPA_FOR (g, MS) my.state[g] = empty_row();
  SDPA_FOR (m, MT)
    SDPA_FOR (f, FV)
      SDPA_FOR (e, 4) my.O[m][f][e] = 0.f;

  if (work.blocks > 0) {
    wait_copies<0>();
    __syncthreads();
    my.multiply_keys();
    __syncthreads();
    copy_keys(1);
    my.add_scores(work.keys.begin);
    my.softmax();
  }
#pragma unroll 1
  for (int j = 0; j < work.blocks; ++j) {
    const bool more = j + 1 < work.blocks;
    wait_copies<0>();
    __syncthreads();
    copy_block<DV>(V, work.keys.begin + j * BK, work.keys.end, base + V_at, thread);
    commit_copies();
    my.rescale();
    my.forget();
    if (more) my.multiply_keys();
    my.forget();
    my.load_weights();
    wait_copies<0>();
    __syncthreads();
    copy_keys(j + 2);
    my.forget();
    if (more) my.add_scores(work.keys.begin + (j + 1) * BK);
    my.forget();
    my.multiply_values(0);
    if (more) my.softmax();
    my.multiply_values(1);
  }
  __syncthreads();
  my.store();
}

}  // namespace sdpa
