// What every CUDA attention kernel is given, by value; the host fills it in.
#pragma once

#include "kernels/params.h"

namespace sdpa {

// A CUtensorMap, as the host's driver API encodes it.
struct alignas(64) TensorMap {
  unsigned char bytes[128];
};

// A KV cache in MLX's affine quantization: value = q * scale + bias, a scale and a bias for every group of a row.
struct QuantizedRows {
  const void* scales;        // [B, Hkv, Lk, D / group size]    type of Q
  const void* biases;        // likewise
  int64_t batch, head, row;  // strides of both, in elements
};

struct Arguments {
  // Of K and V, where the kernel copies tiles with TMA: dimensions (D, Lk, Hkv, B), boxes of 64 columns, 128-byte swizzle.
  TensorMap K_map, V_map;
  const void* Q;      // [B, Hq, Lq, D]      T
  const void* K;      // [B, Hkv, Lk, D]     T, or packed words
  const void* V;      // [B, Hkv, Lk, Dv]    T, or packed words
  const void* mask;   // [B, Hq, Lq, Lk]     bool, or additive in its own type; null without
  const void* sinks;  // [B, Hq]             T; null without
  void* O;            // [splits, B, Hq, Lq, Dv], contiguous    T, or float
  float* lse;         // [splits, B, Hq, Lq], contiguous; null if not wanted
  QuantizedRows K_groups, V_groups;
  Params p;
  Part part;
};

// Merge: partial results of disjoint keys, and the running result that they continue.
struct MergeArguments {
  const void* parts;       // [n, rows, Dv]    T, or float
  const float* part_lses;  // [n, rows]
  const float* carry_O;    // [rows, Dv]; null without
  const float* carry_lse;  // [rows]
  void* O;                 // [rows, Dv]       T, or float; may be carry_O
  float* lse;              // [rows]; null if not wanted; may be carry_lse
  MergeParams m;
};

}  // namespace sdpa
