// Structs shared by the host and every kernel.
#pragma once

#include <cstdint>

namespace sdpa {

enum class DType : int { F32, F16, BF16 };

// What the mask array holds. Causal and window masks are never arrays.
enum class MaskKind : int { None, Bool, Additive };

struct Strides {
  int64_t batch, head, row, col;  // in elements; 0 where the operand is broadcast
};

// One attention problem, as every kernel sees it.
struct Params {
  int B;        // batch
  int Hq, Hkv;  // heads of Q, heads of K and V
  int group;    // Hq / Hkv: query heads that share one KV head
  int Lq, Lk;   // query rows, keys
  int D, Dv;    // head dimension of Q and K, of V and O
  int q_offset;  // position of query row 0 counted in keys; Lk - Lq aligns the last query with the last key
  int causal;                     // a query sees the keys up to its own position
  int window;                     // with causal: it sees only the last `window` of them; 0 = all
  float scale;                    // s = scale * q.k
  float softcap;                  // s = softcap * tanh(s / softcap); 0 = off
  DType dtype;                    // of Q, K, V
  MaskKind mask;                  // of the mask array
  DType mask_dtype;               // of an additive mask
  Strides Qs;                     // Q    [B, Hq, Lq, D]
  Strides Ks;                     // K    [B, Hkv, Lk, D]
  Strides Vs;                     // V    [B, Hkv, Lk, Dv]
  Strides Ms;                     // mask [B, Hq, Lq, Lk]
  int64_t sink_batch, sink_head;  // strides of sinks [B, Hq]
};

}  // namespace sdpa
