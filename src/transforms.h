// What the primitives' transforms have in common: derivatives through a graph of stock operations, and mapped axes that
// are folded into the batch.
#pragma once

#include <functional>
#include <utility>
#include <vector>

#include <mlx/utils.h>

#include "src/attention.h"

namespace sdpa {

using Arrays = std::vector<mx::array>;
using Graph = std::function<Arrays(const Arrays&)>;

// What Sdpa computes, on stock operations.
Graph attention_graph(const Attributes&, mx::Stream);

bool differentiable(const mx::array&);

// Zeros for what is not differentiable: a bool mask.
Arrays vjp_through(const Graph&, const Arrays& primals, const Arrays& cotangents,
                   const std::vector<int>& argnums, mx::Stream);
Arrays jvp_through(const Graph&, const Arrays& primals, const Arrays& tangents,
                   const std::vector<int>& argnums);

// Number of mapped elements.
int mapped_size(const Arrays& inputs, const std::vector<int>& axes);

// The mapped axis folded into the batch: [N, B, ...] -> [N * B, ...]. An input without it is broadcast, which costs
// no copy at batch 1.
mx::array fold_into_batch(const mx::array&, int axis, int N, int B, mx::Stream);

// All inputs of attention so; those of index [3, may_broadcast) keep a batch of 1 if they can.
Arrays fold_all(const Arrays& inputs, const std::vector<int>& axes, int N, int B, int may_broadcast,
                mx::Stream);

std::pair<Arrays, std::vector<int>> unfold_batch(const Arrays& outputs, int N, int B, mx::Stream);

}  // namespace sdpa
