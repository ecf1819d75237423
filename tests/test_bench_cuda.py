"""The suite for NVIDIA GPUs, with the CPU in the GPU's place; its record is drawn and shown."""

from __future__ import annotations

import json
import re
import sys

import cuda_tables
import mlx.core as mx
import numpy as np
import pytest
from command_line import call, call_in_process
from mlx_sdpa_ext import attention
from mlx_sdpa_ext.bench import cuda, cuda_plot, growth, rows, side_by_side, suites
from mlx_sdpa_ext.bench.torch_beside import Torch
from mlx_sdpa_ext.cli import bench as command

SOME = r"D256 bfloat16|D\(192|gemm|read|growth"
WORKER = """
import json, sys
print(json.dumps({"torch": "9.9"}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if request["what"] == "die":
        sys.exit("no more")
    if request["what"] == "sleep":
        sys.stdin.read()
    if request.get("backend") == "cudnn":
        print(json.dumps({"error": "no such kernel"}), flush=True)
    else:
        print(json.dumps({"median_s": 2.0, "asked": request}), flush=True)
"""


@pytest.fixture(scope="module")
def record():
    """A quick record of some cases, as it is read from its file."""
    worker = Torch(sys.executable, ("-c", WORKER))
    with worker:
        results = [{"case": "torch", **worker.about}, *cuda._suite(True, SOME, worker)]
    where = {"gpu": "NVIDIA H100 80GB HBM3", "mlx": mx.__version__, "date": "2026-11-25"}
    made = {
        "suite": "cuda",
        "quick": False,
        "environment": where | {"device": "a CPU", "commit": "1234567"},
        "interrupted": False,
        "results": results,
    }
    return json.loads(json.dumps(made))


def by_case(record, case):
    return [result for result in record["results"] if result["case"] == case]


def test_the_cases_ask_for_all_that_is_compared():
    names = [str(case) for case in cuda.cases()]
    assert len(set(names)) == len(names)
    decode = [c for c in cuda.cases() if c.kind == "decode" and c.Lq == 1 and c.D == 256]
    assert sorted(c.Lk for c in decode) == sorted(cuda.LENGTHS)
    for case in cuda.cases():
        assert case.few_rows == (case.Lq <= 64)


@pytest.mark.parametrize("Lq, Lk, D, Dv", [(72, 80, 64, 64), (1, 90, 256, 256), (9, 70, 192, 128)])
def test_flops_are_those_of_the_router(Lq, Lk, D, Dv):
    case = cuda.Case("prefill", Lq, Lk, D, Dv)
    inputs = case.inputs()
    route = attention.explain(inputs.q, *inputs.rest, mask=case.mask)
    assert case.flops == route.flops
    assert inputs.kv_bytes == 2 * 2 * Lk * (D + Dv)


def test_a_chain_keeps_its_queries_of_one_size():
    case = cuda.Case("decode", 1, 4096, 256, 256)
    call, (first, second) = cuda.dense_calls(case)["ours"], (case.inputs(), case.inputs())
    q = first.q
    for i in range(12):
        q = call(q, *(first, second)[i % 2].rest)
    size = float(mx.sqrt(mx.mean(q.astype(mx.float32) ** 2)))
    assert size == pytest.approx(side_by_side.Q_SCALE, rel=0.5)


def test_the_suite_says_of_each_case_what_ran_and_how_fast(record):
    cases = by_case(record, "prefill") + by_case(record, "decode") + by_case(record, "quantized")
    assert {case["case"] for case in cases} == {"prefill", "decode", "quantized"}
    for case in cases:
        for side in (case["ours"], case["stock"]):
            assert 0 < side["best_s"] <= side["median_s"] <= side["worst_s"]
            assert side["tflops"] > 0 and side["gb_per_s"] > 0 and side["repeats"] == 3
            assert side["added_bytes"] >= 0
        assert case["speedup"] == pytest.approx(
            case["stock"]["median_s"] / case["ours"]["median_s"]
        )
        assert case["taken"]
        if case["case"] == "quantized":
            assert "torch" not in case
        else:
            assert case["route"]["kernel"]
            flash, cudnn = case["torch"]["flash"], case["torch"]["cudnn"]
            assert flash["tflops"] == pytest.approx(case["flops"] / 2e12)
            assert flash["asked"]["Lk"] == case["Lk"]
            assert cudnn == {"error": "no such kernel"}
    ceilings = by_case(record, "ceiling")
    assert {(c["name"], c["by"]) for c in ceilings} == {
        (name, by) for name in ("gemm", "read") for by in ("mlx", "torch")
    }
    assert all(re.search(SOME, cuda.row(result)[0]) for result in record["results"][1:])


def test_without_torch_the_record_says_so():
    first, *rest = cuda.suite(True, only="ceiling gemm")
    assert first["case"] == "torch" and "--torch" in first["error"]
    assert [(r["case"], r["by"]) for r in rest] == [("ceiling", "mlx")]
    first, *rest = cuda.suite(True, only="ceiling gemm", torch="/no/such/python")
    assert "/no/such/python" in first["error"]
    assert [r["by"] for r in rest] == ["mlx"]


