"""`mlx-sdpa-ext calibrate` as a user meets it, on a grid of a few small calls."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest
from command_line import call_in_process, environment
from mlx_sdpa_ext import attention, limits
from mlx_sdpa_ext.calibration import grid, measure
from mlx_sdpa_ext.profiles import user

CALLS = [grid.Call(D, D, Lq, 96, 4, 2, "float32") for D in (32, 64) for Lq in (1, 12)]
SLOWLY = f"""
import sys, time
from mlx_sdpa_ext.calibration import grid, measure
grid.calls = lambda backend, quick: [grid.Call(*call) for call in {[tuple(c) for c in CALLS]!r}]
point = measure.point
def slowly(*args):
    time.sleep(SECONDS)
    return point(*args)
measure.point = slowly
from mlx_sdpa_ext_cli import main
sys.exit(main())
"""


@pytest.fixture
def few(monkeypatch, tmp_path):
    """The grid, and a folder of settings of its own."""
    monkeypatch.setattr(grid, "calls", lambda backend, quick: CALLS)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    limits.refresh()
    yield tmp_path / "mlx-sdpa-ext"
    monkeypatch.undo()
    limits.refresh()


def lines(folder):
    return [json.loads(x) for x in (folder / "calibration-cpu.jsonl").read_text().splitlines()]


def test_it_measures_every_path_and_attention_takes_the_profile(few, capsys):
    code, said, errors = call_in_process(capsys, "calibrate", "--json")
    assert code == 0, errors
    head, noise, *points = lines(few)
    assert head["for"]["backend"] == "cpu" and noise["noise"] >= measure.LEAST_NOISE
    assert [grid.Call(**p["call"]) for p in points] == CALLS
    for p in points:
        assert p["sides"].keys() == {"fused", "unfused", "stock"}
        for side in p["sides"].values():
            assert 0 < side["best_s"] <= side["median_s"] <= side["worst_s"]
    made = json.loads((few / "profile-cpu.json").read_text())
    assert json.loads(said) == made | {"file": str(few / "profile-cpu.json"), "calls_left": 0}
    assert made["values"].keys() | set(made["as_shipped"]) == user.THRESHOLDS.keys()
    found = attention.profile_of(attention.place_of(None).device)
    assert found.file == few / "profile-cpu.json" and not found.ignored and found.measured

    code, _, errors = call_in_process(capsys, "calibrate")
    assert code == 0 and "going on with" in errors
    assert len(lines(few)) == 2 + len(CALLS)  # nothing is measured twice
    code, _, errors = call_in_process(capsys, "calibrate", "--restart")
    assert code == 0 and "going on with" not in errors
    assert len(lines(few)) == 2 + len(CALLS)


def started(folder, seconds):
    code = SLOWLY.replace("SECONDS", str(seconds))
    return subprocess.Popen(
        [sys.executable, "-c", code, "calibrate"],
        env=environment({"XDG_CONFIG_HOME": str(folder)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_after_ctrl_c_it_goes_on(tmp_path):
    folder = tmp_path / "mlx-sdpa-ext"
    process = started(tmp_path, 1)
    file = folder / "calibration-cpu.jsonl"
    deadline = time.monotonic() + 60
    while not (file.exists() and file.read_text().count("\n") >= 3):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"of {len(CALLS)} calls are kept" in errors and "Traceback" not in errors
    assert not (folder / "profile-cpu.json").exists()
    kept = file.read_text()
    assert len(lines(folder)) < 2 + len(CALLS)

    file.write_text(kept + '{"call": {"D": 6')  # and it was killed while it wrote
    process = started(tmp_path, 0)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "going on with" in errors and "The path taken is slower" in said
    assert file.read_text().startswith(kept)
    assert [grid.Call(**p["call"]) for p in lines(folder)[2:]] == CALLS
    assert (folder / "profile-cpu.json").exists()


def test_measurements_of_another_machine_are_not_gone_on_with(few, capsys):
    call_in_process(capsys, "calibrate")
    head, *rest = lines(few)
    head["for"]["mlx"] = "0.0.1"
    text = "\n".join(map(json.dumps, [head, *rest])) + "\n"
    (few / "calibration-cpu.jsonl").write_text(text)
    code, _, errors = call_in_process(capsys, "calibrate")
    assert code == 0 and "was measured with mlx 0.0.1: starting anew" in errors
    assert lines(few)[0]["for"]["mlx"] != "0.0.1"


def test_a_budget_that_is_used_up(few, capsys, monkeypatch):
    monkeypatch.setattr(measure, "expected_seconds", lambda call, seen: 1e6 if seen else None)
    code, _, errors = call_in_process(capsys, "calibrate", "--budget", "5")
    assert code == 0 and f"{len(CALLS) - 1} calls are left" in errors
    assert (few / "profile-cpu.json").exists()


def test_wrong_arguments_and_folders(few, capsys, tmp_path):
    code, _, errors = call_in_process(capsys, "calibrate", "--budget", "0")
    assert code == 2 and "--budget is 0" in errors
    blocked = tmp_path / "file"
    blocked.write_text("")
    code, _, errors = call_in_process(capsys, "calibrate", "--out", str(blocked / "x"))
    assert code == 2 and "cannot write to" in errors and "Traceback" not in errors
    few.write_text("")  # where the folder of settings should be
    code, _, errors = call_in_process(capsys, "calibrate")
    assert code == 2 and "--out names another" in errors
    code, _, errors = call_in_process(capsys, "calibrate", "--out", str(tmp_path / "mine"))
    assert code == 0 and f"MLX_SDPA_EXT_PROFILE={tmp_path / 'mine' / 'profile-cpu.json'}" in errors


def test_a_path_that_is_far_slower_on_less_work_is_left_out():
    def point(Lk, slow):
        sides = {"fused": {"median_s": 1.0}, "stock": {"median_s": slow}}
        return {"call": CALLS[1]._replace(Lk=Lk)._asdict(), "sides": sides, "took_s": 1.0}

    place = attention.place_of(None)

    def left_out(*seen):
        call = CALLS[1]._replace(Lk=128)
        return measure.point(call, place.device, place.limits, seen)["sides"]["stock"]

    assert left_out(point(32, 9.0), point(64, 8.0))["at_least"] == measure.DROP
    assert "median_s" in left_out(point(32, 9.0), point(64, 7.0))
    assert "median_s" in left_out(point(32, 9.0))
    assert "median_s" in left_out(point(256, 9.0), point(512, 9.0))  # of more work


@pytest.mark.parametrize("refused", (False, True))
def test_a_kernel_that_fails_on_the_device_is_not_timed(refused, monkeypatch):
    """As first_use.py answers on a GPU: by another route, or not at all."""
    place = attention.place_of(None)
    route = type(place).route

    def without(self, problem, path, force_fused, call):
        if path == "fused" and refused:
            raise ValueError("sdpa_x of this package failed here")
        found = route(self, problem, path, force_fused, call)
        failed = {"provider": "stock", "reason": "sdpa_x of this package failed here"}
        return found._replace(**failed) if path == "fused" else found

    monkeypatch.setattr(type(place), "route", without)
    sides = measure.point(CALLS[1], place.device, place.limits, [])["sides"]
    assert sides["fused"] == {"skipped": "sdpa_x of this package failed here"}
    assert "median_s" in sides["unfused"]


def test_what_a_call_will_take():
    call = CALLS[3]
    near = {"call": call._asdict(), "took_s": 10.0}
    far = {"call": call._replace(Lk=10**6)._asdict(), "took_s": 99.0}
    assert measure.expected_seconds(call, []) is None
    assert measure.expected_seconds(call, [far, near]) == 10.0
    assert measure.expected_seconds(call._replace(Hq=8), [far, near]) == pytest.approx(20.0)
    assert measure.expected_seconds(call._replace(Hq=8), [near | {"took_s": 0.5}]) == 0.5
