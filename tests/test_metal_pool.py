"""Where the tests marked `metal` run: in software on Linux, on the GPU of a Mac."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import metal_pool
import mlx.core as mx
import pytest
from metal_pool import not_here
from mlx_sdpa_ext import limits

TESTS = Path(__file__).parent


@pytest.mark.parametrize("on_gpu", (False, True))
@pytest.mark.parametrize("marks", (set(), {"metal"}, {"metal", "emulator"}, {"emulator"}), ids=str)
def test_linux_runs_everything(marks, on_gpu):
    assert not not_here(marks, "linux", on_gpu)


@pytest.mark.parametrize(
    ("marks", "on_gpu", "why"),
    [
        (set(), False, ""),
        ({"metal"}, True, ""),
        ({"metal"}, False, "on a Mac, MLX_SDPA_EXT_DEVICE=metal runs it on the GPU"),
        ({"metal", "emulator"}, True, "the software Metal device is for Linux"),
        ({"emulator"}, False, "the software Metal device is for Linux"),
    ],
)
def test_what_a_mac_skips(marks, on_gpu, why):
    assert not_here(marks, "darwin", on_gpu) == why


def test_the_gpu_is_the_device_of_a_test_and_of_no_other(monkeypatch):
    """With another device in its place, as this machine has none."""
    monkeypatch.setattr(metal_pool, "GPU", mx.Device(mx.cpu, 0))
    before = mx.default_device()
    with metal_pool.gpu():
        assert os.environ["MLX_SDPA_EXT_DEVICE"] == "metal"
        assert limits.settings().device == "metal"
    assert "MLX_SDPA_EXT_DEVICE" not in os.environ
    assert limits.settings().device != "metal"
    assert mx.default_device() == before


@pytest.mark.skipif(mx.metal.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(TESTS / "test_metal_cases.py")],
        env=os.environ | {"MLX_SDPA_EXT_DEVICE": "metal"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "MLX_SDPA_EXT_DEVICE=metal: this MLX has no Metal GPU" in done.stderr
