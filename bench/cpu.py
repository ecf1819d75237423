"""CPU suites: speed beside stock, and memory beside stock."""

import os
from collections.abc import Iterator
from functools import partial

from beside import DTYPES, beside_stock, operands
from measure import added_memory
from mlx_sdpa_ext import attention, limits


def speed(quick: bool) -> Iterator[dict]:
    """Causal prefill H8 2048 x 2048, decode H8/1 1 x 32768, a prefill step against a cache."""
    length = 512 if quick else 2048
    for D, Dv in [(64, 64), (128, 128), (192, 128), (256, 256), (512, 512)]:
        for dtype in DTYPES:
            arrays = operands(8, 8, length, length, D, Dv, dtype)
            yield beside_stock("prefill", arrays, "causal", 1, 7)
    keys = 4096 if quick else 32768
    for D in (128, 256, 512):
        for dtype in DTYPES:
            yield beside_stock("decode", operands(8, 1, 1, keys, D, D, dtype), None, 5, 15)
    for rows in (4, 16, 48):
        arrays = operands(8, 1, rows, keys, 256, 256, "float32")
        yield beside_stock(f"{rows} rows", arrays, "causal", 1, 7)


def memory(quick: bool) -> Iterator[dict]:
    """Peak memory above inputs and output of Lq 2048 against Lk 32768, H16/2, D 256, by path.

    Stock and unfused compute the scores with stock's matmul: minutes on a Linux CPU.
    """
    rows, keys = (256, 4096) if quick else (2048, 32768)
    q, k, v = operands(16, 2, rows, keys, 256, 256, "float32")
    limit = 256 * 2**20 * rows * keys // (2048 * 32768)
    os.environ["MLX_SDPA_EXT_MEMORY_LIMIT"] = str(limit)
    limits.refresh()
    for path in ("fused", "chunked", "unfused", "stock"):
        call = {"scale": 1 / 16, "mask": "causal", "path": path}
        run = partial(attention.scaled_dot_product_attention, q, k, v, **call)
        added, taken = added_memory(run, [q, k, v])
        yield {
            "case": "memory",
            "path": path,
            "q": q.shape,
            "k": k.shape,
            "limit_bytes": limit if path == "unfused" else None,
            "added_bytes": added,
            "added_mib": added / 2**20,
            "seconds": taken,
        }
