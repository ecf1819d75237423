// Tiles of the codes of a quantized cache as pairs of 16-bit integers, and their products with Q and P in the same form:
// 32 products an instruction, added up in 32 bits.
//
//   codes [vector][pair][W]   lane l of K: two dimensions of key l; lane l of V: keys 2 * pair and 2 * pair + 1 in a dimension
//
// Which dimensions are where follows from how codes lie in words: a mask and a shift take two out of a word at once.
#pragma once

#include "kernels/cpu/packed_rows.h"

namespace sdpa::cpu::SDPA_ISA {

static_assert(W == 16);

template <int bits>
struct Codes {
  static constexpr int kPerWord = 32 / bits, kHalf = kPerWord / 2;
  static constexpr int kVectorColumns = W * kPerWord;  // columns of V in W words
  static constexpr int kMask = bits == 8 ? 0x00ff00ff : 0x000f000f;
  static constexpr float kCenter = bits == 8 ? 127.5f : 7.5f;

  // The dimensions of a pair of K: elements i and i + kHalf of a word, with i = pair % kHalf.
  static constexpr int first_of(int pair) { return pair / kHalf * kPerWord + pair % kHalf; }
  static constexpr int second_of(int pair) { return first_of(pair) + kHalf; }
};

// The first n (n < 0: none) of W words, zeros behind them.
SDPA_INLINE __m512i load_words(const char* at, int n) {
  if (n >= W) return _mm512_loadu_si512(at);
  return _mm512_maskz_loadu_epi32(__mmask16((1u << (n < 0 ? 0 : n)) - 1), at);
}

// Lane l of r[i]: word i of the four at row l.
SDPA_INLINE void load_four_words(const char* const (&rows)[W], int offset, __m512i (&r)[4]) {
  __m512i m[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const auto words = [&](int j) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[j] + offset));
    };
    m[i] = _mm512_castsi128_si512(words(i));
    m[i] = _mm512_inserti32x4(m[i], words(4 + i), 1);
    m[i] = _mm512_inserti32x4(m[i], words(8 + i), 2);
    m[i] = _mm512_inserti32x4(m[i], words(12 + i), 3);
  }
  const __m512i a = _mm512_unpacklo_epi32(m[0], m[1]), b = _mm512_unpackhi_epi32(m[0], m[1]);
  const __m512i c = _mm512_unpacklo_epi32(m[2], m[3]), d = _mm512_unpackhi_epi32(m[2], m[3]);
  r[0] = _mm512_unpacklo_epi64(a, c);
  r[1] = _mm512_unpackhi_epi64(a, c);
  r[2] = _mm512_unpacklo_epi64(b, d);
  r[3] = _mm512_unpackhi_epi64(b, d);
}

// K tile [n, D] -> codes [vectors(n)][D / 2][W], any codes for keys beyond n. copies: kMostWords words for each of W rows.
template <int bits, typename Rows>
void pack_k_codes(const Rows& K, int n, int D, int32_t* codes, uint32_t* copies) {
  using C = Codes<bits>;
  const int words = D / C::kPerWord;  // groups of 32 make it a multiple of 4
  for (int key = 0; key < n; key += W) {
    const char* rows[W];
    for (int j = 0; j < W; ++j)
      rows[j] = K.row_words(key + j < n ? key + j : n - 1, D, copies + size_t(j) * kMostWords);
    for (int w = 0; w < words; w += 4) {
      __m512i r[4];
      load_four_words(rows, w * 4, r);
#pragma GCC unroll 16
      for (int i = 0; i < 4 * C::kHalf; ++i, codes += W)
        _mm512_storeu_si512(
            codes, _mm512_and_si512(_mm512_srli_epi32(r[i / C::kHalf], i % C::kHalf * bits),
                                    _mm512_set1_epi32(C::kMask)));
    }
  }
}

