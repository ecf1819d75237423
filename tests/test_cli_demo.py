"""`demo` measures both attentions in mlx-lm's own prefill, and keeps what is finished."""

from __future__ import annotations

import json
import signal
import struct

import mlx.core as mx
import numpy as np
import pytest
import typer
from command_line import call, call_in_process
from mlx.utils import tree_flatten
from mlx_sdpa_ext.cli import demo, models
from mlx_sdpa_ext.cli import prefill as prefills
from mlx_sdpa_ext.cli.prefill import (
    Point,
    Prefill,
    combine,
    predict,
    prefill,
    without_attention,
)

TINY = ("--contexts", "32,64,96", "--step", "32", "--dtype", "float32")
KINDS = ("rest", "ours", "stock")
COMPLETE = {"seconds", "tokens_per_second", "peak_bytes", "cache_bytes", "attention_seconds"}


@pytest.fixture(scope="module")
def model():
    return models.small_model("float32")


@pytest.fixture(scope="module")
def prompt(model):
    return mx.random.randint(0, model.vocab_size, (97,))


def png_size(path):
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", head[16:])


def settings(folder, **changed):
    options = {
        "model": None, "contexts": "32,64,96", "budget": 60.0, "out": folder,
        "dtype": "float32", "step": 32, "stock": True,
    }  # fmt: skip
    return demo.Settings.parse(**{**options, **changed})


def test_measures_both_and_writes_everything(tmp_path):
    ours = call("demo", *TINY, "--out", tmp_path / "new/folder")
    assert ours.returncode == 0, ours.stderr
    record = json.loads((tmp_path / "new/folder/demo.json").read_text())
    assert [row["context"] for row in record["contexts"]] == [32, 64, 96]
    for row in record["contexts"]:
        assert row["stock"].keys() == row["ours"].keys() == COMPLETE
        assert all(row[name]["peak_bytes"] > row[name]["cache_bytes"] > 0 for name in KINDS)
        assert row["logit_difference"]["max_abs"] < 1e-3 < row["logit_difference"]["max_abs_logit"]
        assert row["logit_difference"]["same_next_token"]
    assert record["attention"]["head_dims"] == [[256, 256]]
    assert record["attention"]["heads"] == 4
    assert record["attention"]["kv_heads"] == 1
    assert sum(route["calls"] for route in record["routes"]) > 0
    if record["device"]["backend"] == "cpu":
        assert {route["provider"] for route in record["routes"]} == {"ext"}
    assert record["step_seconds"].keys() == set(KINDS)
    for passes in record["step_seconds"].values():
        assert [len(steps) for steps in passes] == [3, 3, 3]
    assert record["versions"]["mlx"] == mx.__version__
    assert not record["interrupted"]
    width, height = png_size(tmp_path / "new/folder/demo.png")
    assert width > height > 500
    for text in ("stock", "ours", "tokens/s", "demo.json", "demo.png"):
        assert text in ours.stdout


def test_contexts_beyond_the_budget_are_left_out_and_said(tmp_path, capsys, monkeypatch):
    seconds = iter(np.arange(1000.0) * 10)
    monkeypatch.setattr(prefills.time, "perf_counter", lambda: float(next(seconds)))
    assert demo.demo(settings(tmp_path, budget=1e-3)) == 0
    record = json.loads((tmp_path / "demo.json").read_text())
    first, *others = record["contexts"]
    assert first["ours"]["seconds"] > 0
    assert all(row["ours"]["not_run_expected_seconds"] > first["ours"]["seconds"] for row in others)
    output = capsys.readouterr().out
    assert "not run" in output
    assert "stock was not run at 64 tokens and above" in output


def test_interrupt_keeps_what_is_finished(tmp_path, capsys, monkeypatch):
    def interrupted(*args, on_progress=lambda tokens: None, result=None, **kwargs):
        def progress(tokens):
            on_progress(tokens)
            if result and tokens == 64 and mx.fast.scaled_dot_product_attention is stock:
                signal.raise_signal(signal.SIGINT)

        return prefill(*args, on_progress=progress, result=result, **kwargs)

    stock = mx.fast.scaled_dot_product_attention
    monkeypatch.setattr(prefills, "prefill", interrupted)
    assert demo.demo(settings(tmp_path)) == 130
    record = json.loads((tmp_path / "demo.json").read_text())
    assert record["interrupted"]
    assert ["stock" in row for row in record["contexts"]] == [True, True, False]
    assert all("ours" in row for row in record["contexts"])
    png_size(tmp_path / "demo.png")
    assert "interrupted" in capsys.readouterr().out
    assert mx.fast.scaled_dot_product_attention is stock


@pytest.mark.parametrize(("failing", "code"), [("stock", 0), ("ours", 1)])
def test_a_failure_is_a_note_and_the_rest_is_kept(tmp_path, capsys, monkeypatch, failing, code):
    def fails(*args, on_progress=lambda tokens: None, result=None, **kwargs):
        def progress(tokens):
            on_progress(tokens)
            is_stock = mx.fast.scaled_dot_product_attention is stock
            is_ours = hasattr(mx.fast.scaled_dot_product_attention, "__wrapped__")
            if result and tokens == 64 and (is_stock if failing == "stock" else is_ours):
                raise RuntimeError("[malloc] Unable to allocate 9 bytes.\nmore")

        return prefill(*args, on_progress=progress, result=result, **kwargs)

    stock = mx.fast.scaled_dot_product_attention
    monkeypatch.setattr(prefills, "prefill", fails)
    assert demo.demo(settings(tmp_path)) == code
    record = json.loads((tmp_path / "demo.json").read_text())
    assert record["failed"] == bool(code)
    assert [failing in row for row in record["contexts"]] == [True, True, False]
    other = "ours" if failing == "stock" else "stock"
    assert all(other in row for row in record["contexts"])
    name = demo.TASKS[failing]
    note = f"{name} failed after 2 steps: [malloc] Unable to allocate 9 bytes."
    assert record["notes"] == [note]
    assert note in capsys.readouterr().out.replace("\n", " ")


