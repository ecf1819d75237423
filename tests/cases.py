"""A Case says one attention call: shapes, dtype, mask, layouts, and the path that computes it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

import layouts
import mlx.core as mx
import numpy as np
import reference
from mlx_sdpa_ext import _ext
from tolerances import STOCK_TOLERANCES, TOLERANCES, check, check_lse

DTYPES = ("float32", "float16", "bfloat16")
SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "float64": "f64"}


@dataclass(frozen=True)
class Case:
    B: int = 1
    Hq: int = 8
    Hkv: int = 2
    Lq: int = 65
    Lk: int = 127
    D: int = 128
    Dv: int | None = None  # None: D
    dtype: str = "float32"
    mask: str = "none"  # none | causal | bool | additive
    mask_shape: str = "QK"  # of an array mask, a letter a dimension: B H Q K or 1
    mask_layout: str = "contiguous"
    mask_dtype: str | None = None  # of an additive mask; None: dtype
    window: int | None = None
    softcap: float | None = None
    sinks: bool = False
    lse: bool = True
    q_layout: str = "contiguous"
    k_layout: str = "contiguous"
    v_layout: str = "contiguous"
    path: str = "fused"  # fused | chunked | unfused | stock
    chunk_size: int = 0  # of chunked
    block_rows: int = 0  # of unfused
    isa: str = ""  # "": the best this machine has

    @property
    def v_dim(self) -> int:
        return self.D if self.Dv is None else self.Dv

    @property
    def spread(self) -> float:
        """Of the scores. At sqrt(log Lk) a row leans on a few of its keys, so each key counts."""
        return max(1.0, math.log(max(1, self.Lk))) ** 0.5

    @property
    def scale(self) -> float:
        return float(np.float32(self.spread / self.D**0.5))  # as every function under test takes it

    @property
    def tolerance(self):
        if self.path in ("unfused", "stock"):
            return STOCK_TOLERANCES[self.dtype]
        return TOLERANCES[self.dtype]

    @property
    def affinity(self) -> tuple:
        """Cases of the same affinity use the same compiled kernels, or nearly."""
        return (self.dtype, self.D, self.v_dim)

    @property
    def mask_dims(self) -> tuple[int, ...]:
        sizes = {"B": self.B, "H": self.Hq, "Q": self.Lq, "K": self.Lk, "1": 1}
        return tuple(sizes[letter] for letter in self.mask_shape)

    def __str__(self) -> str:
        words = [
            self.path + (f"{self.chunk_size or self.block_rows or ''}"),
            self.isa,
            SHORT[self.dtype],
            f"b{self.B}h{self.Hq}_{self.Hkv}",
            f"{self.Lq}x{self.Lk}",
            f"d{self.D}" + (f"_{self.Dv}" if self.Dv is not None else ""),
        ]
        if self.mask in ("bool", "additive"):
            shape = self.mask_shape or "scalar"
            words.append(f"{self.mask}.{shape}" + name_unless(self.mask_layout, "contiguous", "."))
        else:
            words.append(self.mask)
        words.append(f"w{self.window}" if self.window else "")
        words.append(f"cap{self.softcap:g}" if self.softcap else "")
        words.append("sinks" if self.sinks else "")
        words.append("" if self.lse else "nolse")
        words.extend(
            name + name_unless(layout, "contiguous", ".")
            for name, layout in zip("qkv", (self.q_layout, self.k_layout, self.v_layout))
            if layout != "contiguous"
        )
        return "-".join(word for word in words if word)


def name_unless(name: str, usual: str, before: str) -> str:
    return "" if name == usual else before + name


def replace(case: Case, **changes) -> Case:
    return Case(**{f.name: getattr(case, f.name) for f in fields(case)} | changes)


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """float64 values that the dtype holds exactly: what the kernel will see."""
    if dtype == "float64":
        return x
    return to_numpy(mx.array(x.astype(np.float32)).astype(getattr(mx, dtype)))


def to_numpy(x: mx.array) -> np.ndarray:
    """float64 copy of any array."""
    return np.array(x if x.dtype == mx.float64 else x.astype(mx.float32)).astype(np.float64)


@dataclass
class Inputs:
    """The same values twice: float64 numpy, and mx arrays in the layouts of the case."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    mask: reference.Mask
    sinks: np.ndarray | None
    arrays: tuple[mx.array, mx.array, mx.array] = field(repr=False)
    mask_arg: None | str | mx.array = field(repr=False)
    sinks_arg: mx.array | None = field(repr=False)


