// What TMA is told of K and V.
#pragma once

#include <mlx/array.h>

#include "kernels/cuda/arguments.h"

namespace sdpa::cuda {

// Whether TMA can copy rows of x [B, H, L, C]: contiguous columns, everything at multiples of 16 bytes, no broadcast.
bool tiled(const mlx::core::array& x);

// Boxes of 64 columns and `rows` rows of x, 128-byte swizzle, zeros beyond its ends.
TensorMap tensor_map(const mlx::core::array& x, int rows);

}  // namespace sdpa::cuda
