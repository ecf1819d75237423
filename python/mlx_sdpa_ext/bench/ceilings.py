"""What the GPU can do at all, in the same run: matmuls, and reading memory.

MLX's and, where it runs beside, PyTorch's; the better one is the ceiling.
"""

import time
from collections.abc import Callable, Iterator

import mlx.core as mx

from .side_by_side import FAILURES, Inputs, side_by_side, slope, summary
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
    """The faster of two reductions over float32 arrays of `nbytes`; `sets` of them take turns."""
    found = {"mlx": read_by_mlx(nbytes, sets, repeats)}
    if torch:
        found["torch"] = torch.ask(what="read", nbytes=nbytes, sets=sets, repeats=repeats)
    for by, side in found.items():
        rate = {} if "error" in side else {"gb_per_s": nbytes / side["median_s"] / 1e9}
        reduction = {"reduction": side.pop("by", None)}
        row = {"case": "ceiling", "name": "read", "by": by, "bytes": nbytes}
        yield row | reduction | side | rate


def read_by_mlx(nbytes: int, sets: int, repeats: int) -> dict:
    """Many reductions in one graph; that some may run at the same time only raises the ceiling."""
    try:
        arrays = [mx.random.normal((nbytes // 4,)) for _ in range(sets)]
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

    calls = max(64, len(arrays))  # of 4, the medians of eight runs differed by 12 %
    take(calls)
    times = [slope(take, calls) for _ in range(repeats)]
    return summary(times) | {"calls": calls, "repeats": repeats}
