"""The suite of whole models runs, on the CPU and with little around the attention."""

from __future__ import annotations

import json
import sys

import cuda_tables
import numpy as np
import pytest
from mlx_sdpa_ext.bench import models
from mlx_sdpa_ext.bench.model_configs import MODELS, SIZES, config_of

TINY = {"contexts": (64, 128), "step": 32, "decode": 4, "small": True}


@pytest.fixture(scope="module")
def result():
    (found,) = models.suite(True, only="D512", **TINY)
    return json.loads(json.dumps(found))


def test_both_sides_prefill_and_decode(result):
    for side in (result["ours"], result["stock"]):
        assert "error" not in side
        assert [point["context"] for point in side["points"]] == [64, 128]
        assert len(side["step_seconds"]) == 4
        assert side["decode"]["tokens"] == 4 and side["decode"]["context"] == 128
        assert all(p["peak_bytes"] > p["cache_bytes"] > 0 for p in side["points"])
    assert {route["provider"] for route in result["ours"]["routes"]} == {"ext"}
    assert "routes" not in result["stock"]
    agreement = result["agreement"]
    assert [found["context"] for found in agreement["contexts"]] == [64, 128]
    decoded = agreement["decode"]
    assert decoded["max_abs"] < 0.2 * decoded["max_abs_logit"]
    assert all(margin <= 2 * decoded["max_abs"] for margin in decoded["margins"])
    errors = result["errors"]
    assert errors["context"] == 64
    assert 0 < errors["ours"] < 2 * errors["stock"] < 0.1 * errors["exact"]
    assert result["speedup"].keys() == {"context", "prefill", "decode"}
    assert len(models.row(result)) == len(models.TITLES)


def test_out_of_time_is_a_result():
    (found,) = models.suite(True, only="MLA", limit=0.001, **TINY)
    for side in (found["ours"], found["stock"]):
        assert side["points"] == [] and side["decode"] is None
        assert len(side["step_seconds"]) == 1
        assert side["not_run_expected_seconds"].keys() == {"64", "128"}
    assert found["speedup"] == {}
    assert found["agreement"] == {"contexts": [], "decode": None}
    assert found["errors"] is None


def test_a_process_that_dies_or_hangs_is_a_result(tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    monkeypatch.setattr(models, "WORKER", (sys.executable, str(worker)))
    task = {"out": str(tmp_path / "ours.json"), "limit": 0}
    worker.write_text("raise SystemExit('[malloc] no memory')")
    found, arrays = models.run(task)
    assert found["error"] == "ended with 1: [malloc] no memory"
    assert found["points"] == [] and arrays == {}
    worker.write_text("import time; time.sleep(60)")
    monkeypatch.setattr(models, "GRACE", 0.3)
    assert models.run(task)[0]["error"] == "ended after 0.3 s"


def test_what_is_equal_and_how_far_the_rest_was():
    stock = np.array([[0.0, 1.0, 3.0], [2.0, 1.0, 0.0]])
    ours = np.array([[0.0, 1.0, 3.5], [2.0, 2.5, 0.0]])
    found = models.differ(ours, stock)
    assert (found["tokens"], found["equal"], found["margins"]) == (2, 1, [1.0])
    assert (found["max_abs"], found["max_abs_logit"]) == (1.5, 3.0)


@pytest.mark.parametrize("name", MODELS)
def test_real_sizes(name):
    assert config_of(name).items() >= SIZES.items()
    assert config_of(name)["num_attention_heads"] == 16


def test_the_record_is_shown(result, tmp_path):
    assert "Not measured yet" in cuda_tables.models(tmp_path)
    where = {"gpu": "NVIDIA H100", "mlx": "0.32.4", "date": "2026-11-25", "commit": "1234567"}
    failed = {**result, "stock": {"points": [], "decode": None, "error": "out of memory"}}
    failed = {**failed, "agreement": {"contexts": [], "decode": None}, "errors": None}
    record = {"quick": False, "interrupted": False, "environment": where}
    record["results"] = [result, failed]
    (tmp_path / "models-h100.json").write_text(json.dumps(record))
    shown = cuda_tables.models(tmp_path)
    lines = [line for line in shown.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + 2 * 2
    assert "4 of 4" in shown or "of 4, logits" in shown
    assert "out of memory" in shown