def random_mask(case: Case, rng: np.random.Generator) -> np.ndarray:
    """About a third hidden, and one row (where the shape has rows) that sees nothing."""
    shape = case.mask_dims
    seen = np.asarray(rng.random(shape) < 0.7)
    if "Q" in case.mask_shape and case.Lq > 1 and seen.size:
        seen[..., rng.integers(case.Lq), :] = False
    if case.mask == "bool":
        return seen
    if seen.size == 1:
        seen |= True
    additive = rounded(np.asarray(rng.standard_normal(shape)), case.mask_dtype or case.dtype)
    return np.where(seen, additive, -np.inf)


def make(case: Case, rng: np.random.Generator) -> Inputs:
    def operand(H, L, D, layout):
        x = rounded(rng.standard_normal((case.B, H, L, D)), case.dtype)
        x = layouts.values(x, layout)
        return x, layouts.arrange(x, getattr(mx, case.dtype), layout)

    q, q_array = operand(case.Hq, case.Lq, case.D, case.q_layout)
    k, k_array = operand(case.Hkv, case.Lk, case.D, case.k_layout)
    v, v_array = operand(case.Hkv, case.Lk, case.v_dim, case.v_layout)
    mask = mask_arg = "causal" if case.mask == "causal" else None
    if case.mask in ("bool", "additive"):
        mask = random_mask(case, rng)
        dtype = mx.bool_ if case.mask == "bool" else getattr(mx, case.mask_dtype or case.dtype)
        mask_arg = layouts.arrange(mask, dtype, case.mask_layout)
    sinks = rounded(2 * rng.standard_normal(case.Hq), case.dtype) if case.sinks else None
    sinks_arg = None if sinks is None else mx.array(sinks).astype(getattr(mx, case.dtype))
    return Inputs(q, k, v, mask, sinks, (q_array, k_array, v_array), mask_arg, sinks_arg)


def options(case: Case) -> dict:
    """Keywords that the reference and the functions under test share, less mask and sinks."""
    return {"scale": case.scale, "window": case.window, "softcap": case.softcap}


def expected(case: Case, x: Inputs) -> tuple[np.ndarray, np.ndarray]:
    return reference.attention(x.q, x.k, x.v, mask=x.mask, sinks=x.sinks, **options(case))


def call(case: Case, q, k, v, mask, sinks, **more) -> list[mx.array]:
    """The call of the case on given arrays: [out] or [out, lse], lazy."""
    how = {"mask": mask, "sinks": sinks, **options(case), **more}
    if case.path == "stock":
        return [
            mx.fast.scaled_dot_product_attention(q, k, v, mask=mask, sinks=sinks, scale=case.scale)
        ]
    how["return_lse"] = case.lse
    if case.path == "unfused":
        return _ext.unfused(q, k, v, block_rows=case.block_rows, **how)
    return _ext.sdpa(q, k, v, chunk_size=case.chunk_size, **how)


def poison(*shapes_and_dtypes) -> None:
    """Frees NaN-filled buffers of these sizes, so that memory never written to reads as NaN."""
    mx.eval([mx.full(shape, math.nan, dtype) for shape, dtype in shapes_and_dtypes])


def compute(case: Case, x: Inputs) -> list[np.ndarray]:
    """Runs the case. float64 copies of [out] or [out, lse]."""
    rows = (case.B, case.Hq, case.Lq)
    mx.eval([a for a in (*x.arrays, x.mask_arg, x.sinks_arg) if isinstance(a, mx.array)])
    results = call(case, *x.arrays, x.mask_arg, x.sinks_arg)
    assert results[0].dtype == getattr(mx, case.dtype)
    for _ in range(2):
        poison(((*rows, case.v_dim), getattr(mx, case.dtype)), (rows, mx.float32))
    mx.eval(results)
    if case.lse and case.path != "stock":
        assert results[1].dtype == mx.float32
        assert results[1].shape == rows
    return [to_numpy(result) for result in results]


def verify(case: Case, rng: np.random.Generator) -> None:
    """Runs the case on random inputs and compares it with the float64 reference."""
    x = make(case, rng)
    if case.isa:
        _ext.set_cpu_isa(case.isa)
    try:
        results = compute(case, x)
    finally:
        if case.isa:
            _ext.set_cpu_isa("")
    out, lse = expected(case, x)
    check(results[0], out, case.tolerance)
    if len(results) == 2:
        check_lse(results[1], lse, case.tolerance)
