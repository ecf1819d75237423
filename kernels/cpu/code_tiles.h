// Products of the codes of a quantized cache with Q and P in 16 bits, in the words of 32 bits that codes come in: a shift and
// a mask take two codes out of a word as integers of 16 bits, and 32 products are an instruction.
//
//   K   transposed, [2][word][W]: two codes of a key in lane l
//   V   as it lies: the halves of words of two keys side by side, so that a lane has a column of both
#pragma once

#include "kernels/cpu/packed_rows.h"
#include "kernels/cpu/transpose.h"

namespace sdpa::cpu::SDPA_ISA {

static_assert(W == 16);

template <int bits>
struct Codes {
  static constexpr int kPerWord = 32 / bits, kHalf = kPerWord / 2;
  static constexpr int kBlockColumns = W * kPerWord;  // columns of V in W words
  static constexpr int kMask = bits == 8 ? 0x00ff00ff : 0x000f000f;
  static constexpr float kCenter = bits == 8 ? 127.5f : 7.5f;

  // Lanes [0, W / 2): pairs of W elements of Q as the codes of K come, elements i and i + kHalf of each word.
  static SDPA_INLINE __m512i pairs_of(__m512i elements) {
    const IVec first = (iota() / kHalf * kPerWord + iota() % kHalf) % W;
    const __m512i low = _mm512_permutexvar_epi32(bits_as<__m512i>(first), elements);
    const __m512i high = _mm512_permutexvar_epi32(bits_as<__m512i>(IVec(first + kHalf)), elements);
    return _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16));
  }

  // The codes at bit `shift` of each half of a word
  template <class Shift>
  static SDPA_INLINE __m512i pair_of(UVec words, Shift shift) {
    return bits_as<__m512i>(words >> shift & kMask);
  }
};

// Keys of V are taken so many at a time, key l with key l + W.
constexpr int kPairKeys = 2 * W;

// Transposes K [2 W, words] to codes [2][words][W], step by step: a loop of products takes one now and then, which hides it.
class Transposing {
 public:
  Transposing() = default;
  Transposing(Words K, int words, int32_t* codes)
      : at_(K.at), step_(K.step), to_(codes), words_(words), left_(words / 2) {}

  // 4 words of W keys
  SDPA_INLINE void step() {
    if (left_ == 0) return;
    const int64_t four = 4 * step_;
    Vec a[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const char* row = at_ + i * step_;
      __m512i r = _mm512_castsi128_si512(load_four(row));
      r = _mm512_inserti32x4(r, load_four(row + four), 1);
      r = _mm512_inserti32x4(r, load_four(row + 2 * four), 2);
      a[i] = bits_as<Vec>(_mm512_inserti32x4(r, load_four(row + 3 * four), 3));
    }
    const Vec low[2] = {take_turns<1, 0>(a[0], a[1]), take_turns<1, 0>(a[2], a[3])},
              high[2] = {take_turns<1, 1>(a[0], a[1]), take_turns<1, 1>(a[2], a[3])};
    float* const to = reinterpret_cast<float*>(to_);
    store(to, take_turns<2, 0>(low[0], low[1]));
    store(to + W, take_turns<2, 1>(low[0], low[1]));
    store(to + 2 * W, take_turns<2, 0>(high[0], high[1]));
    store(to + 3 * W, take_turns<2, 1>(high[0], high[1]));
    at_ += 16;
    to_ += 4 * W;
    if (--left_ == words_ / 4) at_ += W * step_ - words_ * 4;
  }

  void finish() {
    while (left_ > 0) step();
  }

 private:
  SDPA_INLINE static __m128i load_four(const char* at) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  }

  const char* at_ = nullptr;
  int64_t step_ = 0;
  int32_t* to_ = nullptr;
  int words_ = 0, left_ = 0;
};

// How O has the columns of V: kVectors vectors have those of W / groups words, which are of one group. Halves of words of two
// keys take turns, those of the first two words of four in one vector, of the others in another; of such a vector kOfHalf of O
// have `groups` codes each, one in each part of the lanes.
template <int bits, int groups>
struct Columns {
  using C = Codes<bits>;
  static constexpr int kWords = W / groups, kVectors = C::kPerWord / groups;
  static constexpr int kOfHalf = C::kHalf / groups;

  static SDPA_INLINE IVec code_of_lane() { return iota() / kWords; }  // in the first of kOfHalf

  // Columns of V in the lanes of a vector of O.
  static SDPA_INLINE IVec of(int vector) {
    const int i = vector % kVectors;
    const IVec lane = iota() % kWords;
    const IVec word = vector / kVectors * kWords + lane / 4 * 4 + i / kOfHalf * 2 + lane % 4 / 2;
    return word * C::kPerWord + lane % 2 * C::kHalf + i % kOfHalf * groups + code_of_lane();
  }

  // The words of a row that a vector has, `groups` times.
  static SDPA_INLINE __m512i load_words(const char* at) {
    if constexpr (groups == 1) return _mm512_loadu_si512(at);
    if constexpr (groups == 2)
      return _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  }
};

