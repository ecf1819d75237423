"""Times mlx-lm's own prefill loop and reads memory and logits at chosen contexts."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import accumulate
from statistics import median
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten


@dataclass(frozen=True)
class Point:
    """One context reached by a prefill."""

    context: int  # tokens in the cache
    steps: int  # prefill steps up to here
    seconds: float  # prefill time up to here
    peak_bytes: int  # largest allocation up to here, above the weights; holds the KV cache
    cache_bytes: int  # the KV cache itself
    logits: np.ndarray  # [V] float32, of the token that follows


@dataclass
class Prefill:
    """What one prefill gave; filled as it goes, so that an interrupted one keeps its points."""

    points: list[Point] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)  # one per step, in order
    expected: dict[int, float] = field(default_factory=dict)  # contexts not run: predicted seconds

    def at(self, context: int) -> Point | None:
        return next((p for p in self.points if p.context == context), None)


class _OutOfTime(Exception):
    pass


def prefill(
    model: Any,
    prompt: mx.array,
    contexts: Sequence[int],
    *,
    step: int = 2048,
    budget: float = float("inf"),
    result: Prefill | None = None,
    on_progress: Callable[[int], None] = lambda tokens: None,
) -> Prefill:
    """Prefills `prompt` once with `mlx_lm.generate.generate_step`, reading off every context.

    model:    called as model(tokens [1, L], cache=...) -> logits [1, L, V]
    prompt:   [contexts[-1] + 1] int token ids; the last one is the token generation starts from
    contexts: increasing multiples of `step`
    budget:   seconds; the run ends at the last context that the time of the steps so far says
              can be reached within it, and the others go to `result.expected`
    result:   filled in place, so that the caller still has it after KeyboardInterrupt
    """
    from mlx_lm.generate import generate_step
    from mlx_lm.models.cache import make_prompt_cache

    result = Prefill() if result is None else result
    cache = make_prompt_cache(model)
    base = mx.get_active_memory()
    peak = 0
    started = 0.0

    def after_step(processed: int, total: int) -> None:
        nonlocal peak, started
        if 0 < processed < total:  # 0: nothing ran yet; total: the token after the prefill
            result.step_seconds.append(time.perf_counter() - started)
            peak = max(peak, mx.get_peak_memory() - base)
            if processed in contexts:
                logits = _next_logits(model, cache, prompt[processed : processed + 1])
                seconds = sum(result.step_seconds)
                result.points.append(
                    Point(processed, len(result.step_seconds), seconds, peak, _bytes(cache), logits)
                )
            on_progress(processed)
            _check_budget(result, contexts, step, processed, budget)
        mx.reset_peak_memory()
        started = time.perf_counter()

    try:
        for _ in generate_step(
            prompt,
            model,
            max_tokens=0,
            prompt_cache=cache,
            prefill_step_size=step,
            prompt_progress_callback=after_step,
        ):
            pass
    except _OutOfTime:
        pass
    return result


def combine(passes: Sequence[Prefill]) -> Prefill:
    """The first pass, with each step's time the median over all passes that went so far."""
    first = passes[0]
    steps = [
        median(p.step_seconds[i] for p in passes if i < len(p.step_seconds))
        for i in range(len(first.step_seconds))
    ]
    totals = list(accumulate(steps))
    points = [replace(point, seconds=totals[point.steps - 1]) for point in first.points]
    return Prefill(points, steps, first.expected)


def predict(step_seconds: Sequence[float], steps: int) -> float:
    """Seconds that `steps` steps take, from the measured ones: a step is linear in the keys."""
    done = len(step_seconds)
    if steps <= done:
        return float(sum(step_seconds[:steps]))
    index = np.arange(done)
    # Too few steps for a line: taken as growing in proportion to the keys, which errs on the long
    # side, since part of a step does not depend on them.
    if done < 3:
        slope, offset = step_seconds[-1] / done, step_seconds[-1] / done
    else:
        slope, offset = np.polyfit(index, step_seconds, 1)
    rest = offset + max(slope, 0.0) * np.arange(done, steps)
    return float(sum(step_seconds) + np.maximum(rest, 0.0).sum())


def _check_budget(
    result: Prefill, contexts: Sequence[int], step: int, processed: int, budget: float
) -> None:
    ahead = [c for c in contexts if c > processed]
    if ahead and predict(result.step_seconds, ahead[0] // step) > budget:
        result.expected = {c: predict(result.step_seconds, c // step) for c in ahead}
        raise _OutOfTime


def _next_logits(model: Any, cache: list, token: mx.array) -> np.ndarray:
    """Logits [V] of the token after `token`, on a copy of the cache."""
    logits = model(token[None], cache=copy.deepcopy(cache))[0, -1]
    return np.array(logits.astype(mx.float32))


def _bytes(cache: list) -> int:
    leaves = (leaf for _, leaf in tree_flatten([c.state for c in cache]))
    return sum(leaf.nbytes for leaf in leaves if isinstance(leaf, mx.array))


@dataclass
class AttentionCalls:
    """What the attention calls of a model look like; filled by `without_attention`."""

    count: int = 0
    heads: int = 0
    kv_heads: int = 0
    head_dims: tuple[tuple[int, int], ...] = ()  # the (D, Dv) met


@contextmanager
def without_attention() -> Iterator[AttentionCalls]:
    """Answers `mx.fast.scaled_dot_product_attention` with its queries, at no cost.

    A prefill inside takes the time of everything but the attention.
    """
    calls = AttentionCalls()
    found = mx.fast.scaled_dot_product_attention

    def queries(q: mx.array, k: mx.array, v: mx.array, **_: Any) -> mx.array:
        calls.count += 1
        calls.heads, calls.kv_heads = q.shape[1], k.shape[1]
        calls.head_dims = tuple(sorted({*calls.head_dims, (q.shape[-1], v.shape[-1])}))
        missing = v.shape[-1] - q.shape[-1]
        return mx.pad(q, [(0, 0)] * 3 + [(0, missing)]) if missing > 0 else q[..., : v.shape[-1]]

    mx.fast.scaled_dot_product_attention = queries
    try:
        yield calls
    finally:
        mx.fast.scaled_dot_product_attention = found
