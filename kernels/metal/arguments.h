// Where the Metal kernels find their arguments: buffer and function-constant indices, named once for kernels and host.
#pragma once

namespace sdpa {

// Attention.
enum Buffer {
  kBufferQ = 0,  // Q          [B, Hq, Lq, D]     T
  kBufferK = 1,  // K          [B, Hkv, Lk, D]    T
  kBufferV = 2,  // V          [B, Hkv, Lk, Dv]   T
  // O is [splits, ...] float where keys are split, lse likewise.
  kBufferO = 3,         // O          [B, Hq, Lq, Dv]    T or float
  kBufferLse = 4,       // lse        [B, Hq, Lq]        float
  kBufferMask = 5,      // mask       [B, Hq, Lq, Lk]    bool, or additive in its own dtype
  kBufferSinks = 6,     // sinks      [B, Hq]            T
  kBufferCarryO = 7,    // carry O    [B, Hq, Lq, Dv]    float
  kBufferCarryLse = 8,  // carry lse  [B, Hq, Lq]        float
  kBufferParams = 9,    // Params
  kBufferPart = 10,     // Part
};

// Merge: O, lse and the carry as above.
enum MergeBuffer {
  kBufferParts = 0,     // [n, rows, Dv]
  kBufferPartLses = 1,  // [n, rows]
  kBufferMerge = 9,     // MergeParams
};

// Columns that a simdgroup merges.
enum MergeColumns { kMergedColumns = 128 };

// A buffer that a specialisation does not use is bound to Q, so that none is left unbound.
enum FunctionConstant {
  kConstantMaskKind = 0,  // int: MaskKind
  kConstantMaskType = 1,  // int: DType of an additive mask
  kConstantCausal = 2,    // bool
  kConstantSoftcap = 3,   // bool
  kConstantSinks = 4,     // bool
  kConstantLse = 5,       // bool: write lse
  kConstantCarry = 6,     // bool: carry buffers are bound
  kConstantOutF32 = 7,    // bool: O is float whatever T is
  kConstantVector = 8,    // bool: rows of Q, K, V are contiguous and start at multiples of 16 bytes
  kConstantWindow = 9,    // bool
};

}  // namespace sdpa
