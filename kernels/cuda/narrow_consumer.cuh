// A consumer of the Hopper kernel for head dims up to 256: one warpgroup with 64 rows of S, P and O.
#pragma once

#include "kernels/cuda/narrow_shared.cuh"

namespace sdpa {

constexpr int kTurnBarrier =
    4;  // named barriers: 1 + w is of consumer w, kTurnBarrier + w its turn to multiply
constexpr bool kTakeTurns = kConsumers > 1;

template <bool additive>
struct MaskElementOf {
  using type = ElementOf<SDPA_MASK_DTYPE>::type;
};
template <>
struct MaskElementOf<false> {
  using type = unsigned char;
};
using MaskElement = MaskElementOf<kMaskKind == int(MaskKind::Additive)>::type;
struct alignas(2 * sizeof(MaskElement)) MaskPair {
  MaskElement x[2];
};

struct NarrowConsumer {
  const Arguments& a;
  NarrowShared& shared;
  const NarrowTile& tile;
  const int w, warp, lane;  // consumer, warp and lane in it

  float O[DV / 2], S[BK / 2];  // accumulators, see wgmma.cuh: element i belongs to my row i / 2 % 2
  unsigned P[BK / 16][4];
  float m[2], l[2];               // of my two rows: what P is relative to, my part of the sum of P
  float alpha[2];                 // what O is multiplied by before the next P V
  KeyRange seen[2], seen_by_all;  // keys that my rows, and all rows of the warpgroup, see
  int64_t mask_at[2];             // where my rows' masks start
  Ring K, V;

  __device__ __forceinline__ int row(int r) const {
    return tile.row0 + w * 64 + warp * 16 + lane / 4 + r * 8;
  }

  __device__ __forceinline__ void start() {
    const Params& p = a.p;
    SDPA_FOR (r, 2) {
      const Row my = row_of(row(r), tile.rows, tile.hkv, p.group);
      seen[r] = key_range(p, a.part, tile.split, my.position, my.position);
      if constexpr (kMasked) mask_at[r] = mask_row(p, tile.b, my);
      m[r] = -kInfinity;
      l[r] = 0.f;
    }
    const int row0 = tile.row0 + w * 64;
    const int first = min(row0, tile.rows - 1) / p.group;
    const int last = min(row0 + 63, tile.rows - 1) / p.group;
    seen_by_all = {key_range(p, a.part, tile.split, last, last).begin,
                   key_range(p, a.part, tile.split, first, first).end};
    SDPA_FOR (i, DV / 2) O[i] = 0.f;
    load_query(a, shared, tile, w, warp * 32 + lane);
  }

  // S = Q K^T
  __device__ __forceinline__ void multiply_keys() {
    const uint64_t q = k_major(shared_address(shared.Q) + w * 64 * 128);
    const uint64_t k = k_major(shared_address(shared.K[K.stage]));
    wait(shared_address(&shared.K_full[K.stage]), K.turn);
    fence_wgmma();
    SDPA_FOR (c, D / 64)
      SDPA_FOR (i, 4)
        Wgmma<BK>::template run<false>(S, q + (c * BQ * 128 + i * 32) / 16,
                                       k + (c * BK * 128 + i * 32) / 16, c + i > 0);
    commit_wgmma();
  }

  // O += P V
  __device__ __forceinline__ void multiply_values() {
    const uint64_t v = k_rows(shared_address(shared.V[V.stage]), BK * 128);
    wait(shared_address(&shared.V_full[V.stage]), V.turn);
    fence_wgmma();
    SDPA_FOR (i, BK / 16) Wgmma<DV>::template run<true>(O, P[i], v + i * 16 * 128 / 16, 1);
    commit_wgmma();
  }

  // At most `running` multiplies still run; the one before has finished with its block.
  template <int running>
  __device__ __forceinline__ void finish(uint64_t (&empty)[kStages], Ring& ring) {
    wait_wgmma<running>();
    if (lane == 0) arrive(shared_address(&empty[ring.stage]));
    ring.advance();
  }

  // The warpgroups multiply in turns, so that one's softmax runs beside the other's multiplies.
  __device__ __forceinline__ void take_turn() const {
    if constexpr (kTakeTurns) sync_named(kTurnBarrier + w, 256);
  }
  __device__ __forceinline__ void pass_turn() const {
    if constexpr (kTakeTurns) arrive_named(kTurnBarrier + (w + 1) % kConsumers, 256);
  }

  // S += mask, in base 2; two neighbouring keys at once where all pairs of this thread's rows are aligned and wanted
  __device__ __forceinline__ void add_mask(int key) {
    const int64_t col = a.p.Ms.col, first = key + lane % 4 * 2;
    const MaskElement* const mask = static_cast<const MaskElement*>(a.mask);
    const MaskElement* const rows[2] = {mask + mask_at[0] + first * col,
                                        mask + mask_at[1] + first * col};
    const uint64_t misplaced =
        (reinterpret_cast<uint64_t>(rows[0]) | reinterpret_cast<uint64_t>(rows[1])) %
        sizeof(MaskPair);
    if (col == 1 && misplaced == 0 && key + BK <= tile.keys.end) {
      SDPA_FOR (i, BK / 4) {
        const MaskPair pair = reinterpret_cast<const MaskPair*>(rows[i % 2])[i / 2 * 4];
        SDPA_FOR (e, 2) add_bias(S[i * 2 + e], pair.x[e]);
      }
    } else {
      SDPA_FOR (i, BK / 2) {
        const int k = i / 4 * 8 + i % 2;
        if (first + k < tile.keys.end) add_bias(S[i], rows[i / 2 % 2][k * col]);
      }
    }
  }

