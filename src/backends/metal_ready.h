// A plan whose kernels are compiled and fit the device.
#pragma once

#include "src/backends/metal_pipeline.h"

namespace sdpa::metal {

// What a chunk of the keys runs: the first one has no carry, the last one writes the result.
struct Stage {
  Pipeline attention;
  Pipeline merge;  // of the splits, if there are any
};

struct Ready {
  Plan plan;
  Stage first, inner, last;  // chunks; one chunk alone is the last

  const Stage& stage(int chunk) const {
    return chunk + 1 == plan.chunks ? last : chunk == 0 ? first : inner;
  }
};

// Plans, compiles, and plans again with fewer threads where a pipeline takes fewer than its tile needs. Throws
// std::invalid_argument where there is no kernel, KernelFailure where it does not compile or the device takes none.
// vector: rows of Q, K and V are contiguous and 16-byte aligned.
Ready make_ready(const Problem&, bool vector);

}  // namespace sdpa::metal
