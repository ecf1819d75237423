// The rows of a tile, and which keys a row sees: the part's keys, causality, window, and the mask array.
#pragma once

#include "kernels/cuda/softmax.cuh"

namespace sdpa {

constexpr int kMaskKind = SDPA_MASK;
constexpr bool kMasked = kMaskKind != int(MaskKind::None);

// A row of a tile: one query position of one head of a GQA group.
struct Row {
  int position, head;
  bool valid;
};

__device__ inline Row row_of(int r, int rows, int hkv, int group) {
  const int inside = min(r, rows - 1);
  const int position = inside / group;
  return {position, hkv * group + inside - position * group, r < rows};
}

// Of O and lse.
__device__ inline int64_t output_row(const Params& p, int b, Row row) {
  return (int64_t(b) * p.Hq + row.head) * p.Lq + row.position;
}

// Keys [begin, end) that some row of positions [first, last] sees.
struct KeyRange {
  int begin, end;
};

__device__ inline KeyRange key_range(const Params& p, const Part& part, int split, int first,
                                     int last) {
  const int64_t from = part.key0 + int64_t(split) * part.split_keys;
  int begin = int(min(from, int64_t(part.key1)));
  int end = int(min(from + part.split_keys, int64_t(part.key1)));
  if (p.causal) end = min(end, last + p.q_offset + 1);
  if (p.window) begin = max(begin, first + p.q_offset - p.window + 1);
  return {begin, end};
}

// Whether causality and the window let all rows of positions [first, last] see all keys [key, key + n).
__device__ inline bool all_seen(const Params& p, int key, int n, int first, int last) {
  if (p.causal && key + n - 1 > first + p.q_offset) return false;
  return !p.window || key > last + p.q_offset - p.window;
}

__device__ inline bool seen(const Params& p, int position, int key) {
  if (p.causal && key > position + p.q_offset) return false;
  return !p.window || key > position + p.q_offset - p.window;
}

// A bias in base 2. The most negative float is a bias like others, and must not become -inf, which hides the key.
__device__ inline float in_base_2(float bias) {
  constexpr float kLargest = 3.402823466e38f;
  const float x = bias * kLog2e;
  return x == -kInfinity && bias != -kInfinity ? -kLargest : x;
}

// An element of the mask, in base 2; -inf for a hidden key of a bool mask.
__device__ inline float mask_value(const void* mask, int64_t at) {
  if constexpr (kMaskKind == int(MaskKind::Bool))
    return static_cast<const unsigned char*>(mask)[at] ? 0.f : -kInfinity;
  using E = ElementOf<SDPA_MASK_DTYPE>::type;
  return in_base_2(to_float(static_cast<const E*>(mask)[at]));
}

__device__ inline int64_t mask_row(const Params& p, int b, Row row) {
  return b * p.Ms.batch + row.head * p.Ms.head + row.position * p.Ms.row;
}

// A score after mask, causality and window, in base 2; -inf where the row does not see the key.
__device__ inline float masked(const Arguments& a, float s, int key, int end, int position,
                               int64_t mask_at) {
  if (key >= end || !seen(a.p, position, key)) return -kInfinity;
  if constexpr (kMasked) {
    const float bias = mask_value(a.mask, mask_at + key * a.p.Ms.col);
    return bias == -kInfinity ? bias : s + bias;
  }
  return s;
}

}  // namespace sdpa
