// AMX tile registers in software, as the Intel SDM describes them, for machines without: included before the kernels, it
// takes the place of the intrinsics. Every tile must be configured as 16 rows of 64 bytes; until loaded it holds NaN.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#define __AMX_BF16__ 1

namespace amx_tiles {

struct Tile {
  float row[16][16];
};

inline thread_local Tile tiles[8];
inline thread_local bool configured = false;

inline Tile& at(int i) {
  if (!configured) std::abort();
  return tiles[i];
}

inline void configure(const void* config) {
  const auto* bytes = static_cast<const uint8_t*>(config);
  if (bytes[0] != 1 || configured) std::abort();
  for (int i = 0; i < 8; ++i) {
    uint16_t row_bytes;
    std::memcpy(&row_bytes, bytes + 16 + 2 * i, 2);
    if (row_bytes != 64 || bytes[48 + i] != 16) std::abort();
  }
  std::memset(tiles, 0xff, sizeof(tiles));
  configured = true;
}

inline void load(int i, const void* from, int64_t stride) {
  for (int r = 0; r < 16; ++r)
    std::memcpy(at(i).row[r], static_cast<const char*>(from) + r * stride, 64);
}

inline void store(int i, void* to, int64_t stride) {
  for (int r = 0; r < 16; ++r) std::memcpy(static_cast<char*>(to) + r * stride, at(i).row[r], 64);
}

// C [16, 16] += A [16, 16 pairs] * B [16 pairs, 16], subnormal values counted as 0 as vdpbf16ps counts them
inline void multiply_pairs(int c, int a, int b) {
  for (int m = 0; m < 16; ++m) {
    __m512 sum = _mm512_loadu_ps(at(c).row[m]);
    for (int k = 0; k < 16; ++k) {
      int32_t pair;
      std::memcpy(&pair, &at(a).row[m][k], 4);
      sum = _mm512_dpbf16_ps(sum, (__m512bh)_mm512_set1_epi32(pair),
                             (__m512bh)_mm512_loadu_si512(at(b).row[k]));
    }
    _mm512_storeu_ps(at(c).row[m], sum);
  }
}

}  // namespace amx_tiles

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) amx_tiles::configure(config)
#define _tile_release() (amx_tiles::configured = false)
#define _tile_loadd(i, from, stride) amx_tiles::load(i, from, stride)
#define _tile_stored(i, to, stride) amx_tiles::store(i, to, stride)
#define _tile_zero(i) (amx_tiles::at(i) = amx_tiles::Tile{})
#define _tile_dpbf16ps(c, a, b) amx_tiles::multiply_pairs(c, a, b)