// V tile [n, Dv] -> codes [vector][pairs][W], keys and columns beyond as zeros. Vector w * kPerWord + c has element c of each
// of words [w, w + 1) * W, which go into lanes so that those of the `groups` groups among them alternate.
template <int bits, int groups, typename Rows>
void pack_v_codes(const Rows& V, int n, int Dv, int pairs, int32_t* codes, uint32_t* copies) {
  using C = Codes<bits>;
  const int words = Dv / C::kPerWord;
  const IVec lane = iota();
  const __m512i order =
      bits_as<__m512i>(IVec((lane & (groups - 1)) * (W / groups) + lane / groups));
  const __m512i mask = _mm512_set1_epi32(C::kMask);
  for (int pair = 0; pair < (n + 1) / 2; ++pair) {
    const bool both = 2 * pair + 1 < n;
    const char* first = V.row_words(2 * pair, Dv, copies);
    const char* second = both ? V.row_words(2 * pair + 1, Dv, copies + kMostWords) : first;
    for (int w = 0; w < words; w += W) {
      __m512i a = load_words(first + w * 4, words - w);
      __m512i b = load_words(second + w * 4, both ? words - w : 0);
      if constexpr (groups > 1) {
        a = _mm512_permutexvar_epi32(order, a);
        b = _mm512_permutexvar_epi32(order, b);
      }
      // The low halves of both words, then the high ones.
      const __m512i halves[2] = {
          _mm512_mask_blend_epi16(0xaaaaaaaa, a, _mm512_slli_epi32(b, 16)),
          _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(a, 16), b),
      };
      int32_t* to = codes + (size_t(w / W) * C::kPerWord * pairs + pair) * W;
#pragma GCC unroll 8
      for (int c = 0; c < C::kPerWord; ++c)
        _mm512_storeu_si512(
            to + size_t(c) * pairs * W,
            _mm512_and_si512(_mm512_srli_epi32(halves[c / C::kHalf], c % C::kHalf * bits), mask));
    }
  }
}

// The column of V in lane l of vector w * kPerWord + c.
template <int bits>
SDPA_INLINE int column_of(int vector, int l, int groups) {
  using C = Codes<bits>;
  const int word = vector / C::kPerWord * W + l % groups * (W / groups) + l / groups;
  return word * C::kPerWord + vector % C::kPerWord;
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

// Scales or biases [n, G] -> [G][ld], keys up to the next multiple of W as zeros. tmp [W, G]
template <typename T>
void pack_groups(const T* at, const Strides& s, int n, int G, int ld, float* to, float* tmp) {
  const bool dense = s.col == 1 && s.row == G;
  for (int key = 0; key < n; key += W, at += W * s.row, to += W) {
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

// Repeats a run of n values.
template <int n>
SDPA_INLINE __m512i repeat(const void* at) {
  if constexpr (n == 1) {
    int32_t x;
    __builtin_memcpy(&x, at, sizeof(x));
    return _mm512_set1_epi32(x);
  } else if constexpr (n == 2) {
    int64_t x;
    __builtin_memcpy(&x, at, sizeof(x));
    return _mm512_set1_epi64(x);
  } else {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(at)));
  }
}

// acc [R][N] = A [R, depth] * codes [N][depth][W], of A a run of `groups` values for each step of the depth.
// Meanwhile up to `depth` lines of what comes next are fetched.
template <int R, int N, int groups>
SDPA_INLINE void multiply_codes(const int32_t* A, int lda, const int32_t* codes, size_t step,
                                int depth, Piece ahead, __m512i (&acc)[R][N]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) acc[r][v] = _mm512_setzero_si512();
  for (int k = 0; k < depth; ++k) {
    if (k < ahead.n) __builtin_prefetch(ahead.at + k * kLine, 0, 3);
    __m512i b[N];
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) b[v] = _mm512_loadu_si512(codes + v * step + size_t(k) * W);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512i a = repeat<groups>(A + r * lda + k * groups);
#pragma GCC unroll 8
      for (int v = 0; v < N; ++v) acc[r][v] = add_products(acc[r][v], a, b[v]);
    }
  }
}

}  // namespace sdpa::cpu::SDPA_ISA
