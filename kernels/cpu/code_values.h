// O = O * alpha + P @ V of quantized_codes.h: products of rounded weights with codes.
#pragma once

#include "kernels/cpu/code_weights.h"

namespace sdpa::cpu::SDPA_ISA {

template <typename T, int bits>
struct CodeValues : CodeWeights<T, bits> {
  using Base = CodeWeights<T, bits>;
  using C = Codes<bits>;
  using Base::Base;
  using Base::p, Base::x, Base::t, Base::s, Base::strips, Base::R;

  // Meanwhile the next tile of K is fetched, and its first keys are transposed once they are there.
  template <int groups>
  void values(Words v, int key, int n, bool masked, Piece ahead, Transposing& keys_ahead) {
    using Place = Columns<bits, groups>;
    const int last = (n - 1) / kPairKeys;
    const Words tail = this->whole_block(v, last * kPairKeys, n, s.words_v);
    const int words = x.group_size / C::kPerWord;
    MaskRows mask_rows(p, x, t.b, key, n, s.bias);
    Transposing none;
    for (int strip = 0; strip < strips; ++strip) {
      const Keys blocks = this->blocks_seen(strip, key, n);
      if (blocks.begin >= blocks.end) continue;
      if (masked || this->hides(strip, key, n, blocks))
        this->template weigh<true>(strip, key, n, blocks, masked ? &mask_rows : nullptr);
      else
        this->template weigh<false>(strip, key, n, blocks, nullptr);
      Piece part = ahead.part(strip, strips);
      for (int g = 0; g < s.groups_v; ++g)
        for (int w = g * words; w < (g + 1) * words; w += Place::kWords)
          for (int i = 0; i < Place::kVectors; i += 2) {
            const int vector = w / Place::kWords * Place::kVectors + i;
            const bool upper = i >= Place::kOfHalf;
            const auto add = upper ? &CodeValues::add_values<groups, true>
                                   : &CodeValues::add_values<groups, false>;
            const bool late = strip == strips - 1 && w >= s.words_v / 2;
            (this->*add)(strip, g, vector, blocks, last, v.from_word(w), tail.from_word(w), part,
                         late ? keys_ahead : none);
          }
      part.fetch_all();  // K can have more of them
    }
  }

 private:
  // O of a strip and two vectors of columns, of group g
  template <int groups, bool upper>
  SDPA_NOINLINE void add_values(int strip, int g, int vector, Keys blocks, int last, Words v,
                                Words tail, Piece& lines, Transposing& next) {
    Piece ahead = lines;  // a copy is in registers
    using Place = Columns<bits, groups>;
    const int variant = vector % Place::kOfHalf;
    const IVec shift = (variant * groups + Place::code_of_lane()) * bits;
    __m512i acc[R][2] = {};
    for (int block = blocks.begin; block < blocks.end; ++block) {
      next.step();
      multiply_values<bits, groups, upper, R>(
          s.pairs(g, block), block != last ? v.from(block * kPairKeys) : tail, shift, ahead, acc);
    }
    lines = ahead;
    const float *const alpha = s.alpha + strip * R, *const step = s.step + strip * R;
    const float top = s.top[g];
    float* o = s.O + size_t(strip) * R * s.ldo + vector * W;
    const int ldo = s.ldo;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r, o += ldo) {
      const Vec keep = splat(alpha[r]), by = splat(step[r] * top);
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i)
        store(o + i * W, load(o + i * W) * keep + bits_as<Vec>(_mm512_cvtepi32_ps(acc[r][i])) * by);
    }
  }
};

}  // namespace sdpa::cpu::SDPA_ISA
