"""The suites of `mlx-sdpa-ext bench` run; what they measure is asserted nowhere."""

from __future__ import annotations

import json
from functools import partial
from itertools import islice

import mlx.core as mx
import pytest
from command_line import call, call_in_process
from mlx_sdpa_ext import attention
from mlx_sdpa_ext.bench import (
    context,
    context_plot,
    cpu,
    cpu_plot,
    cpu_quantized,
    metal,
    rows,
    suites,
    training,
)
from mlx_sdpa_ext.bench.beside import beside_stock, chained_operands
from mlx_sdpa_ext.bench.between_reads import PARTS, REPEATS, BetweenReads, take_turns
from mlx_sdpa_ext.bench.measure import environment
from mlx_sdpa_ext.bench.side_by_side import Inputs


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
    packed = list(cpu_quantized.beside_float16(quick=True))
    assert [(r["case"], r["bits"]) for r in packed[-2:]] == [
        ("quantized prefill", b) for b in (8, 4)
    ]
    assert all(r["added_bytes"] <= r["float16_added_bytes"] for r in packed[-2:])
    found = [*islice(cpu.speed(quick=True), 4), *cpu.growth(quick=True), *packed]
    assert found[0]["case"] == "torch" and "--torch" in found[0]["error"]
    assert [r["dtype"] for r in found[1:4]] == ["float32", "bfloat16", "float16"]
    assert {r["q"][2] for r in found[4:]} == {1, cpu.LONG[0], 128}
    side = {"median_s": 1.0, "gflops": 2.0, "backend": "math"}
    found[1] |= {"torch": side, "over_torch": 3.0}
    peak = {"case": "ceiling", "name": "gemm", "by": "torch", "n": 9, "dtype": "float32"}
    found += [peak | {"gflops": 5.0, "median_s": 1.0}, peak | {"error": "no memory"}]
    for result in found:
        assert len(rows.cpu_row(result)) == len(rows.CPU_TITLES)
    record = {"environment": environment(), "results": found}
    cpu_plot.plot(record, tmp_path / "cpu.png")
    assert (tmp_path / "cpu.png").read_bytes().startswith(b"\x89PNG")


def test_decode_steps_take_turns_and_are_compared_with_the_reads_beside_them():
    asked = []

    def call(name):
        q, k, v = chained_operands(4, 1, 1, 256, 64, 64, "float32")
        run = partial(attention.scaled_dot_product_attention, scale=0.125)
        rate = lambda: asked.append(name) or 1.0 + len(asked)  # noqa: E731
        return (q, k, v), BetweenReads(run, [Inputs(q, (k, v))] * 2, rate)

    (arrays, one), (_, other) = call("one"), call("other")
    take_turns([one, other])
    assert asked == ["one", "one", "other", "other"] * PARTS
    found = beside_stock("decode", arrays, None, 1, 0, taken=one.result())
    assert found["read_gb_per_s"][:2] == [(2.0, 3.0), (6.0, 7.0)]
    assert found["ours"]["repeats"] == PARTS * REPEATS
    assert len(found["of_reads"]) == PARTS and min(found["of_reads"]) > 0
    assert found["of_read"] == sorted(found["of_reads"])[PARTS // 2]
    assert "% of reading" in rows.cpu_row(found)[2]


def test_the_command_writes_a_table_json_and_a_picture(tmp_path):
    done = call("bench", "quick", "--quick", "--out", "x", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "prefill bfloat16" in done.stdout and "decode bfloat16" in done.stdout
    record = json.loads((tmp_path / "x" / "quick.json").read_text())
    assert not record["interrupted"] and record["environment"]["mlx"] == mx.__version__
    for result in record["results"]:
        assert result["ours"]["median_s"] > 0 and result["stock"]["median_s"] > 0
    assert (tmp_path / "x" / "quick.png").read_bytes().startswith(b"\x89PNG")
    done = call("bench", "--compare", *[tmp_path / "x" / "quick.json"] * 2)
    assert done.returncode == 0 and done.stdout.count("1.00x") == len(record["results"])


def test_the_context_suite(tmp_path):
    found = list(context.suite(quick=True, limit=60))
    assert [(r["q"][2], r["k"][2]) for r in found] == [
        (rows, keys) for rows in context.QUICK_ROWS for keys in context.QUICK_LENGTHS
    ]
    for result in found:
        assert result["route"]["path"] == "fused" and result["speedup"] > 0
        assert len(context.row(result)) == len(context.TITLES)
    assert found[2]["stock"]["added_bytes"] > found[0]["stock"]["added_bytes"]
    found[-1]["stock"] = {"error": "no memory"}
    found[-1].pop("speedup")
    assert "no memory" in context.row(found[-1])[2]
    record = {"environment": environment(), "results": found}
    context_plot.plot(record, tmp_path / "context.png")
    assert (tmp_path / "context.png").read_bytes().startswith(b"\x89PNG")


def test_stock_is_measured_as_far_as_its_time_goes():
    stock = context.Stock(limit=10.0)
    zero = mx.zeros((8,))
    assert "median_s" in stock.measured(100, lambda: zero + 1, [zero])
    stock.by_key = 0.2
    assert stock.measured(1000, lambda: zero + 1, [zero]) == {"not_run_expected_s": 200.0}

    def fails():
        raise RuntimeError("[malloc] no memory\nmore")

    stock.by_key = 0.0
    assert stock.measured(1, fails, [zero]) == {"error": "[malloc] no memory"}


def test_every_suite_is_listed_and_says_what_it_needs(capsys, monkeypatch):
    code, said, _ = call_in_process(capsys, "bench")
    assert code == 0 and all(f"{name} " in said for name in suites.SUITES)
    monkeypatch.setattr("mlx_sdpa_ext.cli.bench.find_spec", lambda name: None)
    code, _, errors = call_in_process(capsys, "bench", "soak")
    assert code == 1 and "pip install 'mlx-sdpa-ext[bench]'" in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nothing",), "'nothing' is none of the suites quick, context"),
        (("cpu", "--only", "x"), "--only means nothing to the suite cpu"),
        (("models", "--only", "("), "not a regular expression"),
        (("models", "--limit", "0"), "--limit is 0"),
        (("cpu", "--compare", "a", "b"), "leave the suite out"),
        (("quick", "--out", "/dev/null/x"), "cannot write to --out /dev/null/x"),
    ],
)
def test_a_benchmark_asked_wrongly(arguments, words, capsys):
    code, said, errors = call_in_process(capsys, "bench", *arguments)
    assert code == 2 and said == ""
    assert words in errors and errors.count("\n") == 1
