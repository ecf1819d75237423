"""What the device can do at all, in the same run: matmuls, and reading memory.

By MLX, or on an NVIDIA GPU by a kernel that does nothing but read, and by PyTorch where it runs
beside; the best is the ceiling.
"""

import time
from collections.abc import Callable, Iterator

import mlx.core as mx

from .cuda_read import read_once
from .side_by_side import FAILURES, Inputs, answered, side_by_side, slope, summary
from .torch_beside import Torch

CACHED_BYTES = 256 << 20  # inputs that take turns are larger together than any L2 cache


def input_sets(nbytes: int) -> int:
    """How many inputs of `nbytes` have to take turns for none to be found in the L2 cache."""
    return max(2, -(-CACHED_BYTES // nbytes))


def gemm(n: int, repeats: int, torch: Torch | None) -> Iterator[dict]:
    """bfloat16 [n, n] @ [n, n], on normal values as attention has them: zeros would be faster."""
    a, b = (mx.random.normal((n, n)).astype(mx.bfloat16) for _ in range(2))
    mx.eval(a, b)
    found = {"mlx": side_by_side({"mlx": mx.matmul}, [Inputs(a, (b,))], False, repeats)["mlx"]}
    if torch:
        found["torch"] = torch.ask(what="gemm", n=n, dtype="bfloat16", repeats=repeats)
    for by, side in found.items():
        rate = {} if "error" in side else {"tflops": 2 * n**3 / side["median_s"] / 1e12}
        yield {"case": "ceiling", "name": "gemm", "by": by, "n": n} | side | rate


def read(nbytes: int, sets: int, repeats: int, torch: Torch | None) -> Iterator[dict]:
    """Float32 arrays of `nbytes`, one after the other; `sets` of them take turns."""
    if mx.default_device() == mx.gpu:
        found = {"kernel": read_by_kernel(nbytes, sets, repeats)}
    else:
        found = {"mlx": read_by_mlx(random_arrays(nbytes, sets), repeats)}
    if torch:
        found["torch"] = torch.ask(what="read", nbytes=nbytes, sets=sets, repeats=repeats)
    for by, side in found.items():
        rate = {} if "error" in side else {"gb_per_s": nbytes / side["median_s"] / 1e9}
        reduction = {"reduction": side.pop("by", None)}
        row = {"case": "ceiling", "name": "read", "by": by, "bytes": nbytes}
        yield row | reduction | side | rate


def cpu_read(nbytes: int, sets: int, repeats: int, torch: Torch | None) -> Callable[[], float]:
    """What measures GB/s of reading, as `read` does, more than once.

    By PyTorch where it runs beside: a reduction of MLX is one thread's.
    """
    if torch:
        what = {"what": "read", "nbytes": nbytes, "sets": sets, "repeats": repeats}
        return lambda: nbytes / answered(torch.ask(**what))["median_s"] / 1e9
    arrays = random_arrays(nbytes, sets)
    return lambda: nbytes / answered(read_by_mlx(arrays, repeats))["median_s"] / 1e9


def random_arrays(nbytes: int, sets: int) -> list[mx.array]:
    return [mx.random.normal((nbytes // 4,)) for _ in range(sets)]


def read_by_kernel(nbytes: int, sets: int, repeats: int) -> dict:
    """Each pass waits for the one before, as calls of attention do.

    MLX's reductions of different arrays overlap, and read any size as fast as one long buffer.
    """
    inputs = [Inputs(mx.zeros((1,)), (array,)) for array in random_arrays(nbytes, sets)]
    side = side_by_side({"read": read_once}, inputs, True, repeats)["read"]
    side.pop("added_bytes", None)
    return side


def read_by_mlx(arrays: list[mx.array], repeats: int) -> dict:
    """By the faster of two reductions."""
    try:
        mx.eval(arrays)
        found = {f.__name__: _reductions(f, arrays, repeats) for f in (mx.sum, mx.max)}
    except FAILURES as error:
        return {"error": str(error).splitlines()[0]}
    name = min(found, key=lambda name: found[name]["median_s"])
    return found[name] | {"by": name}


def _reductions(reduce: Callable, arrays: list[mx.array], repeats: int) -> dict:
    def take(calls: int) -> float:
        outs = [reduce(arrays[i % len(arrays)]) for i in range(calls)]
        start = time.perf_counter()
        mx.eval(outs)
        return time.perf_counter() - start

    calls = max(4, len(arrays))
    take(calls)
    times = [slope(take, calls) for _ in range(repeats)]
    return summary(times) | {"calls": calls, "repeats": repeats}
