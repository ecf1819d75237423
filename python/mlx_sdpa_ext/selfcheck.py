"""Compares a fused call of ours with stock operations, on small inputs that take the same kernel.

The reference is the unfused path in float32 on the CPU: nothing of it runs on the GPU that is
checked, and its precision does not depend on one. The arrays are made and evaluated here, so that a
graph that is being built or traced takes no part.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import mlx.core as mx

from . import _ext, plans
from .words import Device, Limits, Problem

# Of the largest difference. Values have unit spread: a key lost or counted twice moves some rows by
# 0.1 and more, rounding to the dtype by a few units in its last place (tests/tolerances.py).
ATOL = {"float32": 1e-3, "float16": 1e-2, "bfloat16": 6e-2}
LEAN = 6.0  # the score of a query's own position, above the others


class Check(NamedTuple):
    """One small call and what it is to show."""

    kernel: str  # its name
    problem: Problem
    chunk_size: int = 0
    splits: int = 1

    def __str__(self) -> str:
        """What is compiled for it: the kernel and the features that it is specialised for."""
        p = self.problem
        features = {
            p.mask: p.mask != "none",
            "window": p.window is not None,
            "softcap": p.softcap is not None,
            "sinks": p.sinks,
            "lse": p.want_lse,
            "chunks": self.chunk_size > 0,
            "splits": self.splits > 1,
        }
        return " ".join([self.kernel, *(name for name, there in features.items() if there)])


def small(problem: Problem, device: Device, limits: Limits, chunk_size: int = 0) -> Check:
    """A Check of few rows and keys with the kernel and the features of a call.

    Raises:
        ValueError: no kernel of ours serves the call.
    """
    found = plans.plan(problem, device, limits, chunk_size)
    few = problem._replace(
        B=min(problem.B, 1),
        Hq=min(problem.Hkv, 2) * problem.gqa,
        Hkv=min(problem.Hkv, 2),
        Lq=min(problem.Lq, 2 * found["bq"] // problem.gqa + 1),
    )
    if few.window is not None and found["splits"] <= 1:
        few = few._replace(window=min(few.window, found["bk"] + 5))
    few = few._replace(Lk=min(problem.Lk, few.Lq + 3 * found["bk"] + 5))
    splits = found["splits"] > 1
    while True:
        chunk = few.Lk // 3 + 1 if found["chunks"] > 1 else 0
        answer = plans.plan(few, device, limits, chunk)
        if (answer["splits"] > 1) == splits or few.Lk == (problem.Lk if splits else 1):
            return Check(answer["kernel"], few, chunk, answer["splits"])
        # What splits its keys has more of them; few rows that do not split theirs have fewer.
        few = few._replace(Lk=min(problem.Lk, 2 * few.Lk) if splits else few.Lk // 2)


def run(check: Check, device: Device) -> float:
    """Makes the call of `check` on this machine's `device`; returns its difference from stock.

    Raises:
        Exception: what MLX or the device's driver raises.
    """
    p = check.problem
    options = {"scale": _spread(p) / p.D**0.5, "window": p.window, "softcap": p.softcap}
    with mx.stream(mx.cpu):
        q, k, v, mask, sinks = call = _inputs(p)
        mx.eval([x for x in call if isinstance(x, mx.array)])
    ours = _ext.sdpa(
        *(q, k, v),
        mask=mask,
        sinks=sinks,
        chunk_size=check.chunk_size,
        return_lse=p.want_lse,
        stream=stream_of(device),
        **options,
    )
    mx.eval(ours)
    with mx.stream(mx.cpu):
        exact = _ext.unfused(
            *map(_in_float32, (q, k, v)),
            mask=_in_float32(mask),
            sinks=_in_float32(sinks),
            return_lse=True,
            **options,
        )
        return max(_difference(a, b) for a, b in zip(ours, exact, strict=False))


def stream_of(device: Device) -> mx.DeviceType:
    """Where this machine's `device` evaluates."""
    return mx.cpu if device.backend == "cpu" or device.software else mx.gpu


def _spread(p: Problem) -> float:
    """Of the scores, so that a row leans on a few of its keys."""
    return math.sqrt(max(1.0, math.log(max(p.Lk, 1))))


def _inputs(p: Problem) -> tuple[Any, ...]:
    """q, k, v, mask, sinks; always the same, with no part in the program's random state."""
    dtype = getattr(mx, p.dtype)
    keys = mx.random.split(mx.random.key(0), 6)

    def normal(key: mx.array, *shape: int) -> mx.array:
        return mx.random.normal(shape, key=key).astype(dtype)

    mask: Any = p.mask if p.mask == "causal" else None
    if p.array_mask:
        seen = mx.random.uniform(shape=(p.Hq, p.Lq, p.Lk), key=keys[3]) < 0.7
        blind = p.Lq // 2 or -1  # a row that sees nothing, unless it is the only one
        mask = seen & (mx.arange(p.Lq)[:, None] != blind)
        if p.mask == "additive":
            mask = mx.where(mask, normal(keys[4], *mask.shape), mx.array(-math.inf, dtype))
    k = normal(keys[1], p.B, p.Hkv, p.Lk, p.D)
    # Each query leans on the last key that it sees if causal, so that no edge can be lost unseen.
    last = mx.clip(mx.arange(p.Lq) + p.Lk - p.Lq, 0, max(p.Lk - 1, 0))
    lean = (LEAN / (_spread(p) * p.D**0.5) * mx.repeat(k[:, :, last], p.gqa, axis=1)).astype(dtype)
    return (
        normal(keys[0], p.B, p.Hq, p.Lq, p.D) + (lean if p.Lk else 0),
        k,
        normal(keys[2], p.B, p.Hkv, p.Lk, p.Dv),
        mask,
        normal(keys[5], p.Hq) if p.sinks else None,
    )


def _in_float32(x: Any) -> Any:
    return x.astype(mx.float32) if isinstance(x, mx.array) and x.dtype != mx.bool_ else x


def _difference(ours: mx.array, exact: mx.array) -> float:
    """The largest, infinite where one side alone is not a number."""
    if not ours.size:
        return 0.0
    ours = ours.astype(mx.float32)
    apart = mx.where(ours == exact, 0.0, mx.abs(ours - exact))  # both -inf: the lse of no key
    return mx.max(mx.where(mx.isnan(apart), math.inf, apart)).item()
