"""The suites of bench/ run; what they measure is asserted nowhere."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path

import mlx.core as mx
import pytest

BENCH = Path(__file__).parents[1] / "bench"
sys.path.append(str(BENCH))

import metal  # noqa: E402
import training  # noqa: E402


def test_the_metal_suite_with_the_cpu_in_the_place_of_the_gpu():
    prefill, few, decode = islice(metal.speed(quick=True), 3)
    assert [result["q"][2] for result in (prefill, few, decode)] == [256, 24, 1]
    for result in (prefill, few, decode):
        assert result["path"] == "fused"
        assert result["kernel"].startswith("sdpa_")
        assert result["speedup"] > 0


def test_the_training_suite():
    """Every length has both sides, and its row can be shown."""
    found = list(training.gradients(quick=True))
    assert [result["q"][2] for result in found] == [256, 512]
    for result in found:
        assert result["ours"]["added_bytes"] > 0
        assert result["stock"]["added_bytes"] > 4 * 2 * result["q"][2] ** 2  # the scores
        assert len(training.row(result)) == len(training.TITLES)


@pytest.mark.skipif(mx.metal.is_available(), reason="there is a GPU")
def test_the_metal_suite_without_a_gpu():
    done = subprocess.run(
        [sys.executable, BENCH / "run.py", "metal", "--quick"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "this MLX has no Metal GPU" in done.stderr


def test_a_record_says_where_it_was_taken():
    from measure import environment

    record = environment()
    assert json.loads(json.dumps(record)) == record
    assert record["mlx"] == mx.__version__
    assert record["device"]
