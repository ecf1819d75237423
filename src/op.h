// What Python calls: arguments are checked and cast here, then become a primitive or a graph of stock operations.
#pragma once

#include <optional>
#include <string>
#include <variant>
#include <vector>

#include <mlx/utils.h>

#include "src/attention.h"
#include "src/problem.h"

namespace sdpa {

using MaskArgument = std::variant<std::monostate, std::string, mx::array>;

// The arguments that attention on any path has in common. Shapes: q [B, Hq, Lq, D], k [B, Hkv, Lk, D],
// v [B, Hkv, Lk, Dv]; mask "causal" or broadcastable to [B, Hq, Lq, Lk]; sinks [Hq].
struct Arguments {
  mx::array q, k, v;
  MaskArgument mask;
  std::optional<mx::array> sinks;
  std::optional<int> window;
  std::optional<float> softcap;
};

// The shapes, dtype and mask of a valid call.
struct Checked {
  Problem problem;
  mx::Dtype
      dtype;  // of the computation and of the result; one of float32, float16, bfloat16, float64
};

// Throws std::invalid_argument on everything that stock refuses, and on a wrong window or softcap.
Checked check(const Arguments&);

struct FusedOptions {
  int chunk_size = 0;
  bool return_lse = false;
  bool float32_out = false;
  std::optional<int> q_offset = std::nullopt;
  std::optional<std::pair<mx::array, mx::array>> carry = std::nullopt;
};

// {out} or {out, lse} from the fused primitive.
std::vector<mx::array> fused_attention(const Arguments&, float scale, const FusedOptions&,
                                       mx::StreamOrDevice);

// Keys or values as mx::quantize packs them in affine mode: [B, Hkv, Lk, D * bits / 32] and twice
// [B, Hkv, Lk, D / group size].
struct Packed {
  mx::array words, scales, biases;
};

struct Quantization {
  int group_size, bits;
};

// Arguments with keys and values of a quantized cache in the place of k and v.
struct QuantizedArguments {
  mx::array q;
  Packed k, v;
  Quantization quantization;
  MaskArgument mask;
  std::optional<mx::array> sinks = std::nullopt;
  std::optional<int> window = std::nullopt;
  std::optional<float> softcap = std::nullopt;
};

// {out} or {out, lse} of attention over a quantized cache that the kernel reads directly. Throws std::invalid_argument
// where no kernel does, as it does on arguments that do not fit.
std::vector<mx::array> quantized_attention(const QuantizedArguments&, float scale, bool return_lse,
                                           mx::StreamOrDevice);

struct Failed {
  std::string kernel, error;
};

// Compiles what fused_attention() with these arguments runs on the GPU backend: the kernel that fails, if one does.
// Nothing to do without a backend. With `carry` as if the options had one.
std::optional<Failed> prepare(const Arguments&, const FusedOptions&, bool carry);

// The same of quantized_attention().
std::optional<Failed> prepare_quantized(const QuantizedArguments&);

// {out} or {out, lse} from stock operations, at most block_rows query rows at a time (0 = all).
std::vector<mx::array> unfused_attention(const Arguments&, float scale, int block_rows,
                                         bool return_lse, mx::StreamOrDevice);

// {out, lse}: exact combination of attentions over disjoint keys.
std::vector<mx::array> merge(const std::vector<mx::array>& outputs,
                             const std::vector<mx::array>& lses, mx::StreamOrDevice);

}  // namespace sdpa
