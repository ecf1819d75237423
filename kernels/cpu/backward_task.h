// What the host tells the CPU kernels of a backward pass, and where they keep what they share.
#pragma once

#include "kernels/cpu/kernels.h"

namespace sdpa::cpu {

// What the forward pass left, its cotangents, and the row statistics of the backward pass.
struct BackwardOperands {
  const void* O;      // T [B, Hq, Lq, Dv]
  const void* dO;     // T [B, Hq, Lq, Dv]
  const float* lse;   // [B, Hq, Lq]
  const float* dlse;  // [B, Hq, Lq]
  Strides Os, dOs;
  Strides lses, dlses;  // col is not used
  // By row of a KV head (rows.h): [B, Hkv, Lq * group]
  float* row_lse;   // lse; +inf where the row saw no key, so that P = exp(S - lse) is 0
  float* row_pull;  // dlse - sum(dO * O), what dS = P * (dP + pull) needs of a whole row
};

// The sums of one KV head in float32, padded to whole tiles and vectors.
struct BackwardSums {
  float* dQ;  // [row_tiles * bq, sum_leading(D)]
  float* dK;  // [key_tiles * bk, sum_leading(D)]
  float* dV;  // [key_tiles * bk, sum_leading(Dv)]
};

// Rows of one KV head against keys [key0, key1), bk of them at most; the rows are taken bq at a time.
struct BackwardTask {
  int b, hkv;
  int row0, row1;
  int bq;
  int key0, key1;
  int bk;
  BackwardSums sums;
};

// Rows [row0, row1) of a result [row1, columns], contiguous, from float32 sums.
struct BackwardStore {
  const float* sums;
  int leading;  // of sums
  int64_t row0, row1;
  int columns;
  float scale;
  void* out;  // T
  DType dtype;
};

struct BackwardKernels {
  int (*sum_leading)(int columns);
  // Bytes of scratch that one thread needs.
  size_t (*scratch)(const Params&, int bq, int bk);
  // row_lse and row_pull of rows [row0, row1) of a KV head.
  void (*rows)(const Params&, const BackwardOperands&, int b, int hkv, int row0, int row1);
  // Adds to dQ, dK and dV what the rows and keys of the task have with each other.
  void (*tile)(const Params&, const Operands&, const BackwardOperands&, const BackwardTask&,
               void* scratch);
  // Query head `head` of [B, Hq]: the sum of exp(sink - lse) * pull over its rows.
  float (*sink)(const Params&, const Operands&, const BackwardOperands&, int b, int head);
  // out = scale * sums, rounded to T
  void (*store)(const BackwardStore&);
};

}  // namespace sdpa::cpu
