"""What a computation takes above its inputs and outputs, as MLX and as the system see it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path

import mlx.core as mx

MiB = 1024 * 1024


def added(f: Callable[[], Sequence[mx.array]], *inputs: mx.array) -> int:
    """Peak bytes of MLX's allocator while f's results are computed, less the results themselves."""
    mx.eval(inputs)
    gc.collect()
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    results = f()
    mx.eval(results)
    return mx.get_peak_memory() - before - sum(r.nbytes for r in results)


def process_peak() -> int:
    """Bytes of the largest resident set since `reset_process_peak`."""
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def reset_process_peak() -> bool:
    """False where the system does not offer it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True
