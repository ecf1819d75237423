// A consumer of the Hopper prefill kernel for wide head dims: one warpgroup's half of S, P and O.
#pragma once

#include "kernels/cuda/wide_query.cuh"

namespace sdpa {

constexpr int kSteps = 8;  // of 16 keys in a key block; a softmax has as many

struct WideConsumer {
  const Arguments& a;
  WideShared& shared;
  const WideTile& tile;
  const int w, warp, lane;  // consumer, warp and lane in it

  // Accumulators: element 4 n + e is column 8 n + lane % 4 * 2 + e % 2 of my row e / 2.
  float O[128], S[32];
  // Of my two rows: what P is relative to, my part of the sum of P, what O is multiplied by before the next P V, and
  // the maximum of S.
  float m[2], l[2], alpha[2], top[2];
  KeyRange seen[2], seen_by_all;  // keys that my rows, and all rows of the tile, see
  Ring ring;
  int held = -1;  // stage that the last multiplies read

  __device__ __forceinline__ int row(int r) const { return warp * 16 + lane / 4 + r * 8; }

  __device__ __forceinline__ void start() {
    const Params& p = a.p;
    SDPA_FOR (r, 2) {
      const int position = row_of(tile.row0 + row(r), tile.rows, tile.hkv, p.group).position;
      seen[r] = key_range(p, a.part, tile.split, position, position);
      m[r] = -kInfinity;
      l[r] = 0.f;
    }
    const int first = min(tile.row0, tile.rows - 1) / p.group;
    const int last = min(tile.row0 + kWideRows - 1, tile.rows - 1) / p.group;
    seen_by_all = {key_range(p, a.part, tile.split, last, last).begin,
                   key_range(p, a.part, tile.split, first, first).end};
    SDPA_FOR (i, 128) O[i] = 0.f;
    load_query(a, shared, tile, w * 128 + warp * 32 + lane);
  }

  // Gives the stage that the finished multiplies read back to the producers that fill it.
  __device__ __forceinline__ void release() {
    if (held < 0) return;
    const unsigned empty = shared_address(&shared.empty[held]);
    if constexpr (kCluster == 1) {
      if (lane == 0) arrive(empty);
    } else {
      if (lane < kCluster) arrive_after_reads_at(empty, lane);
    }
    held = -1;
  }

  // The multiplies just issued go on; all before them have finished.
  __device__ __forceinline__ void settle() {
    commit_wgmma();
    wait_wgmma<1>();
    release();
    held = ring.stage;
    ring.advance();
  }

  __device__ __forceinline__ void finish() {
    wait_wgmma<0>();
    release();
  }

  // S (+)= Q K^T over columns [64 c, 64 c + 64), which the next stage holds
  __device__ __forceinline__ void multiply_keys(int c) {
    const unsigned stage = shared_address(shared.ring[ring.stage]) + w * (kWideStageBytes / 2);
    const uint64_t Q = k_major(shared_address(shared.Q[c]));
    const uint64_t K = k_major(stage);
    wait(shared_address(&shared.full[ring.stage]), ring.turn);
    fence_wgmma();
    SDPA_FOR (k, 4) Wgmma<64>::run<false>(S, Q + k * 2, K + k * 2, c > 0 || k > 0);
    settle();
  }

  // O += P V of block j; with the softmax of block j + 1 between the multiplies if there is one
  template <bool more>
  __device__ __forceinline__ void multiply_values(int j) {
    const uint64_t P = k_major(shared_address(shared.P[j & 1]));
    wait(shared_address(&shared.P_ready), j & 1);
    SDPA_FOR (c, kSteps) {
      const unsigned stage = shared_address(shared.ring[ring.stage]) + w * (kWideStageBytes / 2);
      const uint64_t V = k_rows(stage, kWideBoxKeysV * 128);
      wait(shared_address(&shared.full[ring.stage]), ring.turn);
      fence_wgmma();
      Wgmma<256>::run<true>(O, P + (c / 4 * kWideRows * 128 + c % 4 * 32) / 16, V, 1);
      settle();
      if constexpr (more) softmax(j + 1, c);
    }
  }

  // P of block j, in steps that each take less than the multiply they run beside
  __device__ __forceinline__ void softmax(int j, int step) {
    if (step == 0) read_scores(tile.keys.begin + j * kWideKeys + w * 64);
    if (step == 1) share_maxima();
    if (step == 2) agree(j);
    if (step >= 3 && step < 7) {
      write_weights(j, (step - 3) * 2);
      write_weights(j, (step - 3) * 2 + 1);
    }
    if (step == 7) {
      fence_async_proxy();
      arrive(shared_address(&shared.P_ready));
    }
  }

