// Attention on stock operations: matmul, softmax, matmul. It is what runs where no kernel of ours does, and what
// the primitives are differentiated through.
#pragma once

#include <mlx/utils.h>

#include "src/attention.h"

namespace sdpa {

// {out, lse}. `inputs` as Inputs has them. Scores of at most block_rows query rows (0 = all) are alive at a time:
// each block waits for the one before (barrier.h), since MLX would else schedule them side by side.
// A causal or windowed block reads only the keys it can see. Without `exact_lse` the softmax is stock's, lse is
// empty and the carry is not supported.
std::vector<mx::array> unfused(const std::vector<mx::array>& inputs, const Attributes&,
                               int block_rows, bool exact_lse, mx::StreamOrDevice);

// Exact combination of n partial attentions: {out, lse}. Inputs: n outputs, n lse.
std::vector<mx::array> merge_on_stock(const std::vector<mx::array>& inputs, mx::StreamOrDevice);

}  // namespace sdpa
