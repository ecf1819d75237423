"""Times calls side by side, so that one of 60 us is measured right.

Submitting one call and waiting for it takes as long as such a call, so n and 2 n are timed:

    t = (T(2 n) - T(n)) / n,    n so that n calls take about 5 ms, at most 100

each on the next of several inputs, so that none finds its keys and values in the L2 cache. They
must not run at the same time, as independent nodes of one of MLX's CUDA graphs do:

    few query rows    one graph, built before the clock starts; a call's queries are the output of
                      the call before, at no cost. The scale of the values keeps them of one size:
                      of Q ~ N(0, s^2) and V ~ N(0, c^2) comes O ~ N(0, c^2 exp(s^2) / Lk)
    many query rows   each call is a graph of its own, submitted without waiting for the one
                      before; the stream runs them in order

Calls of 5 ms and more are timed one at a time.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from .measure import added_memory

BATCH_SECONDS, MOST_CALLS = 5e-3, 100
REPEATS = 25
SLOW_SECONDS, SLOW_BUDGET, FEWEST = 0.1, 2.0, 3  # slow calls: within a budget, at least so often
Q_SCALE = 0.7  # s; below 1, where a deviation from it shrinks with each call
FAILURES = (RuntimeError, ValueError, TypeError, MemoryError)

Call = Callable[..., mx.array]  # of q and the rest of an Inputs, to an output like q


class Inputs(NamedTuple):
    """One set of a call's inputs."""

    q: mx.array  # [1, Hq, Lq, D]
    rest: tuple[Any, ...]  # k and v, or the tuples of their packed arrays

    @property
    def kv_bytes(self) -> int:
        arrays = [a for part in self.rest for a in (part if isinstance(part, tuple) else (part,))]
        return sum(a.nbytes for a in arrays)


def v_scale(Lk: int) -> float:
    """c, with which the outputs of attention to Lk keys are like its queries."""
    return Q_SCALE * math.sqrt(Lk / math.exp(Q_SCALE**2))


def chain_seconds(call: Call, inputs: Sequence[Inputs], first: int, calls: int) -> float:
    """Seconds of `calls` dependent calls in one graph."""
    out = inputs[first % len(inputs)].q
    for i in range(first, first + calls):
        out = call(out, *inputs[i % len(inputs)].rest)
    start = time.perf_counter()
    mx.eval(out)
    return time.perf_counter() - start


def queue_seconds(call: Call, inputs: Sequence[Inputs], first: int, calls: int) -> float:
    """Seconds of `calls` graphs, one after the other on the stream."""
    start = time.perf_counter()
    for i in range(first, first + calls):
        q, rest = inputs[i % len(inputs)]
        out = call(q, *rest)
        mx.async_eval(out)
    mx.eval(out)
    return time.perf_counter() - start


def slope(take: Callable[[int], float], calls: int) -> float:
    """Seconds of a call, by take(calls) and take(2 * calls), without what both take once.

    Where something held up the shorter run, by the longer one alone.
    """
    fewer, more = take(calls), take(2 * calls)
    return (more - fewer) / calls if more > fewer else more / (2 * calls)


class Side:
    """One of the calls that are compared."""

    def __init__(self, call: Call, inputs: Sequence[Inputs], few_rows: bool, repeats: int) -> None:
        self.call, self.inputs = call, inputs
        self.submit = chain_seconds if few_rows else queue_seconds
        self.times: list[float] = []
        self.calls, self.repeats, self.next = 1, repeats, 0
        self.once = math.inf  # seconds of a call, roughly
        self.alone = False
        self.error: str | None = None
        self.added_bytes: int | None = None

    def take(self, calls: int) -> float:
        self.next += calls
        return self.submit(self.call, self.inputs, self.next - calls, calls)

    def prepare(self) -> None:
        """Compiles kernels, reads the peak of memory, and decides how many calls to time."""
        self.take(1)
        q, rest = self.inputs[0]
        self.added_bytes, self.once = added_memory(lambda: self.call(q, *rest), [q, *rest])
        if self.once < SLOW_SECONDS:  # else a few more calls say nothing new
            self.take(2)  # maps the memory again
            self.once = min(self.take(1), self.take(1))
        self.alone = self.once >= BATCH_SECONDS
        self.calls = max(1, min(MOST_CALLS, round(BATCH_SECONDS / self.once)))
        if self.once >= SLOW_SECONDS:
            self.repeats = min(self.repeats, max(FEWEST, round(SLOW_BUDGET / self.once)))

    def measure(self) -> None:
        if self.alone:
            self.times.append(self.take(1))
        else:
            self.times.append(slope(self.take, self.calls))

    def attempt(self, step: Callable[[], None]) -> None:
        """A call that fails, for want of memory say, is a result and no more."""
        try:
            if self.error is None:
                step()
        except FAILURES as error:
            self.error = (str(error).strip() or type(error).__name__).splitlines()[0]

    def result(self) -> dict:
        if self.error is not None:
            return {"error": self.error}
        counts = {"calls": self.calls, "repeats": len(self.times), "added_bytes": self.added_bytes}
        return summary(self.times) | counts


def side_by_side(
    calls: dict[str, Call], inputs: Sequence[Inputs], few_rows: bool, repeats: int = REPEATS
) -> dict[str, dict]:
    """Of each side seconds of a call, and the bytes that it adds at its peak; or its error.

    The sides take turns, so that clocks and temperature are the same for all.
    """
    sides = prepared(calls, inputs, few_rows, repeats)
    take_turns(sides.values())
    return {name: side.result() for name, side in sides.items()}


def answered(side: dict) -> dict:
    """The result of a side, where its error is one: RuntimeError."""
    if "error" in side:
        raise RuntimeError(side["error"])
    return side


def prepared(
    calls: dict[str, Call], inputs: Sequence[Inputs], few_rows: bool, repeats: int
) -> dict[str, Side]:
    sides = {name: Side(call, inputs, few_rows, repeats) for name, call in calls.items()}
    for side in sides.values():
        side.attempt(side.prepare)
    return sides


def take_turns(sides: Iterable[Side]) -> None:
    """Measures each as often as it wants."""
    sides = list(sides)
    for turn in range(max((side.repeats for side in sides), default=0)):
        for side in sides:
            if turn < side.repeats:
                side.attempt(side.measure)


def summary(times: Sequence[float]) -> dict:
    """Seconds: median, best, worst and the quartiles."""
    lower, _, upper = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return {
        "median_s": statistics.median(times),
        "best_s": min(times),
        "worst_s": max(times),
        "quartiles_s": [lower, upper],
    }
