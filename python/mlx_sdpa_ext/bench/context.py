"""Time, added memory and route as the keys grow: a prefill step and a decode step, beside stock."""

from collections.abc import Callable, Iterator
from functools import partial

import mlx.core as mx

from .. import attention
from .beside import operands, stock
from .measure import added_memory, seconds, summary
from .side_by_side import FAILURES

# Gemma 3 1B's heads: what grows is seen with little of everything else.
HEADS, D, DTYPE = (4, 1), 256, "bfloat16"
ROWS = (2048, 1)
LENGTHS = tuple(2048 << i for i in range(7))  # to 131072
QUICK_ROWS, QUICK_LENGTHS = (64, 1), (64, 128, 256)
FEWEST, MOST, SOME_SECONDS = 5, 50, 0.5  # repeats of a call, and what they take together
SLOW_SECONDS = 1.0  # from which a call is timed once
TITLES = ("rows x keys", "ours, adds", "stock, adds", "route", "ratio")


def suite(quick: bool, limit: float) -> Iterator[dict]:
    """A result for each length.

    limit: seconds for stock at each number of rows; it ends before a length that would exceed them
    """
    for rows in QUICK_ROWS if quick else ROWS:
        theirs = Stock(limit)
        for keys in QUICK_LENGTHS if quick else LENGTHS:
            arrays = operands(*HEADS, rows, keys, D, D, DTYPE)
            call = {"scale": D**-0.5, "mask": "causal" if rows > 1 else None}
            route = attention.explain(*arrays, **call)
            run = partial(attention.scaled_dot_product_attention, *arrays, **call)
            found = {
                "case": "context",
                "dtype": DTYPE,
                "q": arrays[0].shape,
                "k": arrays[1].shape,
                "v": arrays[2].shape,
                "mask": call["mask"],
                "flops": route.flops,
                "route": {"path": route.path, "by": route.provider, "reason": route.reason},
                "ours": side(run, arrays)[0],
                "stock": theirs.measured(keys, partial(stock, *arrays, **call), arrays),
            }
            if "median_s" in found["stock"]:
                found["speedup"] = found["stock"]["median_s"] / found["ours"]["median_s"]
            yield found
            mx.clear_cache()


class Stock:
    """Stock's side within its time: its work is linear in the keys, hidden ones included."""

    def __init__(self, limit: float) -> None:
        self.left = limit
        self.by_key = 0.0  # seconds, of the last length

    def measured(self, keys: int, run: Callable[[], mx.array], arrays: list[mx.array]) -> dict:
        expected = self.by_key * keys
        if expected > self.left:
            return {"not_run_expected_s": expected}
        try:
            found, took = side(run, arrays)
        except FAILURES as error:  # of memory
            return {"error": (str(error).strip() or type(error).__name__).splitlines()[0]}
        self.left -= took
        self.by_key = found["median_s"] / keys
        return found


def side(run: Callable[[], mx.array], arrays: list[mx.array]) -> tuple[dict, float]:
    """Seconds and added bytes of a call, and the seconds that it took to find them.

    The first run, which reads the memory, is the warm-up; of a slow call it is the measurement.
    """
    added, once = added_memory(run, arrays)
    if once >= SLOW_SECONDS:
        taken = summary([once])
        return taken | {"added_bytes": added}, once
    repeats = max(FEWEST, min(MOST, round(SOME_SECONDS / once)))
    taken = seconds(run, repeats, warm_up=1)
    return taken | {"added_bytes": added}, once + (repeats + 1) * taken["median_s"]


def row(result: dict) -> list[str]:
    rows, keys, route = result["q"][2], result["k"][2], result["route"]
    cells = [f"{rows} x {keys}", *(_text(result[who]) for who in ("ours", "stock"))]
    ratio = f"{result['speedup']:.3g}x" if "speedup" in result else ""
    return [*cells, f"{route['path']} by {route['by']}", ratio]


def _text(found: dict) -> str:
    if "error" in found:
        return found["error"][:40]
    if "median_s" not in found:
        return f"not run, about {found['not_run_expected_s']:.0f} s"
    return f"{found['median_s'] * 1e3:.3g} ms  {found['added_bytes'] / 2**20:,.1f} MiB"
