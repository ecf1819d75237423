"""Every head dim on every instruction set and dtype, in prefill and in decode."""

from __future__ import annotations

import pytest
from cases import DTYPES, Case, verify
from mlx_sdpa_ext import _ext
from test_cases import DIMS

SHAPES = {
    "prefill": {"Hq": 4, "Hkv": 2, "Lq": 37, "Lk": 70, "mask": "causal"},
    "decode": {"Hq": 4, "Hkv": 1, "Lq": 1, "Lk": 601, "sinks": True},
}


@pytest.mark.parametrize("isa", _ext.cpu()["isas"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dims", DIMS, ids=str)
def test_dims(dims, shape, dtype, isa, rng):
    verify(Case(D=dims[0], Dv=dims[1], dtype=dtype, isa=isa, **SHAPES[shape]), rng)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", range(1, 36))
def test_every_small_dim(D, dtype, rng):
    """Each remainder of a vector's width, with another one for v."""
    verify(Case(Hq=2, Hkv=1, Lq=9, Lk=33, D=D, Dv=36 - D, dtype=dtype), rng)


@pytest.mark.parametrize("D, Dv", [(1023, 1024), (1024, 1), (1, 1024), (577, 639)])
def test_large_and_lopsided_dims(D, Dv, rng):
    verify(Case(Hq=2, Hkv=2, Lq=9, Lk=70, D=D, Dv=Dv, mask="causal"), rng)
