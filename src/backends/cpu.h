// The CPU backend: evaluates attention and its merge on a CPU stream.
#pragma once

#include <vector>

#include "src/attention.h"

namespace sdpa::cpu {

// Allocates `outputs`, then dispatches the work to the stream. All that can fail fails here, before the dispatch.
void eval_attention(const Inputs&, const Attributes&, std::vector<mx::array>& outputs, mx::Stream);

// inputs: n outputs, n lse, all row-contiguous.
void eval_merge(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs, mx::Stream);

}  // namespace sdpa::cpu
