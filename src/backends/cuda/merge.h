// Launches of the merge kernel.
#pragma once

#include "src/backends/cuda/commands.h"

namespace sdpa::cuda {

struct MergeArrays {
  const mx::array& parts;      // [n, ..., Dv], float or as the result
  const mx::array& part_lses;  // [n, ...]
  mx::array& out;
  mx::array* lse = nullptr;
  const mx::array* carry_out = nullptr;  // float; may be out
  const mx::array* carry_lse = nullptr;  // may be lse
};

// dtype: of the problem. rows: B * Hq * Lq.
void merge(Commands&, DType dtype, const MergeArrays&, int n, int64_t rows, int Dv);

void prepare_merge(mx::Dtype);
void eval_merge(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs, mx::Stream);

}  // namespace sdpa::cuda
