"""Timing and memory of MLX functions, and the record of where they were taken."""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date

import mlx.core as mx
from mlx.utils import tree_flatten

from .. import _ext, device
from .._mend import installed_backends
from ..cli import machine

Arrays = mx.array | list[mx.array]


def gpu() -> dict:
    """The GPU's name and, of an NVIDIA one, what its kernels were compiled for and with."""
    if not (mx.metal.is_available() or mx.cuda.is_available()):
        return {"gpu": None}
    info = mx.device_info(mx.gpu)
    found = {"gpu": info["device_name"]}
    if mx.cuda.is_available():
        found |= {"architecture": info["architecture"], "backend": installed_backends()}
    return found


def environment() -> dict:
    """Where and with what a measurement was taken."""
    cpu = _ext.cpu()
    return {
        "date": date.today().isoformat(),
        "device": device.name("cpu"),
        **gpu(),
        "isa": cpu["isa"],
        "threads": cpu["threads"],
        "system": platform.platform(),
        "python": platform.python_version(),
        "mlx": mx.__version__,
        "mlx_sdpa_ext": machine.package_version(),
        "commit": machine.commit(),
    }


def seconds(run: Callable[[], Arrays], repeats: int, warm_up: int = 1) -> dict:
    """Wall seconds of evaluating run(): median, best, worst and the number of repeats."""
    for _ in range(warm_up):
        mx.eval(run())
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        mx.eval(run())
        taken.append(time.perf_counter() - start)
    return summary(taken)


def summary(taken: Sequence[float]) -> dict:
    """Of wall seconds."""
    return {
        "median_s": statistics.median(taken),
        "best_s": min(taken),
        "worst_s": max(taken),
        "repeats": len(taken),
    }


def added_memory(run: Callable[[], Arrays], inputs: Sequence[mx.array]) -> tuple[int, float]:
    """Peak bytes that run() adds above its inputs and its outputs, and the seconds it took."""
    mx.eval(*inputs)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    start = time.perf_counter()
    out = run()
    mx.eval(out)
    taken = time.perf_counter() - start
    outputs = sum(x.nbytes for _, x in tree_flatten(out))
    return mx.get_peak_memory() - before - outputs, taken
