"""Negative controls: each fault planted in the kernels is caught, by the check that has to."""

from __future__ import annotations

import pytest
from metal_checks import PROBES
from metal_faults import FAULTS, caught

pytestmark = [pytest.mark.metal, pytest.mark.emulator]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_caught(fault):
    found = caught(fault)
    assert fault.caught_by in found, f"caught by {sorted(found) or 'nothing'}"


@pytest.mark.parametrize("probes", PROBES)
def test_the_kernels_as_they_ship_pass_all_checks(probes):
    assert caught(None, probes) == {}


def test_there_are_enough_faults():
    assert len(FAULTS) >= 25
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
