"""Speed and memory on an NVIDIA GPU, beside stock MLX and, in a process of its own, PyTorch.

Prefill of a whole prompt and of a step against a long cache, decode and few query rows, a quantized
cache, float32; the ceilings of this GPU; and caches that grow, as mlx-lm's do.
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import mlx.core as mx

import mlx_sdpa_ext

from .. import attention, lm
from . import ceilings, growth
from .beside import chained_operands, stock
from .side_by_side import REPEATS, Inputs, side_by_side
from .torch_beside import Torch, beside

FEW_ROWS = 64  # timed in a chain, on inputs that take turns
GROUP_SIZE = 64


class Case(NamedTuple):
    """One call of attention; causal unless it has one query row."""

    kind: str  # prefill, decode, quantized
    Lq: int
    Lk: int
    D: int
    Dv: int
    Hq: int = 16
    Hkv: int = 2
    dtype: str = "bfloat16"
    bits: int = 16  # of an element of K and V

    def __str__(self) -> str:
        dims = f"{self.D}" if self.Dv == self.D else f"({self.D},{self.Dv})"
        bits = f" {self.bits}-bit" if self.kind == "quantized" else ""
        shape = f"H{self.Hq}/{self.Hkv} {self.Lq}x{self.Lk} D{dims}"
        return f"{self.kind} {shape} {self.dtype}{bits}"

    @property
    def mask(self) -> str | None:
        return "causal" if self.Lq > 1 else None

    @property
    def flops(self) -> int:
        """Of both products, hidden scores left out: the last query sees the last key."""
        visible = self.Lq * self.Lk - (self.Lq * (self.Lq - 1) // 2 if self.mask else 0)
        return 2 * self.Hq * visible * (self.D + self.Dv)

    @property
    def few_rows(self) -> bool:
        return self.Lq <= FEW_ROWS and self.Dv == self.D

    def inputs(self) -> Inputs:
        """Q ~ N(0, s^2), K ~ N(0, 1) and V so that O ~ N(0, s^2): side_by_side.py."""
        shape = (self.Hq, self.Hkv, self.Lq, self.Lk, self.D, self.Dv)
        q, k, v = chained_operands(*shape, self.dtype)
        if self.kind == "quantized":
            k, v = (tuple(mx.quantize(x, group_size=GROUP_SIZE, bits=self.bits)) for x in (k, v))
        mx.eval(q, k, v)
        return Inputs(q, (k, v))


HEAD_DIMS = ((64, 64), (128, 128), (192, 192), (192, 128), (256, 256), (512, 512), (576, 512))
LONG_DIMS = ((128, 128), (256, 256), (192, 128), (512, 512), (576, 512))
DECODE_DIMS = (256, 128, 512)
ROWS = (2, 8, 64)
LENGTHS = (4096, 16384, 65536, 131072, 262144)
LONG = 131072
CURVE_DIM = 256  # of the curve of decode over the lengths


def cases() -> list[Case]:
    """In the order in which they are run."""
    step = partial(Case, "decode")
    return [
        *(Case("prefill", 8192, 8192, *dims, 16, 16) for dims in HEAD_DIMS),
        *(Case("prefill", 2048, LONG, *dims) for dims in LONG_DIMS),
        *(step(1, LONG, D, D) for D in DECODE_DIMS),
        *(step(1, Lk, CURVE_DIM, CURVE_DIM) for Lk in LENGTHS if Lk != LONG),
        *(step(rows, LONG, D, D) for D in DECODE_DIMS for rows in ROWS),
        *(Case("quantized", 1, LONG, 256, 256, bits=bits) for bits in (8, 4)),
        Case("prefill", 2048, 32768, 256, 256, dtype="float32"),
    ]


def shrunk(case: Case) -> Case:
    """The same at a size that a CPU takes."""
    return case._replace(Lq=min(case.Lq, 72 if case.Lq > FEW_ROWS else 3), Lk=case.Lk // 512 + 64)


def suite(quick: bool, only: str | None = None, torch: str | None = None) -> Iterator[dict]:
    """Results as they come.

    quick: small shapes, to see that it works
    only:  a regular expression that a result's name must contain; None takes all
    torch: the Python of an environment with torch, or None
    """
    with beside(torch) as (about, worker):
        yield about
        yield from _suite(quick, only, worker)


def _suite(quick: bool, only: str | None, torch: Torch | None) -> Iterator[dict]:
    repeats = 3 if quick else REPEATS

    def wanted(name: str) -> bool:
        return only is None or re.search(only, name) is not None

    if wanted("ceiling gemm"):
        yield from ceilings.gemm(256 if quick else 8192, repeats, torch)
    for Lk in LENGTHS:
        nbytes = 2 * 2 * Lk * (CURVE_DIM + CURVE_DIM)  # of K and V at 2 KV heads
        if wanted(f"ceiling read {nbytes}"):
            sets = 2 if quick else ceilings.input_sets(nbytes)
            yield from ceilings.read(nbytes // 512 if quick else nbytes, sets, repeats, torch)
    for case in cases():
        if wanted(str(case)):
            yield measured(shrunk(case) if quick else case, repeats, torch, quick)
            mx.clear_cache()
    for name, run in growth.RUNS.items():
        if wanted(f"growth {name}"):
            yield run(quick)


def measured(case: Case, repeats: int, torch: Torch | None = None, quick: bool = False) -> dict:
    """One case on ours, stock's and torch's kernels."""
    first = case.inputs()
    sets = ceilings.input_sets(first.kv_bytes) if case.few_rows and not quick else 1
    inputs = [first, *(case.inputs() for _ in range(sets - 1))]
    calls = quantized_calls(case) if case.kind == "quantized" else dense_calls(case)
    before = Counter(mlx_sdpa_ext.stats().routes)
    sides = side_by_side(calls, inputs, case.few_rows, repeats)
    taken = Counter(mlx_sdpa_ext.stats().routes) - before
    found = {
        "case": case.kind,
        "name": str(case),
        **{name: value for name, value in case._asdict().items() if name != "kind"},
        "mask": case.mask,
        "input_sets": len(inputs),
        "flops": case.flops,
        "kv_bytes": first.kv_bytes,
        "route": route(case, first),
        "taken": [dict(zip(("path", "provider", "reason"), key)) for key in taken],
        **{name: side | rates(case, first, side) for name, side in sides.items()},
    }
    if torch and case.kind != "quantized":
        found["torch"] = beside_torch(case, sets, repeats, torch)
    if "error" not in found["ours"] and "error" not in found["stock"]:
        found["speedup"] = found["stock"]["median_s"] / found["ours"]["median_s"]
    return found


def dense_calls(case: Case) -> dict:
    options = {"scale": case.D**-0.5, "mask": case.mask}
    return {
        "ours": partial(attention.scaled_dot_product_attention, **options),
        "stock": partial(stock, **options),
    }


def quantized_calls(case: Case) -> dict:
    """mlx-lm's function, and ours in its place."""
    from mlx_lm.models.base import quantized_scaled_dot_product_attention as found

    options = {"scale": case.D**-0.5, "mask": case.mask, "group_size": GROUP_SIZE}
    options["bits"] = case.bits

    def theirs(q, k, v):
        return found(mx.array(q), k, v, **options)  # mlx-lm's scales its queries in place

    return {"ours": partial(lm.quantized_attention(found), **options), "stock": theirs}


