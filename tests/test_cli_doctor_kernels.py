"""`doctor` on kernels: the self-test, what failed on a Mac, and a device that is software.

A Mac is stood in for: its device is named, its kernels are those of the CPU.
"""

from __future__ import annotations

import json

import mlx.core as mx
import pytest
from command_line import call, call_in_process
from mlx_sdpa_ext import (
    _ext,
    attention,
    device,
    first_use,
    folders,
    limits,
    plans,
    selfcheck,
    verdicts,
)
from mlx_sdpa_ext.cli import doctor, selftest
from mlx_sdpa_ext.words import Device

M4_MAX = Device.named("applegpu_g16s", memory=27 << 30, tiles=device.tiles())


@pytest.fixture
def mac(monkeypatch, tmp_path):
    """Makes the device of this process a named one."""

    def stand_in(where):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(folders.sys, "platform", "linux")
        monkeypatch.setattr(device, "current", lambda stream=None: where)
        monkeypatch.setattr(attention, "_in_force", None)
        monkeypatch.setattr(first_use, "_failed", {})
        monkeypatch.setattr(first_use.software, "use", lambda arch: None)
        monkeypatch.setattr(_ext, "prepare", lambda *arrays, **options: None)
        monkeypatch.setattr(_ext, "set_gpu_limits", lambda **bounds: None)
        monkeypatch.setattr(selfcheck, "stream_of", lambda where: mx.cpu)

    return stand_in


def found(capsys, *args):
    code, output, _ = call_in_process(capsys, "doctor", *args, "--json")
    return code, json.loads(output)


def test_the_self_test_runs_every_kernel_in_every_feature():
    done = call("doctor", "--selftest", "--only", "decode", "--json")
    answer = json.loads(done.stdout)
    assert done.returncode == 0, answer["problems"]
    here = device.current(mx.cpu)
    rows = [t for t in here.tiles if t.kernel == "decode"]
    assert len(answer["selftest"]) == sum(len(t.dtypes) for t in rows)
    for row in answer["selftest"]:
        assert set(row["features"]) == set(selftest.FEATURES)
        for result in row["features"].values():
            assert 0 <= result["difference"] <= result["allowed"]
            assert result["error"] == ""


def test_the_self_test_as_a_table(capsys):
    code, output, _ = call_in_process(capsys, "doctor", "--selftest", "--only", "decode_float32")
    assert code == 0
    assert "sdpa_decode_float32_d1024_v1024_bq8_bk256_" in output
    for title in selftest.FEATURES:
        assert title in output


def test_every_row_of_metal_is_run_or_in_reserve(capsys, mac, monkeypatch):
    """On a device that takes 1024 threads, and without a kernel being run."""
    mac(M4_MAX)
    checks = []
    monkeypatch.setattr(doctor, "_kernel_difference", lambda: (0.0, 1e-4))
    monkeypatch.setattr(selfcheck, "run", lambda check, where: checks.append(check) or 0.0)
    code, answer = found(capsys, "--selftest")
    assert code == 0
    rows = answer["selftest"]
    assert len(rows) == sum(len(t.dtypes) for t in M4_MAX.tiles)
    assert len({row["kernel"] for row in rows}) == len(rows)
    for check in checks:
        plan = plans.plan(check.problem, M4_MAX, limits.of(M4_MAX), check.chunk_size)
        assert (check.kernel, check.splits) == (plan["kernel"], plan["splits"])
        assert plan["chunks"] == (3 if check.chunk_size else 1)
    assert sum(check.splits > 1 for check in checks) == sum(bool(row["features"]) for row in rows)
    for row in rows:
        assert (row["features"] == {}) == (row["note"] == selftest.RESERVE)
        if row["features"]:
            assert row["threads"] in (128, 256)
            assert 0 < row["threadgroup_bytes"] <= 32768
    reserve = [row["kernel"] for row in rows if row["note"]]
    assert all("_middle_float32_d5" in name for name in reserve)  # 8 rows, as decode has
    assert len(checks) == len(selftest.FEATURES) * (len(rows) - len(reserve))
    assert verdicts.of(M4_MAX) == dict.fromkeys(map(str, checks), "")


def test_a_kernel_that_fails_the_self_test(capsys, mac, monkeypatch):
    mac(M4_MAX)
    name = "sdpa_decode_float16_d64_v64_"

    def run(check, where):
        if check.problem.mask == "bool":
            return 0.5
        if check.chunk_size:
            raise RuntimeError("Compute function exceeds available registers")
        return 1e-4

    monkeypatch.setattr(selfcheck, "run", run)
    code, output, _ = call_in_process(capsys, "doctor", "--selftest", "--only", name)
    words = " ".join(output.split())
    assert code == 1
    assert words.count("FAILED") == 2
    assert f"WRONG: the kernel {name}" in words
    assert "(bool, chunks) is not used here: differs from stock by 0.5, where 0.01" in words
    (error,) = filter(None, verdicts.of(M4_MAX).values())  # what was raised may pass
    assert error.startswith("differs from stock by 0.5")
    # and without the self-test it is remembered
    code, answer = found(capsys)
    assert code == 1
    assert len(answer["failed_kernels"]) == len(answer["problems"]) == 1
    monkeypatch.setattr(selfcheck, "run", lambda check, where: 1e-4)
    # also after a self-test of others
    assert found(capsys, "--selftest", "--only", "sdpa_decode_float32_d64_")[0] == 0
    assert len(found(capsys)[1]["failed_kernels"]) == 1
    assert found(capsys, "--selftest", "--only", name)[0] == 0
    assert found(capsys)[0] == 0


