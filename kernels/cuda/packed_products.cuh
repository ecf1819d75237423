// Both products of the packed kernel with a block of 16 keys.
//
// No element is moved to where a fragment wants it; Q and O are permuted instead, the same for every key:
//   K   a lane's word of 16 bytes of a key: 8 elements, j and j + 4 side by side (8 bits: 4, as they come)
//   V   a lane's 16 bits of two keys, transposed as they are loaded: 4 columns of O (8 bits: 2)
#pragma once

#include "kernels/cuda/packed_copy.cuh"
#include "kernels/cuda/packed_elements.cuh"

namespace sdpa {

// Q as fragments [chunks of 16 bytes of K (8 bits: pairs of them), lane], 16 bytes each: 8 columns of a row from d on.
__device__ inline void store_query(char* Q, int r, int d, uint4 x) {
  if constexpr (kBits == 4) {
    const int lane = r * 4 + d % 32 / 8;
    const uint4 pairs = {__byte_perm(x.x, x.z, 0x5410), __byte_perm(x.x, x.z, 0x7632),
                         __byte_perm(x.y, x.w, 0x5410), __byte_perm(x.y, x.w, 0x7632)};
    reinterpret_cast<uint4*>(Q)[d / 32 * 32 + lane] = pairs;
  } else {
    const int lane = r * 4 + d % 16 / 4;
    uint2* to = reinterpret_cast<uint2*>(Q) + (d / 32 * 32 + lane) * 2 + d / 16 % 2;
    to[0] = {x.x, x.y};
    to[2] = {x.z, x.w};
  }
}

__device__ inline float4 load_four(unsigned address) {
  float4 x;
  asm volatile("ld.shared.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w)
               : "r"(address)
               : "memory");
  return x;
}

__device__ inline void store_four(unsigned address, float4 x) {
  asm volatile("st.shared.v4.f32 [%0], {%1,%2,%3,%4};" ::"r"(address), "f"(x.x), "f"(x.y), "f"(x.z),
               "f"(x.w)
               : "memory");
}

__device__ inline float sum_of_elements(uint4 x) {
  const unsigned w[4] = {x.x, x.y, x.z, x.w};
  float sum = 0.f;
  SDPA_FOR (i, 4) sum += element_to_float(w[i], false) + element_to_float(w[i], true);
  return sum;
}

// The B of the transposed matrix of pairs that a lane has as C: of 8 keys and 8 rows.
__device__ inline unsigned transposed(unsigned pair) {
  unsigned x;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(x) : "r"(pair));
  return x;
}

// S^T = K Q^T of a block of keys
__device__ inline void multiply_keys(unsigned Q, unsigned sums, unsigned block, unsigned words,
                                     Place at, float (&S)[4]) {
  constexpr int kChunks = D / kPerChunk, kN = kGroups<D>;
  const unsigned groups = block + BK * kTile.row_bytes;
  GroupsOf<kN> scales[2], biases[2];
  SDPA_FOR (h, 2) {
    scales[h].load(groups, at.i + h * 8);
    biases[h].load(groups + kTile.groups_bytes, at.i + h * 8);
  }
  float C[4];
  unsigned w[4], q[4];
  SDPA_FOR (c, kChunks) {
    const int h = c % 2 * 2;
    if (h == 0) load_matrices(w, words + c * 16);
    if (kBits == 4 || h == 0) load_16_bytes(q, Q + ((kBits == 4 ? c : c / 2) * 32 + at.lane) * 16);
    if (c % kGroupChunks == 0) C[0] = C[1] = C[2] = C[3] = 0.f;
    if constexpr (kBits == 4) {
      SDPA_FOR (s, 2) {
        const unsigned a[4] = {pair_of_4_bits(w[h], s * 2), pair_of_4_bits(w[h + 1], s * 2),
                               pair_of_4_bits(w[h], s * 2 + 1),
                               pair_of_4_bits(w[h + 1], s * 2 + 1)};
        multiply_add<T>(C, a, q[s * 2], q[s * 2 + 1]);
      }
    } else {
      const unsigned a[4] = {pair_of_8_bits(w[h], 0, 1), pair_of_8_bits(w[h + 1], 0, 1),
                             pair_of_8_bits(w[h], 2, 3), pair_of_8_bits(w[h + 1], 2, 3)};
      multiply_add<T>(C, a, q[h], q[h + 1]);
    }
    if ((c + 1) % kGroupChunks == 0 || c + 1 == kChunks) {
      const int g = c / kGroupChunks;
      const float2 sum = load_pair(sums + (g * BQ + at.t * 2) * 4);
      SDPA_FOR (e, 2) {
        const float scale = scales[e][g], rest = fmaf(-kOffset, scale, biases[e][g]);
        S[e * 2] = fmaf(scale, C[e * 2], fmaf(rest, sum.x, S[e * 2]));
        S[e * 2 + 1] = fmaf(scale, C[e * 2 + 1], fmaf(rest, sum.y, S[e * 2 + 1]));
      }
    }
  }
}

