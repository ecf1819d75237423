// Blocks of packed K and V on their way into the ring of a warp.
#pragma once

#include "kernels/cuda/packed_shape.cuh"

namespace sdpa {

// One operand of one KV head, K or V, of COLS compiled columns.
template <int COLS>
struct Operand {
  static constexpr int kChunks = COLS / kPerChunk, kAll = BK * kChunks;
  static constexpr int kN = kGroups<COLS>;  // scales of a row
  // The scales of a block by words, row by row; an odd number of them only where rows lie side by side.
  static constexpr int kWords = BK * kN / 2, kRowWords = kN % 2 ? kWords : kN / 2;

  const char* rows;              // [Lk, n * bits / 32] words
  const char *scales, *biases;   // [Lk, n / group]
  int64_t row, col, groups_row;  // strides in bytes; col in words
  int n;                         // elements of a row
  bool fast;  // whether whole blocks are copied without a question, by 16 and 4 bytes

  __device__ Operand(const void* x, const Strides& s, const QuantizedRows& groups, int b, int hkv,
                     int n)
      : rows(static_cast<const char*>(x) + (b * s.batch + hkv * s.head) * 4),
        scales(at_head(groups.scales, groups, b, hkv)),
        biases(at_head(groups.biases, groups, b, hkv)), row(s.row * 4), col(s.col),
        groups_row(groups.row * int64_t(sizeof(T))), n(n) {
    const uint64_t odd = reinterpret_cast<uint64_t>(scales) | reinterpret_cast<uint64_t>(biases) |
                         (kN % 2 ? 0 : groups_row);
    fast = SDPA_VECTOR && n == COLS && (row | groups_row) >> 32 == 0 && odd % 4 == 0 &&
           (kN % 2 == 0 || groups.row == kN);
  }

  // Keys [key, key + BK); zero from key `end` and from column n.
  __device__ void copy(int key, int end, unsigned block, int lane) const {
    const unsigned groups = block + BK * kTile.row_bytes;
    if (!fast || key + BK > end || (kN % 2 && key % 2)) {
      copy_slowly(key, end, block, groups, lane);
      return;
    }
    SDPA_FOR (step, (kAll + 31) / 32) {
      const int c = lane + step * 32, r = c / kChunks, at = c % kChunks * 16;
      if (kAll % 32 != 0 && c >= kAll) break;
      copy_16_bytes(block + r * kTile.row_bytes + at, rows + at + product(key + r, row), 16);
    }
    SDPA_FOR (step, (kWords + 31) / 32) {
      const int c = lane + step * 32, r = c / kRowWords, at = c % kRowWords * 4;
      if (kWords % 32 != 0 && c >= kWords) break;
      const uint64_t from = at + product(key + r, groups_row);
      copy_4_bytes(groups + c * 4, scales + from, 4);
      copy_4_bytes(groups + kTile.groups_bytes + c * 4, biases + from, 4);
    }
  }

 private:
  __device__ static const char* at_head(const void* x, const QuantizedRows& groups, int b,
                                        int hkv) {
    return static_cast<const char*>(x) +
           (b * groups.batch + hkv * groups.head) * int64_t(sizeof(T));
  }

  // One instruction: both fit 32 bits.
  __device__ static uint64_t product(int key, int64_t stride) {
    return uint64_t(unsigned(key)) * unsigned(stride);
  }

  __device__ void copy_slowly(int key, int end, unsigned block, unsigned groups, int lane) const {
#pragma unroll 1
    for (int c = lane; c < kAll; c += 32) {
      const int r = c / kChunks, at = c % kChunks * 4;
      const unsigned to = block + r * kTile.row_bytes + at * 4;
      const bool there = key + r < end && at * 32 < n * kBits;
      const auto from = reinterpret_cast<const unsigned*>(rows + (there ? key + r : key) * row);
      if constexpr (SDPA_VECTOR)
        copy_16_bytes(to, from + (there ? at : 0), there ? 16 : 0);
      else
        store_16_bytes(to, gather_16_bytes(from, col, at, there ? n * kBits / 32 : 0));
    }
#pragma unroll 1
    for (int c = lane; c < BK * kN; c += 32) {
      const int r = c / kN, g = c % kN;
      const bool there = key + r < end && g * kGroup < n;
      const int64_t from = (key + r) * groups_row + g * int64_t(sizeof(T));
      const auto bits_of = [&](const char* x) -> unsigned {
        return there ? *reinterpret_cast<const unsigned short*>(x + from) : 0;
      };
      store_2_bytes(groups + c * 2, bits_of(scales));
      store_2_bytes(groups + kTile.groups_bytes + c * 2, bits_of(biases));
    }
  }
};

// The scales or biases of one row, as words; where their number is odd, one at a time in the low half.
template <int N>
struct GroupsOf {
  static constexpr int kWords = N % 2 ? N : N / 2;
  unsigned w[kWords];

  __device__ void load(unsigned groups, int row) {
    const unsigned from = groups + row * N * 2;
    if constexpr (N % 2) {
      SDPA_FOR (g, N) w[g] = load_2_bytes(from + g * 2);
    } else if constexpr (N == 4) {
      asm volatile("ld.shared.v2.b32 {%0,%1}, [%2];"
                   : "=r"(w[0]), "=r"(w[1])
                   : "r"(from)
                   : "memory");
    } else {
      SDPA_FOR (i, kWords) w[i] = load_4_bytes(from + i * 4);
    }
  }
  __device__ float operator[](int g) const {
    return element_to_float(w[N % 2 ? g : g / 2], N % 2 == 0 && g % 2);
  }
};

// Group g of two rows, side by side.
template <int N>
__device__ inline unsigned pair_of_groups(const GroupsOf<N>& x, const GroupsOf<N>& y, int g) {
  const bool high = N % 2 == 0 && g % 2;
  const int i = N % 2 ? g : g / 2;
  return __byte_perm(x.w[i], y.w[i], high ? 0x7632 : 0x5410);
}

}  // namespace sdpa
