"""Stock MLX's own Metal kernels on the software device: text that Apple's compiler takes.

They are the device's positive control and the baseline of bench/metal_counts.py. Instantiations,
arguments and grids are those that MLX's host code chooses, in scaled_dot_product_attention.cpp and,
for the block sizes at D 256 of MLX 0.32.4, in the code of libmlx.dylib.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import metal_memory as memory
import numpy as np
from cases import Case, Inputs
from metal_kernels import MSL_TYPES, ceil_div, mask_operand
from stock_headers import source

import emulator


def library(text: str) -> emulator.Library:
    return emulator.Library(text, stock=True)


def constants(values: dict[int, bool | int]) -> dict[int, bytes]:
    """{index: bytes}: a bool is one byte, an int four."""
    return {
        index: bytes([value]) if isinstance(value, bool) else value.to_bytes(4, "little")
        for index, value in values.items()
    }


class Result(NamedTuple):
    out: np.ndarray  # [B, Hq, Lq, Dv] float64
    lse: np.ndarray | None  # [B, Hq, Lq]
    reports: list


# --- Full attention: steel_attention.h ---------------------------------------------------------

_int, _float, _strides = ctypes.c_int32, ctypes.c_float, ctypes.c_int64 * 3


class AttnParams(ctypes.Structure):
    """steel/attn/params.h."""

    _fields_ = [
        *((name, _int) for name in ("B", "H", "D", "qL", "kL", "gqa_factor")),
        ("scale", _float),
        *((name, _int) for name in ("NQ", "NK", "NQ_aligned", "NK_aligned")),
        *((name, _int) for name in ("qL_rem", "kL_rem", "qL_off")),
        *((f"{name}_strides", _strides) for name in "QKVO"),
    ]


class FullTile(NamedTuple):
    bq: int
    bk: int
    wm: int
    wn: int


def full_tile(D: int, dtype: str, large: bool = False) -> FullTile:
    """Of an M1 to M4; `large`: of one whose architecture ends in d (Ultra)."""
    if D == 256:
        return FullTile(32, 32 if large and dtype != "float32" else 16, 4, 2)
    return FullTile(32, 32 if D < 128 else 16, 4, 1)


def full_kernel(case: Case, tile: FullTile, mask_dtype: str) -> tuple[str, str, str]:
    bq, bk, wm, wn = tile
    name = (
        f"steel_attention_{case.dtype}_bq{bq}_bk{bk}_bd{case.D}_bv{case.v_dim}_wm{wm}_wn{wn}"
        f"_mask{mask_dtype}"
    )
    types = {**MSL_TYPES, "bool": "bool"}
    arguments = (types[case.dtype], bq, bk, case.D, case.v_dim, wm, wn, types[mask_dtype], "float")
    return name, "attention", ", ".join(map(str, arguments))


def full(case: Case, x: Inputs, large: bool = False) -> Result:
    """The full attention kernel on the inputs of the case, lse included."""
    dtype, Dv = case.dtype, case.v_dim
    tile = full_tile(case.D, dtype, large)
    masked = case.mask in ("bool", "additive")
    kernel_row = full_kernel(case, tile, "bool" if case.mask == "bool" else dtype)
    text = source("steel/attn/kernels/steel_attention.h", kernel_row)
    rows, keys = divmod(case.Lq, tile.bq), divmod(case.Lk, tile.bk)
    kernel = library(text).kernel(
        kernel_row[0],
        constants(
            {
                200: rows[1] == 0, 201: keys[1] == 0, 300: masked, 301: case.mask == "causal",
                302: case.sinks, 303: True,
            }
        ),
    )  # fmt: skip
    Q = memory.arrange(x.q, dtype, case.q_layout)
    K = memory.arrange(x.k, dtype, case.k_layout)
    V = memory.arrange(x.v, dtype, case.v_layout)
    out = memory.allocate(case.B * case.Hq * case.Lq * Dv, dtype)  # [B, Lq, Hq, Dv]
    lse = memory.allocate(case.B * case.Hq * case.Lq, "float32")
    params = AttnParams(
        B=case.B, H=case.Hq, D=case.D, qL=case.Lq, kL=case.Lk, gqa_factor=case.Hq // case.Hkv,
        scale=case.scale, NQ=ceil_div(case.Lq, tile.bq), NK=ceil_div(case.Lk, tile.bk),
        NQ_aligned=rows[0], NK_aligned=keys[0], qL_rem=rows[1], kL_rem=keys[1],
        qL_off=case.Lk - case.Lq, Q_strides=Q.strides[:3], K_strides=K.strides[:3],
        V_strides=V.strides[:3], O_strides=(case.Lq * case.Hq * Dv, Dv, case.Hq * Dv),
    )  # fmt: skip
    bindings = {0: Q.binding, 1: K.binding, 2: V.binding, 3: out, 4: params, 8: lse}
    if masked:
        M, strides = mask_operand(case, x)
        bindings |= {5: _strides(strides.batch, strides.head, strides.row), 6: M.binding}
    if case.sinks:
        bindings[7] = memory.arrange(x.sinks.reshape(1, 1, 1, -1), dtype).binding
    report = kernel.run((params.NQ, case.Hq, case.B), (32, tile.wm, tile.wn), bindings)
    out = memory.from_storage(out, dtype).reshape(case.B, case.Lq, case.Hq, Dv).swapaxes(1, 2)
    return Result(out, lse.astype(np.float64).reshape(out.shape[:3]), [report])


# --- Few query rows: sdpa_vector.h -------------------------------------------------------------


def _vector_operands(case: Case, x: Inputs) -> tuple[list[memory.Operand], list]:
    """Q, K, V, and the strides of K and V by head and by key, as the kernels take them."""
    layouts = (case.q_layout, case.k_layout, case.v_layout)
    operands = [
        memory.arrange(array, case.dtype, layout)
        for array, layout in zip((x.q, x.k, x.v), layouts, strict=True)
    ]
    strides = [
        ctypes.c_uint64(operand.strides[0 if case.Hkv == 1 else 1] if axis == 1 else
                        operand.strides[2])
        for operand in operands[1:]
        for axis in (1, 2)
    ]  # fmt: skip
    return operands, strides


def _vector_mask(case: Case, x: Inputs, first: int) -> dict:
    """Bindings of mask and sinks; the mask's index is `first`, one more if it is additive."""
    bindings = {}
    if case.mask in ("bool", "additive"):
        M, strides = mask_operand(case, x)
        head = strides.head or strides.batch
        bindings[first + (case.mask == "additive")] = M.binding
        for i, stride in enumerate((strides.col, strides.row, head)):
            bindings[first + 2 + i] = _int(stride)
    if case.sinks:
        bindings[first + 5] = memory.arrange(x.sinks.reshape(1, 1, 1, -1), case.dtype).binding
    return bindings


