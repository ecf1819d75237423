"""CPU suites: speed beside stock, and memory beside stock."""

import os
from collections.abc import Iterator
from functools import partial

import mlx.core as mx
from measure import added_memory, seconds
from mlx_sdpa_ext import attention, limits

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
stock = mx.fast.scaled_dot_product_attention


def operands(Hq, Hkv, Lq, Lk, D, Dv, dtype):
    """Random q [1, Hq, Lq, D], k [1, Hkv, Lk, D] and v [1, Hkv, Lk, Dv], evaluated."""
    shapes = [(1, Hq, Lq, D), (1, Hkv, Lk, D), (1, Hkv, Lk, Dv)]
    arrays = [mx.random.normal(s).astype(DTYPES[dtype]) for s in shapes]
    mx.eval(*arrays)
    return arrays


def beside_stock(name, arrays, mask, stock_repeats, ours_repeats) -> dict:
    """One case on both; FLOPs count the visible scores only."""
    q, k, v = arrays
    route = attention.explain(q, k, v, scale=q.shape[-1] ** -0.5, mask=mask)
    call = {"scale": q.shape[-1] ** -0.5, "mask": mask}
    ours = seconds(partial(attention.scaled_dot_product_attention, q, k, v, **call), ours_repeats)
    theirs = seconds(partial(stock, q, k, v, **call), stock_repeats, warm_up=0)
    return {
        "case": name,
        "dtype": str(q.dtype).removeprefix("mlx.core."),
        "q": q.shape,
        "k": k.shape,
        "v": v.shape,
        "mask": mask,
        "kernel": route.kernel,
        "flops": route.flops,
        "ours": ours,
        "stock": theirs,
        "ours_gflops": route.flops / ours["median_s"] / 1e9,
        "stock_gflops": route.flops / theirs["median_s"] / 1e9,
        "kv_gb_per_s": (k.nbytes + v.nbytes) / ours["median_s"] / 1e9,
        "speedup": theirs["median_s"] / ours["median_s"],
    }


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
