// O = O * alpha + P @ V of quantized_codes.h: products of rounded weights with codes.
#pragma once

#include "kernels/cpu/code_weights.h"

namespace sdpa::cpu::SDPA_ISA {

template <typename T, int bits>
struct CodeValues : CodeWeights<T, bits> {
  using Base = CodeWeights<T, bits>;
  using C = Codes<bits>;
  using Base::Base;
  using Base::p, Base::s, Base::strips, Base::R, Base::kPairs;

  template <int groups>
  void values(Words v, int key, int n, bool masked, Piece ahead) {
    const int vectors_of_group = 4 * s.block / W / groups, quads = round_up(n, kQuadKeys) / 4;
    for (int w = 0, g = 0; w < s.words_v; w += s.block) {
      for (int i = 0; i < s.block; i += W)
        pack_v_codes<groups>(v.from_word(w + i), n, s.words_v - w - i, quads,
                             s.codes + size_t(i) * 4 * quads);
      Piece part = ahead.part(w / s.block, (s.words_v + s.block - 1) / s.block);
      for (int i = 0; i < groups && g < s.groups_v; ++i, ++g)
        for (int strip = 0; strip < strips; ++strip)
          group_values(strip, g, key, n, masked, i * vectors_of_group, vectors_of_group, w, quads,
                       part);
      while (part.n > 0) part.template fetch<1>();  // K has more of them than V had products
    }
  }

 private:
  // Of a strip and group g, which has vectors [first, first + all) of the codes of words [w, w + s.block).
  void group_values(int strip, int g, int key, int n, bool masked, int first, int all, int w,
                    int quads, Piece& ahead) {
    const Keys blocks = this->blocks_seen(strip, key, n);
    if (blocks.begin >= blocks.end) return;
    if (masked || this->hides(strip, key, n, blocks))
      this->template round_weights<true>(strip, g, blocks);
    else
      this->template round_weights<false>(strip, g, blocks);
    float step[R];
    for (int r = 0; r < R; ++r) step[r] = s.step[strip * R + r] * s.top[g];
    constexpr int kAtOnce = 2 / C::kPerByte;
    for (int i = first; i < first + all; i += kAtOnce)
      add_values(strip, (w / W * 4 + i) * C::kPerByte, blocks, s.codes + size_t(i) * quads * W,
                 quads, step, ahead);
  }

  // O of a strip and two vectors of columns
  SDPA_NOINLINE void add_values(int strip, int v, Keys blocks, const int32_t* codes, int quads,
                                const float (&step)[R], Piece& ahead) {
    __m512i acc[R][2];
    clear(acc);
    for (int block = blocks.begin; block < blocks.end; ++block)
      multiply_codes<bits, R, kPairs, 1, W, bits == 4>(
          s.P + block * R * kPairs, codes + block * W * W, size_t(quads) * W, W, ahead, acc);
    const float* const alpha = s.alpha + strip * R;
    float* o = s.O + size_t(strip) * R * s.ldo + v * W;
    const int ldo = s.ldo;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r, o += ldo) {
      const Vec keep = splat(alpha[r]), by = splat(step[r]);
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i)
        store(o + i * W, load(o + i * W) * keep + bits_as<Vec>(_mm512_cvtepi32_ps(acc[r][i])) * by);
    }
  }
};

}  // namespace sdpa::cpu::SDPA_ISA
