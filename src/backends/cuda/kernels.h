// Compiled kernels, by tile and by what is compiled in.
#pragma once

#include <string>

#include "src/plan.h"

struct CUfunc_st;

namespace sdpa::cuda {

// What is known only at run time but compiled in.
struct Variant {
  DType dtype = DType::F16;
  MaskKind mask = MaskKind::None;
  DType mask_dtype = DType::F32;
  bool softcap = false;
  bool out_f32 = false;
  bool vector = true;
  int bits = 0;   // of a quantized element of K and V; 0 = they are of `dtype`
  int group = 0;  // elements that share a scale and a bias
};

// Both throw KernelFailure if the kernel does not compile or load, at once if it did not before.
CUfunc_st* attention_kernel(const Plan&, const Variant&);
// parts, out: whether the parts and the result are float rather than `dtype`.
CUfunc_st* merge_kernel(DType, bool parts_f32, bool out_f32);

}  // namespace sdpa::cuda
