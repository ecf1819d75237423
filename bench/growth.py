"""Attention to a cache that grows as mlx-lm's KVCache does: is each step as fast as the last?

A kernel that is compiled anew, or a plan that is made anew, for a length not met before would show
as a step far above the median.
"""

import statistics
import time
from collections.abc import Callable

import mlx.core as mx
import numpy as np
from mlx_sdpa_ext import attention

WARM_UP = 3  # steps not counted: kernels are compiled, memory is mapped
Hq, Hkv, D = 16, 2, 256


def decode(quick: bool = False) -> dict:
    """One row at a time from 4096 to 4352 keys: as good as the same work in each step."""
    start, steps = (64, 16) if quick else (4096, 256)
    taken = grow(start, 1, steps)
    counted = taken[WARM_UP:]
    median = statistics.median(counted)
    return _result("decode", start, 1, taken) | {
        "median_s": median,
        "max_over_median": max(counted) / median,
        "slowest_step": WARM_UP + counted.index(max(counted)),
    }


def prefill(quick: bool = False) -> dict:
    """Steps of 2048 rows from nothing to 131072 keys: a step is linear in its keys."""
    rows, steps = (32, 8) if quick else (2048, 64)
    taken = grow(0, rows, steps)
    counted = np.array(taken[WARM_UP:])
    index = np.arange(WARM_UP, steps)
    line = np.polyval(np.polyfit(index, counted, 1), index)
    line = np.maximum(line, np.median(counted) / 10)
    over = counted / line
    return _result("prefill", 0, rows, taken) | {
        "median_s": float(np.median(counted)),
        "max_over_median": float(counted.max() / np.median(counted)),
        "max_over_line": float(over.max()),
        "slowest_step": int(index[over.argmax()]),
    }


def grow(start: int, rows: int, steps: int) -> list[float]:
    """Seconds of each step: the cache is updated and attended to, and waited for."""
    from mlx_lm.models.cache import KVCache

    def some(heads: int, length: int) -> mx.array:
        return mx.random.normal((1, heads, length, D)).astype(mx.bfloat16)

    cache, mask = KVCache(), "causal" if rows > 1 else None
    if start:
        mx.eval(cache.update_and_fetch(some(Hkv, start), some(Hkv, start)))
    taken = []
    for _ in range(steps):
        q, k, v = some(Hq, rows), some(Hkv, rows), some(Hkv, rows)
        mx.eval(q, k, v)
        began = time.perf_counter()
        keys, values = cache.update_and_fetch(k, v)
        out = attention.scaled_dot_product_attention(q, keys, values, scale=D**-0.5, mask=mask)
        mx.eval(out, cache.keys, cache.values)
        taken.append(time.perf_counter() - began)
    return taken


def _result(name: str, start: int, rows: int, taken: list[float]) -> dict:
    return {
        "case": "growth",
        "name": name,
        "heads": [Hq, Hkv],
        "D": D,
        "from": start,
        "to": start + rows * len(taken),
        "by": rows,
        "warm_up": WARM_UP,
        "first_s": taken[0],
        "step_seconds": taken,
    }


def text(result: dict) -> str:
    over = result.get("max_over_line")
    line = f", {over:.2f} of a line" if over is not None else ""
    return (
        f"{result['median_s'] * 1e3:.3f} ms a step, slowest "
        f"{result['max_over_median']:.2f} of the median{line}"
    )


RUNS: dict[str, Callable[[bool], dict]] = {"decode": decode, "prefill": prefill}
