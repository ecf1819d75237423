// The decode kernel's ways to K and V in MLX's affine quantization: packed words into shared memory, fragments of T out of it.
//
// No element is moved to where a fragment wants it; Q and O are permuted instead, the same for every key:
//   Q K^T   a lane's word of a key is its share of 32 columns (4 bits) or 16 (8 bits): store_query() puts Q likewise
//   P V     a lane's words of a key are FV columns of O side by side: output_column() says which
#pragma once

#include "kernels/cuda/affine.cuh"
#include "kernels/cuda/decode_shape.cuh"

namespace sdpa {

constexpr int kBits = SDPA_BITS, kGroup = SDPA_GROUP, kPerWord = 32 / kBits;
static_assert(kBits == 4 || kBits == 8, "a byte holds whole elements");
static_assert(decode_reads_packed(DV) && FV % 2 == 0, "a lane's columns are whole bytes or words");

// Groups of a block lie after its words: scales [BK, group_words], then biases.
constexpr int kScales = BK * kTile.row_bytes, kBiases = kScales + BK * kTile.group_words * 4;

__device__ inline void store_query(T* Q, int r, int d, uint4 x) {
  unsigned* row =
      reinterpret_cast<unsigned*>(reinterpret_cast<char*>(Q) + r * kTile.query_row_bytes);
  const unsigned w[4] = {x.x, x.y, x.z, x.w};
  SDPA_FOR (j, 4) {
    if constexpr (kBits == 4)  // elements j and j + 4, as they come out of a word together
      row[d / 32 * 16 + j * 4 + d % 32 / 8] =
          __byte_perm(w[j / 2], w[j / 2 + 2], j % 2 ? 0x7632 : 0x5410);
    else
      row[d / 16 * 8 + j % 2 * 4 + d % 16 / 4 + j / 2] = w[j];
  }
}

// The scales or biases of a block's rows, by words: the first element of a row may be the second of its first word.
template <int COLS>
__device__ inline void copy_groups(const T* groups, const Operand& x, int key, int end, unsigned to,
                                   int thread) {
  constexpr int kAll = BK * kTile.group_words, kSteps = (kAll + kThreads - 1) / kThreads;
#pragma unroll 4
  for (int step = 0; step < kSteps; ++step) {
    const int c = thread + step * kThreads, row = c / kTile.group_words,
              word = c % kTile.group_words;
    if (kAll % kThreads != 0 && c >= kAll) break;
    const bool inside = key + row < end;
    const auto from =
        reinterpret_cast<uint64_t>(groups + int64_t(inside ? key + row : key) * x.groups_row);
    const bool there = inside && 2 * word - int(from >> 1 & 1) < x.n / kGroup;
    copy_4_bytes(to + c * 4, reinterpret_cast<const void*>((from & ~3ull) + (there ? word * 4 : 0)),
                 there ? 4 : 0);
  }
}

template <int COLS>
__device__ inline void copy_block(const Operand& x, int key, int end, unsigned block, Place at) {
  constexpr int kChunks = COLS * kBits / 128, kAll = BK * kChunks;
  constexpr int kSteps = (kAll + kThreads - 1) / kThreads;
  const unsigned* rows = static_cast<const unsigned*>(x.rows) + key * x.row;
  const int n = x.n / kPerWord;
#pragma unroll 4
  for (int step = 0; step < kSteps; ++step) {
    const int c = at.thread + step * kThreads, row = c / kChunks, col = (c - row * kChunks) * 4;
    if (kAll % kThreads != 0 && c >= kAll) break;
    const unsigned to = block + row * kTile.row_bytes + col * 4;
    const bool there = key + row < end && col < n;
    const unsigned* from = rows + (there ? row * x.row : 0);
    if constexpr (SDPA_VECTOR)
      copy_16_bytes(to, from + (there ? col : 0), there ? 16 : 0);
    else
      store_16_bytes(to, gather_16_bytes(from, x.col, col, there ? n : 0));
  }
  copy_groups<COLS>(x.scales, x, key, end, block + kScales, at.thread);
  copy_groups<COLS>(x.biases, x, key, end, block + kBiases, at.thread);
}

// Elements whose 4 bits are the low ones (HIGH: the next ones) of both halves of x. An integer under the exponent bits
// of 1024 (bf16: 128) is that number plus the integer, exactly.
template <bool HIGH>
__device__ inline unsigned pair_of_4_bits(unsigned x, Affine g) {
  unsigned q;
  if constexpr (kHalf)
    q = HIGH ? multiply_add_pair(select_or(x, 0x00f000f0, 0x64006400), 0x2c002c00, 0xd400d400)
             : multiply_add_pair(select_or(x, 0x000f000f, 0x64006400), 0x3c003c00, 0xe400e400);
  else
    q = multiply_add_pair(select_or(HIGH ? x >> 4 : x, 0x000f000f, 0x43004300), 0x3f803f80,
                          0xc300c300);
  return multiply_add_pair(q, g.scale, g.bias);
}

// Elements of 8 bits: byte `from_x` of x and byte `from_y` of y.
__device__ inline unsigned pair_of_8_bits(unsigned x, int from_x, unsigned y, int from_y,
                                          Affine g) {
  if constexpr (kHalf) {
    const unsigned both = __byte_perm(x, y, from_x | (from_y + 4) << 8);
    const unsigned q =
        multiply_add_pair(select_or(both, 0x00ff00ff, 0x64006400), 0x3c003c00, 0xe400e400);
    return multiply_add_pair(q, g.scale, g.bias);
  } else {  // 8 bits do not fit under the exponent of a bf16: under that of 2^23
    const float q0 = __uint_as_float(__byte_perm(x, 0x4b000000, 0x7440 + from_x)) - 8388608.f;
    const float q1 = __uint_as_float(__byte_perm(y, 0x4b000000, 0x7440 + from_y)) - 8388608.f;
    return pack<T>(
        fmaf(q0, __uint_as_float(g.scale << 16), __uint_as_float(g.bias << 16)),
        fmaf(q1, __uint_as_float(g.scale & 0xffff0000), __uint_as_float(g.bias & 0xffff0000)));
  }
}

__device__ inline unsigned load_group(unsigned groups, int row, int odd, int g) {
  return load_2_bytes(groups + row * kTile.group_words * 4 + (odd + g) * 2);
}

// Whether the scales (bit 0) and biases (bit 1) of a row start in the second half of a word.
__device__ inline int odd_groups(const Operand& x, int key) {
  return x.odd ^ (key & 1 ? x.odd_step : 0);
}

__device__ inline void multiply_keys(const Shared& shared, unsigned block, const Operand& K,
                                     int key, Place at, float (&S)[MT][FK][4]) {
  int odd[FK];
  Affine group[FK];
  SDPA_FOR (f, FK) odd[f] = odd_groups(K, key + (at.wn * FK + f) * 8 + at.i);
  SDPA_FOR (d, D / 32) {
    // What follows the last group of a row is the next row's, which may be NaN.
    if (d * 32 >= K.n) break;
    unsigned a[MT][2][4];
    SDPA_FOR (m, MT)
      SDPA_FOR (h, 2)
        load_A(a[m][h], shared.Q, kTile.query_row_bytes, at.wm * RM + m * 16, d * 64 + h * 32,
               at.lane);
    SDPA_FOR (f, FK) {
      const int row = (at.wn * FK + f) * 8 + at.i;
      if (d * 32 % kGroup == 0) {
        const int g = d * 32 / kGroup;
        group[f] = {load_group(block + kScales, row, odd[f] & 1, g) * 0x10001u,
                    load_group(block + kBiases, row, odd[f] >> 1, g) * 0x10001u};
      }
      const unsigned words = block + row * kTile.row_bytes + d * 4 * kBits + at.t * 4;
      unsigned b[4];
      if constexpr (kBits == 4) {
        const unsigned w = load_4_bytes(words), upper = w >> 8;
        b[0] = pair_of_4_bits<false>(w, group[f]);
        b[1] = pair_of_4_bits<true>(w, group[f]);
        b[2] = pair_of_4_bits<false>(upper, group[f]);
        b[3] = pair_of_4_bits<true>(upper, group[f]);
      } else {
        SDPA_FOR (h, 2) {
          const unsigned w = load_4_bytes(words + h * 16);
          b[h * 2] = pair_of_8_bits(w, 0, w, 1, group[f]);
          b[h * 2 + 1] = pair_of_8_bits(w, 2, w, 3, group[f]);
        }
      }
      SDPA_FOR (m, MT)
        SDPA_FOR (h, 2) multiply_add<T>(S[m][f], a[m][h], b[h * 2], b[h * 2 + 1]);
    }
  }
}

__device__ inline int first_column(int wn, int i) { return (wn * 8 + i) * FV; }

__device__ inline void multiply_values(const Shared& shared, unsigned block, const Operand& V,
                                       int key, Place at, float (&O)[MT][FV][4]) {
  constexpr int kWords = FV > kPerWord ? FV / kPerWord : 1, kBytes = FV * kBits / 8 / kWords;
  const int first = first_column(at.wn, at.i);
  const int byte = first * kBits / 8, offset = byte % 4, g = first / kGroup;
  SDPA_FOR (k, BK / 16) {
    unsigned a[MT][4];
    SDPA_FOR (m, MT)
      load_A(a[m], shared.P, kTile.weights_row_bytes, at.wm * RM + m * 16, k * 32, at.lane);
    // Keys 2t and 2t + 1 (h = 0), 2t + 8 and 2t + 9 (h = 1): b0 and b1 of a fragment
    Affine group[2];
    SDPA_FOR (h, 2) {
      const int row = k * 16 + h * 8 + at.t * 2;
      const int odd0 = odd_groups(V, key + row), odd1 = odd_groups(V, key + row + 1);
      group[h] = {load_group(block + kScales, row, odd0 & 1, g) |
                      load_group(block + kScales, row + 1, odd1 & 1, g) << 16,
                  load_group(block + kBiases, row, odd0 >> 1, g) |
                      load_group(block + kBiases, row + 1, odd1 >> 1, g) << 16};
    }
    SDPA_FOR (word, kWords) {
      unsigned w[2][2];
      SDPA_FOR (h, 2)
        SDPA_FOR (e, 2)
          w[h][e] = load_4_bytes(block + (k * 16 + h * 8 + at.t * 2 + e) * kTile.row_bytes +
                                 (byte - offset) + word * 4);
      SDPA_FOR (j, kBytes) {
        const int from = offset + j;
        if constexpr (kBits == 4) {
          unsigned x[2];
          SDPA_FOR (h, 2) x[h] = __byte_perm(w[h][0], w[h][1], 0x400 + from * 0x101);
          const int f = (word * 4 + j) * 2;
          SDPA_FOR (m, MT) {
            multiply_add<T>(O[m][f], a[m], pair_of_4_bits<false>(x[0], group[0]),
                            pair_of_4_bits<false>(x[1], group[1]));
            multiply_add<T>(O[m][f + 1], a[m], pair_of_4_bits<true>(x[0], group[0]),
                            pair_of_4_bits<true>(x[1], group[1]));
          }
        } else {
          SDPA_FOR (m, MT)
            multiply_add<T>(O[m][word * 4 + j], a[m],
                            pair_of_8_bits(w[0][0], from, w[0][1], from, group[0]),
                            pair_of_8_bits(w[1][0], from, w[1][1], from, group[1]));
        }
      }
    }
  }
}

__device__ inline int output_column(int wn, int f, int n) { return first_column(wn, n) + f; }

}  // namespace sdpa