def _vector_constants(case: Case, blocks: int) -> dict[int, bytes]:
    masked = case.mask in ("bool", "additive")
    return constants(
        {
            20: masked, 21: case.q_layout != "contiguous", 22: case.mask == "causal",
            23: case.mask == "bool", 24: case.mask == "additive", 25: case.sinks, 26: blocks,
        }
    )  # fmt: skip


def vector(case: Case, x: Inputs) -> Result:
    """The kernel for at most 8 query rows, in one pass."""
    dtype, Dv = case.dtype, case.v_dim
    name = f"sdpa_vector_{dtype}_{case.D}_{Dv}"
    text = source("sdpa_vector.h", (name, "sdpa_vector", f"{MSL_TYPES[dtype]}, {case.D}, {Dv}"))
    kernel = library(text).kernel(name, _vector_constants(case, blocks=0))
    (Q, K, V), strides = _vector_operands(case, x)
    out = memory.allocate(case.B * case.Hq * case.Lq * Dv, dtype)
    values = [_int(case.Hq // case.Hkv), _int(case.Lk), *strides, _float(case.scale)]
    bindings = {0: Q.binding, 1: K.binding, 2: V.binding, 3: out}
    bindings |= dict(enumerate(values, 4)) | _vector_mask(case, x, 11)
    if case.sinks:
        bindings[17] = _int(case.Hq)
    report = kernel.run((case.B * case.Hq, case.Lq, 1), 1024, bindings)
    out = memory.from_storage(out, dtype).reshape(case.B, case.Hq, case.Lq, Dv)
    return Result(out, None, [report])


def vector_two_pass(
    case: Case, x: Inputs, blocks: int = 32, ahead: int = 4, shared: bool = False
) -> Result:
    """The same with keys split into blocks and merged.

    ahead: keys read at once; shared: the kernel of one query row that reads K and V once for all
    the heads of a group of 8.
    """
    dtype, Dv, group = case.dtype, case.v_dim, case.Hq // case.Hkv
    T, name = MSL_TYPES[dtype], f"sdpa_vector_2pass_1_{dtype}_{case.D}_{Dv}"
    first = (name, "sdpa_vector_2pass_1", f"{T}, {case.D}, {Dv}, {ahead}")
    if shared:
        heads = {64: 8, 128: 4}[case.D]  # of a group that a simdgroup computes
        first = (name, "sdpa_vector_2pass_1_gqa", f"{T}, {case.D}, {Dv}, {group}, {heads}")
    second = (f"sdpa_vector_2pass_2_{dtype}_{Dv}", "sdpa_vector_2pass_2", f"{T}, {Dv}")
    both = library(source("sdpa_vector.h", first, second))
    chosen = _vector_constants(case, blocks)
    (Q, K, V), strides = _vector_operands(case, x)
    rows = case.B * case.Hq * case.Lq
    partial = memory.allocate(rows * blocks * Dv, dtype)
    sums, maxima = (memory.allocate(rows * blocks, "float32") for _ in range(2))
    bindings = {0: Q.binding, 1: K.binding, 2: V.binding, 3: partial, 4: sums, 5: maxima}
    bindings |= dict(enumerate([_int(case.Lk), *strides, _float(case.scale)], 7))
    bindings |= _vector_mask(case, x, 13)
    reports = [
        both.kernel(name, chosen).run((case.Hkv, case.B, blocks), (32, group, case.Lq), bindings)
    ]
    out = memory.allocate(rows * Dv, dtype)
    bindings = {0: partial, 1: sums, 2: maxima, 3: out, 4: _int(blocks)}
    grid = (case.B * case.Hq, case.Lq, 1)
    reports.append(both.kernel(second[0], chosen).run(grid, 1024, bindings))
    out = memory.from_storage(out, dtype).reshape(case.B, case.Hq, case.Lq, Dv)
    return Result(out, None, reports)


# --- softmax.h, of the unfused path ------------------------------------------------------------

SOFTMAX_READS = 4  # elements of a thread: SOFTMAX_N_READS of defines.h
SOFTMAX_LOOPED = 4096  # columns from which the looped kernel serves


def _numbered(text: str) -> str:
    """Its buffers, which Metal numbers in order, with their numbers."""
    for index, parameter in enumerate(("device T* in", "device T* out", "constant int& axis_size")):
        text = text.replace(f"{parameter},", f"{parameter} [[buffer({index})]],")
    return text


def softmax(x: np.ndarray, dtype: str, looped: bool) -> Result:
    """Of the rows of x [rows, columns], in float32 whatever the dtype is."""
    name = f"{'looped' if looped else 'block'}_softmax_precise_{dtype}"
    function = "softmax_looped" if looped else "softmax_single_row"
    text = source("softmax.h", (name, function, f"{MSL_TYPES[dtype]}, float"))
    rows, columns = x.shape
    read = memory.arrange(x[None, None], dtype)
    out = memory.allocate(x.size, dtype)
    threads = 1024 if looped else 32 * ceil_div(columns, 32 * SOFTMAX_READS)
    bindings = {0: read.binding, 1: out, 2: _int(columns)}
    report = library(_numbered(text)).kernel(name, {}).run((rows, 1, 1), threads, bindings)
    return Result(memory.from_storage(out, dtype).reshape(x.shape), None, [report])
