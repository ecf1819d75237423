// The CPU backend: evaluates attention, its gradients and its merge on a CPU stream.
#pragma once

#include <vector>

#include "src/attention.h"
#include "src/problem.h"

namespace sdpa::cpu {

// Allocates `outputs`, then dispatches the work to the stream. All that can fail fails here, before the dispatch.
void eval_attention(const Inputs&, const Attributes&, std::vector<mx::array>& outputs, mx::Stream);

// What the forward pass returned, and the cotangents of that.
struct Cotangents {
  const mx::array &out, &lse;
  const mx::array& d_out;  // in the dtype of q
  const mx::array& d_lse;  // float32
};

// Whether the kernels take the head dimensions.
bool has_backward(const Problem&);

// outputs: dq, dk, dv [, dsinks [B, Hq] in float32]
void eval_backward(const Inputs&, const Attributes&, const Cotangents&,
                   std::vector<mx::array>& outputs, mx::Stream);

// inputs: n outputs, n lse, all row-contiguous.
void eval_merge(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs, mx::Stream);

}  // namespace sdpa::cpu
