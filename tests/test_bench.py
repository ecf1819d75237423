"""The suites of `mlx-sdpa-ext bench` run; what they measure is asserted nowhere."""

from __future__ import annotations

import json
from itertools import islice

import mlx.core as mx
import pytest
from command_line import call
from mlx_sdpa_ext.bench import cpu, cpu_plot, metal, rows, training
from mlx_sdpa_ext.bench.measure import environment


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
def test_the_metal_suite_without_a_gpu(tmp_path):
    done = call("bench", "metal", "--quick", cwd=tmp_path)
    assert done.returncode == 2
    assert "this MLX has no Metal GPU" in done.stderr


def test_a_record_says_where_it_was_taken():
    record = environment()
    assert json.loads(json.dumps(record)) == record
    assert record["mlx"] == mx.__version__
    assert record["device"]


def test_the_cpu_suite(tmp_path):
    """Without PyTorch; what it shows and draws, also of results that PyTorch has part in."""
    found = [*islice(cpu.speed(quick=True), 4), *cpu.growth(quick=True)]
    assert found[0]["case"] == "torch" and "--torch" in found[0]["error"]
    assert [r["dtype"] for r in found[1:4]] == ["float32", "bfloat16", "float16"]
    assert {r["q"][2] for r in found[4:]} == {1, cpu.LONG[0]}
    side = {"median_s": 1.0, "gflops": 2.0, "backend": "math"}
    found[1] |= {"torch": side, "over_torch": 3.0}
    peak = {"case": "ceiling", "name": "gemm", "by": "torch", "n": 9, "dtype": "float32"}
    found += [peak | {"gflops": 5.0, "median_s": 1.0}, peak | {"error": "no memory"}]
    for result in found:
        assert len(rows.cpu_row(result)) == len(rows.CPU_TITLES)
    record = {"environment": environment(), "results": found}
    cpu_plot.plot(record, tmp_path / "cpu.png")
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")
