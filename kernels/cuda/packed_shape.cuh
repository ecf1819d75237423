// The compiled tile of the packed kernel, and what its parts hand each other.
#pragma once

#include "kernels/cuda/affine.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/output.cuh"
#include "kernels/cuda/packed_tile.h"

namespace sdpa {

constexpr int D = SDPA_D, DV = SDPA_DV, BQ = SDPA_BQ, BK = SDPA_BK;
constexpr int kBits = SDPA_BITS, kGroup = SDPA_GROUP;
constexpr PackedTile kTile = packed_tile(D, DV, kBits, kGroup, __CUDA_ARCH__ / 10);
constexpr int kWarps = kTile.warps, kThreads = kTile.threads();
constexpr int kPerChunk = 128 / kBits;            // elements of 16 bytes
constexpr int kGroupChunks = kGroup / kPerChunk;  // such chunks of a group
constexpr int kTilesV = DV / 16;                  // fragments of 16 columns of O

static_assert(kBits == 4 || kBits == 8, "a byte holds whole elements");
static_assert(BQ == kPackedRows && BK == kPackedKeys, "a block is one fragment of S");
static_assert(D % 32 == 0 && DV % 32 == 0 && kGroup % 32 == 0, "16 bytes are of one group");

// Groups of a row of COLS columns.
template <int COLS>
constexpr int kGroups = (COLS + kGroup - 1) / kGroup;

// The place of a thread.
struct Place {
  int lane, i, t;  // as in mma.cuh
};

// One element of a pair.
__device__ inline float element_to_float(unsigned pair, bool high) {
  if constexpr (kHalf)
    return __half2float(__ushort_as_half((unsigned short)(high ? pair >> 16 : pair)));
  return __uint_as_float(high ? pair & 0xffff0000u : pair << 16);
}

// Shared memory by address.
__device__ inline void load_16_bytes(unsigned (&x)[4], unsigned address) {
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
               : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
               : "r"(address)
               : "memory");
}

__device__ inline float2 load_pair(unsigned address) {
  float2 x;
  asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(address) : "memory");
  return x;
}

}  // namespace sdpa
