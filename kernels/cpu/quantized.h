// Attention over a quantized cache: in integers on AVX-512, else prefill.h on rows that are dequantized as they are packed,
// once for all rows of the task. Many rows in bfloat16 go through tiles of pairs, which are faster still.
#pragma once

#include "kernels/cpu/packed_rows.h"
#include "kernels/cpu/prefill.h"

#if defined(__AVX512BW__)
#include "kernels/cpu/quantized_codes.h"
#endif

namespace sdpa::cpu::SDPA_ISA {

// Rows of a tile that is not one of decode.
constexpr int kFewRows = 8;

template <typename T>
SDPA_INLINE bool takes_pairs(const Operands& x, int bq) {
  constexpr bool there = !std::is_same_v<typename TilesOf<T>::type, FloatTiles>;
  return there && !x.exact && bq > kFewRows;
}

inline size_t quantized_scratch(const Params& p, const Operands& x, int bq, int bk) {
  return visit(p.dtype, [&](auto type) {
    using T = decltype(type);
    if (takes_pairs<T>(x, bq))
      return PrefillScratch<typename TilesOf<T>::type>(p, bq, bk, nullptr).bytes;
#if defined(__AVX512BW__)
    if (!x.exact) return CodesScratch(p, x, bq, bk, nullptr).bytes;
#endif
    return PrefillScratch<FloatTiles>(p, bq, bk, nullptr).bytes;
  });
}

template <typename T, typename Tiles>
void quantized_prefill(const Params& p, const Operands& x, const Task& t, void* scratch) {
  using E = typename Tiles::E;
  const auto K = packed_rows<T, E>(x.K, p.Ks, x.K_groups, x, t.b, t.hkv);
  const auto V = packed_rows<T, E>(x.V, p.Vs, x.V_groups, x, t.b, t.hkv);
  Prefill<T, Tiles, PackedRows<T, E>>(p, x, t, K, V, scratch).run();
}

inline void quantized(const Params& p, const Operands& x, const Task& t, void* scratch) {
  visit(p.dtype, [&](auto type) {
    using T = decltype(type);
    // By the tile of the plan, of which scratch is; a task at the end can have fewer rows.
    if (takes_pairs<T>(x, p.Lq * p.group))
      return quantized_prefill<T, typename TilesOf<T>::type>(p, x, t, scratch);
#if defined(__AVX512BW__)
    if (!x.exact) return quantized_codes<T>(p, x, t, scratch);
#endif
    quantized_prefill<T, FloatTiles>(p, x, t, scratch);
  });
}

}  // namespace sdpa::cpu::SDPA_ISA
