"""The decode kernel alone: it reads each key and value byte once, and none that no row sees."""

from __future__ import annotations

from dataclasses import dataclass

import metal_kernels as kernels
import numpy as np
import pytest
from cases import Case, make
from metal_cases import of_keys, run_case
from metal_kernels import TILES, Launch, ceil_div
from metal_memory import STORED
from mlx_sdpa_ext.words import Tile
from tolerances import check, check_lse

pytestmark = [pytest.mark.metal, pytest.mark.emulator]


@dataclass(frozen=True)
class Kernel:
    tile: Tile
    dtype: str

    @property
    def affinity(self) -> tuple:
        return (self.tile, self.dtype)

    def __str__(self) -> str:
        return kernels.kernel_name(self.tile, self.dtype).removeprefix("sdpa_decode_")

    @property
    def itemsize(self) -> int:
        return np.dtype(STORED[self.dtype]).itemsize

    @property
    def keys(self) -> int:
        """Keys that the threadgroup takes in one step."""
        return self.tile.wm * self.tile.bk

    def case(self, **more) -> Case:
        return Case(D=self.tile.d_max, Dv=self.tile.dv_max, dtype=self.dtype, **more)


DECODE = [tile for tile in TILES if tile.kernel == "decode"]
KERNELS = [Kernel(tile, dtype) for tile in DECODE for dtype in tile.dtypes]
every_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=str)


def counted(kernel: Kernel, case: Case, x, launch: Launch | None = None):
    """Runs one dispatch, compares with the reference; its counters."""
    (report,) = run_case(case, x, kernel.tile, (0, case.Lk), launch or Launch())
    return report.counters


def bytes_of_queries(kernel: Kernel, case: Case, splits: int = 1) -> int:
    return splits * case.B * case.Hq * case.Lq * case.D * kernel.itemsize


def bytes_of_keys(kernel: Kernel, case: Case, keys: int) -> int:
    return case.B * case.Hkv * keys * (case.D + case.v_dim) * kernel.itemsize


# --- What is read -----------------------------------------------------------------------------


@pytest.mark.parametrize("Hq, Lq", [(2, 1), (8, 2)], ids=("one row", "eight rows"))
@every_kernel
def test_each_key_and_value_is_read_once(kernel, Hq, Lq, rng):
    case = kernel.case(Hq=Hq, Hkv=2, Lq=Lq, Lk=2 * kernel.keys + 11)
    counters = counted(kernel, case, make(case, rng))
    assert counters.device_read_bytes == (
        bytes_of_queries(kernel, case) + bytes_of_keys(kernel, case, case.Lk)
    )


@every_kernel
def test_splits_read_no_more(kernel, rng):
    case = kernel.case(Hq=4, Hkv=1, Lq=2, Lk=3 * kernel.keys + 5)
    counters = counted(kernel, case, make(case, rng), Launch(splits=3))
    assert counters.device_read_bytes == (
        bytes_of_queries(kernel, case, splits=3) + bytes_of_keys(kernel, case, case.Lk)
    )


@every_kernel
def test_keys_outside_of_the_window_are_not_read(kernel, rng):
    case = kernel.case(Hq=2, Hkv=1, Lq=3, Lk=300, mask="causal", window=40)
    counters = counted(kernel, case, make(case, rng))
    assert counters.device_read_bytes == (
        bytes_of_queries(kernel, case) + bytes_of_keys(kernel, case, 40 + 2)
    )


@pytest.mark.parametrize("kind", ("bool", "additive"))
@every_kernel
def test_steps_that_the_mask_hides_are_not_read(kernel, kind, rng):
    """Left padding: of the padding only the mask is read, by each simdgroup that shares a key."""
    tile, padding = kernel.tile, 3 * kernel.tile.bk
    case = kernel.case(
        Hq=4, Hkv=1, Lq=1, Lk=padding + 2 * kernel.keys, mask=kind, mask_shape="11QK"
    )
    x = make(case, rng)
    seen = np.arange(case.Lk) >= padding
    x.mask = (seen if kind == "bool" else np.where(seen, 0.0, -np.inf)).reshape(1, 1, 1, -1)
    counters = counted(kernel, case, x)
    of_mask = case.Hq * case.Lk * (1 if kind == "bool" else kernel.itemsize)
    assert counters.device_read_bytes == (
        bytes_of_queries(kernel, case)
        + bytes_of_keys(kernel, case, case.Lk - padding)
        + tile.wd * of_mask
    )


# --- What it costs ----------------------------------------------------------------------------


@every_kernel
def test_multiplies_and_barriers(kernel, rng):
    """One multiply for 8 keys and 8 of D or DV; one barrier a step where simdgroups share keys."""
    tile, steps = kernel.tile, 3
    case = kernel.case(Hq=8, Hkv=1, Lq=1, Lk=steps * kernel.keys)
    counters = counted(kernel, case, make(case, rng))
    assert counters.multiplies == case.Lk // 8 * (tile.d_max + tile.dv_max) // 8
    rounds = ceil_div(tile.dv_max, 256 // tile.wm)  # in which the simdgroups' results are added up
    assert counters.threadgroup_barriers == 2 + (steps if tile.wd > 1 else 0) + 2 * rounds - 1
    assert counters.simdgroup_barriers == 0


# --- What it computes, up to the merged result ------------------------------------------------

FEATURES = {
    "one key": {"Hq": 2, "Lk": 1},
    "speculative": {"Hq": 2, "Lq": 4, "Lk": 70, "mask": "causal"},
    "speculative, of a group": {
        "Hq": 4,
        "Lq": 2,
        "Lk": 150,
        "mask": "causal",
        "window": 33,
        "softcap": 4.0,
    },
    "odd group": {"Hq": 6, "Lq": 2, "Lk": 45, "sinks": True},
    "padded batch": {"B": 2, "Hq": 4, "Lk": 90, "mask": "bool", "mask_shape": "B11K"},
    "additive": {
        "Hq": 4,
        "Lq": 2,
        "Lk": 90,
        "mask": "additive",
        "mask_shape": "BHQK",
        "mask_dtype": "float32",
    },
    "ring": {"Hq": 4, "Lk": 77, "k_layout": "ring", "v_layout": "ring"},
    "scalar loads": {
        "Hq": 4,
        "Lk": 40,
        "q_layout": "strided",
        "k_layout": "columns",
        "v_layout": "strided",
    },
}


@pytest.mark.parametrize("splits", (1, 3))
@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("tile", DECODE, ids=lambda tile: f"d{tile.d_max}-v{tile.dv_max}")
def test_features(tile, feature, splits, rng):
    """Each tile with each feature; the dtypes take turns. Split keys are merged by the kernel."""
    turn = DECODE.index(tile) + list(FEATURES).index(feature) + splits
    kernel = Kernel(tile, tile.dtypes[turn % len(tile.dtypes)])
    case = kernel.case(Hkv=2, **FEATURES[feature])
    x = make(case, rng)
    want, want_lse = of_keys(case, x, (0, case.Lk), True)
    part = kernels.attend(tile, case, x, Launch(splits=splits))
    reports = list(part.reports)
    out, lse = part.out[0], part.lse[0]
    if splits > 1:
        whole = kernels.merge(part.out, part.lse, out_dtype=case.dtype)
        reports += whole.reports
        out, lse = whole.out, whole.lse
    for report in reports:
        assert not report.findings
    check(out, want, case.tolerance)
    check_lse(lse, want_lse, case.tolerance)
