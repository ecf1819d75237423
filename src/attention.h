// The attributes of an attention call that are not arrays, and the order of the arrays that go with it.
#pragma once

#include <optional>
#include <vector>

#include <mlx/array.h>

namespace sdpa {

namespace mx = mlx::core;

struct Attributes {
  float scale = 1.f;
  bool causal = false;
  int window = 0;       // keys a query sees, its own included; 0 = all
  float softcap = 0.f;  // 0 = off
  int chunk_size = 0;   // keys a chunk; 0 = all at once
  bool has_mask = false;
  bool has_sinks = false;
  bool has_carry = false;
  bool want_lse = false;
  bool want_f32 = false;
  std::optional<int> q_offset = std::nullopt;  // default: Lk - Lq
  int bits = 0;        // of an element of a quantized cache; 0 = K and V are not quantized
  int group_size = 0;  // elements of such a row that share a scale and a bias

  bool operator==(const Attributes&) const = default;
};

// Inputs in the order of the primitive: q, k, v [, mask [Bm, Hm, Lqm, Lkm]] [, sinks [Bs, Hq]] [, carry out, carry lse]
// [, k scales, k biases, v scales, v biases]. The dimensions of mask and Bs may be 1 where they are broadcast. With scales,
// k and v are packed as mx::quantize packs them.
struct Inputs {
  const mx::array &q, &k, &v;
  const mx::array* mask = nullptr;
  const mx::array* sinks = nullptr;
  const mx::array* carry_out = nullptr;
  const mx::array* carry_lse = nullptr;
  const mx::array *k_scales = nullptr, *k_biases = nullptr;
  const mx::array *v_scales = nullptr, *v_biases = nullptr;

  Inputs(const std::vector<mx::array>& in, const Attributes& a) : q(in[0]), k(in[1]), v(in[2]) {
    size_t next = 3;
    if (a.has_mask) mask = &in[next++];
    if (a.has_sinks) sinks = &in[next++];
    if (a.has_carry) {
      carry_out = &in[next++];
      carry_lse = &in[next++];
    }
    if (a.bits) {
      k_scales = &in[next++];
      k_biases = &in[next++];
      v_scales = &in[next++];
      v_biases = &in[next++];
    }
  }

  int q_offset(const Attributes& a) const { return a.q_offset.value_or(k.shape(2) - q.shape(2)); }
};

}  // namespace sdpa
