// Rows of a quantized cache: words of 4-bit or 8-bit codes, the first in the lowest bits, and for each group of
// `group_size` elements a scale and a bias: element = code * scale + bias.
#pragma once

#include "kernels/cpu/ahead.h"
#include "kernels/cpu/operand_rows.h"

namespace sdpa::cpu::SDPA_ISA {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "codes are read as bytes of words");

constexpr int kMostWords = 1024 * 8 / 32;  // of a row of the largest head dimension
constexpr int kPage = 4096;                // bytes; or a part of a page

// Codes [0, W) of those that start at `at`, as integers.
template <int bits>
SDPA_INLINE IVec load_codes(const char* at) {
#if defined(__AVX512F__)  // GCC 12 widens bytes one vector half after the other
  if constexpr (bits == 8)
    return bits_as<IVec>(
        _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at))));
#elif defined(__AVX2__)
  if constexpr (bits == 8)
    return bits_as<IVec>(
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at))));
#endif
  // The codes of each word, shifted down from a copy of it in every lane.
  constexpr int kPerWord = 32 / bits, kBytes = W * bits / 8;
  const IVec lane = iota();
  uint32_t words[2] = {};
  static_assert(kBytes <= 8 || bits == 8);
  __builtin_memcpy(words, at, kBytes < 8 ? kBytes : 8);
  UVec x = UVec{} + words[0];
  if constexpr (W > kPerWord) x = lane < kPerWord ? x : UVec{} + words[1];
  return bits_as<IVec>(x >> bits_as<UVec>((lane & (kPerWord - 1)) * bits) & ((1u << bits) - 1));
}

// Words of rows, side by side.
struct Words {
  const char* at;  // of row 0
  int64_t step;    // bytes from row to row

  Words from(int row) const { return {at + row * step, step}; }
  Words from_word(int word) const { return {at + word * 4, step}; }
};

// Cache lines one after the other.
struct Piece {
  const char* at = nullptr;
  int n = 0;

  // Part i of `parts`.
  Piece part(int i, int parts) const {
    const int begin = n * i / parts, end = n * (i + 1) / parts;
    return {at + begin * kLine, end - begin};
  }

  // The next N lines.
  template <int N>
  SDPA_INLINE void fetch() {
    if (n <= 0) return;
#pragma GCC unroll 2
    for (int i = 0; i < N; ++i) __builtin_prefetch(at + i * kLine, 0, kIntoL2);
    at += N * kLine;
    n -= N;
  }
  void fetch_all() {
    while (n > 0) fetch<1>();
  }
};

// Dequantized to E_.
template <typename T, typename E_ = float>
struct PackedRows {
  using E = E_;

  const uint32_t* words;      // of row 0
  const T *scales, *biases;   // likewise
  Strides word, scale, bias;  // batch and head are not used
  int bits, group_size;

  PackedRows from(int key) const {
    PackedRows rows = *this;
    rows.words += key * word.row;
    rows.scales += key * scale.row;
    rows.biases += key * bias.row;
    return rows;
  }

  // Row j, of n elements, dequantized in tmp.
  const E* row(int j, int n, E* tmp) const {
    uint32_t copy[kMostWords];
    const char* codes = row_words(j, n, copy);
    bits == 4 ? dequantize<4>(codes, j, n, tmp) : dequantize<8>(codes, j, n, tmp);
    return tmp;
  }

  // The words of row j, of n elements, side by side: where they lie, or copied.
  SDPA_INLINE const char* row_words(int j, int n, uint32_t* copy) const {
    const uint32_t* at = words + j * word.row;
    if (word.col == 1) return reinterpret_cast<const char*>(at);
    for (int i = 0; i < n * bits / 32; ++i) copy[i] = at[i * word.col];
    return reinterpret_cast<const char*>(copy);
  }

  // The words of the first n rows, of D elements: where they lie, or copied.
  Words words_of(int n, int D, uint32_t* copies) const {
    if (word.col == 1) return {reinterpret_cast<const char*>(words), word.row * 4};
    const int64_t step = D * bits / 32;
    for (int j = 0; j < n; ++j) row_words(j, D, copies + j * step);
    return {reinterpret_cast<const char*>(copies), step * 4};
  }

  // The lines of the n rows at `key`, of D elements, for a product to fetch; their groups are fetched here, and all where
  // they are not in one piece.
  Piece ahead(int key, int n, int D) const {
    const int64_t groups = int64_t(sizeof(T)) * (D / group_size), bytes = int64_t(D) * bits / 8;
    fetch(scales + key * scale.row, scale.row * int64_t(sizeof(T)), groups, n);
    fetch(biases + key * bias.row, bias.row * int64_t(sizeof(T)), groups, n);
    const uint32_t* at = words + key * word.row;
    if (word.row * 4 != bytes) {
      fetch(at, word.row * 4, bytes, n);
      return {};
    }
    // A line of each page, so that where it lies in memory is known when the others are fetched.
    const char* lines = reinterpret_cast<const char*>(at);
    for (int64_t i = 0; i < n * bytes; i += kPage) __builtin_prefetch(lines + i, 0, kIntoL2);
    return {lines, int(n * bytes / kLine)};
  }

  SDPA_INLINE float scale_of(int j, int g) const {
    return widen(scales[j * scale.row + g * scale.col]);
  }
  SDPA_INLINE float bias_of(int j, int g) const {
    return widen(biases[j * bias.row + g * bias.col]);
  }

 private:
  // n rows of `bytes` bytes, `step` apart
  SDPA_INLINE static void fetch(const void* rows, int64_t step, int64_t bytes, int n) {
    if (step == bytes) {
      bytes *= n;
      n = 1;
    }
    for (int j = 0; j < n; ++j)
      for (int64_t i = 0; i < bytes; i += kLine)
        __builtin_prefetch(static_cast<const char*>(rows) + j * step + i, 0, kIntoL2);
  }

  template <int bits>
  SDPA_INLINE void dequantize(const char* codes, int j, int n, E* to) const {
    for (int d = 0; d < n; d += group_size) {
      const Vec s = splat(scale_of(j, d / group_size)), b = splat(bias_of(j, d / group_size));
      for (int i = d; i < d + group_size; i += W)
        store(to + i, __builtin_convertvector(load_codes<bits>(codes + i * bits / 8), Vec) * s + b);
    }
  }
};

template <typename T, typename E = float>
SDPA_INLINE PackedRows<T, E> packed_rows(const void* words, const Strides& s, const Groups& g,
                                         const Operands& x, int b, int head) {
  return {
      static_cast<const uint32_t*>(words) + b * s.batch + head * s.head,
      static_cast<const T*>(g.scales) + b * g.scale.batch + head * g.scale.head,
      static_cast<const T*>(g.biases) + b * g.bias.batch + head * g.bias.head,
      s,
      g.scale,
      g.bias,
      x.bits,
      x.group_size,
  };
}

}  // namespace sdpa::cpu::SDPA_ISA
