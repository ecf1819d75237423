// Attention over a quantized cache, for few rows and many: in integers on AVX-512, else prefill.h on rows that are
// dequantized as they are packed, once for all rows of the task.
#pragma once

#include "kernels/cpu/packed_rows.h"
#include "kernels/cpu/prefill.h"

#if defined(__AVX512BW__)
#include "kernels/cpu/quantized_codes.h"
#endif

namespace sdpa::cpu::SDPA_ISA {

inline size_t quantized_scratch(const Params& p, const Operands& x, int bq, int bk) {
#if defined(__AVX512BW__)
  if (!x.exact) return CodesScratch(p, x, bq, bk, nullptr).bytes;
#endif
  return PrefillScratch<FloatTiles>(p, bq, bk, nullptr).bytes;
}

inline void quantized(const Params& p, const Operands& x, const Task& t, void* scratch) {
  visit(p.dtype, [&](auto type) {
    using T = decltype(type);
#if defined(__AVX512BW__)
    if (!x.exact) return quantized_codes<T>(p, x, t, scratch);
#endif
    const auto K = packed_rows<T>(x.K, p.Ks, x.K_groups, x, t.b, t.hkv);
    const auto V = packed_rows<T>(x.V, p.Vs, x.V_groups, x, t.b, t.hkv);
    Prefill<T, FloatTiles, PackedRows<T>>(p, x, t, K, V, scratch).run();
  });
}

}  // namespace sdpa::cpu::SDPA_ISA
