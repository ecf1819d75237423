"""Runs Metal kernels alone on the software device: their text, a tile, operands; no host code.

What src/backends/metal.cpp does for a call, done again in few lines of Python, so that kernels are
tested on any tile, part of the grid, range of keys and carry, and a mistake in either shows.
"""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass, field
from pathlib import Path

import metal_memory as memory
import numpy as np
from cases import Case, Inputs
from mlx_sdpa_ext import _ext
from mlx_sdpa_ext.words import Tile

import emulator

KERNELS = Path(__file__).parents[1] / "kernels"
TILES = [Tile.of(row) for row in _ext.tiles() if row["backend"] == "metal"]
MSL_TYPES = {"float32": "float", "float16": "half", "bfloat16": "bfloat"}
DTYPE_CODES = {"float32": 0, "float16": 1, "bfloat16": 2}  # DType of params.h
MASK_CODES = {"bool": 1, "additive": 2}  # MaskKind


# --- The text of a kernel ---------------------------------------------------------------------


def flattened(path: str, folder: Path, seen: set[str]) -> str:
    """A file of kernels/ with our includes in their place, each file once."""
    if path in seen:
        return ""
    seen.add(path)
    lines = [f'#line 1 "kernels/{path}"']
    for number, line in enumerate((folder / path).read_text().splitlines(), 1):
        include = re.match(r'#include "kernels/(.+)"', line)
        if include:
            lines += [flattened(include[1], folder, seen), f'#line {number + 1} "kernels/{path}"']
        else:
            lines.append("" if line.startswith("#pragma once") else line)
    return "\n".join(lines) + "\n"


def enums(folder: Path = KERNELS) -> dict[str, int]:
    """The indices of arguments.h, by name."""
    text = (folder / "metal/arguments.h").read_text()
    return {name: int(n) for name, n in re.findall(r"\b(k\w+)\s*=\s*(\d+)", text)}


def kernel_name(tile: Tile, dtype: str) -> str:
    return (
        f"sdpa_{tile.kernel}_{dtype}_d{tile.d_max}_v{tile.dv_max}_bq{tile.bq}_bk{tile.bk}"
        f"_w{tile.wm}x{tile.wd}"
    )


def instantiation(name: str, function: str, arguments) -> str:
    f = f"sdpa::{function}<{', '.join(map(str, arguments))}>"
    return f'template [[host_name("{name}")]] [[kernel]] decltype({f}) {f};\n'


def function_of(tile: Tile) -> str:
    """Middle rows are prefill's function."""
    return "decode" if tile.kernel == "decode" else "prefill"


def attention_instance(tile: Tile, dtype: str) -> str:
    arguments = (
        MSL_TYPES[dtype], tile.d_max, tile.dv_max, tile.bq, tile.bk, tile.wm, tile.wd,
    )  # fmt: skip
    return instantiation(kernel_name(tile, dtype), function_of(tile), arguments)


def attention_source(tile: Tile, dtype: str, folder: Path = KERNELS) -> str:
    text = flattened(f"metal/{function_of(tile)}.h", folder, set())
    return text + attention_instance(tile, dtype)


def merge_instance(in_dtype: str, out_dtype: str) -> str:
    types = (MSL_TYPES[in_dtype], MSL_TYPES[out_dtype])
    return instantiation(f"sdpa_merge_{in_dtype}_{out_dtype}", "merge", types)


def merge_source(in_dtype: str, out_dtype: str, folder: Path = KERNELS) -> str:
    return flattened("metal/merge.h", folder, set()) + merge_instance(in_dtype, out_dtype)


# --- The structs of params.h ------------------------------------------------------------------

_int, _float, _int64 = ctypes.c_int32, ctypes.c_float, ctypes.c_int64


class Strides(ctypes.Structure):
    _fields_ = [(name, _int64) for name in ("batch", "head", "row", "col")]


class Params(ctypes.Structure):
    _fields_ = [
        *((name, _int) for name in ("B", "Hq", "Hkv", "group", "Lq", "Lk", "D", "Dv", "q_offset")),
        *((name, _int) for name in ("causal", "window")),
        *((name, _float) for name in ("scale", "softcap")),
        *((name, _int) for name in ("dtype", "mask", "mask_dtype")),
        *((name, Strides) for name in ("Qs", "Ks", "Vs", "Ms")),
        *((name, _int64) for name in ("sink_batch", "sink_head")),
    ]


class Part(ctypes.Structure):
    _fields_ = [
        (name, _int)
        for name in (
            "row_tile0", "row_tiles", "head0", "heads", "key0", "key1", "split_keys", "splits",
            "with_sinks", "with_carry",
        )
    ]  # fmt: skip


