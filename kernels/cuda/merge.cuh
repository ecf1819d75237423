// Exact combination of attentions over disjoint keys: with w_i = exp(lse_i - m), m = max_i lse_i,
//   O = sum_i w_i O_i / sum_i w_i,   lse = m + log(sum_i w_i)
// A part that saw no key (lse_i = -inf) contributes nothing, whatever stands in its O_i. The lse are subtracted in base e,
// as they come: in base 2 one of 1000 would be rounded by 6e-5 before the subtraction, and the weights with it.
//
//   grid, block  merge_launch(): (rows, columns), (32, groups of parts, rows of a block)
//   memory       the sums of the groups; the carried O and lse may be O and lse
//
// It runs for 3 us between two kernels that wait for it, so what counts is how often it waits for memory, and how many
// instructions it fetches that the keys of the kernel before have driven out of the caches. Timetable of a warp:
//
//   ask for the first O_i of its group, and for all lse
//   m = max lse_i, l = sum exp(lse_i - m)       a lane has every 32nd part
//   for kMergeBatch parts at a time: O += w_i O_i, with w_i from a lane that has it
//   the first group adds the sums of the others
#pragma once

#include "kernels/cuda/merge_tile.h"
#include "kernels/cuda/softmax.cuh"

namespace sdpa {

using TIn = ElementOf<SDPA_PART_F32 ? int(DType::F32) : kDType>::type;

template <typename E>
struct alignas(4 * sizeof(E)) Four {
  E x[4];
};

// Columns [col, col + 4) of a row of n; zero beyond its end, unless the row is of whole fours.
template <bool whole, typename E>
__device__ inline float4 load_columns(const E* row, int col, int n) {
  Four<E> v = {};
  if constexpr (whole) {
    v = *reinterpret_cast<const Four<E>*>(row + (col < n ? col : 0));
  } else {
    SDPA_FOR (i, 4)
      if (col + i < n) v.x[i] = row[col + i];
  }
  return {to_float(v.x[0]), to_float(v.x[1]), to_float(v.x[2]), to_float(v.x[3])};
}

template <bool whole>
__device__ inline void store_columns(Out* row, int col, int n, float4 x) {
  const Four<Out> v = {
      {from_float<Out>(x.x), from_float<Out>(x.y), from_float<Out>(x.z), from_float<Out>(x.w)}};
  if constexpr (whole) {
    if (col < n) *reinterpret_cast<Four<Out>*>(row + col) = v;
  } else {
    SDPA_FOR (i, 4)
      if (col + i < n) row[col + i] = v.x[i];
  }
}

// sum += weight * x; a part of weight 0 contributes nothing, whatever stands in it.
__device__ inline void add(float4& sum, float weight, float4 x) {
  const bool counts = weight != 0.f;
  sum.x += counts ? weight * x.x : 0.f;
  sum.y += counts ? weight * x.y : 0.f;
  sum.z += counts ? weight * x.z : 0.f;
  sum.w += counts ? weight * x.w : 0.f;
}

// exp(lse - m)
__device__ inline float weight_of(float lse, float m) { return exp2f((lse - m) * kLog2e); }

// The columns that one warp adds up, of kMergeBatch parts at a time.
template <bool whole>
struct Columns {
  const TIn* parts;  // the row, in part 0
  int64_t step;      // from part to part
  int n, Dv;         // parts; columns of the row
  float4 x[kMergeBatch];

