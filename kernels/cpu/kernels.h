// What the host knows of the CPU kernels: one table of functions per instruction set.
#pragma once

#include <cstddef>

#include "kernels/params.h"

namespace sdpa::cpu {

// What a quantized operand has beside its words: T [B, Hkv, Lk, D / group size], twice.
struct Groups {
  const void *scales = nullptr, *biases = nullptr;
  Strides scale = {}, bias = {};
};

// Base pointers of one evaluation. K, V and mask address key 0 of the whole problem.
struct Operands {
  const void* Q;           // T [B, Hq, Lq, D]
  const void* K;           // T [B, Hkv, Lk, D], or uint32 [B, Hkv, Lk, D * bits / 32]
  const void* V;           // T [B, Hkv, Lk, Dv], or uint32
  const void* mask;        // bool or float [B, Hq, Lq, Lk], or null
  const void* sinks;       // T [B, Hq], or null
  const float* carry_O;    // float32 [B, Hq, Lq, Dv] of the keys already done, or null
  const float* carry_lse;  // float32 [B, Hq, Lq], or null

  int bits = 0, group_size = 0;  // of a quantized cache; 0 = K and V are not quantized
  Groups K_groups = {}, V_groups = {};
  bool exact = true;  // Q and P of a quantized cache keep the accuracy of float32
};

// One unit of work: `rows` rows of one KV head against the keys [key0, key1).
struct Task {
  int b, hkv;
  int row0, rows;  // rows r = iq * group + g of the KV head
  int bk;          // keys a tile
  int key0, key1;
  bool with_sinks;  // this task counts the sinks
  bool with_carry;  // this task starts from the carried (O, lse)
  void* O;          // [B, Hq, Lq, Dv], float32 or T
  bool O_is_f32;
  float* lse;  // [B, Hq, Lq], or null
};

// One row range of a merge over n partial attentions.
struct MergeTask {
  int n;
  const void* const* O;     // n times [rows, Dv], float32 or T
  const float* const* lse;  // n times [rows]
  int64_t row0, row1;
  int Dv;
  DType dtype;  // T
  bool in_f32, out_f32;
  void* out;       // [rows, Dv]
  float* out_lse;  // [rows], or null
};

struct BackwardKernels;

struct Kernels {
  const char* isa;
  // Bytes of scratch that one thread needs for tiles of bq rows and bk keys.
  size_t (*prefill_scratch)(const Params&, int bq, int bk);
  size_t (*decode_scratch)(const Params&, int bq, int bk);
  size_t (*quantized_scratch)(const Params&, const Operands&, int bq, int bk);
  void (*prefill)(const Params&, const Operands&, const Task&, void* scratch);
  void (*decode)(const Params&, const Operands&, const Task&, void* scratch);
  void (*quantized)(const Params&, const Operands&, const Task&, void* scratch);
  void (*merge)(const MergeTask&);
  const BackwardKernels* backward;  // backward_task.h
};

}  // namespace sdpa::cpu