def test_a_torch_that_ends_or_hangs_is_an_error_and_no_more():
    with Torch(sys.executable, ("-c", WORKER)) as torch:
        assert torch.about == {"torch": "9.9"}
        assert torch.ask(what="gemm")["asked"] == {"what": "gemm"}
        assert "no more" in torch.ask(what="die")["error"]
        assert "no more" in torch.ask(what="gemm")["error"]
    with Torch(sys.executable, ("-c", WORKER)) as torch:
        torch.limit = 0.2
        assert "no answer" in torch.ask(what="sleep")["error"]


def test_a_side_that_fails_is_an_error_beside_the_other():
    def fails(q, k, v):
        raise RuntimeError("[malloc] Unable to allocate 9 bytes.\nmore")

    case = cuda.Case("decode", 1, 64, 64, 64)
    ours = cuda.dense_calls(case)["ours"]
    found = side_by_side.side_by_side({"ours": ours, "stock": fails}, [case.inputs()], True, 2)
    assert found["stock"] == {"error": "[malloc] Unable to allocate 9 bytes."}
    assert found["ours"]["median_s"] > 0


@pytest.mark.parametrize("name", growth.RUNS)
def test_a_cache_that_grows(name):
    found = growth.RUNS[name](quick=True)
    assert found["to"] == found["from"] + found["by"] * len(found["step_seconds"])
    assert found["max_over_median"] >= 1 and found["attention_max_over_median"] >= 1
    assert all(a < s for a, s in zip(found["attention_seconds"], found["step_seconds"]))
    assert growth.WARM_UP <= found["slowest_step"] < len(found["step_seconds"])


def test_the_record_is_drawn(record, tmp_path):
    cuda_plot.plot(record, tmp_path / "cuda.png")
    assert (tmp_path / "cuda.png").read_bytes().startswith(b"\x89PNG")
    assert [r["Lk"] for r in cuda_plot.curve(record)] == sorted(
        r["Lk"] for r in cuda_plot.curve(record)
    )
    assert all(value > 0 for value in cuda_plot.ceiling(record, "gemm", "tflops").values())
    for result in record["results"]:
        if "stock" in result:
            result = {**result, "stock": {"error": "out of memory"}}
            assert "tflops" not in cuda_plot.side_of(result, "stock")
    cuda_plot.plot({**record, "results": []}, tmp_path / "empty.png")


def test_the_record_is_shown(record, tmp_path):
    assert "Not measured yet" in cuda_tables.cuda(tmp_path, tmp_path)
    path = tmp_path / "cuda-h100.json"
    path.write_text(json.dumps({**record, "quick": True}))
    assert "Not measured yet" in cuda_tables.cuda(tmp_path, tmp_path)
    path.write_text(json.dumps(record))
    shown = cuda_tables.cuda(tmp_path, tmp_path)
    lines = [line for line in shown.splitlines() if line.startswith("|")]
    count = sum(r["case"] in ("prefill", "decode", "quantized") for r in record["results"])
    assert len(lines) == count + 2
    assert len({line.count("|") for line in lines}) == 1
    for text in ("PyTorch flash", "4-bit K and V", "At most", "A cache that grows", "H100"):
        assert text in shown
    assert "![" not in shown
    (tmp_path / "cuda-h100.png").touch()
    assert cuda_tables.cuda(tmp_path, tmp_path).startswith("![")


def test_a_record_without_torch_or_stock_is_shown(record, tmp_path):
    results = [
        {**{k: v for k, v in r.items() if k not in ("torch", "speedup")}, "stock": {"error": "oom"}}
        for r in by_case(record, "prefill")
    ]
    (tmp_path / "cuda-x.json").write_text(json.dumps({**record, "results": results}))
    shown = cuda_tables.cuda(tmp_path, tmp_path)
    assert "PyTorch" not in shown and "| oom |" in shown


def test_what_is_written_is_whole_and_named_after_the_gpu(tmp_path):
    out = tmp_path / "x.json"
    for n in range(2):
        command.write({"n": n}, out)
    assert json.loads(out.read_text()) == {"n": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    assert suites.record_name("cuda", "NVIDIA H100 80GB HBM3") == "cuda-h100-80gb-hbm3"
    assert suites.record_name("cpu", None) == "cpu"


@pytest.mark.skipif(mx.cuda.is_available(), reason="there is a GPU")
def test_without_an_nvidia_gpu(tmp_path):
    done = call("bench", "cuda", "--quick", cwd=tmp_path)
    assert done.returncode == 2
    assert "this MLX has no NVIDIA GPU" in done.stderr


def test_an_interrupted_suite_leaves_what_was_finished(tmp_path, monkeypatch, capsys):
    def interrupted(options):
        yield {"case": "torch", "error": "none"}
        raise KeyboardInterrupt

    suite = suites.Suite("", interrupted, "cpu", rows.CPU_TITLES, rows.cpu_row)
    monkeypatch.setitem(suites.SUITES, "cpu", suite)
    code, said, _ = call_in_process(capsys, "bench", "cpu", "--out", str(tmp_path))
    assert code == 130 and "torch" in said
    record = json.loads((tmp_path / "cpu.json").read_text())
    assert record["interrupted"] and len(record["results"]) == 1


def test_a_slope_that_something_held_up():
    taken = iter([2.0, 3.0, 2.0, 1.0])
    assert side_by_side.slope(lambda calls: next(taken), 2) == 0.5
    assert side_by_side.slope(lambda calls: next(taken), 2) == 0.25
    assert side_by_side.summary([1.0, 2.0, 3.0])["median_s"] == 2.0
    assert np.isfinite(side_by_side.summary([1.0])["quartiles_s"]).all()
