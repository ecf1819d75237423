// Combining partial results.
#pragma once

#include "src/backends/metal_commands.h"
#include "src/backends/metal_pipeline.h"

namespace sdpa::metal {

struct MergeArrays {
  const mx::array& parts;                // [n, rows, Dv]
  const mx::array& part_lses;            // [n, rows]
  mx::array& out;                        // [rows, Dv]
  mx::array* lse;                        // [rows], or null
  const mx::array* carry_out = nullptr;  // float [rows, Dv]; may be `out`
  const mx::array* carry_lse = nullptr;  // float [rows]
};

void merge(Commands&, const Pipeline&, const MergeArrays&, int n, int64_t rows, int Dv);

}  // namespace sdpa::metal
