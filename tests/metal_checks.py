"""What a tree of Metal kernels has to pass, on tiles small enough to do it all in seconds.

types     the text compiles with Metal's address spaces enforced (mode T)
lint      and holds nothing that Metal lacks but C++ has
compiler  it compiles for the software device (mode X)
launch    the device accepts the launch: constants, buffers, threads, threadgroup memory
<kind>    the device's finding of that kind: a race, an access out of bounds, ...
numbers   the results are those of the float64 reference
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import metal_kernels as kernels
import numpy as np
from cases import Case, make
from metal_cases import KernelCase, combined, run_case, run_kernel_case
from metal_kernels import Launch
from mlx_sdpa_ext.words import Tile
from tolerances import TOLERANCES, check, check_lse

import emulator

Flags = dict[str, str]  # check -> what it says


def tile(kernel: str, dtype: str, D: int, Dv: int, bq: int, bk: int, wm: int, wd: int) -> Tile:
    return Tile("metal", kernel, 1, D, 1, Dv, (dtype,), bq, bk, wm, wd)


# Two simdgroups over the rows, two over the head dimension, two row fragments each.
PREFILL = tile("prefill", "float16", 64, 64, 32, 16, 2, 2)
FOUR = tile("prefill", "float32", 128, 64, 8, 8, 1, 4)
# An odd number of fragments: loads of one element of K and two of V.
NARROW = tile("prefill", "float32", 72, 72, 16, 8, 2, 1)
# K and V share their memory.
SHARED = tile("prefill", "float32", 64, 64, 16, 64, 2, 1)
BFLOAT = tile("prefill", "bfloat16", 32, 32, 8, 8, 1, 1)
DECODE = tile("decode", "float16", 64, 64, 8, 16, 2, 1)
DECODE_HALVES = tile("decode", "float32", 64, 64, 8, 8, 2, 2)
# DV is merged in two rounds, Q stays in threadgroup memory.
DECODE_WIDE = tile("decode", "float32", 256, 256, 8, 8, 4, 1)


@dataclass(frozen=True)
class HiddenBlocks:
    """More blocks hidden in a row than the kernel looks ahead for, twice."""

    tile: Tile
    dtype: str = "float16"


@dataclass(frozen=True)
class Merge:
    n: int
    carry: bool
    in_dtype: str = "float32"
    out_dtype: str = "float16"
    Dv: int = 132


half = partial(Case, B=2, Hq=6, Hkv=2, dtype="float16")
float_ = partial(Case, Hq=2, Hkv=1)
MASKED = {"mask": "additive", "mask_shape": "BHQK", "softcap": 2.0, "sinks": True}
WINDOW = {"mask": "causal", "window": 29}
RAGGED = {"D": 61, "Dv": 63, "mask": "causal", "sinks": True}
STRIDED = {"D": 64, "k_layout": "ring", "v_layout": "columns", "sinks": True}
PROBES = {
    "prefill": [
        KernelCase(PREFILL, half(Lq=15, Lk=43, **RAGGED)),
        KernelCase(PREFILL, half(Lq=22, Lk=90, D=64, **WINDOW)),
        KernelCase(PREFILL, half(Lq=11, Lk=53, D=64, **MASKED), "splits"),
        KernelCase(PREFILL, half(Lq=23, Lk=40, D=60, sinks=True), "cuts"),
        KernelCase(PREFILL, half(Lq=11, Lk=53, **STRIDED), "carry"),
        KernelCase(PREFILL, half(Lq=12, Lk=53, D=64, q_layout="strided"), "range"),
        HiddenBlocks(PREFILL),
    ],
    "four": [KernelCase(FOUR, float_(Lq=6, Lk=27, D=128, Dv=64))],
    "narrow": [KernelCase(NARROW, float_(Lq=13, Lk=27, D=70, Dv=71, mask="causal"))],
    "shared": [KernelCase(SHARED, float_(Lq=13, Lk=200, D=64))],
    "bfloat": [KernelCase(BFLOAT, float_(Lq=5, Lk=20, D=31, dtype="bfloat16"))],
    "decode": [
        KernelCase(DECODE, half(Lq=2, Lk=90, **RAGGED)),
        KernelCase(DECODE, half(Lq=2, Lk=90, D=64, **WINDOW)),
        KernelCase(DECODE, half(Lq=2, Lk=90, D=64, **MASKED), "splits"),
        KernelCase(DECODE, half(Lq=1, Lk=90, **STRIDED), "carry"),
        KernelCase(DECODE, half(Lq=2, Lk=60, D=64, sinks=True), "carry in place"),
        KernelCase(DECODE, half(Lq=1, Lk=90, D=64, sinks=True), "cuts"),
        HiddenBlocks(DECODE),
    ],
    "halves": [KernelCase(DECODE_HALVES, float_(Lq=2, Lk=75, D=64, mask="causal"))],
    "wide": [KernelCase(DECODE_WIDE, float_(Lq=2, Lk=75, D=255, Dv=256))],
    "merge": [
        Merge(5, carry=True),
        Merge(40, carry=False, Dv=70),
        Merge(2, carry=False, in_dtype="float16"),
    ],
}


def source_of(probe, folder: Path) -> str:
    if isinstance(probe, Merge):
        return kernels.merge_source(probe.in_dtype, probe.out_dtype, folder)
    dtype = probe.dtype if isinstance(probe, HiddenBlocks) else probe.case.dtype
    return kernels.attention_source(probe.tile, dtype, folder)


def hidden_blocks(probe: HiddenBlocks, rng, folder: Path) -> Iterator:
    """Keys 560 of 1200 and around it are seen, the rest is hidden."""
    Lq = probe.tile.bq // 4
    case = Case(
        Hq=2, Hkv=1, Lq=Lq, Lk=1200, D=probe.tile.d_max, dtype=probe.dtype, mask="bool",
        mask_shape="BHQK",
    )  # fmt: skip
    x = make(case, rng)
    x.mask = np.zeros((1, 2, Lq, 1200), bool)
    x.mask[..., 553:579] = True
    x.mask[..., 1199] = True
    x.mask[0, 0, 0] = False
    yield from run_case(case, x, probe.tile, (0, case.Lk), Launch(), folder)


def merged(probe: Merge, rng, folder: Path) -> Iterator:
    outs = kernels.memory.from_storage(
        kernels.memory.to_storage(rng.standard_normal((probe.n, 11, probe.Dv)), probe.in_dtype),
        probe.in_dtype,
    )
    lses = (3 * rng.standard_normal((probe.n, 11))).astype(np.float32).astype(np.float64)
    lses[:, 3] = -np.inf  # a row without keys
    lses[0, 5] = -np.inf  # a part without keys: what its output holds counts for nothing
    outs[0, 5] = np.nan
    carry = None
    whole = np.nan_to_num(outs), lses
    if probe.carry:
        carry = rng.standard_normal((11, probe.Dv)).astype(np.float32), lses[1] + 1.0
        whole = [np.concatenate([a, [c]]) for a, c in zip(whole, carry)]
        whole = [a.astype(np.float64) for a in whole]
    want, want_lse = combined(*whole)
    result = kernels.merge(outs, lses, probe.in_dtype, probe.out_dtype, carry, folder=folder)
    yield from result.reports
    check(result.out, want, TOLERANCES[probe.out_dtype])
    check_lse(result.lse, want_lse, TOLERANCES["float32"])


def run(probe, rng, folder: Path) -> Iterator:
    """Runs a probe: yields the device's reports, then asserts the numbers."""
    if isinstance(probe, Merge):
        yield from merged(probe, rng, folder)
    elif isinstance(probe, HiddenBlocks):
        yield from hidden_blocks(probe, rng, folder)
    else:
        yield from run_kernel_case(probe, rng, folder)


