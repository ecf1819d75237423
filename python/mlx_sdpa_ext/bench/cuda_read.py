"""A CUDA kernel that does nothing but read an array."""

from collections.abc import Callable
from functools import cache

import mlx.core as mx

THREADS, BLOCKS = 512, 528  # four blocks on every SM of an H100
READ = """
    const uint4* from = reinterpret_cast<const uint4*>(x);
    const size_t n = x_shape[0] / 4, step = size_t(gridDim.x) * blockDim.x;
    size_t i = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    unsigned all = __float_as_uint(before[0]);
    for (; i + 3 * step < n; i += 4 * step) {
      const uint4 a = from[i], b = from[i + step], c = from[i + 2 * step], d = from[i + 3 * step];
      all |= a.x ^ a.y ^ a.z ^ a.w ^ b.x ^ b.y ^ b.z ^ b.w;
      all |= c.x ^ c.y ^ c.z ^ c.w ^ d.x ^ d.y ^ d.z ^ d.w;
    }
    for (; i < n; i += step) all |= from[i].x ^ from[i].y ^ from[i].z ^ from[i].w;
    if (all == 0 || (blockIdx.x == 0 && threadIdx.x == 0)) after[0] = 0.f;
"""


@cache
def read_kernel() -> Callable:
    return mx.fast.cuda_kernel("read_once", ["before", "x"], ["after"], READ)


def read_once(before: mx.array, x: mx.array) -> mx.array:
    """Zero, float32 [1], once `before`, float32 [1], is there and x, float32 [n], is read."""
    return read_kernel()(
        inputs=[before, x],
        output_shapes=[(1,)],
        output_dtypes=[mx.float32],
        grid=(BLOCKS * THREADS, 1, 1),
        threadgroup=(THREADS, 1, 1),
    )[0]
