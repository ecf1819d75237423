// The question: one attention problem without its data.
#pragma once

#include "kernels/params.h"

namespace sdpa {

// How a kernel can read the rows of Q, K and V.
enum class Rows {
  Tiled,   // contiguous, at multiples of 16 bytes, nothing broadcast: a copy engine can fetch tiles
  Vector,  // contiguous, at multiples of 16 bytes
  Any,
};

struct Problem {
  int B = 0;    // batch
  int Hq = 0;   // query heads
  int Hkv = 0;  // heads of K and V
  int Lq = 0;   // query rows
  int Lk = 0;   // keys
  int D = 0;    // head dimension of Q and K
  int Dv = 0;   // head dimension of V and O
  DType dtype = DType::F32;
  bool causal = false;
  int window = 0;                  // with causal: keys a query sees, its own included; 0 = all
  MaskKind mask = MaskKind::None;  // of the mask array
  DType mask_dtype = DType::F32;   // of an additive mask
  bool softcap = false;
  bool sinks = false;
  bool carry = false;  // continues from the (O, lse) of other keys
  bool want_lse = false;
  bool want_f32 = false;        // O in float32 whatever the dtype
  int q_offset = 0;             // position of query row 0 counted in keys
  int chunk_size = 0;           // keys a chunk; 0 = all keys at once
  int bits = 0;                 // of an element of a quantized cache; 0 = K and V are of `dtype`
  int group_size = 0;           // elements of such a row that share a scale and a bias
  Rows rows_are = Rows::Tiled;  // known at evaluation; before it, the best is assumed

  // Rows of one KV head: the positions of all query heads that share it.
  int rows() const { return Hkv ? Lq * (Hq / Hkv) : 0; }
};

}  // namespace sdpa
