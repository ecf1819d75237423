"""`doctor --selftest` on a Metal device: kernels that ship, run and compared."""

from __future__ import annotations

import pytest
from metal_pool import ON_GPU
from mlx_sdpa_ext import attention, selfcheck
from mlx_sdpa_ext.cli import selftest

pytestmark = pytest.mark.metal


@pytest.mark.parametrize("name", ("sdpa_decode_float16_d64_", "sdpa_middle_float32_d128_"))
def test_a_kernel_passes_in_every_feature(name):
    place = attention.place_of(None)
    assert place.device.software is not ON_GPU
    place.gate.open()
    (row,) = selftest.selftest(place.device, place.limits, name)
    assert row["kernel"].startswith(name)
    assert set(row["features"]) == set(selftest.FEATURES)
    for feature, result in row["features"].items():
        assert result["error"] == "", feature
        assert 0 < result["difference"] <= selfcheck.ATOL[name.split("_")[2]], feature
