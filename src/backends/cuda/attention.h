// One attention call, encoded.
#pragma once

#include "src/backends/gpu.h"

namespace sdpa::cuda {

// As GpuBackend has them.
void prepare(const Problem&);
void eval_attention(const Inputs&, const Attributes&, std::vector<mx::array>& outputs, mx::Stream);

}  // namespace sdpa::cuda
