"""A call that is bound by memory, timed between reads of it.

Memory may read 30 GB/s in one second and 50 in the next, as other users of the machine come and go:
only what was measured beside a read is compared with it.
"""

import statistics
import time
from collections.abc import Callable, Sequence

from .side_by_side import Call, Inputs, Side

PARTS = 5
SETTLE_SECONDS = 0.02  # in which the threads that read stop waiting for more


def between_reads(
    call: Call, inputs: Sequence[Inputs], repeats: int, read_rate: Callable[[], float]
) -> dict:
    """Seconds of a call in PARTS of the repeats; its share of reading is the median of theirs.

    inputs:     large enough together that none is found in a cache
    read_rate:  measures GB/s; asked before the first part and after each
    """
    side = Side(call, inputs, True, repeats)
    side.prepare()
    each = -(-repeats // PARTS)
    reads, shares = [_settled(read_rate)], []
    for _ in range(PARTS):
        for _ in range(each):
            side.measure()
        reads.append(_settled(read_rate))
        rate = inputs[0].kv_bytes / statistics.median(side.times[-each:]) / 1e9
        shares.append(rate / statistics.mean(reads[-2:]))
    return {
        "ours": side.result(),
        "read_gb_per_s": reads,
        "of_reads": shares,
        "of_read": statistics.median(shares),
    }


def _settled(read_rate: Callable[[], float]) -> float:
    rate = read_rate()
    time.sleep(SETTLE_SECONDS)
    return rate