class MergeParams(ctypes.Structure):
    _fields_ = [("n", _int), ("Dv", _int), ("rows", _int64), ("with_carry", _int)]


# --- Launches ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Launch:
    """How the work of a case is dispatched; the default is all of it at once."""

    keys: tuple[int, int] | None = None  # the range attended
    splits: int = 1
    cuts: tuple[int, int] = (1, 1)  # dispatches that the row tiles and the KV heads are cut into
    sinks: bool = True  # whether this range counts the sinks, if the case has any
    carry: tuple[np.ndarray, np.ndarray] | None = field(default=None, compare=False)  # (O, lse)
    out_f32: bool = False
    carry_in_place: bool = False  # the carried O's memory is the output's
    q_offset: int | None = None  # None: the last query sees the last key
    scalar_loads: bool = False  # kConstantVector false although the memory would allow it


@dataclass
class Result:
    out: np.ndarray  # [splits, B, Hq, Lq, Dv] float64
    lse: np.ndarray | None  # [splits, B, Hq, Lq]
    reports: list[emulator.Report]


def constants_of(index: dict[str, int], values: dict[str, bool | int]) -> dict[int, bytes]:
    """{index: bytes} of {name: value}: a bool is one byte, an int four."""
    return {
        index[f"kConstant{name}"]: bytes([value])
        if isinstance(value, bool)
        else value.to_bytes(4, "little")
        for name, value in values.items()
    }


def mask_operand(case: Case, x: Inputs) -> tuple[memory.Operand, Strides]:
    """The mask in memory, its broadcast dimensions at stride 0."""
    mask = np.asarray(x.mask)
    mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
    dtype = "bool" if case.mask == "bool" else case.mask_dtype or case.dtype
    operand = memory.arrange(mask, dtype, case.mask_layout)
    return operand, Strides(
        *(0 if n == 1 else s for n, s in zip(mask.shape, operand.strides, strict=True))
    )


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def attend(
    tile: Tile, case: Case, x: Inputs, launch: Launch = Launch(), folder: Path = KERNELS
) -> Result:
    """Runs the kernel of the tile on the inputs of the case."""
    dtype, Dv, group = case.dtype, case.v_dim, case.Hq // case.Hkv
    index = enums(folder)
    Q = memory.arrange(x.q, dtype, case.q_layout)
    K = memory.arrange(x.k, dtype, case.k_layout)
    V = memory.arrange(x.v, dtype, case.v_layout)
    masked = case.mask in ("bool", "additive")
    M, mask_strides = mask_operand(case, x) if masked else (Q, Strides())
    sinks = memory.arrange(x.sinks.reshape(1, 1, 1, -1), dtype) if case.sinks else Q
    key0, key1 = launch.keys or (0, case.Lk)
    split_keys = ceil_div(key1 - key0, launch.splits)
    rows = (launch.splits, case.B, case.Hq, case.Lq)
    out_dtype = "float32" if launch.out_f32 or launch.splits > 1 else dtype
    out = memory.allocate(int(np.prod(rows)) * Dv, out_dtype)
    write_lse = case.lse or launch.splits > 1
    lse = memory.allocate(int(np.prod(rows)), "float32")
    carry_O = carry_lse = Q.binding
    if launch.carry is not None:
        carry_O, carry_lse = (memory.arrange(c[None], "float32").binding for c in launch.carry)
        if launch.carry_in_place:
            out[:] = carry_O[0]
            carry_O = (out, 0)
    params = Params(
        B=case.B, Hq=case.Hq, Hkv=case.Hkv, group=group, Lq=case.Lq, Lk=case.Lk, D=case.D, Dv=Dv,
        q_offset=case.Lk - case.Lq if launch.q_offset is None else launch.q_offset,
        causal=case.mask == "causal", window=case.window or 0, scale=case.scale,
        softcap=case.softcap or 0.0, dtype=DTYPE_CODES[dtype], mask=MASK_CODES.get(case.mask, 0),
        mask_dtype=DTYPE_CODES[case.mask_dtype or dtype], Qs=Strides(*Q.strides),
        Ks=Strides(*K.strides), Vs=Strides(*V.strides), Ms=mask_strides, sink_batch=0, sink_head=1,
    )  # fmt: skip
    vector = all(operand.in_vectors() for operand in (Q, K, V)) and not launch.scalar_loads
    constants = {
        "MaskKind": params.mask,
        "MaskType": params.mask_dtype,
        "Causal": case.mask == "causal",
        "Softcap": case.softcap is not None,
        "Sinks": case.sinks,
        "Lse": write_lse,
        "Carry": launch.carry is not None,
        "OutF32": out_dtype == "float32",
        "Vector": vector,
        "Window": case.window is not None,
    }
    library = emulator.Library(attention_source(tile, dtype, folder))
    kernel = library.kernel(kernel_name(tile, dtype), constants_of(index, constants))

    row_tiles, heads = ceil_div(case.Lq * group, tile.bq), case.B * case.Hkv
    tiles_a_cut, heads_a_cut = (ceil_div(n, c) for n, c in zip((row_tiles, heads), launch.cuts))
    # of one dispatch, reading an output before it is written is an error
    outputs = [index["kBufferO"]] * (not launch.carry_in_place) + [index["kBufferLse"]] * write_lse
    fresh = outputs if launch.cuts == (1, 1) else ()
    reports = []
    for row_tile0 in range(0, row_tiles, tiles_a_cut):
        for head0 in range(0, heads, heads_a_cut):
            part = Part(
                row_tile0=row_tile0, row_tiles=min(tiles_a_cut, row_tiles - row_tile0),
                head0=head0, heads=min(heads_a_cut, heads - head0), key0=key0, key1=key1,
                split_keys=split_keys, splits=launch.splits, with_sinks=launch.sinks,
                with_carry=launch.carry is not None,
            )  # fmt: skip
            bindings = {
                "Q": Q.binding, "K": K.binding, "V": V.binding, "O": out,
                "Lse": lse if write_lse else Q.binding, "Mask": M.binding, "Sinks": sinks.binding,
                "CarryO": carry_O, "CarryLse": carry_lse, "Params": params, "Part": part,
            }  # fmt: skip
            grid = (part.row_tiles, part.heads, launch.splits)
            bound = {index[f"kBuffer{name}"]: what for name, what in bindings.items()}
            inputs = () if write_lse else (index["kBufferLse"],)
            reports.append(kernel.run(grid, tile.threads, bound, poison=fresh, readonly=inputs))
    out = memory.from_storage(out, out_dtype).reshape(*rows, Dv)
    return Result(out, lse.astype(np.float64).reshape(rows) if write_lse else None, reports)


