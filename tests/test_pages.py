"""Large outputs on Linux: the kernel is asked for huge pages behind them."""

from __future__ import annotations

import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_sdpa_ext import attention

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SMAPS = Path("/proc/self/smaps")


def flags_behind(out: mx.array) -> list[str] | None:
    """VmFlags (proc_pid_smaps(5)) of the mapping that the middle of the array lies in."""
    middle = np.array(out, copy=False).ctypes.data + out.nbytes // 2
    inside = False
    for line in SMAPS.read_text().splitlines():
        name, *values = line.split()
        if "-" in name and not name.endswith(":"):
            first, last = (int(part, 16) for part in name.split("-"))
            inside = first <= middle < last
        elif inside and name == "VmFlags:":
            return values
    return None


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are asked for on Linux only")
@pytest.mark.skipif(not THP.exists(), reason="this kernel was built without huge pages")
def test_huge_pages_are_asked_for_behind_outputs_of_32_mib():
    """As large an array of stock's has none: malloc maps both for themselves."""
    q = mx.random.normal((1, 64, 1024, 128))
    k = v = mx.random.normal((1, 64, 1, 128))
    out = attention.scaled_dot_product_attention(q, k, v, scale=1.0, path="fused")
    stock = q + 1
    mx.eval(out, stock)
    assert out.nbytes == stock.nbytes == 32 << 20
    assert "hg" in flags_behind(out) and "hg" not in flags_behind(stock)
