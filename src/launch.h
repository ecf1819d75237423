// From the arrays of a call to what plans and kernels are told of it; the same on every backend.
#pragma once

#include "src/attention.h"
#include "src/problem.h"

namespace sdpa {

DType dtype_of(mx::Dtype);

// Elements of a row of K or V, also of packed ones.
int columns_of(const mx::array&, const Attributes&);

// Of an array [B, H, L, C]; 0 where a dimension is 1.
Strides strides_of(const mx::array&);

// Whether rows can be read 16 bytes at a time. MLX's buffers start at multiples of 16 bytes, so offsets and strides tell.
bool vector_rows(const mx::array&);

Problem problem_of(const Inputs&, const Attributes&);
Params params_of(const Problem&, const Inputs&, const Attributes&);

// Gives an output its memory.
void allocate(mx::array&);

}  // namespace sdpa
