"""Timing and memory of MLX functions, and the record of where they were taken."""

import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import mlx.core as mx
import mlx_sdpa_ext
from mlx.utils import tree_flatten
from mlx_sdpa_ext import _ext
from mlx_sdpa_ext._mend import installed_backends

Arrays = mx.array | list[mx.array]


def cpu_name() -> str:
    """The CPU's model name, or the architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of this checkout, with a + where files differ from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        return None
    dirty = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")


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
        "device": cpu_name(),
        **gpu(),
        "isa": cpu["isa"],
        "threads": cpu["threads"],
        "system": platform.platform(),
        "python": platform.python_version(),
        "mlx": mx.__version__,
        "mlx_sdpa_ext": mlx_sdpa_ext.__version__,
        "commit": commit(),
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
    return {
        "median_s": statistics.median(taken),
        "best_s": min(taken),
        "worst_s": max(taken),
        "repeats": repeats,
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
