// The GPU as the plan sees it.
#pragma once

#include <string>

#include "src/backends/gpu.h"

namespace sdpa::metal {

// The GPU of this process, with the limits that were set.
Device device();
void set_limits(const GpuLimits&);

}  // namespace sdpa::metal
