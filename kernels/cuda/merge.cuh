// Exact combination of attentions over disjoint keys: with w_i = exp(lse_i - m), m = max_i lse_i,
//   O = sum_i w_i O_i / sum_i w_i,   lse = m + log(sum_i w_i)
// A part that saw no key (lse_i = -inf) contributes nothing, whatever stands in its O_i. The lse are subtracted in base e,
// as they come: in base 2 one of 1000 would be rounded by 6e-5 before the subtraction, and the weights with it.
//
//   grid, block  merge_launch(): (32, warps of a row, rows of a block)
//   memory       the partial sums of the groups of warps; the carried O and lse may be O and lse
//
// Timetable of a row; its warps take different columns, and where they are more than that, different parts:
//
//   m = max lse_i, l = sum exp(lse_i - m)       a lane has every 32nd part
//   for 32 parts at a time: a lane has the weight of one; O += w_i O_i with w_i from its lane
#pragma once

#include "kernels/cuda/merge_tile.h"
#include "kernels/cuda/softmax.cuh"

namespace sdpa {

using TIn = ElementOf<SDPA_PART_F32 ? int(DType::F32) : kDType>::type;

template <typename E>
struct alignas(4 * sizeof(E)) Four {
  E x[4];
};

// Columns [col, col + 4) of a row of n, zero beyond its end; `whole`: rows are whole fours.
template <typename E>
__device__ inline float4 load_columns(const E* row, int col, int n, bool whole) {
  Four<E> v = {};
  if (whole) {
    if (col < n) v = *reinterpret_cast<const Four<E>*>(row + col);
  } else {
    SDPA_FOR (i, 4)
      if (col + i < n) v.x[i] = row[col + i];
  }
  return {to_float(v.x[0]), to_float(v.x[1]), to_float(v.x[2]), to_float(v.x[3])};
}

__device__ inline void store_columns(Out* row, int col, int n, bool whole, float4 x) {
  const Four<Out> v = {
      {from_float<Out>(x.x), from_float<Out>(x.y), from_float<Out>(x.z), from_float<Out>(x.w)}};
  if (whole) {
    if (col < n) *reinterpret_cast<Four<Out>*>(row + col) = v;
  } else {
    SDPA_FOR (i, 4)
      if (col + i < n) row[col + i] = v.x[i];
  }
}

// sum += weight * x, without a branch on the weight: several parts are then on their way at once.
__device__ inline void add(float4& sum, float weight, float4 x) {
  const bool counts = weight != 0.f;
  sum.x += counts ? weight * x.x : 0.f;
  sum.y += counts ? weight * x.y : 0.f;
  sum.z += counts ? weight * x.z : 0.f;
  sum.w += counts ? weight * x.w : 0.f;
}

// exp(lse - m)
__device__ inline float weight_of(float lse, float m) { return exp2f((lse - m) * kLog2e); }

__device__ inline void merge(const MergeArguments& a) {
  __shared__ float4 sums[kMergeWarps][32];
  const MergeParams& p = a.m;
  const int lane = int(threadIdx.x), warp = int(threadIdx.y), warps = int(blockDim.y);
  const int64_t row = int64_t(blockIdx.x) * blockDim.z + threadIdx.z;
  const bool valid = row < p.rows;
  const int chunks = (p.Dv + kMergedColumns - 1) / kMergedColumns;
  const int groups = max(1, warps / chunks), group = warp / chunks;
  const int per_group = (p.n + groups - 1) / groups;
  const int begin = group * per_group, end = min(p.n, begin + per_group);
  const bool whole = p.Dv % 4 == 0 && (reinterpret_cast<uint64_t>(a.parts) % sizeof(Four<TIn>) |
                                       reinterpret_cast<uint64_t>(a.O) % sizeof(Four<Out>) |
                                       reinterpret_cast<uint64_t>(a.carry_O) % 16) == 0;
  const float old = valid && p.with_carry ? a.carry_lse[row] : -kInfinity;
  const auto lse_at = [&](int i) {
    return valid && i < p.n ? a.part_lses[i * p.rows + row] : -kInfinity;
  };

  float m = old;
#pragma unroll 4
  for (int i = lane; i < p.n; i += 32) m = fmaxf(m, lse_at(i));
  SDPA_FOR (bit, 5) m = fmaxf(m, __shfl_xor_sync(~0u, m, 1 << bit));
  const float to = reference_of(m);
  float l = 0.f;
#pragma unroll 4
  for (int i = lane; i < p.n; i += 32) l += weight_of(lse_at(i), to);
  SDPA_FOR (bit, 5) l += __shfl_xor_sync(~0u, l, 1 << bit);
  l += weight_of(old, to);
  const float inverse = l == 0.f ? 0.f : 1.f / l;
  const float carried = weight_of(old, to) * inverse;

  const TIn* const parts = static_cast<const TIn*>(a.parts);
  Out* const O = static_cast<Out*>(a.O) + row * p.Dv;
  for (int chunk = warp % chunks; chunk < chunks; chunk += warps) {
    const int col = chunk * kMergedColumns + lane * 4;
    float4 sum = {0.f, 0.f, 0.f, 0.f};
    if (valid && group == 0 && p.with_carry && carried != 0.f)
      add(sum, carried, load_columns(a.carry_O + row * p.Dv, col, p.Dv, whole));
    for (int first = begin; first < end; first += 32) {
      const float mine = first + lane < end ? weight_of(lse_at(first + lane), to) * inverse : 0.f;
      const int count = valid ? min(32, end - first) : 0;
#pragma unroll 8
      for (int i = 0; i < count; ++i) {
        const float weight = __shfl_sync(~0u, mine, i);
        const TIn* part = parts + ((first + i) * p.rows + row) * p.Dv;
        add(sum, weight, load_columns(part, col, p.Dv, whole));
      }
    }
    if (groups > 1) {  // then a warp has one chunk
      sums[warp][lane] = sum;
      __syncthreads();
      if (group > 0) return;
      for (int g = 1; g < groups; ++g) add(sum, 1.f, sums[g * chunks + warp][lane]);
    }
    if (valid) store_columns(O, col, p.Dv, whole, sum);
  }
  if (warps > 1 && groups == 1) __syncthreads();  // all have read the carried lse, which may be lse
  if (valid && a.lse && warp == 0 && lane == 0)
    a.lse[row] = l == 0.f ? -kInfinity : m + log2f(l) * kLn2;
}

}  // namespace sdpa

extern "C" __global__ void __launch_bounds__(32 * sdpa::kMergeWarps)
    sdpa_kernel(const __grid_constant__ sdpa::MergeArguments a) {
  sdpa::merge(a);
}
