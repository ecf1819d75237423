"""CPU kernels and the thread pool under ASan, UBSan and TSan.

The plainest and the best instruction set that runs here; tools/run_sanitizers.sh runs the whole
extension.
"""

from __future__ import annotations

import pytest
from mlx_sdpa_ext import _ext
from sanitizers import FAULTS, MEMORY, ROOT, THREADS, flags_of, has, report

ISAS = _ext.cpu()["isas"]
BEST, PLAIN = ISAS[0], ISAS[-1]
# Tile registers in software need what the kernels around them are compiled for.
IN_SOFTWARE = ["amx_in_software"] if "avx512bf16" in ISAS else []


def needs(sanitizer: str) -> None:
    if not has(sanitizer):
        pytest.skip(f"the C++ compiler has no runtime of -fsanitize={sanitizer}")


def seed_of(rng) -> int:
    return int(rng.integers(2**31))


@pytest.mark.parametrize("isa", sorted({BEST, PLAIN, *IN_SOFTWARE}))
def test_no_call_breaks_the_rules_of_memory_or_arithmetic(isa, tmp_path, rng):
    needs(MEMORY)
    flags = flags_of("avx512bf16" if isa in IN_SOFTWARE else isa)
    if isa in IN_SOFTWARE:
        flags += ["-include", str(ROOT / "tests/amx_tiles.h")]
    assert report(tmp_path, MEMORY, isa, flags=flags, seed=seed_of(rng)) == ""


def test_threads_share_nothing_without_a_lock(tmp_path, rng):
    needs(THREADS)
    assert report(tmp_path, THREADS, BEST, flags=flags_of(BEST), seed=seed_of(rng)) == ""


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_reported(fault, tmp_path):
    needs(fault.sanitizer)
    assert fault.reported in report(tmp_path, fault.sanitizer, PLAIN, fault, flags_of(PLAIN))
