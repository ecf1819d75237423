"""Calls that are bound by memory, timed between reads of it.

Memory may read 30 GB/s in one second and 55 in the next, as other users of the machine come and go.
So what is measured is compared with the reads beside it, and all calls take turns for as long as
it takes to see what is the rule.
"""

import statistics
import time
from collections.abc import Callable, Sequence

from .side_by_side import Call, Inputs, Side

PARTS, REPEATS = 9, 5  # of a call; in each part
SETTLE_SECONDS = 0.02  # in which the threads that read stop waiting for more


class BetweenReads:
    """One call, on inputs that are large enough together for none to be found in a cache.

    read_rate: measures GB/s of reading as many bytes
    """

    def __init__(
        self, call: Call, inputs: Sequence[Inputs], read_rate: Callable[[], float]
    ) -> None:
        self.side = Side(call, inputs, True, PARTS * REPEATS)
        self.side.prepare()
        self.kv_bytes, self.read_rate = inputs[0].kv_bytes, read_rate
        self.reads: list[tuple[float, float]] = []
        self.shares: list[float] = []

    def part(self) -> None:
        before = self.read_rate()
        time.sleep(SETTLE_SECONDS)
        for _ in range(REPEATS):
            self.side.measure()
        after = self.read_rate()
        self.reads.append((before, after))
        rate = self.kv_bytes / statistics.median(self.side.times[-REPEATS:]) / 1e9
        self.shares.append(rate / statistics.mean((before, after)))

    def result(self) -> dict:
        """Seconds of the call, GB/s before and after each part, its share of them; their median."""
        return {
            "ours": self.side.result(),
            "read_gb_per_s": self.reads,
            "of_reads": self.shares,
            "of_read": statistics.median(self.shares),
        }


def take_turns(calls: Sequence[BetweenReads]) -> None:
    """Measures all parts of all calls."""
    for _ in range(PARTS):
        for call in calls:
            call.part()
