// The Metal backend. On Apple systems it is part of this module; with other classes behind the names of Metal's the
// same sources make the library that drives the software device.
#pragma once

#include "src/backends/gpu.h"

namespace sdpa::metal {

const GpuBackend& backend();

void prepare_merge(mx::Dtype);
void eval_attention(const Inputs&, const Attributes&, std::vector<mx::array>& outputs, mx::Stream);
void eval_merge(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs, mx::Stream);

}  // namespace sdpa::metal