// W rows of N values side by side -> [N][ld]
template <int N, typename T>
SDPA_INLINE void spread_groups(const T* from, int ld, float* to) {
  const auto pick = [](Vec a, int first, Vec b) {
    return bits_as<Vec>(_mm512_permutex2var_ps(
        bits_as<__m512>(a), bits_as<__m512i>(IVec(iota() * 2 + first)), bits_as<__m512>(b)));
  };
  if constexpr (N == 1) {
    store(to, load(from));
  } else if constexpr (N == 2) {
    const Vec a = load(from), b = load(from + W);
    store(to, pick(a, 0, b));
    store(to + ld, pick(a, 1, b));
  } else {
    static_assert(N == 4);
    const Vec a = load(from), b = load(from + W), c = load(from + 2 * W), d = load(from + 3 * W);
    const Vec even[2] = {pick(a, 0, b), pick(c, 0, d)}, odd[2] = {pick(a, 1, b), pick(c, 1, d)};
    store(to, pick(even[0], 0, even[1]));
    store(to + ld, pick(odd[0], 0, odd[1]));
    store(to + 2 * ld, pick(even[0], 1, even[1]));
    store(to + 3 * ld, pick(odd[0], 1, odd[1]));
  }
}

// Scales or biases [n, G] -> [G][ld], keys up to the next multiple of kPairKeys as zeros
template <typename T>
void pack_groups(const T* at, const Strides& s, int n, int G, int ld, float* to) {
  const int whole = s.col == 1 ? n / W * W : 0;
  const auto spread = [&](int g, auto groups) {
    constexpr int N = groups;
    for (int key = 0; key < whole; key += W) {
      const T* from = at + key * s.row + g;
      T rows[W * N];
      if (s.row != N) {
        for (int j = 0; j < W; ++j) __builtin_memcpy(rows + j * N, from + j * s.row, N * sizeof(T));
        from = rows;
      }
      spread_groups<N>(from, ld, to + g * ld + key);
    }
    return N;
  };
  for (int g = 0; g < G;)
    g += G - g >= 4   ? spread(g, std::integral_constant<int, 4>{})
         : G - g >= 2 ? spread(g, std::integral_constant<int, 2>{})
                      : spread(g, std::integral_constant<int, 1>{});
  for (int key = whole; key < round_up(n, kPairKeys); ++key)
    for (int g = 0; g < G; ++g)
      to[g * ld + key] = key < n ? widen(at[key * s.row + g * s.col]) : 0.f;
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

// acc [R][2] += Q [pair][R] * two vectors of keys of K, `step` apart. Meanwhile lines of V are fetched, as many as the keys
// have where D = Dv.
template <int bits, int R>
SDPA_INLINE void multiply_keys(const int32_t* Q, const int32_t* codes, size_t step, int words,
                               Piece& ahead, Transposing& next, __m512i (&acc)[R][2]) {
  using C = Codes<bits>;
  const float* at = reinterpret_cast<const float*>(codes);
  for (int w = 0; w < words; ++w, at += W) {
    if (w % 2 == 0) next.step();
    ahead.fetch<2>();
    Vec x = load(at), y = load(at + step);
    hold(x);
    hold(y);
#pragma GCC unroll 4
    for (int i = 0; i < C::kHalf; ++i, Q += R) {
      const __m512i b[2] = {C::pair_of(bits_as<UVec>(x), i * bits),
                            C::pair_of(bits_as<UVec>(y), i * bits)};
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const __m512i a = _mm512_set1_epi32(Q[r]);
        acc[r][0] = add_products(acc[r][0], a, b[0]);
        acc[r][1] = add_products(acc[r][1], a, b[1]);
      }
    }
  }
}

// acc [R][2] += P [R][W pairs] * two vectors of columns of kPairKeys keys of V, whose codes are at bit `shift` of the halves of
// words: of the first two of four, or of the `upper` two, or one vector of each. Meanwhile lines of the next K are fetched.
template <int bits, int groups, bool upper, int R>
SDPA_INLINE void multiply_values(const int32_t* P, Words V, IVec shift, Piece& ahead,
                                 __m512i (&acc)[R][2]) {
  using C = Codes<bits>;
  using Place = Columns<bits, groups>;
  constexpr bool both = Place::kOfHalf == 1;
  const UVec first = bits_as<UVec>(shift), second = both ? first : first + groups * bits;
  const char *at = V.at, *other = V.from(W).at;
  for (int k = 0; k < W; ++k, at += V.step, other += V.step) {
    if (bits == 8 || k % 2 == 0) ahead.fetch<1>();
    const __m512i a = Place::load_words(at), b = Place::load_words(other);
    const UVec low = bits_as<UVec>(_mm512_unpacklo_epi16(a, b));
    const UVec high = bits_as<UVec>(_mm512_unpackhi_epi16(a, b));
    const UVec x = upper ? high : low, y = both ? high : x;
    const __m512i pairs[2] = {C::pair_of(x, first), C::pair_of(y, second)};
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512i p = _mm512_set1_epi32(P[r * W + k]);
      acc[r][0] = add_products(acc[r][0], p, pairs[0]);
      acc[r][1] = add_products(acc[r][1], p, pairs[1]);
    }
  }
}

}  // namespace sdpa::cpu::SDPA_ISA
