"""Fresh random inputs for every run; the seed is in pytest's header and --seed repeats it."""

from __future__ import annotations

import os
import secrets
import tempfile
import zlib

import macos_build
import metal_pool
import mlx.core as mx
import numpy as np
import pytest
from mlx_sdpa_ext import _ext, limits

mx.set_default_device(mx.cpu)

# A profile that the user has measured would change routes: here and in processes that tests start.
SETTINGS = tempfile.TemporaryDirectory(prefix="mlx-sdpa-ext-", ignore_cleanup_errors=True)
os.environ["XDG_CONFIG_HOME"] = SETTINGS.name

# The tests in cuda/ need an NVIDIA GPU and mlx[cuda13]: tools/run_cuda_tests.sh.
ON_CUDA = os.environ.get("MLX_SDPA_EXT_DEVICE") == "cuda"
collect_ignore = [] if ON_CUDA else ["cuda"]


def pytest_addoption(parser):
    parser.addoption("--seed", type=int, default=None, help="repeat the random inputs of a run")


def pytest_configure(config):
    if config.getoption("seed") is None:
        config.option.seed = secrets.randbits(32)
    config.addinivalue_line("markers", "metal: run where the device is a Metal device")
    config.addinivalue_line("markers", "emulator: looks into the software Metal device")
    if metal_pool.ON_GPU and not mx.metal.is_available():
        raise pytest.UsageError("MLX_SDPA_EXT_DEVICE=metal: this MLX has no Metal GPU")
    config.pluginmanager.register(metal_pool.Plugin())
    config.pluginmanager.register(macos_build)


def pytest_report_header(config):
    return f"random inputs: --seed {config.getoption('seed')}"


def generator(seed: int, nodeid: str) -> np.random.Generator:
    """Seeded by the run and the test, so that a test alone sees what it saw in the whole run."""
    return np.random.default_rng([seed, zlib.crc32(nodeid.encode())])


@pytest.fixture
def rng(request) -> np.random.Generator:
    return generator(request.config.getoption("seed"), request.node.nodeid)


@pytest.fixture
def default_cpu():
    """Puts the threads and the instruction set of the CPU kernels back to their defaults."""
    yield
    _ext.set_cpu_threads(0)
    _ext.set_cpu_isa("")


@pytest.fixture
def environment(monkeypatch):
    """The variables of the table, none of them set; what a test sets is forgotten afterwards."""
    for row in limits.VARIABLES:
        monkeypatch.delenv(row.name, raising=False)
    limits.refresh()
    yield monkeypatch
    monkeypatch.undo()
    limits.refresh()
