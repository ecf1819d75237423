"""A launch of a Metal kernel as a case, and what it has to compute."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import metal_kernels as kernels
import numpy as np
import reference
from cases import Case, Inputs, make, options
from metal_kernels import Launch
from mlx_sdpa_ext.words import Tile
from tolerances import TOLERANCES, check, check_lse


@dataclass(frozen=True)
class KernelCase:
    tile: Tile
    case: Case
    part: str = "all"  # what of the work one launch does: a name of PARTS
    out_f32: bool = False
    scalar_loads: bool = False

    @property
    def affinity(self) -> tuple:
        return (self.tile, self.case.dtype)

    def __str__(self) -> str:
        name = kernels.kernel_name(self.tile, self.case.dtype).removeprefix("sdpa_")
        words = (
            self.part, "f32" if self.out_f32 else "", "scalar" if self.scalar_loads else "",
        )  # fmt: skip
        return "-".join(w for w in (name, str(self.case), *words) if w)


def of_keys(case: Case, x: Inputs, keys: tuple[int, int], sinks: bool):
    """The reference over a range of the keys."""
    begin, end = keys
    mask = x.mask
    if isinstance(mask, np.ndarray) and mask.ndim and mask.shape[-1] > 1:
        mask = mask[..., begin:end]
    return reference.attention(
        x.q, x.k[:, :, begin:end], x.v[:, :, begin:end], mask=mask,
        sinks=x.sinks if sinks else None, q_offset=case.Lk - case.Lq - begin, **options(case),
    )  # fmt: skip


def combined(outs: np.ndarray, lses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The exact combination of parts [n, ...]."""
    m = np.where(np.isneginf(lses.max(0)), 0.0, lses.max(0))
    weights = np.exp(lses - m)
    total = weights.sum(0)
    with np.errstate(divide="ignore"):
        lse = m + np.log(total)
    return (weights[..., None] * outs).sum(0) / np.where(total == 0, 1.0, total)[..., None], lse


def hide_other_keys(x: Inputs, keys: tuple[int, int]) -> None:
    """Keys that the launch does not attend hold NaN."""
    x.k, x.v = x.k.copy(), x.v.copy()
    for a in (x.k, x.v):
        a[:, :, : keys[0]] = np.nan
        a[:, :, keys[1] :] = np.nan


def run_case(
    case: Case, x: Inputs, tile: Tile, whole, launch: Launch, folder: Path = kernels.KERNELS
) -> Iterator:
    """Runs a launch, yields the device's reports, then compares with attention over `whole`."""
    want, want_lse = of_keys(case, x, whole, True)
    hide_other_keys(x, launch.keys or whole)
    result = kernels.attend(tile, case, x, launch, folder)
    yield from result.reports
    out, lse = result.out[0], None if result.lse is None else result.lse[0]
    if launch.splits > 1:
        out, lse = combined(result.out, result.lse)
    check(out, want, TOLERANCES[case.dtype])
    if case.lse:
        check_lse(lse, want_lse, TOLERANCES[case.dtype])


def run_kernel_case(kernel_case: KernelCase, rng, folder: Path = kernels.KERNELS) -> Iterator:
    """As run_case: of random inputs, in the part that the case names."""
    case, part = kernel_case.case, kernel_case.part
    x = make(case, rng)
    whole, keys, carry, carried_sinks = (0, case.Lk), (0, case.Lk), None, False
    if part == "range":
        keys = whole = (case.Lk // 3, case.Lk - case.Lk // 4)
    elif part.startswith("carry"):
        keys = (case.Lk // 2, case.Lk)
        carried_sinks = bool(case.Lq % 2)  # sinks are counted there, or here
        carry = of_keys(case, x, (0, case.Lk // 2), carried_sinks)
    launch = Launch(
        keys=keys,
        splits={"splits": 2, "many splits": min(5, case.Lk)}.get(part, 1),
        cuts=(2, 2) if part == "cuts" else (1, 1),
        sinks=not carried_sinks,
        carry=carry,
        carry_in_place=part == "carry in place",
        out_f32=kernel_case.out_f32 or part == "carry in place",
        scalar_loads=kernel_case.scalar_loads,
    )
    yield from run_case(case, x, kernel_case.tile, whole, launch, folder)
