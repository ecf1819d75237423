// Copies of tensor tiles by Hopper's copy engine. A box arrives in shared memory as rows of 128 bytes (64 elements), its
// 16-byte chunks swizzled: chunk c of row r lies at chunk c ^ (r % 8), counted from an address that 1024 divides.
// Elements outside the tensor become zero, and count as bytes that came.
#pragma once

#include "kernels/cuda/hopper.cuh"

namespace sdpa {

// A policy by which L2 gives lines up before all others.
__device__ inline uint64_t evict_first() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

// Has the map at hand for the first copy.
__device__ inline void prefetch_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// The box at (col, row, head, batch). One thread of the block calls it.
__device__ inline void load_box(unsigned to, const TensorMap& map, unsigned barrier, int col,
                                int row, int head, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(col), "r"(row), "r"(head), "r"(batch)
      : "memory");
}

// The same of bytes that no other block reads: L2 keeps partial results and instructions in their place.
__device__ inline void load_box_once(unsigned to, const TensorMap& map, unsigned barrier, int col,
                                     int row, int head, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".L2::cache_hint [%0], [%1, {%3, %4, %5, %6}], [%2], %7;" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(col), "r"(row), "r"(head), "r"(batch), "l"(evict_first())
      : "memory");
}

// The same to the blocks of the cluster that `blocks` has a bit of, each at these addresses of its own memory.
__device__ inline void load_box_multicast(unsigned to, const TensorMap& map, unsigned barrier,
                                          unsigned short blocks, int col, int row, int head,
                                          int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%4, %5, %6, %7}], [%2], %3;" ::"r"(to),
      "l"(&map), "r"(barrier), "h"(blocks), "r"(col), "r"(row), "r"(head), "r"(batch)
      : "memory");
}

}  // namespace sdpa