  __device__ __forceinline__ void load(int first, int col) {
    const TIn* from = parts + first * step;
    SDPA_FOR (i, kMergeBatch) {
      x[i] = {0.f, 0.f, 0.f, 0.f};
      if (first + i < n) x[i] = load_columns<whole>(from, col, Dv);
      from += step;
    }
  }
};

template <bool whole>
__device__ inline void merge(const MergeArguments& a) {
  __shared__ float4 sums[kMergeWarps][32];
  const MergeParams& p = a.m;
  const int lane = int(threadIdx.x), group = int(threadIdx.y), groups = int(blockDim.y);
  const int64_t my_row = int64_t(blockIdx.x) * blockDim.z + threadIdx.z;
  const int64_t row = min(my_row, p.rows - 1);
  const bool stores = group == 0 && my_row < p.rows;
  const auto lse_at = [&](int i) { return i < p.n ? a.part_lses[i * p.rows + row] : -kInfinity; };
  Columns<whole> part = {static_cast<const TIn*>(a.parts) + row * p.Dv, p.rows * p.Dv, p.n, p.Dv};
  int first = group * kMergeBatch, col = int(blockIdx.y) * kMergedColumns + lane * 4;

  // All that the first columns need is asked for before any of it is waited for.
  const float old = p.with_carry ? a.carry_lse[row] : -kInfinity;
  const float my_lse = lse_at(first + lane % kMergeBatch);
  part.load(first, col);

  float m = old, l = 0.f;  // of the parts of this lane
#pragma unroll 1
  for (int i = lane; i < p.n; i += 32 * 4) {
    float lse[4];
    SDPA_FOR (j, 4) lse[j] = lse_at(i + 32 * j);
    const float top = fmaxf(fmaxf(m, fmaxf(lse[0], lse[1])), fmaxf(lse[2], lse[3]));
    const float to = reference_of(top);
    l *= weight_of(m, to);
    SDPA_FOR (j, 4) l += weight_of(lse[j], to);
    m = top;
  }
  float top = m;
  SDPA_FOR (bit, 5) top = fmaxf(top, __shfl_xor_sync(~0u, top, 1 << bit));
  const float to = reference_of(top);
  l *= weight_of(m, to);
  SDPA_FOR (bit, 5) l += __shfl_xor_sync(~0u, l, 1 << bit);
  const float carried = weight_of(old, to);
  l += carried;
  const float inverse = l == 0.f ? 0.f : 1.f / l;

#pragma unroll 1
  for (;;) {
    float4 sum = {0.f, 0.f, 0.f, 0.f};
    if (group == 0 && carried != 0.f)
      add(sum, carried * inverse, load_columns<whole>(a.carry_O + row * p.Dv, col, p.Dv));
    float weight = weight_of(my_lse, to) * inverse;
#pragma unroll 1
    for (;;) {
      SDPA_FOR (i, kMergeBatch) add(sum, __shfl_sync(~0u, weight, i), part.x[i]);
      first += groups * kMergeBatch;
      if (first >= p.n) break;
      part.load(first, col);
      weight = weight_of(lse_at(first + lane % kMergeBatch), to) * inverse;
    }
    if (groups > 1) {
      sums[group][lane] = sum;
      __syncthreads();
      if (group == 0)
        for (int g = 1; g < groups; ++g) {
          const float4 x = sums[g][lane];
          sum = {sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w};
        }
    }
    if (stores) store_columns<whole>(static_cast<Out*>(a.O) + row * p.Dv, col, p.Dv, sum);
    col += int(gridDim.y) * kMergedColumns;
    if (col - lane * 4 >= p.Dv) break;
    first = group * kMergeBatch;
    part.load(first, col);
    if (groups > 1) __syncthreads();
  }
  if (a.lse && stores && blockIdx.y == 0 && lane == 0)
    a.lse[row] = l == 0.f ? -kInfinity : top + log2f(l) * kLn2;
}

}  // namespace sdpa

extern "C" __global__ void __launch_bounds__(32 * sdpa::kMergeWarps, 2)
    sdpa_kernel(const __grid_constant__ sdpa::MergeArguments a) {
  using namespace sdpa;
  const uint64_t misplaced = reinterpret_cast<uint64_t>(a.parts) % sizeof(Four<TIn>) |
                             reinterpret_cast<uint64_t>(a.O) % sizeof(Four<Out>) |
                             reinterpret_cast<uint64_t>(a.carry_O) % sizeof(float4);
  if (a.m.Dv % 4 == 0 && misplaced == 0)
    merge<true>(a);
  else
    merge<false>(a);
}
