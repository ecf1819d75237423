// How the grid of a GPU kernel is cut: into splits where it would leave the GPU idle, into dispatches where one would
// run so long that the watchdog ends it.
#pragma once

#include "src/plan.h"

namespace sdpa {

// Fills in everything but the kernel and the scratch of a plan whose tile and row_tiles are set.
void plan_gpu(const Problem&, const Device&, Plan&);

}  // namespace sdpa
