"""Attention over packed keys and values, against float64 on what they stand for."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
import quantized_caches
import reference
from cases import poison, rounded, to_numpy
from features import MASKS
from mlx_sdpa_ext import _ext, device
from pairwise import pairwise
from quantized_caches import allowed, mask_of, quantities, strided
from tolerances import TOLERANCES, check


def strided_words(x: mx.array) -> mx.array:
    """Words at stride 2; scales and biases, whose columns are side by side, as they are."""
    return strided(x) if x.dtype == mx.uint32 else x


LAYOUTS = {**quantized_caches.LAYOUTS, "strided": strided_words}
FACTORS = {
    "dims": [
        *((d, d) for d in (32, 64, 96, 128, 160, 192, 256, 384, 512)),
        *((192, 128), (128, 256), (576, 512)),
    ],
    "packing": [(bits, group) for bits in (4, 8) for group in (32, 64, 128)],
    # rows of a KV head: 1, 4, 8; 9, 16, 33
    "heads": [(1, 2, 2, 1), (2, 8, 2, 1), (1, 16, 2, 1), (1, 2, 1, 4), (1, 9, 1, 1), (2, 4, 2, 8),
              (1, 6, 2, 11)],
    "keys": [1, 15, 16, 17, 129, 1000, 4099, 20011],
    "dtype": ["float16", "bfloat16"],
    "masking": [m for m in MASKS if not m.get("window")],
    "softcap": [None, 3.0],
    "layout": list(LAYOUTS),
}  # fmt: skip


ROWS = list(pairwise(FACTORS, allowed))


def verify(row: dict, rng: np.random.Generator) -> None:
    B, Hq, _, Lq = row["heads"]
    bits, group = row["packing"]
    D, Dv = row["dims"]
    dtype = getattr(mx, row["dtype"])
    q = rounded(rng.standard_normal((B, Hq, Lq, D)), row["dtype"])
    packed_k, k = quantities(row, D, rng, LAYOUTS)
    packed_v, v = quantities(row, Dv, rng, LAYOUTS)
    mask, mask_argument = mask_of(row, rng)
    spread = max(1.0, math.log(row["keys"])) ** 0.5  # as in cases.py: a row leans on a few keys
    scale = float(np.float32(spread / D**0.5))
    out = _ext.quantized_sdpa(
        mx.array(q.astype(np.float32)).astype(dtype),
        *packed_k,
        *packed_v,
        scale=scale,
        group_size=group,
        bits=bits,
        mask=mask_argument,
        softcap=row["softcap"],
    )[0]
    assert out.dtype == dtype
    for _ in range(2):
        poison((out.shape, dtype), ((512, *out.shape), mx.float32))
    mx.eval(out)
    exact, _ = reference.attention(q, k, v, scale=scale, mask=mask, softcap=row["softcap"])
    check(to_numpy(out), exact, TOLERANCES[row["dtype"]])


@pytest.mark.parametrize("row", ROWS, ids=lambda r: "-".join(map(str, r.values())))
def test_every_pair_of_features_of_a_quantized_cache(row, rng):
    verify(row, rng)


@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
@pytest.mark.parametrize("bits", (4, 8))
@pytest.mark.parametrize("kernel", ("packed", "decode"))
def test_a_call_that_the_kernel_is_for(kernel, bits, dtype, rng):
    rows = 1 if kernel == "packed" else 9
    row = {
        "dims": (256, 256), "packing": (bits, 64), "heads": (1, 8, 2, rows), "keys": 9000,
        "dtype": dtype, "masking": {"mask": "causal"}, "softcap": None, "layout": "contiguous",
    }  # fmt: skip
    plan = _ext.plan(
        1, 8, 2, rows, 9000, 256, 256, dtype,
        mask="causal", bits=bits, group_size=64, backend="cuda", arch=device.current(mx.gpu).arch,
    )  # fmt: skip
    assert plan["kernel"].startswith(f"sdpa_{kernel}_")
    verify(row, rng)
