// Flash attention on the tensor cores of compute capability 8.0 and later, for every problem that no other kernel
// takes: any D and Dv up to 576 and 512, any strides, masks, softcap. Not float32, which goes the query-blocked way.
//
//   grid       (row tiles, KV heads, splits of the keys): see Part
//   threads    PrefillTile::threads(): WM x WN warps, WM over the rows, WN over the head dimension
//   memory     PrefillTile::shared_bytes(), at most 99 KiB
//   registers  a warp holds BQ / WM rows and DV / WN columns of O, and of Q what registers hold
#pragma once

#include "kernels/cuda/prefill_tile.h"

#if SDPA_DV > 256
#include "kernels/cuda/prefill_columns.cuh"
#else
#include "kernels/cuda/prefill_rows.cuh"
#endif

extern "C" __global__ void __launch_bounds__(sdpa::kThreads, sdpa::kTile.ctas)
    sdpa_kernel(const __grid_constant__ sdpa::Arguments a) {
  sdpa::prefill(a);
}
