"""`doctor` says what is there and what mends the rest; the command starts whatever is missing."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest
from command_line import call, call_in_process, python
from mlx_sdpa_ext import __version__, _ext, cuda, device, limits, router
from mlx_sdpa_ext.cli import doctor

MISMATCH = """
import sys, types
built = types.ModuleType("mlx_sdpa_ext._build_info")
built.VERSION, built.MLX_VERSION, built.NANOBIND_VERSION, built.COMPILER = "9", "0.0.1", "1", "cc"
sys.modules[built.__name__] = built
from mlx_sdpa_ext_cli import main
sys.exit(main())
"""
WITHOUT = """
import sys
sys.modules.update(dict.fromkeys({names!r}))
from mlx_sdpa_ext_cli import main
sys.exit(main())
"""


def test_a_sound_installation():
    done = call("doctor", "--json")
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert found["ok"]
    assert found["problems"] == []
    assert found["versions"]["mlx"] == mx.__version__
    assert found["build"]["mlx"] == _ext.mlx_version
    assert found["build"]["matches_installed_mlx"]
    here = device.current(mx.gpu if mx.device_count(mx.gpu) else mx.cpu)  # a new process's default
    assert found["device"]["backend"] == here.backend
    assert found["device"]["cpu_isa"] == _ext.cpu()["isa"]
    assert found["device"]["cpu_threads"] >= 1
    assert 0 < found["limits"]["memory_limit"] <= limits.of(here).memory_limit
    assert found["limits"]["memory_limit_follows"] == "by what is free now"
    assert {row["function"]: row["status"] for row in found["patch"]}[
        "mlx.core.fast.scaled_dot_product_attention"
    ] == "reached"
    assert [row["name"] for row in found["environment"]] == [v.name for v in limits.VARIABLES]
    for row in found["head_dims"]:
        for dtype in doctor.DTYPES:
            dims = row["head_dim"], row["v_head_dim"]
            support = router.supports(*dims, dtype, here, limits.of(here))
            assert row[dtype] == {"prefill": support.prefill, "decode": support.decode}


def test_prints_what_the_json_says(capsys):
    code, output, _ = call_in_process(capsys, "doctor")
    assert code == 0
    words = " ".join(output.split())
    for text in (
        f"mlx {mx.__version__}",
        f"built for mlx {_ext.mlx_version} (matches)",
        _ext.cpu()["isa"],
        "MLX_SDPA_EXT_MEMORY_LIMIT",
        "fused kernels here",
        "all is well",
    ):
        assert text in words


def test_a_build_for_another_mlx_is_reported_with_its_mend():
    done = python("-c", MISMATCH, "doctor")
    assert done.returncode == 1
    assert done.stderr == ""
    assert f"built for MLX 0.0.1, and MLX {mx.__version__} is installed" in done.stdout
    assert "DOES NOT MATCH" in done.stdout
    assert "to mend it: " in done.stdout
    assert "install" in done.stdout.split("to mend it: ")[1]

    found = json.loads(python("-c", MISMATCH, "doctor", "--json").stdout)
    assert not found["ok"]
    assert not found["build"]["matches_installed_mlx"]
    assert found["device"] is None
    assert "install" in found["problems"][0]["mend"]
    assert "To mend" not in found["problems"][0]["what"]


@pytest.mark.parametrize("args", [("explain", "--q", "1", "--k", "1"), ("demo",), ("run", "x.py")])
def test_other_commands_stop_with_the_refusal(args):
    done = python("-c", MISMATCH, *args)
    assert done.returncode == 1
    assert "is built for MLX 0.0.1" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_instruction_set_that_is_not_here_is_reported_with_its_mend():
    done = call("doctor", env={"MLX_SDPA_EXT_CPU_ISA": "mmx"})
    assert done.returncode == 1
    assert "MLX_SDPA_EXT_CPU_ISA: instruction set 'mmx': this machine" in done.stdout
    assert "to mend it: unset MLX_SDPA_EXT_CPU_ISA" in done.stdout


def test_a_wrong_variable_is_reported_with_its_mend():
    wrong = {"MLX_SDPA_CHUNK_SIZE": "many"}
    done = call("doctor", env=wrong)
    assert done.returncode == 1
    assert "MLX_SDPA_CHUNK_SIZE: got 'many'" in done.stdout
    assert "to mend it: unset MLX_SDPA_CHUNK_SIZE" in done.stdout
    done = call("explain", "--q", "1,1,1,8", "--k", "1,1,1,8", env=wrong)
    assert done.returncode == 2
    assert done.stderr.startswith("mlx-sdpa-ext: MLX_SDPA_CHUNK_SIZE: got 'many'")
    assert done.stderr.count("\n") == 1


def test_the_environment_in_force_is_shown():
    force = {"MLX_SDPA_EXT_MEMORY_LIMIT": "3MiB", "MLX_SDPA_EXT_DISABLE": "1"}
    done = call("doctor", "--json", env=force)
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert found["limits"]["memory_limit"] == 3 << 20
    assert found["limits"]["memory_limit_follows"] == "as set"
    assert {r["name"]: r["value"] for r in found["environment"] if r["value"]} == force
    assert "patch() does nothing" in found["notes"][0]


def test_a_kernel_that_does_not_run_is_a_problem(capsys, monkeypatch):
    def fails():
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(doctor, "_kernel_difference", fails)
    code, output, _ = call_in_process(capsys, "doctor", "--json")
    assert code == 1
    assert "RuntimeError: no such kernel" in json.loads(output)["problems"][0]["what"]
    monkeypatch.setattr(doctor, "_kernel_difference", lambda: (float("nan"), 1e-4))
    code, output, _ = call_in_process(capsys, "doctor", "--json")
    assert code == 1
    assert "differs from the unfused path by nan" in json.loads(output)["problems"][0]["what"]
    monkeypatch.setattr(doctor, "_kernel_difference", lambda: (9e-5, 1e-4))
    code, output, _ = call_in_process(capsys, "doctor", "--json")
    assert code == 0


@pytest.mark.parametrize("names", [["typer"], ["rich", "matplotlib"]], ids=" ".join)
def test_a_missing_library_is_one_line_with_the_command(names):
    done = python("-c", WITHOUT.format(names=names), "doctor")
    assert done.returncode == 1
    assert done.stdout == ""
    assert f"needs {', '.join(names)}; install with: pip install 'mlx-sdpa-ext[cli]'" in done.stderr
    assert done.stderr.count("\n") == 1


def test_demo_without_mlx_lm_says_how_to_get_it():
    done = python("-c", WITHOUT.format(names=["mlx_lm"]), "demo")
    assert done.returncode == 1
    assert "pip install 'mlx-sdpa-ext[lm]'" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("args", [(), ("-m", "mlx_sdpa_ext")], ids=["command", "module"])
def test_version_and_help(args):
    start = python if args else call
    assert start(*args, "--version").stdout == f"mlx-sdpa-ext {__version__}\n"
    text = start(*args, "--help")
    assert text.returncode == 0
    for name in ("run", "doctor", "explain", "demo"):
        assert name in text.stdout


@pytest.mark.parametrize("command", ["run", "doctor", "explain", "demo"])
def test_every_command_has_help(capsys, command):
    code, output, _ = call_in_process(capsys, command, "--help")
    assert code == 0
    assert f"mlx-sdpa-ext {command}" in output


def test_an_unknown_command_is_refused(capsys):
    code, _, errors = call_in_process(capsys, "docter")
    assert code == 2
    assert "docter" in errors


def test_compiled_cuda_kernels_are_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cuda.folders.sys, "platform", "linux")
    folder = cuda.kernel_cache()
    assert doctor._kernel_cache() == {"folder": str(folder), "kernels": 0, "bytes": 0}
    folder.mkdir(parents=True)
    (folder / "kernel-1.cubin").write_bytes(b"x" * 2048)
    (folder / "kernel-2.cubin.77.part").write_bytes(b"x")
    found = doctor._kernel_cache()
    assert found == {"folder": str(folder), "kernels": 1, "bytes": 2048}
    ((name, text),) = doctor._kernel_cache_row({"backend": "cuda", "kernel_cache": found})
    assert name == "CUDA kernels" and text.startswith("1 compiled ones") and str(folder) in text
    ((_, text),) = doctor._kernel_cache_row({"backend": "cuda", "kernel_cache": None})
    assert "compiled again in each process" in text
    assert doctor._kernel_cache_row({"backend": "cpu", "kernel_cache": None}) == []
