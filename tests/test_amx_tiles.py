"""Prefill on AMX, on tile registers in software: few machines have others."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import reference
from cases import rounded
from mlx_sdpa_ext import _ext
from tolerances import TOLERANCES, check, check_lse

TESTS = Path(__file__).resolve().parent
COMPILER = shutil.which("g++")
FLAGS = ["-std=c++20", "-O2", "-shared", "-fPIC", "-Wno-maybe-uninitialized", "-ffp-contract=fast"]
FLAGS += [f"-m{name}" for name in ("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512bf16")]

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="needs g++"),
    pytest.mark.skipif("avx512bf16" not in _ext.cpu()["isas"], reason="needs AVX-512 BF16"),
]


@pytest.fixture(scope="module")
def prefill(tmp_path_factory):
    library = tmp_path_factory.mktemp("amx") / "prefill.so"
    source = str(TESTS / "amx_prefill.cpp")
    subprocess.run(
        [COMPILER, *FLAGS, "-mfma", "-mf16c", f"-I{TESTS.parent}", source, "-o", str(library)],
        check=True,
    )
    return ctypes.CDLL(str(library)).prefill


def attend(prefill, dtype, q, k, v, scale, causal, tile):
    """float32 (O, lse) of q [Hq, Lq, D], k [Hkv, Lk, D], v [Hkv, Lk, Dv]."""
    (Hq, Lq, D), (Hkv, Lk, _), Dv = q.shape, k.shape, v.shape[2]
    bits = [np.array(mx.array(x).astype(getattr(mx, dtype)).view(mx.uint16)) for x in (q, k, v)]
    out = np.full((Hq, Lq, Dv), np.nan, np.float32)
    lse = np.full((Hq, Lq), np.nan, np.float32)
    numbers = (dtype == "bfloat16", Hq, Hkv, Lq, Lk, D, Dv, causal, *tile)
    arrays = (*bits, out, lse)
    prefill(
        *(ctypes.c_int(n) for n in numbers),
        ctypes.c_float(scale),
        *(ctypes.c_void_p(x.ctypes.data) for x in arrays),
    )
    return out, lse


@pytest.mark.parametrize("causal", (False, True), ids=("open", "causal"))
@pytest.mark.parametrize("tile", ((256, 256), (96, 96), (40, 33)), ids=str)
@pytest.mark.parametrize("Lq, Lk", ((70, 70), (33, 161), (129, 300)))
@pytest.mark.parametrize("D, Dv", ((64, 64), (1, 16), (33, 17), (192, 128), (72, 95)))
@pytest.mark.parametrize("dtype", ("bfloat16",))
def test_prefill_on_tiles(prefill, dtype, D, Dv, Lq, Lk, tile, causal, rng):
    q, k, v = (
        rounded(rng.standard_normal((H, L, d)), dtype)
        for H, L, d in ((4, Lq, D), (2, Lk, D), (2, Lk, Dv))
    )
    scale = float(np.float32((np.log(Lk) / D) ** 0.5))  # scores as spread as in cases.py
    out, lse = attend(prefill, dtype, q, k, v, scale, causal, tile)
    mask = "causal" if causal else None
    want, want_lse = reference.attention(q[None], k[None], v[None], scale=scale, mask=mask)
    check(out, want[0], TOLERANCES[dtype])
    check_lse(lse, want_lse[0], TOLERANCES[dtype])
