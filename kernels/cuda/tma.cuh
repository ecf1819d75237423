// Copies of tensor tiles by Hopper's copy engine. A box arrives in shared memory as rows of 128 bytes (64 elements), its
// 16-byte chunks swizzled: chunk c of row r lies at chunk c ^ (r % 8), counted from an address that 1024 divides.
// Elements outside the tensor become zero, and count as bytes that came.
#pragma once

#include "kernels/cuda/hopper.cuh"

namespace sdpa {

// The box at (col, row, head, batch). One thread of the block calls it.
__device__ inline void load_box(unsigned to, const TensorMap& map, unsigned barrier, int col,
                                int row, int head, int batch) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(to),
      "l"(&map), "r"(barrier), "r"(col), "r"(row), "r"(head), "r"(batch)
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
