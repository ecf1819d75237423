// Tiles of the codes of a quantized cache, in the words of 32 bits that they come in, and their products with Q and P in
// 16 bits: a shift and a mask take two codes out of a word as integers of 16 bits, and 32 products are an instruction.
//
//   K [2][word][W]          lane l: a word of key l
//   V [vector][quad][W]     lane l: a byte of each of four keys, of which one code or two are columns of V
#pragma once

#include "kernels/cpu/packed_rows.h"
#include "kernels/cpu/transpose.h"

namespace sdpa::cpu::SDPA_ISA {

static_assert(W == 16);

template <int bits>
struct Codes {
  static constexpr int kPerWord = 32 / bits, kHalf = kPerWord / 2, kPerByte = 8 / bits;
  static constexpr int kBlockColumns = W * kPerWord;  // columns of V in W words
  static constexpr int kMask = bits == 8 ? 0x00ff00ff : 0x000f000f;
  static constexpr float kCenter = bits == 8 ? 127.5f : 7.5f;

  // The dimensions of a pair of K: elements i and i + kHalf of a word, with i = pair % kHalf.
  static constexpr int first_of(int pair) { return pair / kHalf * kPerWord + pair % kHalf; }
  static constexpr int second_of(int pair) { return first_of(pair) + kHalf; }

  // Codes i and i + kHalf of each word
  static SDPA_INLINE __m512i pair_of(Vec words, int i) {
    return bits_as<__m512i>(bits_as<UVec>(words) >> (i * bits) & kMask);
  }
};

// Keys of V are taken kQuads at a time, and key l with l + W, l + 2 W and l + 3 W.
constexpr int kQuadKeys = 4 * W;

// The first n (n < 0: none) of W words
SDPA_INLINE __mmask16 first_words(int n) {
  return __mmask16(n >= W ? 0xffff : (1u << (n < 0 ? 0 : n)) - 1);
}

// W rows of `words` words, row j at row(j) -> codes [words][W]
template <class Row>
SDPA_INLINE void turn_words(Row row, int words, int32_t* codes) {
  float* to = reinterpret_cast<float*>(codes);
  for (int w = 0; w < words; w += W, to += W * W) {
    const __mmask16 there = first_words(words - w);
    Vec r[W];
#pragma GCC unroll 16
    for (int j = 0; j < W; ++j)
      r[j] = bits_as<Vec>(_mm512_maskz_loadu_epi32(there, row(j) + w * 4));
    transpose(r);
    if (words - w >= W) {
#pragma GCC unroll 16
      for (int l = 0; l < W; ++l) store(to + l * W, r[l]);
    } else {
      for (int l = 0; l < words - w; ++l) store(to + l * W, r[l]);
    }
  }
}

// K [2 W, words] -> codes [2][words][W], those of the last key again for keys from n on.
SDPA_NOINLINE inline void pack_k_codes(Words K, int n, int words, int32_t* codes) {
  const int64_t step = K.step, four = 4 * step;
  for (int key = 0; key < 2 * W; key += W, codes += words * W) {
    const char* at = K.from(key).at;
    if (n - key >= W)
      turn_words([&](int j) { return at + j / 4 * four + j % 4 * step; }, words, codes);
    else
      turn_words([&](int j) { return K.from(key + j < n ? key + j : n - 1).at; }, words, codes);
  }
}

// Of four vectors whose pieces of 16 bytes belong to `groups` groups in turn: 4 / groups vectors of each group.
template <int groups>
SDPA_INLINE void part_groups(__m512i (&x)[4]) {
  const __m512i y[4] = {x[0], x[1], x[2], x[3]};
  if constexpr (groups == 2) {
    x[0] = _mm512_shuffle_i64x2(y[0], y[1], 0x44);
    x[1] = _mm512_shuffle_i64x2(y[2], y[3], 0x44);
    x[2] = _mm512_shuffle_i64x2(y[0], y[1], 0xee);
    x[3] = _mm512_shuffle_i64x2(y[2], y[3], 0xee);
  } else if constexpr (groups == 4) {
    const __m512i even[2] = {_mm512_shuffle_i64x2(y[0], y[1], 0x88),
                             _mm512_shuffle_i64x2(y[2], y[3], 0x88)};
    const __m512i odd[2] = {_mm512_shuffle_i64x2(y[0], y[1], 0xdd),
                            _mm512_shuffle_i64x2(y[2], y[3], 0xdd)};
    x[0] = _mm512_shuffle_i64x2(even[0], even[1], 0x88);
    x[1] = _mm512_shuffle_i64x2(odd[0], odd[1], 0x88);
    x[2] = _mm512_shuffle_i64x2(even[0], even[1], 0xdd);
    x[3] = _mm512_shuffle_i64x2(odd[0], odd[1], 0xdd);
  }
}

// W words of the rows of V, of which `words` are there -> codes [4][quads][W]: zeros for other words, and for keys from n on
// those of the last. Each of the `groups` groups among the columns of the words has vectors of its own.
template <int groups>
SDPA_NOINLINE void pack_v_codes(Words V, int n, int words, int quads, int32_t* codes) {
  const __mmask16 there = first_words(words);
  const auto pack = [&](const char* const(&rows)[4], int32_t* to) {
    __m512i x[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) x[i] = _mm512_maskz_loadu_epi32(there, rows[i]);
    const __m512i a = _mm512_unpacklo_epi8(x[0], x[1]), b = _mm512_unpackhi_epi8(x[0], x[1]);
    const __m512i c = _mm512_unpacklo_epi8(x[2], x[3]), d = _mm512_unpackhi_epi8(x[2], x[3]);
    x[0] = _mm512_unpacklo_epi16(a, c);
    x[1] = _mm512_unpackhi_epi16(a, c);
    x[2] = _mm512_unpacklo_epi16(b, d);
    x[3] = _mm512_unpackhi_epi16(b, d);
    part_groups<groups>(x);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) _mm512_storeu_si512(to + size_t(i) * quads * W, x[i]);
  };
  for (int key = 0; key < n; key += kQuadKeys, codes += W * W) {
    const char* rows[4];
    if (n - key >= kQuadKeys) {
      for (int i = 0; i < 4; ++i) rows[i] = V.from(key + i * W).at;
      for (int quad = 0; quad < W; ++quad) {
        pack(rows, codes + quad * W);
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) rows[i] += V.step;
      }
    } else {
      for (int quad = 0; quad < W; ++quad) {
        for (int i = 0; i < 4; ++i) {
          const int at = key + i * W + quad;
          rows[i] = V.from(at < n ? at : n - 1).at;
        }
        pack(rows, codes + quad * W);
      }
    }
  }
}

