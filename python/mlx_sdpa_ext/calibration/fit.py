"""The thresholds of the router that cost least on what was measured. Pure.

The cost of a choice is log(its seconds / the fastest path's), and 0 where they differ by no more
than noise; candidates are judged by the paths that `router.route` takes with them. The shipped
value stays unless another costs less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise, product
from typing import NamedTuple

from .. import router
from ..limits import MOST_KEYS
from ..stock import stock_route
from ..words import Device, Limits, Problem

MIDDLE = (9, 64)  # query rows that middle_rows may be about
DIMS = ("fused_dim", "unfused_dim", "fused_min_keys", "middle_rows")
FLAGS = ("decode_over_stock", "prefill_over_stock")


class Seconds(NamedTuple):
    """Of one path: the median and the quartiles of its repeats."""

    median: float
    low: float
    high: float


class Measured(NamedTuple):
    """One call, and how long it took by path: fused and chunked (ours), unfused, stock."""

    problem: Problem
    paths: dict[str, Seconds]


class Fitted(NamedTuple):
    """One threshold that the measurements decide."""

    value: int
    shipped: int
    calls: int  # whose cost depends on it


class Fit(NamedTuple):
    values: dict[str, Fitted]
    undecided: tuple[str, ...]  # thresholds that make no difference here beyond noise
    cost: float  # a call, on average, with the values
    shipped_cost: float  # and with the shipped ones


def fit(measured: Sequence[Measured], device: Device, shipped: Limits, noise: float) -> Fit:
    """The thresholds for what was measured on `device`.

    Args:
        measured: the calls.
        device: with the tiles that were measured.
        shipped: its limits without a profile of the user.
        noise: the part of 1 by which two measurements of one call differ at most.
    """
    best = shipped
    values: dict[str, Fitted] = {}
    undecided: list[str] = []
    for names in ((FLAGS[0],), (FLAGS[1],), DIMS):
        concerned = [m for m in measured if _concerns(m.problem, device) in names]
        options = {name: _candidates(name, concerned, shipped) for name in names}
        best = _cheapest(names, options, concerned, device, shipped, best, noise)
        for name in names:
            calls = _decided(name, options[name], concerned, device, best, noise)
            if calls:
                value, before = int(getattr(best, name)), int(getattr(shipped, name))
                values[name] = Fitted(value, before, calls)
            else:
                undecided.append(name)
    count = max(len(measured), 1)
    costs = [sum(_costs(measured, device, x, noise)) / count for x in (best, shipped)]
    return Fit(values, tuple(undecided), *costs)


def _concerns(p: Problem, device: Device) -> str:
    """The thresholds that the router asks for a call: a flag, or those of the head dims."""
    if not any(tile.serves(p) for tile in device.tiles):
        return ""
    few = p.Lq <= router.FEW_ROWS
    if stock_route(p, device).bounded:
        return FLAGS[0] if few else FLAGS[1]
    return "" if few else DIMS[0]


def _candidates(name: str, measured: Sequence[Measured], shipped: Limits) -> list[int]:
    """The shipped value first; of lengths, those halfway between two that were measured."""
    first = int(getattr(shipped, name))
    if name in FLAGS:
        return [first, 1 - first]
    dims = {max(m.problem.D, m.problem.Dv) for m in measured}
    rows = {m.problem.Lq for m in measured if MIDDLE[0] <= m.problem.Lq <= MIDDLE[1]}
    keys = sorted({m.problem.Lk for m in measured})
    others = {
        "fused_dim": {0, *dims},
        "unfused_dim": {0, *dims},
        "fused_min_keys": {0, MOST_KEYS, *(round(math.sqrt(a * b)) for a, b in pairwise(keys))},
        "middle_rows": {0, *rows},
    }[name]
    return [first, *sorted(others - {first})]


def _cheapest(
    names: Sequence[str],
    options: dict[str, list[int]],
    measured: Sequence[Measured],
    device: Device,
    shipped: Limits,
    limits: Limits,
    noise: float,
) -> Limits:
    """Of all combinations; of equal ones that which changes the fewest thresholds, and least."""

    def rank(changed: dict[str, int]) -> tuple[float, int, float]:
        cost = sum(_costs(measured, device, limits._replace(**changed), noise))
        moves = [abs(math.log1p(v) - math.log1p(getattr(shipped, n))) for n, v in changed.items()]
        return round(cost, 9), sum(move > 0 for move in moves), sum(moves)

    combinations = [
        dict(zip(names, values, strict=True))
        for values in product(*(options[name] for name in names))
    ]
    return limits._replace(**min(combinations, key=rank))


def _decided(
    name: str,
    options: list[int],
    measured: Sequence[Measured],
    device: Device,
    best: Limits,
    noise: float,
) -> int:
    """How many calls would cost more with another value of one threshold."""
    costs = _costs(measured, device, best, noise)
    worse: set[int] = set()
    for value in options:
        others = _costs(measured, device, best._replace(**{name: value}), noise)
        if sum(others) > sum(costs) + 1e-9:
            worse |= {i for i, (a, b) in enumerate(zip(costs, others, strict=True)) if b > a}
    return len(worse)


def _costs(
    measured: Sequence[Measured], device: Device, limits: Limits, noise: float
) -> list[float]:
    return [cost(m, chosen(m.problem, device, limits), noise) for m in measured]


def chosen(problem: Problem, device: Device, limits: Limits) -> str:
    """The path that was measured, of the route with these limits; else nothing."""
    route = router.route(problem, device, limits)
    if route.provider == "stock":
        return "stock" if route.path == "stock" else ""
    return route.path


def cost(m: Measured, path: str, noise: float) -> float:
    """log(seconds / the fastest path's); 0 within noise, or where the path was not measured."""
    if path not in m.paths:
        return 0.0
    here = m.paths[path]
    fastest = min(m.paths.values(), key=lambda seconds: seconds.median)
    if not slower(here, fastest, noise):
        return 0.0
    return math.log(here.median / fastest.median)


def slower(a: Seconds, b: Seconds, noise: float) -> bool:
    """Whether `a` is slower by more than noise: that part, and apart by their quartiles."""
    return a.median > b.median * (1 + noise) and a.low > b.high
