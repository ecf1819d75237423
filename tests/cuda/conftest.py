"""The GPU is where everything runs here that is given no stream."""

from __future__ import annotations

import mlx.core as mx
import pytest
from mlx_sdpa_ext import cuda, device


@pytest.fixture(autouse=True)
def gpu():
    """Ours is loaded, and the default device is the GPU for the test."""
    assert cuda.refusal() is None
    assert device.current(mx.gpu).tiles
    mx.set_default_device(mx.gpu)
    yield
    mx.synchronize()
    mx.set_default_device(mx.cpu)