def test_reads_a_model_from_a_folder(tmp_path, model):
    (tmp_path / "config.json").write_text(json.dumps(models.SMALL_GEMMA3))
    mx.save_safetensors(
        str(tmp_path / "model.safetensors"), dict(tree_flatten(model.module.parameters()))
    )
    read = models.read_model(tmp_path)
    assert (read.family, read.dtype, read.parameters) == (
        "gemma3_text",
        "float32",
        model.parameters,
    )
    assert models.read_model(tmp_path, "float16").dtype == "float16"
    assert demo.demo(settings(tmp_path / "out", model=tmp_path, dtype=None, stock=False)) == 0
    record = json.loads((tmp_path / "out/demo.json").read_text())
    assert record["model"]["name"] == tmp_path.name
    assert all("ours" in row and "stock" not in row for row in record["contexts"])


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "no such folder"),
        ({}, "no config.json"),
        ({"config.json": "{"}, "cannot load it"),
        ({"config.json": '{"model_type": "nonsense"}'}, "cannot load it"),
        ({"config.json": json.dumps(models.SMALL_GEMMA3)}, "cannot load it: No safetensors"),
    ],
)
def test_a_folder_that_is_no_model_is_one_message(tmp_path, capsys, files, message):
    folder = tmp_path / "model"
    if files is not None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
    with pytest.raises(typer.Exit) as exit:
        demo.demo(settings(tmp_path / "out", model=folder))
    assert exit.value.exit_code == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize(
    "args",
    [
        ("--contexts", "2048,x"),
        ("--contexts", "100"),
        ("--contexts", "4096,2048"),
        ("--contexts", ""),
        ("--contexts", "1099511627776"),
        ("--budget", "0"),
        ("--budget", "nan"),
        ("--budget", "soon"),
        ("--step", "0"),
        ("--dtype", "int8"),
        ("--out", "/dev/null/folder"),
    ],
    ids=" ".join,
)
def test_wrong_options_are_refused(capsys, args):
    code, _, errors = call_in_process(capsys, "demo", *args)
    assert code == 2
    assert args[0] in errors


def test_logits_and_memory_of_a_prefill(model, prompt):
    seen = []
    result = prefill(model.module, prompt, (32, 96), step=32, on_progress=seen.append)
    assert seen == [32, 64, 96]
    assert [p.context for p in result.points] == [32, 96]
    whole = np.array(model.module(prompt[None])[0])
    for point in result.points:
        assert np.abs(point.logits - whole[point.context]).max() < 1e-4
    token = 2 * 2 * 256 * 4  # layers, K and V, head_dim, float32
    last = result.points[1]
    assert 96 * token <= last.cache_bytes <= 256 * token  # mlx-lm allocates 256 tokens at a time
    assert last.peak_bytes > last.cache_bytes
    assert result.points[1].seconds == pytest.approx(sum(result.step_seconds))


def test_without_attention_counts_calls_and_puts_stock_back(model, prompt):
    stock = mx.fast.scaled_dot_product_attention
    with without_attention() as calls:
        mx.eval(model.module(prompt[None, :8]))
    assert (calls.count, calls.heads, calls.kv_heads) == (2, 4, 1)
    assert calls.head_dims == ((256, 256),)
    q, v = mx.ones((1, 2, 3, 8)), mx.ones((1, 2, 3, 16))
    with without_attention():
        assert mx.fast.scaled_dot_product_attention(q, q, v, scale=1.0).shape == v.shape
        assert mx.fast.scaled_dot_product_attention(v, v, q, scale=1.0).shape == q.shape
    assert mx.fast.scaled_dot_product_attention is stock


def test_prediction_is_exact_for_steps_linear_in_the_keys():
    steps = [0.5 + 0.25 * i for i in range(16)]
    assert predict(steps[:4], 16) == pytest.approx(sum(steps))
    assert predict(steps, 4) == pytest.approx(sum(steps[:4]))
    assert predict([1.0], 4) == pytest.approx(1 + 2 + 3 + 4)  # keys only: errs on the long side
    assert predict([3.0, 2.0, 1.0, 0.5], 8) > 0  # never runs backwards


def test_passes_combine_to_the_medians_of_their_steps():
    points = [Point(64, 2, 9.0, 1, 1, np.zeros(1)), Point(96, 3, 9.0, 2, 2, np.zeros(1))]
    first = Prefill(points, [1.0, 7.0, 4.0], {128: 20.0})
    both = combine([first, Prefill(step_seconds=[2.0, 3.0]), Prefill(step_seconds=[9.0, 5.0])])
    assert both.step_seconds == [2.0, 5.0, 4.0]
    assert [(p.context, p.seconds, p.peak_bytes) for p in both.points] == [
        (64, 7.0, 1),
        (96, 11.0, 2),
    ]
    assert both.expected == {128: 20.0}
    assert both.at(96) is both.points[1]
    assert both.at(128) is None
