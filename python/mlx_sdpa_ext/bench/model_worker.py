"""One model on one side, in a process of its own: prefill, then decode, greedily or as told.

models.py starts it and gives it its task as JSON; what it finds is in the files that the task
names, at any time, so that one that is killed, or that the GPU's memory kills, has said how far it
came.
"""

import json
import os
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

import mlx_sdpa_ext

from ..cli.prefill import Point, Prefill, prefill
from .model_configs import make

FAILURES = (RuntimeError, ValueError, TypeError, MemoryError)


class Keeping:
    """A model that keeps the cache it is given, which `prefill` makes itself."""

    def __init__(self, module: Any) -> None:
        self.module, self.cache = module, None

    def __call__(self, tokens: mx.array, cache: list) -> mx.array:
        return self.module(tokens, cache=cache)

    def make_cache(self) -> list:
        self.cache = make_prompt_cache(self.module)
        return self.cache


class Record:
    """What is found, and where it is written."""

    def __init__(self, task: dict) -> None:
        self.data: dict[str, Any] = {"points": [], "step_seconds": [], "decode": None}
        self.arrays: dict[str, np.ndarray] = {}
        self.out = Path(task["out"])

    def write(self) -> None:
        part = self.out.with_suffix(".part.npz")
        np.savez(part, **self.arrays)
        os.replace(part, self.out.with_suffix(".npz"))
        part = self.out.with_suffix(".part")
        part.write_text(json.dumps(self.data))
        os.replace(part, self.out)

    def prefilled(self, run: Prefill) -> None:
        """As far as the prefill has come."""
        self.data["step_seconds"] = run.step_seconds
        for point in run.points[len(self.data["points"]) :]:
            self.data["points"].append(_point(point))
            self.arrays[f"logits_{point.context}"] = point.logits
        if run.expected:
            self.data["not_run_expected_seconds"] = run.expected
        self.write()


def _point(point: Point) -> dict:
    return {
        "context": point.context,
        "seconds": point.seconds,
        "tokens_per_second": point.context / point.seconds,
        "peak_bytes": point.peak_bytes,
        "cache_bytes": point.cache_bytes,
    }


def work(task: dict) -> Record:
    """The task: model, small, side, dtype, contexts, step, decode, limit, tokens, out."""
    record = Record(task)
    began = time.perf_counter()
    with mlx_sdpa_ext.patched() if task["side"] == "ours" else nullcontext():
        try:
            _work(task, record, began)
        except FAILURES as error:
            record.data["error"] = (str(error).strip() or type(error).__name__).splitlines()[0]
        if task["side"] == "ours":
            stats = mlx_sdpa_ext.stats()
            keys = ("path", "provider", "reason", "calls")
            record.data["routes"] = [
                dict(zip(keys, (*route, calls))) for route, calls in stats.routes.items()
            ]
            record.data["fallbacks"] = stats.fallback_reasons
            record.data["failed_kernels"] = stats.failed_kernels
    record.write()
    return record


def _work(task: dict, record: Record, began: float) -> None:
    module = make(task["model"], task["small"], dtype=task["dtype"])
    weights = mx.get_active_memory()
    model, contexts, step = Keeping(module), task["contexts"], task["step"]
    random = np.random.default_rng(1)  # a shorter prompt is the beginning of a longer one
    prompt = mx.array(random.integers(0, module.args.vocab_size, contexts[-1] + 1))
    # Kernels are compiled and memory is mapped by the first calls, which nobody's time should hold.
    prefill(model, prompt[: 2 * step + 1], (2 * step,), step=step)
    _decode(model, record, 2, None, weights)
    record.data["decode"] = None
    record.arrays.clear()
    record.data["ready_s"] = time.perf_counter() - began

    run = Prefill()
    prefill(
        model,
        prompt,
        contexts,
        step=step,
        budget=task["limit"] - (time.perf_counter() - began),
        result=run,
        on_progress=lambda tokens: record.prefilled(run),
    )
    record.prefilled(run)
    if task["decode"] and run.points and run.points[-1].context == contexts[-1]:
        record.arrays["first"] = run.points[-1].logits
        _decode(model, record, task["decode"], task["tokens"], weights)
        record.data["decode"]["context"] = contexts[-1]


def _decode(
    model: Keeping, record: Record, steps: int, tokens: list[int] | None, weights: int
) -> None:
    """Steps of one token, each the greedy choice, or those of `tokens`."""
    first = record.arrays.get("first")
    token = int(first.argmax()) if first is not None else 0
    fed, rows, taken = [], [], []
    mx.reset_peak_memory()
    for i in range(steps):
        fed.append(token if tokens is None else tokens[i])
        began = time.perf_counter()
        logits = model(mx.array([[fed[-1]]]), cache=model.cache)[0, -1]
        mx.eval(logits)
        taken.append(time.perf_counter() - began)
        rows.append(np.array(logits.astype(mx.float32)))
        token = int(rows[-1].argmax())
    counted = taken[1:] or taken
    record.data["decode"] = {
        "tokens": steps,
        "distinct": len(set(fed)),  # a model that says one thing over and over shows little
        "median_s": statistics.median(counted),
        "best_s": min(counted),
        "worst_s": max(counted),
        "tokens_per_second": 1 / statistics.median(counted),
        "peak_bytes": mx.get_peak_memory() - weights,
    }
    record.arrays |= {"fed": np.array(fed), "decode": np.stack(rows)}
    record.write()


if __name__ == "__main__":
    task = json.loads(sys.argv[1])
    mx.set_default_device(getattr(mx, task["device"]))
    work(task)
