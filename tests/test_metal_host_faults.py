"""Negative controls: each fault planted in the Metal backend's host code is caught."""

from __future__ import annotations

import pytest
from metal_host_faults import HOST_FAULTS, caught

pytestmark = [pytest.mark.metal, pytest.mark.emulator]


@pytest.mark.parametrize("fault", HOST_FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_caught(fault):
    found = caught(fault)
    assert fault.caught_by in found, f"caught by {sorted(found) or 'nothing'}"


def test_the_host_code_as_it_ships_passes_all_probes():
    for probes in {fault.probes for fault in HOST_FAULTS}:
        assert caught(None, probes) == {}, probes


def test_the_faults_have_names_of_their_own():
    assert len({fault.name for fault in HOST_FAULTS}) == len(HOST_FAULTS)
