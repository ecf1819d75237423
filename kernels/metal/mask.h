// Which keys a row sees: the part's keys, causality, window, and the mask array.
#pragma once

#include "kernels/metal/softmax.h"

namespace sdpa {

// Keys [begin, end) that some row of positions [first, last] sees.
struct KeyRange {
  int begin, end;
};

inline KeyRange key_range(constant Params& p, constant Part& part, int split, int first, int last) {
  int begin = part.key0 + split * part.split_keys;
  int end = min(part.key1, begin + part.split_keys);
  if (kCausal) end = min(end, last + p.q_offset + 1);
  if (kWindow) begin = max(begin, first + p.q_offset - p.window + 1);
  return {begin, end};
}

// Whether causality and the window let all rows of positions [first, last] see all keys [key, key + n).
inline bool all_seen(constant Params& p, int key, int n, int first, int last) {
  if (kCausal && key + n - 1 > first + p.q_offset) return false;
  return !kWindow || key > last + p.q_offset - p.window;
}

inline bool seen(constant Params& p, int position, int key) {
  if (kCausal && key > position + p.q_offset) return false;
  return !kWindow || key > position + p.q_offset - p.window;
}

// A bias in base 2. The most negative float is a bias like others, and must not become -inf, which hides the key.
inline float in_base_2(float bias) {
  const float x = bias * log2_e();
  return x == -INFINITY && bias != -INFINITY ? -FLT_MAX : x;
}

// An element of an additive mask, in base 2; -inf for a hidden key of a bool mask.
inline float mask_value(device const uchar* mask, int64_t at) {
  if (kMaskKind == int(MaskKind::Bool)) return mask[at] ? 0.f : -INFINITY;
  if (kMaskType == int(DType::F32)) return in_base_2(((device const float*)mask)[at]);
  if (kMaskType == int(DType::F16)) return float(((device const half*)mask)[at]) * log2_e();
  return in_base_2(float(((device const bfloat*)mask)[at]));
}

inline int64_t mask_row(constant Params& p, int b, Row row) {
  return b * p.Ms.batch + row.head * p.Ms.head + row.position * p.Ms.row;
}

}  // namespace sdpa