// The columns of V in the lanes of a vector of O.
template <int bits>
SDPA_INLINE IVec columns_of(int vector, int groups) {
  constexpr int kPerByte = Codes<bits>::kPerByte;
  const int block = vector / (4 * kPerByte), i = vector / kPerByte % 4, run = 4 / groups;
  const IVec lane = iota(), piece = lane / 4;
  const IVec word = i / run * run * 4 + piece % run * 4 + i % run * groups + piece / run;
  return ((block * W + word) * 4 + lane % 4) * kPerByte + vector % kPerByte;
}

// W rows of G values -> [G][ld]
template <typename E>
SDPA_INLINE void spread_groups(const E* from, int G, int ld, float* to) {
  const auto pick = [](Vec a, int first, Vec b) {
    return bits_as<Vec>(_mm512_permutex2var_ps(
        bits_as<__m512>(a), bits_as<__m512i>(IVec(iota() * 2 + first)), bits_as<__m512>(b)));
  };
  if (G == 1) {
    store(to, load(from));
  } else if (G == 2) {
    const Vec a = load(from), b = load(from + W);
    store(to, pick(a, 0, b));
    store(to + ld, pick(a, 1, b));
  } else if (G == 4) {
    const Vec a = load(from), b = load(from + W), c = load(from + 2 * W), d = load(from + 3 * W);
    const Vec even[2] = {pick(a, 0, b), pick(c, 0, d)}, odd[2] = {pick(a, 1, b), pick(c, 1, d)};
    store(to, pick(even[0], 0, even[1]));
    store(to + ld, pick(odd[0], 0, odd[1]));
    store(to + 2 * ld, pick(even[0], 1, even[1]));
    store(to + 3 * ld, pick(odd[0], 1, odd[1]));
  } else {
    for (int g = 0; g < G; ++g)
      for (int j = 0; j < W; ++j) to[g * ld + j] = widen(from[j * G + g]);
  }
}

// Scales or biases [n, G] -> [G][ld], keys up to the next multiple of kQuadKeys as zeros. tmp [W, G]
template <typename T>
void pack_groups(const T* at, const Strides& s, int n, int G, int ld, float* to, float* tmp) {
  const bool dense = s.col == 1 && s.row == G;
  for (int key = 0; key < round_up(n, kQuadKeys); key += W, at += W * s.row, to += W) {
    const int present = n - key < W ? n - key : W;
    if (dense && present == W) {
      spread_groups(at, G, ld, to);
      continue;
    }
    for (int j = 0; j < W; ++j)
      for (int g = 0; g < G; ++g)
        tmp[j * G + g] = j < present ? widen(at[j * s.row + g * s.col]) : 0.f;
    spread_groups(tmp, G, ld, to);
  }
}

// acc + a.low * b.low + a.high * b.high
SDPA_INLINE __m512i add_products(__m512i acc, __m512i a, __m512i b) {
#if defined( \
    __AVX512VNNI__)  // of the intrinsic GCC 12 makes a copy of acc besides: a third of the speed
  __asm__("vpdpwssd %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b));
  return acc;
#else
  return _mm512_add_epi32(acc, _mm512_madd_epi16(a, b));
#endif
}

template <int R>
SDPA_INLINE void clear(__m512i (&acc)[R][2]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = _mm512_setzero_si512();
}

// acc [R][2] += A [R, lda] * two vectors of codes, a word of each lane after the other and of each kHalf pairs: A at
// [word * kWord + pair * kPair]. Meanwhile lines of what comes next are fetched, as many as a tile of the same size
// has.
template <int bits, int R, int kRow, int kWord, int kPair, bool two_of_byte>
SDPA_INLINE void multiply_codes(const int32_t* A, const int32_t* codes, size_t step, int words,
                                Piece& ahead, __m512i (&acc)[R][2]) {
  using C = Codes<bits>;
  constexpr int kPairs = two_of_byte ? 2 : C::kHalf;
  for (int k = 0; k < words; ++k) {
    ahead.fetch<two_of_byte ? 1 : 2>();
    Vec x = load(reinterpret_cast<const float*>(codes) + size_t(k) * W);
    hold(x);
    Vec y = x;
    if constexpr (!two_of_byte) {
      y = load(reinterpret_cast<const float*>(codes) + step + size_t(k) * W);
      hold(y);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kPairs; ++i) {
      const __m512i b[2] = {C::pair_of(x, two_of_byte ? 2 * i : i),
                            C::pair_of(y, two_of_byte ? 2 * i + 1 : i)};
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m512i a = _mm512_set1_epi32(A[r * kRow + k * kWord + i * kPair]);
        acc[r][0] = add_products(acc[r][0], a, b[0]);
        acc[r][1] = add_products(acc[r][1], a, b[1]);
      }
    }
  }
}

}  // namespace sdpa::cpu::SDPA_ISA
