"""What is concluded from timings: thresholds of the router, and only beyond noise."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_sdpa_ext import device, limits
from mlx_sdpa_ext.calibration import fit as fitting
from mlx_sdpa_ext.calibration import profile
from mlx_sdpa_ext.calibration.fit import Measured, Seconds, fit
from mlx_sdpa_ext.calibration.grid import Call, calls
from mlx_sdpa_ext.words import Device

M4_MAX = Device.named("applegpu_g16s", memory=36 << 30, tiles=device.tiles())
M5_MAX = Device.named("applegpu_g17s", memory=64 << 30, tiles=device.tiles())
SHIPPED = limits.of(M4_MAX)
NOISE = 0.03
DIMS, KEYS = (128, 192, 256, 512), (2048, 8192, 32768)
THRESHOLDS = (*fitting.DIMS, *fitting.FLAGS)
GRID = [
    Call(D, D, Lq, Lk, 16, Hkv, "bfloat16")
    for D in DIMS
    for Lq in (1, 16, 48, 2048)
    for Lk in KEYS
    for Hkv in (2, 16)
]


def around(seconds: float, chance: random.Random, spread: float) -> Seconds:
    """A median, off by up to half of `spread`, with quartiles around it."""
    median = seconds * (1 + chance.uniform(-spread, spread) / 2)
    return Seconds(median, median * (1 - spread / 4), median * (1 + spread / 4))


def timings(truth, chance, spread=NOISE / 4, slower=1.5, where=M4_MAX):
    """Of a machine on which the router with the limits `truth` is right about every call."""
    made = []
    for call in GRID:
        best = fitting.chosen(call.problem, where, truth)
        base = 1e-12 * call.flops
        paths = {
            path: around(base * (1 if path == best else slower), chance, spread)
            for path in ("fused", "unfused", "stock")
        }
        made.append(Measured(call.problem, paths))
    return made


truths = st.builds(
    lambda **changed: SHIPPED._replace(**changed),
    fused_dim=st.sampled_from((0, 128, 192, 256)),
    unfused_dim=st.sampled_from((192, 256, 512)),
    fused_min_keys=st.sampled_from((0, 4096, 16384, 10**6)),
    middle_rows=st.sampled_from((0, 16, 48)),
    decode_over_stock=st.booleans(),
    prefill_over_stock=st.booleans(),
)


@settings(deadline=None, max_examples=30)
@given(truths, st.integers(0, 99))
def test_a_machine_that_some_thresholds_describe_gets_such(truth, seed):
    found = fit(timings(truth, random.Random(seed)), M4_MAX, SHIPPED, NOISE)
    mine = SHIPPED._replace(**{name: value.value for name, value in found.values.items()})
    for call in GRID:
        best = fitting.chosen(call.problem, M4_MAX, truth)
        assert fitting.chosen(call.problem, M4_MAX, mine) == best, call
    assert found.cost == 0
    assert found.values.keys() | set(found.undecided) == set(THRESHOLDS)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6))
def test_noise_decides_nothing(seed):
    """Whichever path happens to be ahead, by less than noise."""
    chance = random.Random(seed)
    measured = timings(SHIPPED, chance, spread=0.9 * NOISE, slower=1.0)
    found = fit(measured, M4_MAX, SHIPPED, NOISE)
    assert found.values == {} and set(found.undecided) == set(THRESHOLDS)
    assert found.cost == found.shipped_cost == 0


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.booleans())
def test_it_never_costs_more_than_the_shipped_ones(seed, accelerated):
    """Also on a machine that no thresholds describe."""
    chance, where = random.Random(seed), M5_MAX if accelerated else M4_MAX
    shipped = limits.of(where)
    measured = [
        Measured(
            call.problem,
            {p: around(chance.uniform(1, 3), chance, NOISE) for p in ("fused", "unfused", "stock")},
        )
        for call in chance.sample(GRID, 40)
    ]
    found = fit(measured, where, shipped, NOISE)
    assert 0 <= found.cost <= found.shipped_cost
    for name, value in found.values.items():
        assert value.shipped == int(getattr(shipped, name)) and value.calls > 0
    changed = [name for name, value in found.values.items() if value.value != value.shipped]
    assert bool(changed) == (found.cost < found.shipped_cost - 1e-12)


def test_a_difference_counts_beyond_noise_and_apart_by_quartiles():
    fast = Seconds(1.0, 0.99, 1.01)
    assert fitting.slower(Seconds(1.1, 1.09, 1.11), fast, 0.05)
    assert not fitting.slower(Seconds(1.1, 1.09, 1.11), fast, 0.2)
    assert not fitting.slower(Seconds(1.1, 1.0, 1.2), fast, 0.05)
    assert not fitting.slower(fast, fast, 0.0)
    m = Measured(GRID[0].problem, {"fused": fast, "unfused": Seconds(2.0, 1.9, 2.1)})
    assert fitting.cost(m, "unfused", 0.05) == pytest.approx(math.log(2))
    assert fitting.cost(m, "fused", 0.05) == fitting.cost(m, "chunked", 0.05) == 0


def test_a_path_that_was_left_out_is_as_slow_as_it_was():
    sides = {
        "fused": {"median_s": 2.0, "quartiles_s": [1.9, 2.1]},
        "stock": {"skipped": "slow", "at_least": 8.0},
        "unfused": {"error": "no memory"},
    }
    points = [{"call": GRID[0]._asdict(), "sides": sides}, {"call": GRID[0]._asdict(), "sides": {}}]
    (found,) = profile.measured(points)
    assert found.paths == {"fused": Seconds(2.0, 1.9, 2.1), "stock": Seconds(16.0, 16.0, 16.0)}


@pytest.mark.parametrize("backend", ("cpu", "metal", "cuda"))
@pytest.mark.parametrize("quick", (False, True))
def test_the_grid_goes_from_little_work_to_much(backend, quick):
    found = calls(backend, quick)
    assert len(set(found)) == len(found)
    assert [call.flops for call in found] == sorted(call.flops for call in found)
    assert {call.decodes for call in found} == {True, False}
    assert all(call.Lk >= call.Lq for call in found)
