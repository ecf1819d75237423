"""Attention over packed keys and values on the CPU, against float64 on what they stand for."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
import reference
from cases import DTYPES, poison, rounded, to_numpy
from features import MASKS
from memory import added
from mlx_sdpa_ext import _ext
from pairwise import pairwise
from quantized_caches import LAYOUTS, allowed, mask_of, quantities
from tolerances import TOLERANCES, check, check_lse

FACTORS = {
    "dims": [
        *((d, d) for d in (32, 64, 96, 128, 160, 192, 256, 384, 512)),
        *((192, 128), (128, 256), (576, 512), (1024, 1024)),
    ],
    "packing": [(bits, group) for bits in (4, 8) for group in (32, 64, 128)],
    # rows of a KV head: 1, 2, 3, 4, 8; 9, 16, 33, 100, 300
    "heads": [(1, 2, 2, 1), (2, 4, 2, 1), (1, 3, 1, 1), (2, 8, 2, 1), (1, 16, 2, 1), (1, 2, 1, 4),
              (1, 9, 1, 1), (2, 4, 2, 8), (1, 6, 2, 11), (1, 2, 2, 100), (1, 4, 1, 75)],
    "keys": [1, 15, 16, 17, 64, 129, 257, 1000, 4099],
    "dtype": list(DTYPES),
    "masking": MASKS,
    "softcap": [None, 3.0],
    "sinks": [False, True],
    "lse": [False, True],
    "layout": list(LAYOUTS),
    "isa": _ext.cpu()["isas"],
}  # fmt: skip


ROWS = list(pairwise(FACTORS, allowed))


@pytest.mark.parametrize("row", ROWS, ids=lambda r: "-".join(map(str, r.values())))
def test_every_pair_of_features_of_a_quantized_cache(row, rng):
    B, Hq, _, Lq = row["heads"]
    bits, group = row["packing"]
    D, Dv = row["dims"]
    dtype = getattr(mx, row["dtype"])
    q = rounded(rng.standard_normal((B, Hq, Lq, D)), row["dtype"])
    packed_k, k = quantities(row, D, rng)
    packed_v, v = quantities(row, Dv, rng)
    mask, mask_argument = mask_of(row, rng)
    sinks = rounded(2 * rng.standard_normal(Hq), row["dtype"]) if row["sinks"] else None
    spread = max(1.0, math.log(row["keys"])) ** 0.5  # as in cases.py: a row leans on a few keys
    options = {
        "scale": float(np.float32(spread / D**0.5)),
        "softcap": row["softcap"],
        "window": row["masking"].get("window"),
    }
    _ext.set_cpu_isa(row["isa"])
    try:
        results = _ext.quantized_sdpa(
            mx.array(q.astype(np.float32)).astype(dtype),
            *(*packed_k, *packed_v),
            group_size=group,
            bits=bits,
            mask=mask_argument,
            sinks=None if sinks is None else mx.array(sinks.astype(np.float32)).astype(dtype),
            return_lse=row["lse"],
            **options,
        )
        assert len(results) == 1 + row["lse"]
        assert results[0].dtype == dtype
        for _ in range(2):
            poison((results[0].shape, dtype), ((512, *results[0].shape), mx.float32))
        mx.eval(results)
    finally:
        _ext.set_cpu_isa("")
    exact, lse = reference.attention(q, k, v, mask=mask, sinks=sinks, **options)
    check(to_numpy(results[0]), exact, TOLERANCES[row["dtype"]])
    if row["lse"]:
        check_lse(to_numpy(results[1]), lse, TOLERANCES[row["dtype"]])


ISAS = _ext.cpu()["isas"]


@pytest.fixture(params=ISAS)
def isa(request):
    _ext.set_cpu_isa(request.param)
    yield request.param
    _ext.set_cpu_isa("")


def pack(x: np.ndarray, bits: int, group: int = 64) -> tuple[list[mx.array], np.ndarray]:
    """[words, scales, biases] in float16, and what they stand for."""
    words, *groups = mx.quantize(mx.array(x.astype(np.float32)), group_size=group, bits=bits)
    groups = [a.astype(mx.float16) for a in groups]
    exact = mx.dequantize(words, *(a.astype(mx.float32) for a in groups), group, bits)
    return [words, *groups], to_numpy(exact)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rows", [1, 40])
def test_many_small_weights_beside_a_large_one_count(isa, rows, bits, rng):
    """One key has half of the weight, as an attention sink does; all values are of one sign."""
    q, k = np.zeros((1, 2, rows, 64)), np.zeros((1, 1, 1000, 64))
    q[..., 0], k[:, :, 3, 0] = 1.0, math.log(1000.0)
    packed_k, k = pack(k, bits)
    packed_v, v = pack(rng.uniform(3, 4, (1, 1, 1000, 64)), bits)
    (out,) = _ext.quantized_sdpa(
        mx.array(q).astype(mx.float16), *packed_k, *packed_v, scale=1.0, group_size=64, bits=bits
    )
    exact, _ = reference.attention(q, k, v, scale=1.0)
    check(to_numpy(out), exact, TOLERANCES["float16"])


@pytest.mark.parametrize("bits", [4, 8])
def test_nan_in_keys_that_no_row_sees_stays_out(isa, bits, rng):
    """In the same tile as keys that are seen."""
    q = rounded(rng.standard_normal((1, 2, 20, 64)), "float16")
    packed_k, k = pack(rng.standard_normal((1, 1, 90, 64)), bits)
    packed_v, v = pack(rng.standard_normal((1, 1, 90, 64)), bits)
    options = {"scale": 0.2, "mask": "causal", "window": 10}
    exact, _ = reference.attention(q, k, v, **options)
    hide = mx.array(np.arange(90) < 90 - 20 - 9)[:, None]
    for packed in (packed_k, packed_v):
        packed[1:] = [mx.where(hide, math.nan, a).astype(mx.float16) for a in packed[1:]]
    (out,) = _ext.quantized_sdpa(
        mx.array(q).astype(mx.float16), *packed_k, *packed_v, group_size=64, bits=bits, **options
    )
    check(to_numpy(out), exact, TOLERANCES["float16"])


@pytest.mark.parametrize("what", ["q", "scales", "biases"])
@pytest.mark.parametrize("bits", [4, 8])
def test_nan_that_is_seen_comes_out(isa, bits, what, rng):
    q = mx.array(rng.standard_normal((1, 2, 3, 64))).astype(mx.float16)
    packed_k, _ = pack(rng.standard_normal((1, 1, 90, 64)), bits)
    packed_v, _ = pack(rng.standard_normal((1, 1, 90, 64)), bits)
    key = (mx.arange(90) == 40)[:, None]
    if what == "q":
        q[0, 0, 1, 5] = math.nan
    else:
        i = 1 if what == "scales" else 2
        packed_v[i] = mx.where(key, math.nan, packed_v[i]).astype(mx.float16)
    (out,) = _ext.quantized_sdpa(q, *packed_k, *packed_v, scale=0.2, group_size=64, bits=bits)
    lost = np.isnan(to_numpy(out))
    if what == "q":
        assert lost[0, 0, 1].all() and lost.sum() == 64
    else:
        assert lost.all()


@pytest.mark.parametrize("bits", [4, 8])
def test_prefill_takes_no_more_memory_than_in_float16(isa, bits):
    q, k = (mx.random.normal(s).astype(mx.float16) for s in ((1, 8, 256, 128), (1, 1, 4096, 128)))
    packed = mx.quantize(k, group_size=64, bits=bits)
    call = {"scale": 0.1, "mask": "causal"}

    def quantized():
        return _ext.quantized_sdpa(q, *packed, *packed, group_size=64, bits=bits, **call)

    ours = added(quantized, q, *packed)
    assert 0 < ours <= added(lambda: _ext.sdpa(q, k, k, **call), q, k)


def test_refused():
    q, k = mx.zeros((1, 2, 1, 96)), mx.zeros((1, 1, 10, 128))
    packed = mx.quantize(k, group_size=64, bits=4)
    with pytest.raises(ValueError, match="same last dimension"):
        _ext.quantized_sdpa(q, *packed, *packed, scale=1.0, group_size=64, bits=4)
    narrow = [packed[0][..., :12], *packed[1:]]  # 96 elements, which are no whole groups
    with pytest.raises(ValueError, match=r"expected to be .* for rows of 96 elements"):
        _ext.quantized_sdpa(q, *narrow, *narrow, scale=1.0, group_size=64, bits=4)
    with pytest.raises(ValueError, match="bits is 6"):
        _ext.quantized_sdpa(q, *packed, *packed, scale=1.0, group_size=64, bits=6)