  // S in base 2, -inf where hidden, and its maximum
  __device__ __forceinline__ void read_scores(int key) {
    const Params& p = a.p;
    pin(S);
    SDPA_FOR (i, 32) S[i] = score(S[i], p.scale, p.softcap);
    if (key < seen_by_all.begin || key + 64 > seen_by_all.end)
      SDPA_FOR (i, 32) {
        const KeyRange mine = seen[i / 2 % 2];
        const int k = key + i / 4 * 8 + lane % 4 * 2 + i % 2;
        if (k < mine.begin || k >= mine.end) S[i] = -kInfinity;
      }
    SDPA_FOR (r, 2) top[r] = -kInfinity;
    SDPA_FOR (i, 32) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], S[i]);
  }

  __device__ __forceinline__ void share_maxima() {
    SDPA_FOR (r, 2) {
      top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 1));
      top[r] = fmaxf(top[r], __shfl_xor_sync(~0u, top[r], 2));
      if (lane % 4 == 0) shared.rows[w][row(r)] = top[r];
    }
    if (lane % 4 == 0) arrive(shared_address(&shared.maxima_ready));
  }

  // m, alpha: both consumers come to the same
  __device__ __forceinline__ void agree(int j) {
    wait(shared_address(&shared.maxima_ready), j & 1);
    SDPA_FOR (r, 2) {
      const float top_of_both = fmaxf(top[r], shared.rows[w ^ 1][row(r)]);
      const bool rises = top_of_both > m[r] + kSlack;
      alpha[r] = rises ? fast_exp2(m[r] - top_of_both) : 1.f;
      if (rises) m[r] = top_of_both;
      l[r] *= alpha[r];
    }
  }

  // P = exp2(S - m) of keys [8 n, 8 n + 8)
  __device__ __forceinline__ void write_weights(int j, int n) {
    char* P = reinterpret_cast<char*>(shared.P[j & 1][w]) + (warp * 16 + lane / 4) * 128;
    SDPA_FOR (r, 2) {
      const float to = reference_of(m[r]);
      const float x = fast_exp2(S[n * 4 + r * 2] - to), y = fast_exp2(S[n * 4 + r * 2 + 1] - to);
      l[r] += x + y;
      const int at = r * 1024 + ((n ^ (lane / 4)) * 16) + lane % 4 * 4;
      *reinterpret_cast<unsigned*>(P + at) = pack<T>(x, y);
    }
  }

  // O = O * alpha
  __device__ __forceinline__ void rescale() {
    if (!__any_sync(~0u, alpha[0] != 1.f || alpha[1] != 1.f)) return;
    pin(O);
    SDPA_FOR (i, 128) O[i] *= alpha[i / 2 % 2];
  }

  __device__ __forceinline__ void run() {
    const int columns = (a.p.D + 63) / 64;
    for (int c = 0; c < columns; ++c) multiply_keys(c);
    finish();
    SDPA_FOR (step, kSteps) softmax(0, step);
    for (int j = 0; j + 1 < tile.blocks; ++j) {
      finish();  // with P V under way, ptxas would serialise all multiplies because of rescale (C7514)
      multiply_keys(0);
      rescale();
      for (int c = 1; c < columns; ++c) multiply_keys(c);
      multiply_values<true>(j);
    }
    finish();
    rescale();
    multiply_values<false>(tile.blocks - 1);
    finish();
    pin(O);
  }

  // O = O / l
  __device__ __forceinline__ void store() {
    const Params& p = a.p;
    SDPA_FOR (r, 2) {
      l[r] += __shfl_xor_sync(~0u, l[r], 1);
      l[r] += __shfl_xor_sync(~0u, l[r], 2);
      if (lane % 4 == 0) shared.rows[w][row(r)] = l[r];
    }
    sync_named(kConsumersBarrier, kConsumerThreads);
    SDPA_FOR (r, 2) {
      const Row my = row_of(tile.row0 + row(r), tile.rows, tile.hkv, p.group);
      RowState state = {m[r], shared.rows[0][row(r)] + shared.rows[1][row(r)]};
      const float scale = finish_row(a, tile.b, tile.split, my, state);
      if (!my.valid) continue;
      const int64_t out_row = split_row(p, tile.b, tile.split, my);
      if (a.lse && w == 0 && lane % 4 == 0) a.lse[out_row] = lse_of(state);
      SDPA_FOR (n, 32) {
        const int col = w * 256 + n * 8 + lane % 4 * 2;
        // a row that saw nothing may hold 0 * inf of hidden values
        const float x = scale == 0.f ? 0.f : O[n * 4 + r * 2] * scale;
        const float y = scale == 0.f ? 0.f : O[n * 4 + r * 2 + 1] * scale;
        store_pair_of_output(a, out_row, col, x, y);
      }
    }
  }
};

}  // namespace sdpa
