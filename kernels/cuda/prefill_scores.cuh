// Scores of one row of a fragment: 2 FK of them in a lane, of keys 8 f + 2 t and the next one.
#pragma once

#include "kernels/cuda/prefill_blocks.cuh"

namespace sdpa {

// Lanes that share the rows of a fragment differ in t.
__device__ inline float row_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ inline float row_sum(float x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

template <int n>
struct BitsOf {
  using type = uint64_t;
};
template <>
struct BitsOf<32> {
  using type = unsigned;
};
using KeyBits = BitsOf<BK>::type;

// Which of the BK keys from `key` a bool mask shows to the row of 4 lanes, a bit each. A lane reads a quarter of them,
// side by side, four to a word where it can.
__device__ inline KeyBits shown_keys(const Arguments& a, int64_t row, int key, int end, int t) {
  constexpr int kMine = BK / 4;
  const int64_t stride = a.p.Ms.col;
  const unsigned char* mask =
      static_cast<const unsigned char*>(a.mask) + row + (key + t * kMine) * stride;
  KeyBits bits = 0;
  if (stride == 1 && key + BK <= end && reinterpret_cast<uint64_t>(mask) % 4 == 0) {
    SDPA_FOR (w, kMine / 4) {
      const unsigned word = reinterpret_cast<const unsigned*>(mask)[w];
      // the low bit of each byte, gathered by a multiply into the top 4 bits
      const unsigned shown = __vminu4(word, 0x01010101) * 0x10204080u >> 28;
      bits |= KeyBits(shown) << (w * 4);
    }
  } else {
    SDPA_FOR (k, kMine)
      if (key + t * kMine + k < end && mask[k * stride]) bits |= KeyBits(1) << k;
  }
  bits <<= t * kMine;
  bits |= __shfl_xor_sync(~0u, bits, 1);
  return bits | __shfl_xor_sync(~0u, bits, 2);
}

// Neighbours in an additive mask.
template <typename E>
struct alignas(2 * sizeof(E)) Pair {
  E x[2];
};

// Hides the keys that row r of the tile does not see, or adds its mask. at(f, e) is the score of key + 8 f + 2 t + e,
// in base 2.
template <typename At>
__device__ __forceinline__ void hide_keys(const Arguments& a, const Work& work, int r, int key,
                                          int t, At at) {
  const Params& p = a.p;
  const Row row = row_of(work.row0 + (kMasked ? fresh(r) : r), work.rows, work.hkv, p.group);
  int begin = work.keys.begin, end = work.keys.end;
  if (p.causal) end = min(end, row.position + p.q_offset + 1);
  if (p.window) begin = max(begin, row.position + p.q_offset - p.window + 1);
  const int first = key + t * 2;
  SDPA_FOR (f, FK)
    SDPA_FOR (e, 2) {
      const int k = first + f * 8 + e;
      if (k < begin || k >= end) at(f, e) = -kInfinity;
    }
  if constexpr (kMaskKind == int(MaskKind::Bool)) {
    const KeyBits shown = shown_keys(a, mask_row(p, work.b, row), key, work.keys.end, t) >> (t * 2);
    SDPA_FOR (f, FK)
      SDPA_FOR (e, 2)
        if (!(shown >> (f * 8 + e) & 1)) at(f, e) = -kInfinity;
  } else if constexpr (kMaskKind == int(MaskKind::Additive)) {
    using E = ElementOf<SDPA_MASK_DTYPE>::type;
    const int64_t stride = p.Ms.col;
    const E* mask = static_cast<const E*>(a.mask) + mask_row(p, work.b, row) + first * stride;
    const bool pairs = stride == 1 && key + BK <= work.keys.end &&
                       reinterpret_cast<uint64_t>(mask) % sizeof(Pair<E>) == 0;
    const auto add = [&](int f, int e, E bias) {
      const float x = in_base_2(to_float(bias));
      at(f, e) = x == -kInfinity ? x : at(f, e) + x;
    };
    if (pairs) {
      SDPA_FOR (f, FK) {
        const Pair<E> bias = *reinterpret_cast<const Pair<E>*>(mask + f * 8);
        SDPA_FOR (e, 2) add(f, e, bias.x[e]);
      }
    } else {
      SDPA_FOR (f, FK)
        SDPA_FOR (e, 2)
          if (first + f * 8 + e < work.keys.end) add(f, e, mask[(f * 8 + e) * stride]);
    }
  }
}

// Whether all rows of the tile see all keys of a block.
__device__ inline bool all_open(const Params& p, const Work& work, int key) {
  return !kMasked && key + BK <= work.keys.end &&
         all_seen(p, key, BK, work.first_position, work.last_position);
}

}  // namespace sdpa
