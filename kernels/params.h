// Structs shared by the host and every kernel. Metal and NVRTC compile this file too.
#pragma once

#if defined(__CUDACC_RTC__)  // which has no headers of the C++ library
using int64_t = long long;
using uint32_t = unsigned;
using uint64_t = unsigned long long;
#elif !defined(__METAL_VERSION__)
#include <cstdint>
#endif

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

// The part of a problem that one dispatch of a GPU kernel works on. A row is one query position of one head of a GQA
// group, heads running fastest: row r of a KV head is position r / group of query head hkv * group + r % group.
// Grid: (row_tiles, heads, splits) threadgroups.
struct Part {
  int row_tile0, row_tiles;  // tiles of bq rows; the grid's first dimension counts them backwards
  int head0, heads;          // KV heads b * Hkv + hkv
  int key0, key1;            // keys [key0, key1)
  int split_keys, splits;    // split z attends keys key0 + [z, z + 1) * split_keys
  int with_sinks;            // split 0 counts the sinks
  int with_carry;            // split 0 continues from the carried (O, lse)
};

// The merge of n partial results.
struct MergeParams {
  int n;           // parts O [n, rows, Dv] and lse [n, rows]
  int Dv;          // head dimension
  int64_t rows;    // B * Hq * Lq
  int with_carry;  // one more part, in float
};

}  // namespace sdpa