def route(case: Case, inputs: Inputs) -> dict | None:
    """What `explain` says of the call; it is not for packed keys."""
    if case.kind == "quantized":
        return None
    return attention.explain(inputs.q, *inputs.rest, mask=case.mask)._asdict()


def rates(case: Case, inputs: Inputs, side: dict) -> dict:
    if "error" in side:
        return {}
    seconds = side["median_s"]
    return {
        "tflops": case.flops / seconds / 1e12,
        "gb_per_s": inputs.kv_bytes / seconds / 1e9,
    }


def beside_torch(case: Case, sets: int, repeats: int, torch: Torch) -> dict[str, dict]:
    mx.clear_cache()  # torch needs the memory
    shape = {name: getattr(case, name) for name in ("Hq", "Hkv", "Lq", "Lk", "D", "Dv", "dtype")}
    causal = case.mask == "causal"
    sides = torch.attention(**shape, causal=causal, sets=sets, repeats=repeats)
    kv_bytes = case.Hkv * case.Lk * (case.D + case.Dv) * (4 if case.dtype == "float32" else 2)
    for side in sides.values():
        if "error" not in side:
            side["tflops"] = case.flops / side["median_s"] / 1e12
            side["gb_per_s"] = kv_bytes / side["median_s"] / 1e9
    return sides


def row(result: dict) -> list[str]:
    """The columns of one result: what, ours, stock, torch, ratio."""
    kind = result["case"]
    if kind == "torch":
        return ["torch", "", "", result.get("error") or f"{result['torch']}", ""]
    if kind == "ceiling":
        size = f"{result['n']}^3" if result["name"] == "gemm" else f"{result['bytes'] / 1e6:.0f} MB"
        return [f"ceiling {result['name']} {size} by {result['by']}", _side(result), "", "", ""]
    if kind == "growth":
        return [f"growth {result['name']}", growth.text(result), "", "", ""]
    beside = "  ".join(f"{name} {_side(side)}" for name, side in result.get("torch", {}).items())
    ratio = f"{result['speedup']:.2f}x" if "speedup" in result else ""
    return [result["name"], _side(result["ours"]), _side(result["stock"]), beside, ratio]


def _side(side: dict) -> str:
    if "error" in side:
        return side["error"][:40]
    parts = [f"{side['median_s'] * 1e3:.3f} ms"]
    if "tflops" in side:
        parts.append(f"{side['tflops']:.0f} TF")
    if "gb_per_s" in side:
        parts.append(f"{side['gb_per_s']:.0f} GB/s")
    if "added_bytes" in side:
        parts.append(f"+{side['added_bytes'] / 2**20:.0f} MiB")
    return " ".join(parts)


TITLES = ("case", "ours", "stock", "torch", "ratio")