  __device__ __forceinline__ static void add_bias(float& s, MaskElement x) {
    if constexpr (kMaskKind == int(MaskKind::Bool)) {
      if (!x) s = -kInfinity;
    } else {
      const float bias = in_base_2(to_float(x));
      s = bias == -kInfinity ? -kInfinity : s + bias;
    }
  }

  // The assembler moves waits across arithmetic, but not across stores: this one, of a sum that is never negative, keeps
  // the next wait behind all that the sum is made of.
  __device__ __forceinline__ void keep_before_wait(float sum) const {
    asm volatile(
        "{ .reg .pred never; setp.lt.f32 never, %0, 0f00000000;\n"
        "  @never st.shared.f32 [%1], %0; }" ::"f"(sum),
        "r"(shared_address(&shared))
        : "memory");
  }

  // S = exp2(S - m) for the keys from `key`
  __device__ __forceinline__ void softmax(int key) {
    const Params& p = a.p;
    float factor =
        p.scale * kLog2e;  // what S is in base 2 once multiplied by it: exp2 takes it along
    if (kMasked || SDPA_SOFTCAP || factor <= 0.f) {
      SDPA_FOR (i, BK / 2) S[i] = score(S[i], p.scale, p.softcap);
      factor = 1.f;
    }
    if constexpr (kMasked) add_mask(key);
    if (key < seen_by_all.begin || key + BK > seen_by_all.end)
      SDPA_FOR (i, BK / 2) {
        const KeyRange mine = seen[i / 2 % 2];
        const int k = key + i / 4 * 8 + lane % 4 * 2 + i % 2;
        if (k < mine.begin || k >= mine.end) S[i] = -kInfinity;
      }
    SDPA_FOR (r, 2) {
      float top = -kInfinity;
      SDPA_FOR (i, BK / 4) top = fmaxf(top, S[i / 2 * 4 + r * 2 + i % 2]);
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
      top = fmaxf(top, __shfl_xor_sync(~0u, top, 2)) * factor;
      const bool rises = top > m[r] + kSlack;
      alpha[r] = rises ? fast_exp2(m[r] - top) : 1.f;
      if (rises) m[r] = top;
      const float to = reference_of(m[r]);
      float sum = 0.f;
      SDPA_FOR (i, BK / 4) {
        float& s = S[i / 2 * 4 + r * 2 + i % 2];
        s = fast_exp2(fmaf(s, factor, -to));
        sum += s;
      }
      l[r] = l[r] * alpha[r] + sum;
    }
    keep_before_wait(l[0] + l[1]);
  }

  // P = S, rounded
  __device__ __forceinline__ void round_weights() {
    SDPA_FOR (i, BK / 16)
      SDPA_FOR (e, 4) {
        const int at = i * 8 + e / 2 * 4 + e % 2 * 2;
        P[i][e] = pack<T>(S[at], S[at + 1]);
      }
    SDPA_FOR (i, BK / 16) pin(P[i]);
  }

  // O = O * alpha
  __device__ __forceinline__ void rescale() {
    if (!__any_sync(~0u, alpha[0] != 1.f || alpha[1] != 1.f)) return;
    SDPA_FOR (i, DV / 2) O[i] *= alpha[i / 2 % 2];
  }

  __device__ __forceinline__ void run() {
    multiply_keys();
    finish<0>(shared.K_empty, K);
    pin(S);
    softmax(tile.keys.begin);
    round_weights();
    if (w == kConsumers - 1 && tile.blocks > 1) pass_turn();
    for (int j = 1; j < tile.blocks; ++j) {
      take_turn();
      multiply_keys();
      multiply_values();
      if (w < kConsumers - 1 || j + 1 < tile.blocks) pass_turn();
      finish<1>(shared.K_empty, K);
      pin(S);
      softmax(tile.keys.begin + j * BK);
      finish<0>(shared.V_empty, V);
      pin(O);
      rescale();
      round_weights();
    }
    multiply_values();
    finish<0>(shared.V_empty, V);
    pin(O);
  }

  // O = O / l
  __device__ __forceinline__ void store() {
    const Params& p = a.p;
    SDPA_FOR (r, 2) {
      l[r] += __shfl_xor_sync(~0u, l[r], 1);
      l[r] += __shfl_xor_sync(~0u, l[r], 2);
      const Row my = row_of(row(r), tile.rows, tile.hkv, p.group);
      RowState state = {m[r], l[r]};
      const float scale = finish_row(a, tile.b, tile.split, my, state);
      if (!my.valid) continue;
      const int64_t out_row = split_row(p, tile.b, tile.split, my);
      if (a.lse && lane % 4 == 0) a.lse[out_row] = lse_of(state);
      SDPA_FOR (n, DV / 8) {
        // a row that saw nothing may hold 0 * inf of hidden values
        const float x = scale == 0.f ? 0.f : O[n * 4 + r * 2] * scale;
        const float y = scale == 0.f ? 0.f : O[n * 4 + r * 2 + 1] * scale;
        store_pair_of_output(a, out_row, n * 8 + lane % 4 * 2, x, y);
      }
    }
  }
};

}  // namespace sdpa
