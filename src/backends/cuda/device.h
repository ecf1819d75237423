// The GPU that plans are made for.
#pragma once

#include "src/backends/gpu.h"

namespace sdpa::cuda {

// Of the current CUDA context, with the limits set from outside.
Device device();
int current_device();

void set_limits(const GpuLimits&);

}  // namespace sdpa::cuda