def text_flags(folder: Path, probes: list[str]) -> Flags:
    """What objects to the text of the kernels in `folder`, which are not run."""
    found: Flags = {}
    for name in probes:
        for source in dict.fromkeys(source_of(probe, folder) for probe in PROBES[name]):
            for kind, look in (("types", emulator.check_types), ("lint", emulator.lint)):
                try:
                    for diagnostic in look(source):
                        found.setdefault(kind, str(diagnostic))
                except emulator.CompileError as error:
                    found.setdefault(kind, str(error))
    return found


def flags(folder: Path, probes: list[str], seed: int = 0) -> Flags:
    """What objects to the kernels in `folder` when they run, each check with what it says first."""
    found: Flags = {}

    for name in probes:
        for source in dict.fromkeys(source_of(probe, folder) for probe in PROBES[name]):
            try:
                emulator.Library(source)
            except emulator.EmulatorError as error:
                found.setdefault("compiler", str(error))
        if "compiler" in found:
            return found
        for i, probe in enumerate(PROBES[name]):
            try:
                for report in run(probe, np.random.default_rng([seed, i]), folder):
                    for finding in report.findings:
                        found.setdefault(finding.kind, str(finding))
            except AssertionError as error:
                found.setdefault("numbers", str(error))
            except (emulator.EmulatorError, ValueError) as error:
                found.setdefault("launch", str(error))
    emulator.take_report()  # these findings are no test's own
    return found
