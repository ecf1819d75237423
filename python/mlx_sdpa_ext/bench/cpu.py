"""CPU suites: speed beside stock and PyTorch, and memory beside stock."""

from collections.abc import Iterator
from functools import partial

import mlx.core as mx

from .. import attention, limits
from . import ceilings, cpu_quantized
from .beside import DTYPES, beside_stock, chained_operands, operands
from .between_reads import BetweenReads, take_turns
from .measure import added_memory, seconds
from .side_by_side import Inputs
from .torch_beside import Torch, beside

HEAD_DIMS = ((64, 64), (128, 128), (192, 128), (256, 256), (512, 512))
BACKENDS = ("flash", "math")  # PyTorch's on a CPU: the first has no head dims that differ
GROWTH = (16384, 65536, 262144)
LONG = (16, 256)  # rows and head dim of the calls whose keys grow


def speed(quick: bool, torch: str | None = None) -> Iterator[dict]:
    """Causal prefill H8 2048 x 2048, decode H8/1 1 x 32768, a few rows, keys that grow.

    torch: the Python of an environment with torch, or None
    """
    with beside(torch, limit=300) as (about, worker):
        yield about
        yield from _speed(quick, worker)


def _speed(quick: bool, torch: Torch | None) -> Iterator[dict]:
    length, keys = (512, 4096) if quick else (2048, 32768)
    if torch:
        for dtype in DTYPES:
            yield from _gemm(256 if quick else 1024, dtype, torch)
    for D, Dv in HEAD_DIMS:
        for dtype in DTYPES:
            arrays = operands(8, 8, length, length, D, Dv, dtype)
            result = beside_stock("prefill", arrays, "causal", 1, 9)
            yield result | _torch(result, torch)
    yield from _decode(keys, 2 if quick else None, torch)
    for rows in (4, 16, 48):
        arrays = operands(8, 1, rows, keys, 256, 256, "float32")
        yield beside_stock(f"{rows} rows", arrays, "causal", 1, 7)
    yield from growth(quick)
    yield from cpu_quantized.beside_float16(quick)


def _decode(keys: int, sets: int | None, torch: Torch | None) -> Iterator[dict]:
    """Of H8/1 1 x `keys`; `sets` of K and V take turns, or as many as no cache holds."""
    cases = [
        chained_operands(8, 1, 1, keys, D, D, dtype) for D in (128, 256, 512) for dtype in DTYPES
    ]
    calls = []
    for q, k, v in cases:
        nbytes = k.nbytes + v.nbytes
        n = sets or ceilings.input_sets(nbytes)
        copies = [(k, v), *((mx.array(k), mx.array(v)) for _ in range(n - 1))]
        mx.eval(copies)
        run = partial(attention.scaled_dot_product_attention, scale=q.shape[-1] ** -0.5)
        rate = ceilings.cpu_read(nbytes, n, 5, torch)
        calls.append(BetweenReads(run, [Inputs(q, pair) for pair in copies], rate))
    take_turns(calls)
    for arrays, call in zip(cases, calls):
        result = beside_stock("decode", arrays, None, 3, 0, taken=call.result())
        yield result | _torch(result, torch)


def _gemm(n: int, dtype: str, torch: Torch) -> Iterator[dict]:
    """PyTorch's matmul of [n, n] by [n, n]; MLX's on Linux is that of the reference BLAS."""
    side = torch.ask(what="gemm", n=n, dtype=dtype, repeats=5)
    rate = {} if "error" in side else {"gflops": 2 * n**3 / side["median_s"] / 1e9}
    yield {"case": "ceiling", "name": "gemm", "by": "torch", "n": n, "dtype": dtype} | side | rate


def _torch(result: dict, torch: Torch | None) -> dict:
    """The first of BACKENDS, the fast one before the general one, that takes the call."""
    if torch is None:
        return {}
    (_, Hq, Lq, D), (_, Hkv, Lk, _), Dv = result["q"], result["k"], result["v"][3]
    shape = {"Hq": Hq, "Hkv": Hkv, "Lq": Lq, "Lk": Lk, "D": D, "Dv": Dv, "dtype": result["dtype"]}
    for backend in BACKENDS:
        call = {"causal": result["mask"] == "causal", "sets": 1, "repeats": 5}
        side = torch.ask(what="attention", backend=backend, **shape, **call)
        if "error" not in side:
            side |= {"backend": backend, "gflops": result["flops"] / side["median_s"] / 1e9}
            ratio = side["median_s"] / result["ours"]["median_s"]
            return {"torch": side, "over_torch": ratio}
    return {"torch": side}


def growth(quick: bool) -> Iterator[dict]:
    """Ours alone, on more and more keys: time by key, and memory."""
    rows, D = LONG
    for keys in (n // 64 if quick else n for n in GROWTH):
        for Lq in (1, rows):
            arrays = operands(8, 1, Lq, keys, D, D, "bfloat16")
            mask = "causal" if Lq > 1 else None
            call = {"scale": D**-0.5, "mask": mask}
            run = partial(attention.scaled_dot_product_attention, *arrays, **call)
            taken = seconds(run, 7)
            added, _ = added_memory(run, arrays)
            yield {
                "case": "growth",
                "dtype": "bfloat16",
                "q": arrays[0].shape,
                "k": arrays[1].shape,
                "v": arrays[2].shape,
                "ours": taken,
                "ns_by_key": taken["median_s"] / keys * 1e9,
                "added_bytes": added,
            }
            mx.clear_cache()


def memory(quick: bool) -> Iterator[dict]:
    """Peak memory above inputs and output of Lq 2048 against Lk 32768, H16/2, D 256, by path.

    Stock and unfused compute the scores with stock's matmul: minutes on a Linux CPU.
    """
    rows, keys = (256, 4096) if quick else (2048, 32768)
    q, k, v = operands(16, 2, rows, keys, 256, 256, "float32")
    limit = 256 * 2**20 * rows * keys // (2048 * 32768)
    for path in ("fused", "chunked", "unfused", "stock"):
        call = {"scale": 1 / 16, "mask": "causal", "path": path}
        run = partial(attention.scaled_dot_product_attention, q, k, v, **call)
        with limits.using(memory_limit=limit):
            added, taken = added_memory(run, [q, k, v])
        yield {
            "case": "memory",
            "path": path,
            "q": q.shape,
            "k": k.shape,
            "limit_bytes": limit if path == "unfused" else None,
            "added_bytes": added,
            "added_mib": added / 2**20,
            "seconds": taken,
        }
