// Which CUDA kernel, and how it is launched.
#pragma once

#include "src/plan.h"

namespace sdpa {

// The first row that serves the problem on this GPU; null if none does.
const Tile* choose_cuda(const Problem&, const Device&);

// Keys of a block, threads, shared memory and the rest of a launch of the plan's tile.
void plan_cuda_launch(const Problem&, const Device&, Plan&);

// Parts of `span` keys that are attended at once, where the grid without them has `units` blocks.
int64_t cuda_splits(const Plan&, const Device&, int64_t units, int64_t span, int64_t partial_bytes);

}  // namespace sdpa
