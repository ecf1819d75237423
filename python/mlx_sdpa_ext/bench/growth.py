"""Attention to a cache that grows as mlx-lm's KVCache does: is each step as fast as the last?

A kernel that is compiled anew, or a plan that is made anew, for a length not met before would show
as a step far above the median.
"""

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from .. import attention

WARM_UP = 3  # steps not counted: kernels are compiled, memory is mapped
Hq, Hkv, D = 16, 2, 256


def decode(quick: bool = False) -> dict:
    """One row at a time from 4096 to 4352 keys: as good as the same work in each step."""
    start, steps = (64, 16) if quick else (4096, 256)
    taken = grow(start, 1, steps)
    return _result("decode", start, 1, taken)


def prefill(quick: bool = False) -> dict:
    """Steps of 2048 rows from nothing to 131072 keys: a step is linear in its keys.

    The cache grows twice: only the first time does MLX map the memory for each length.
    """
    rows, steps = (32, 8) if quick else (2048, 64)
    first, taken = grow(0, rows, steps), grow(0, rows, steps)
    index = np.arange(WARM_UP, steps)
    counted = np.array([step.seconds for step in taken[WARM_UP:]])
    line = np.polyval(np.polyfit(index, counted, 1), index)
    line = np.maximum(line, np.median(counted) / 10)
    return _result("prefill", 0, rows, taken) | {
        "max_over_line": float((counted / line).max()),
        "first_pass": _over_median(first),
        "first_pass_step_seconds": [step.seconds for step in first],
    }


class Step(NamedTuple):
    """Seconds of what the cache does, which copies all it has when it is full, and of attention."""

    cache: float
    attention: float

    @property
    def seconds(self) -> float:
        return self.cache + self.attention


def grow(start: int, rows: int, steps: int) -> list[Step]:
    """Each step: the cache is updated, then attended to; both are waited for."""
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
        mx.eval(cache.keys, cache.values)
        updated = time.perf_counter()
        out = attention.scaled_dot_product_attention(q, keys, values, scale=D**-0.5, mask=mask)
        mx.eval(out)
        taken.append(Step(updated - began, time.perf_counter() - updated))
    return taken


def _over_median(taken: list[Step]) -> dict:
    """The slowest step, and the slowest attention, over their medians."""
    counted = taken[WARM_UP:]
    steps, attends = [step.seconds for step in counted], [step.attention for step in counted]
    return {
        "median_s": statistics.median(steps),
        "max_over_median": max(steps) / statistics.median(steps),
        "slowest_step": WARM_UP + steps.index(max(steps)),
        "attention_median_s": statistics.median(attends),
        "attention_max_over_median": max(attends) / statistics.median(attends),
    }


def _result(name: str, start: int, rows: int, taken: list[Step]) -> dict:
    return {
        "case": "growth",
        "name": name,
        "heads": [Hq, Hkv],
        "D": D,
        "from": start,
        "to": start + rows * len(taken),
        "by": rows,
        "warm_up": WARM_UP,
        "first_s": taken[0].seconds,
        "step_seconds": [step.seconds for step in taken],
        "attention_seconds": [step.attention for step in taken],
    } | _over_median(taken)


def text(result: dict) -> str:
    over = result.get("max_over_line")
    line = f", {over:.2f} of a line" if over is not None else ""
    return (
        f"{result['median_s'] * 1e3:.3f} ms a step, slowest "
        f"{result['max_over_median']:.2f} of the median (attention alone "
        f"{result['attention_max_over_median']:.2f}){line}"
    )


RUNS: dict[str, Callable[[bool], dict]] = {"decode": decode, "prefill": prefill}