def merge(
    outs: np.ndarray,
    lses: np.ndarray,
    in_dtype: str = "float32",
    out_dtype: str = "float32",
    carry: tuple[np.ndarray, np.ndarray] | None = None,
    write_lse: bool = True,
    scalar: bool = False,
    simdgroups: int = 8,
    folder: Path = KERNELS,
) -> Result:
    """Merges parts [n, ..., Dv] and lse [n, ...], and a carry as one more."""
    index = enums(folder)
    n, Dv, rows = outs.shape[0], outs.shape[-1], lses[0].size
    parts = memory.arrange(outs.reshape(1, 1, n * rows, Dv), in_dtype)
    part_lses = memory.arrange(lses.reshape(1, 1, 1, -1), "float32")
    out, lse = memory.allocate(rows * Dv, out_dtype), memory.allocate(rows, "float32")
    carry_O = carry_lse = parts.binding
    if carry is not None:
        carry_O, carry_lse = (
            memory.arrange(c.reshape(1, 1, 1, -1), "float32").binding for c in carry
        )
    constants = {
        "MaskKind": 0, "MaskType": 0, "Causal": False, "Softcap": False, "Sinks": False,
        "Lse": write_lse, "Carry": carry is not None, "OutF32": out_dtype == "float32",
        "Vector": Dv % 4 == 0 and not scalar, "Window": False,
    }  # fmt: skip
    library = emulator.Library(merge_source(in_dtype, out_dtype, folder))
    kernel = library.kernel(f"sdpa_merge_{in_dtype}_{out_dtype}", constants_of(index, constants))
    bindings = {
        "Parts": parts.binding, "PartLses": part_lses.binding, "O": out,
        "Lse": lse if write_lse else parts.binding, "CarryO": carry_O, "CarryLse": carry_lse,
        "Merge": MergeParams(n=n, Dv=Dv, rows=rows, with_carry=carry is not None),
    }  # fmt: skip
    grid = (ceil_div(Dv, 128), ceil_div(rows, simdgroups), 1)
    bound = {index[f"kBuffer{name}"]: what for name, what in bindings.items()}
    fresh = [index["kBufferO"]] + [index["kBufferLse"]] * write_lse
    report = kernel.run(grid, 32 * simdgroups, bound, poison=fresh)
    out = memory.from_storage(out, out_dtype).reshape(outs.shape[1:])
    return Result(out, lse.astype(np.float64).reshape(lses.shape[1:]), [report])