// O^T += V^T P^T of a block of keys
__device__ inline void multiply_values(unsigned block, unsigned words, Place at, unsigned b0,
                                       unsigned b1, float (&O)[kTilesV][4]) {
  constexpr int kChunks = DV / kPerChunk, kN = kGroups<DV>;
  const unsigned groups = block + BK * kTile.row_bytes;
  GroupsOf<kN> scales[4], biases[4];  // of keys 2t, 2t + 1, 2t + 8, 2t + 9
  SDPA_FOR (h, 4) {
    scales[h].load(groups, at.t * 2 + h % 2 + h / 2 * 8);
    biases[h].load(groups + kTile.groups_bytes, at.t * 2 + h % 2 + h / 2 * 8);
  }
  Affine group[2];
  unsigned x[4];
  SDPA_FOR (c, kChunks) {
    if (c % 2 == 0) load_transposed(x, words + c * 16);
    if (c % kGroupChunks == 0)
      SDPA_FOR (h, 2)
        group[h] = {pair_of_groups(scales[h * 2], scales[h * 2 + 1], c / kGroupChunks),
                    pair_of_groups(biases[h * 2], biases[h * 2 + 1], c / kGroupChunks)};
    const unsigned y0 = x[c % 2 * 2], y1 = x[c % 2 * 2 + 1];
    if constexpr (kBits == 4) {
      SDPA_FOR (j, 2) {
        const unsigned a[4] = {dequantized(pair_of_4_bits(y0, j), group[0]),
                               dequantized(pair_of_4_bits(y0, j + 2), group[0]),
                               dequantized(pair_of_4_bits(y1, j), group[1]),
                               dequantized(pair_of_4_bits(y1, j + 2), group[1])};
        multiply_add<T>(O[c * 2 + j], a, b0, b1);
      }
    } else {
      const unsigned a[4] = {dequantized(pair_of_8_bits(y0, 0, 2), group[0]),
                             dequantized(pair_of_8_bits(y0, 1, 3), group[0]),
                             dequantized(pair_of_8_bits(y1, 0, 2), group[1]),
                             dequantized(pair_of_8_bits(y1, 1, 3), group[1])};
      multiply_add<T>(O[c], a, b0, b1);
    }
  }
}

// O of a warp to shared memory, [8 rows, DV].
__device__ inline void store_partial(unsigned partial, const float (&O)[kTilesV][4], Place at) {
  SDPA_FOR (r, 2) {
    const unsigned row = partial + (at.t * 2 + r) * kTile.partial_row_bytes;
    SDPA_FOR (c, DV / kPerChunk)
      if constexpr (kBits == 4)
        store_four(row + (c * 32 + at.i * 4) * 4,
                   {O[c * 2][r], O[c * 2 + 1][r], O[c * 2][r + 2], O[c * 2 + 1][r + 2]});
      else
        store_pair<float>(row + (c * 16 + at.i * 2) * 4, O[c][r], O[c][r + 2]);
  }
}

}  // namespace sdpa