def test_an_interrupted_self_test_keeps_what_was_done(capsys, mac, monkeypatch):
    mac(M4_MAX)
    monkeypatch.setattr(doctor, "_kernel_difference", lambda: (0.0, 1e-4))
    verdicts.keep(M4_MAX, {"sdpa_x": ""})
    checks = []

    def run(check, where):
        if len(checks) == len(selftest.FEATURES) + 1:
            raise KeyboardInterrupt
        checks.append(check)
        return 1e-4

    monkeypatch.setattr(selfcheck, "run", run)
    code, answer = found(capsys, "--selftest")
    assert code == 130
    assert answer["interrupted"] and not answer["ok"] and answer["problems"] == []
    assert len(answer["selftest"]) == 1
    assert "the self-test was interrupted" in answer["notes"][-1]
    assert verdicts.of(M4_MAX) == dict.fromkeys(["sdpa_x", *map(str, checks)], "")
    code, output, _ = call_in_process(capsys, "doctor", "--selftest")
    assert code == 130
    assert "note: the self-test was interrupted" in output and "all is well" not in output


def test_what_failed_in_this_process_is_reported_after_a_self_test_too(capsys, mac, monkeypatch):
    mac(M4_MAX)
    monkeypatch.setattr(first_use, "_failed", {"sdpa_prefill_x": "the device was lost"})
    monkeypatch.setattr(selfcheck, "run", lambda check, where: 1e-4)
    code, answer = found(capsys, "--selftest", "--only", "sdpa_decode_float16_d64_")
    assert code == 1
    assert answer["failed_kernels"] == {"sdpa_prefill_x": "the device was lost"}
    (problem,) = answer["problems"]
    assert problem["mend"].startswith("stock MLX takes its place; report it")


def test_the_small_call_is_compared_with_exact_matmuls(mac, monkeypatch):
    """Not with stock MLX on the GPU, which on an M5 rounds float32 to TF32."""
    mac(M4_MAX)

    def rounded(q, k, v, **options):
        raise AssertionError("stock MLX was asked")

    monkeypatch.setattr(attention, "stock_attention", rounded)
    assert doctor._kernel_difference()[0] < 1e-5


def test_no_kernel_of_that_name(capsys):
    code, answer = found(capsys, "--selftest", "--only", "d65")
    assert code == 1
    assert "--only d65: no kernel of this device is named so" in answer["problems"][0]["what"]


MISSING = "software-metal needs a compiler"


@pytest.mark.parametrize("selftest", ((), ("--selftest",)))
@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (
            ImportError(f"{MISSING}: pip install ziglang"),
            {"what": MISSING, "mend": "pip install ziglang"},
        ),
        (
            RuntimeError("prefill.h:3: expected ';'"),
            {"what": "prefill.h:3: expected ';'", "mend": "unset MLX_SDPA_EXT_DEVICE"},
        ),
    ],
    ids=("missing", "broken"),
)
def test_a_software_device_that_is_not_there(error, problem, selftest, capsys, mac, monkeypatch):
    mac(M4_MAX._replace(software=True))

    def raises(arch):
        if arch is not None:
            raise error

    monkeypatch.setattr(first_use.software, "use", raises)
    code, answer = found(capsys, *selftest)
    assert code == 1
    assert answer["problems"] == [problem]


def test_only_is_for_the_self_test(capsys):
    code, _, errors = call_in_process(capsys, "doctor", "--only", "d64")
    assert code == 2
    assert "--only is for --selftest" in errors


def test_a_mac_is_told_of_the_watchdog(capsys, mac, monkeypatch):
    mac(M4_MAX)
    monkeypatch.setattr(doctor, "_kernel_difference", lambda: (0.0, 1e-4))
    code, answer = found(capsys)
    assert code == 0
    (note,) = (n for n in answer["notes"] if "watchdog" in n)
    assert "AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1" in note
    assert "Impacting Interactivity" in note
    assert answer["limits"]["dispatch_ms"] == limits.of(M4_MAX).dispatch_ms
    assert not answer["device"]["software"]
    assert not any("THERE IS NO GPU" in n for n in answer["notes"])


def test_the_software_device_is_not_to_be_mistaken(capsys, mac, monkeypatch):
    mac(M4_MAX._replace(software=True))
    monkeypatch.setattr(doctor, "_kernel_difference", lambda: (0.0, 1e-4))
    code, answer = found(capsys)
    assert code == 0
    assert answer["device"]["software"]
    assert answer["device"]["name"].startswith("SOFTWARE, no GPU, on ")
    assert "THERE IS NO GPU AT WORK HERE" in answer["notes"][0]
    code, output, _ = call_in_process(capsys, "doctor")
    assert code == 0
    assert output.lstrip().startswith("*** software-metal: THERE IS NO GPU AT WORK HERE.")
