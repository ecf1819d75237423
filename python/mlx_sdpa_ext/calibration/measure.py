"""Times one call on each path, in turns, and how far two measurements of the same call differ."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import mlx.core as mx

from .. import attention, router
from ..bench.beside import chained_operands
from ..bench.ceilings import input_sets
from ..bench.side_by_side import FAILURES, Inputs, prepared, take_turns
from ..stock import stock_route
from ..words import Device, Limits
from .grid import Call

REPEATS, FEWEST = 9, 3
SIDE_SECONDS = 2.0  # for the repeats of one path
# A path that was so many times slower than the fastest on two calls of less work is left out: no
# threshold lies where a doubling of the keys would have to make up for that.
DROP, DROPPED_AFTER = 8.0, 2
CHAIN_ROWS = 64  # up to which queries are the outputs of the call before
MOST_SETS = 4
LEAST_NOISE = 0.02

Point = dict[str, Any]  # call, sides: path -> seconds or why there are none, took_s


@contextmanager
def our_kernels_first(place: Any) -> Iterator[None]:
    """Inside, path="fused" is a kernel of ours also where stock MLX has one."""
    before = place.limits
    place.limits = before._replace(decode_over_stock=True, prefill_over_stock=True)
    place.routes.clear()
    try:
        yield
    finally:
        place.limits = before
        place.routes.clear()


def point(call: Call, device: Device, limits: Limits, seen: Sequence[Point]) -> Point:
    """Seconds of the call on each path that takes it; `seen` are the points before it."""
    began = time.perf_counter()
    paths = _paths(call, device, limits)
    skipped = _skipped(call, device, limits, paths, seen)
    try:
        inputs = _inputs(call)
    except FAILURES as error:  # of memory
        return {"call": call._asdict(), "sides": {}, "took_s": 0.0, "error": _first_line(error)}
    skipped |= _failed(call, paths, inputs[0])
    wanted = {name: run for name, run in paths.items() if name not in skipped}
    sides = prepared(wanted, inputs, call.Lq <= CHAIN_ROWS and call.Dv == call.D, REPEATS)
    fastest = min((side.once for side in sides.values()), default=math.inf)
    for side in sides.values():
        side.repeats = _repeats(side.once, fastest)
    take_turns(sides.values())
    found = {name: side.result() for name, side in sides.items()} | skipped
    mx.clear_cache()
    return {"call": call._asdict(), "sides": found, "took_s": time.perf_counter() - began}


def noise(calls: Sequence[Call], device: Device, limits: Limits) -> float:
    """By how much two medians of one call differ, measured in turns; a part of 1.

    The median over `calls`, since each comparison has its own quartiles to tell noise by too.
    """
    differ = [LEAST_NOISE]
    for call in calls:
        paths = _paths(call, device, limits)
        run = paths.get("fused", paths["unfused"])
        sides = prepared({"one": run, "other": run}, _inputs(call)[:1], False, REPEATS)
        take_turns(sides.values())
        one, other = (side.result() for side in sides.values())
        if "error" not in one and "error" not in other:
            differ.append(abs(math.log(one["median_s"] / other["median_s"])))
    return max(LEAST_NOISE, median(differ))


def _paths(call: Call, device: Device, limits: Limits) -> dict[str, Any]:
    options = {"scale": call.D**-0.5, "mask": _mask(call)}
    ours = partial(attention.scaled_dot_product_attention, **options)
    paths = {"stock": partial(attention.stock_attention, **options)}
    paths["unfused"] = partial(ours, path="unfused")
    if any(tile.serves(call.problem) for tile in device.tiles):
        paths["fused"] = partial(ours, path="fused")
        if call.Lk > limits.chunk_size:  # else it is one chunk, which is what `fused` runs
            paths["chunked"] = partial(ours, path="chunked")
    return paths


def _mask(call: Call) -> str | None:
    return "causal" if call.problem.mask == "causal" else None


def _skipped(
    call: Call, device: Device, limits: Limits, paths: dict[str, Any], seen: Sequence[Point]
) -> dict[str, dict[str, Any]]:
    """Paths that are not measured, each with the reason."""
    found: dict[str, dict[str, Any]] = {}
    need = router.unfused_bytes(call.problem)
    if not stock_route(call.problem, device).bounded and need > limits.memory_limit:
        found["stock"] = {"skipped": "its scores exceed the memory limit"}
    like = [p for p in seen if _like(Call(**p["call"]), call)]
    for name in paths:
        ratios = [ratio for p in like if (ratio := over_fastest(p, name)) is not None]
        if len(ratios) >= DROPPED_AFTER and min(ratios[-DROPPED_AFTER:]) >= DROP:
            why = f"{ratios[-1]:.0f} times slower than the fastest on less work"
            found[name] = {"skipped": why, "at_least": DROP}
    return found


def _failed(call: Call, paths: dict[str, Any], inputs: Inputs) -> dict[str, dict[str, Any]]:
    """Paths whose kernel of ours fails its check on this device: another would run in its place."""
    found: dict[str, dict[str, Any]] = {}
    arguments = (inputs.q, *inputs.rest, _mask(call), None)
    for name in {"fused", "chunked"} & paths.keys():
        try:
            route = attention.place_of(None).route(call.problem, name, False, arguments)
        except ValueError as error:
            found[name] = {"skipped": _first_line(error)}
        else:
            if route.provider != "ext":
                found[name] = {"skipped": route.reason}
    return found


def _like(less: Call, call: Call) -> bool:
    same = (less.D, less.Dv, less.Hq, less.Hkv, less.dtype, less.decodes)
    return (
        same == (call.D, call.Dv, call.Hq, call.Hkv, call.dtype, call.decodes)
        and less.Lq <= call.Lq
        and less.Lk <= call.Lk
    )


def over_fastest(point: Point, name: str) -> float | None:
    """How many times slower than the fastest path it was; None if it was not measured."""
    taken = {name: side["median_s"] for name, side in point["sides"].items() if "median_s" in side}
    if name not in taken:
        return point["sides"].get(name, {}).get("at_least")
    return taken[name] / min(taken.values())


def _repeats(once: float, fastest: float) -> int:
    if once > DROP * fastest:
        return 1  # no noise makes up for that
    return max(FEWEST, min(REPEATS, round(SIDE_SECONDS / max(once, 1e-9))))


def _inputs(call: Call) -> list[Inputs]:
    """Q, K and V so that outputs are of the size of the queries (bench/side_by_side.py)."""
    made = []
    sets = 1
    while len(made) < sets:
        shape = (call.Hq, call.Hkv, call.Lq, call.Lk, call.D, call.Dv)
        q, k, v = chained_operands(*shape, call.dtype)
        made.append(Inputs(q, (k, v)))
        if call.decodes:
            sets = min(MOST_SETS, input_sets(made[0].kv_bytes))
    return made


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def expected_seconds(call: Call, seen: Sequence[Point]) -> float | None:
    """What a point takes, by the one that is most like it; None if there is none."""
    if not seen:
        return None

    def unlike(point: Point) -> tuple[bool, float]:
        other = Call(**point["call"])
        return other.decodes != call.decodes, abs(math.log(other.flops / call.flops))

    near = min(seen, key=unlike)
    more = call.flops / Call(**near["call"]).flops
    # what takes less than the repeats of short calls do not depends on its work
    return near["took_s"] * (more if near["took_s"] > SIDE_SECONDS else 1.0)
