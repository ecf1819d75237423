// Compiled kernels, by name and by the values of their function constants.
#pragma once

#include <string>

#include <mlx/backend/metal/device.h>

#include "src/plan.h"

namespace sdpa::metal {

// What is known only at run time but compiled in, as kernels/metal/arguments.h numbers it.
struct Constants {
  int mask_kind = 0;
  int mask_type = 0;
  bool causal = false;
  bool softcap = false;
  bool sinks = false;
  bool lse = false;
  bool carry = false;
  bool out_f32 = false;
  bool vector = false;
  bool window = false;
};

struct Pipeline {
  MTL::ComputePipelineState* state = nullptr;
  int max_threads = 0;  // of a threadgroup
};

// Both throw KernelFailure if the kernel does not compile, at once if it did not before.
Pipeline attention_pipeline(const Plan&, DType, const Constants&);
Pipeline merge_pipeline(DType in, DType out, const Constants&);

}  // namespace sdpa::metal
