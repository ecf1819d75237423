"""Lengths at the edges of each kernel's tile, and the kernel that a call is meant to reach."""

from __future__ import annotations

import mlx.core as mx
import pytest
from cases import Case, replace, verify
from mlx_sdpa_ext import _ext, device

ARCH = device.current(mx.gpu).arch
# packed reads only quantized caches: test_cuda_quantized.py
TILES = [t for t in _ext.tiles() if t["backend"] == "cuda" and t["kernel"] != "packed"]


def kernel_of(case: Case) -> str:
    plan = _ext.plan(
        case.B, case.Hq, case.Hkv, case.Lq, case.Lk, case.D, case.v_dim, case.dtype,
        mask=case.mask, window=case.window or 0, softcap=case.softcap is not None,
        sinks=case.sinks, want_lse=case.lse, chunk_size=case.chunk_size, backend="cuda", arch=ARCH,
    )  # fmt: skip
    return plan["kernel"]


def cases(tile: dict):
    D, Dv = tile["d_max"], tile["dv_max"]
    for dtype in tile["dtypes"]:
        for keys in sorted({1, tile["bk"] - 1, tile["bk"], tile["bk"] + 1, 5 * tile["bk"] + 3}):
            rows = [tile["bq"] - 1, tile["bq"], tile["bq"] + 1]  # of two heads each
            if tile["kernel"] == "wide":
                rows += [1, tile["bq"] // 2]
            elif tile["kernel"] == "decode" or tile["bq"] == 64:
                rows = [1, tile["bq"] // 2]
            for Lq in dict.fromkeys(rows):
                for mask in ("none", "causal"):
                    yield Case(
                        Hq=4, Hkv=2, Lq=Lq, Lk=keys, D=D, Dv=Dv, dtype=dtype, mask=mask,
                        softcap=3.0 if tile["kernel"] in ("prefill", "decode") else None,
                        mask_shape="QK",
                    )  # fmt: skip


@pytest.mark.parametrize("case", [c for tile in TILES for c in cases(tile)], ids=str)
def test_edges_of_a_tile(case, rng):
    verify(case, rng)


SPECIAL = {
    "narrow": Case(Hq=16, Hkv=2, Lq=64, Lk=5000, D=256, mask="causal"),
    "narrow few": Case(Hq=16, Hkv=2, Lq=1, Lk=9000, D=256),
    "wide": Case(Hq=16, Hkv=2, Lq=200, Lk=5000, D=512, mask="causal"),
    "wide few": Case(Hq=16, Hkv=2, Lq=1, Lk=9000, D=512),
    "decode": Case(Hq=16, Hkv=2, Lq=1, Lk=9000, D=512, softcap=5.0),
    "prefill": Case(Hq=16, Hkv=2, Lq=200, Lk=900, D=512, mask="causal", softcap=5.0),
}


@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
@pytest.mark.parametrize("name", SPECIAL)
def test_a_call_that_the_kernel_is_for(name, dtype, rng):
    case = replace(SPECIAL[name], dtype=dtype)
    if ARCH == "sm_90":
        kernel, *few = name.split()
        assert kernel_of(case).startswith(f"sdpa_{kernel}_")
        assert not few or "_bq64_" in kernel_of(case)
    verify(case, rng)
