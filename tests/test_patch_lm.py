"""The functions of mlx-lm that are replaced: masks, dtypes, and the calls that are left to them."""

from __future__ import annotations

import mlx.core as mx
import mlx_sdpa_ext
import numpy as np
import pytest
from mlx_lm.models import base, gear
from mlx_lm.models.cache import KVCache
from tiny_models import make

SOFTCAP = 5.0
SHAPE = {"B": 2, "H": 4, "Q": 17, "K": 40}


def random(rng: np.random.Generator, *shape: int, dtype: mx.Dtype = mx.float32) -> mx.array:
    return mx.array(rng.standard_normal(shape).astype(np.float32)).astype(dtype)


def random_mask(
    rng: np.random.Generator, kind: str | None, dtype: mx.Dtype
) -> str | mx.array | None:
    """None, "causal", or `bool.B1QK`, `additive.QK`, ..."""
    if kind is None or "." not in kind:
        return kind
    kind, dims = kind.split(".")
    shape = [SHAPE.get(letter, 1) for letter in dims]
    if kind == "bool":
        return mx.array(rng.random(shape) < 0.7)
    return random(rng, *shape, dtype=dtype)


@pytest.mark.parametrize(
    "kind", [None, "causal", "bool.B1QK", "bool.QK", "bool.BHQK", "additive.B1QK"]
)
@pytest.mark.parametrize("Hkv", [4, 2, 1])
def test_gear(kind, Hkv, rng):
    q = random(rng, 2, 4, 17, 64)
    k, v = (random(rng, 2, Hkv, 40, 64) for _ in range(2))
    mask = random_mask(rng, kind, mx.float32)
    arguments = (q, k, v, 0.5, SOFTCAP, mask)
    stock = gear._softcap_attention(*arguments)
    with mlx_sdpa_ext.patched():
        ours = gear._softcap_attention(*arguments)
        assert mlx_sdpa_ext.stats().calls == 1
    np.testing.assert_allclose(ours, stock, atol=2e-5)


def test_gear_with_a_mask_of_a_wider_dtype(rng):
    q, k, v = (random(rng, 2, 4, n, 64, dtype=mx.bfloat16) for n in (17, 40, 40))
    mask = random_mask(rng, "additive.B1QK", mx.float32)
    stock = gear._softcap_attention(q, k, v, 0.5, SOFTCAP, mask)
    with mlx_sdpa_ext.patched():
        ours = gear._softcap_attention(q, k, v, 0.5, SOFTCAP, mask)
        assert mlx_sdpa_ext.stats().fallbacks == 0
    assert ours.dtype == stock.dtype == mx.float32
    np.testing.assert_allclose(ours, stock, atol=0.2)  # stock rounds its scores to bfloat16


def test_gemma2_additive_mask(rng):
    layer = make("gemma2").layers[0].self_attn
    x, mask = random(rng, 1, 17, 64), random(rng, 17, 17)
    stock = layer(x, mask)
    with mlx_sdpa_ext.patched():
        ours = layer(x, mask)
        assert mlx_sdpa_ext.stats().calls == 1
    np.testing.assert_allclose(ours, stock, atol=1e-4)


def test_gemma2_mask_of_five_dimensions_is_left_to_stock(rng):
    """Which has them when it groups heads. Its cache is updated once, not twice."""
    layer = make("gemma2").layers[0].self_attn
    x = random(rng, 1, 17, 64)
    mask = mx.array(rng.random((1, 2, 1, 17, 17)) < 0.7)
    stock_cache, our_cache = KVCache(), KVCache()
    stock = layer(x, mask, stock_cache)
    with mlx_sdpa_ext.patched(), pytest.warns(RuntimeWarning, match=r"Attention.__call__"):
        ours = layer(x, mask, our_cache)
    stats = mlx_sdpa_ext.stats()
    assert (stats.calls, stats.fallbacks) == (0, 1)
    assert mx.array_equal(ours, stock)
    assert our_cache.offset == 17
    assert mx.array_equal(our_cache.state[0], stock_cache.state[0])


def test_quantized_mask_along_the_group_is_left_to_stock(rng):
    """A mask of three dimensions: stock lays the first along the heads of a group, [2, Lq, Lk]."""
    q = random(rng, 1, 4, 17, 64)
    keys, values = (tuple(mx.quantize(random(rng, 1, 2, 40, 64))) for _ in range(2))
    mask = mx.array(rng.random((2, 17, 40)) < 0.7)

    def attend() -> mx.array:
        return base.quantized_scaled_dot_product_attention(
            mx.array(q), keys, values, 0.5, mask, group_size=64, bits=4
        )

    stock = attend()
    with mlx_sdpa_ext.patched(), pytest.warns(RuntimeWarning, match="quantized_scaled_dot_product"):
        ours = attend()
    assert mx.array_equal(ours, stock)
    assert mlx_sdpa_ext.stats().fallbacks == 1


def test_gear_takes_a_quantized_cache(rng):
    q, k, v = (random(rng, 2, 4, n, 64) for n in (17, 40, 40))
    keys, values = (tuple(mx.quantize(x, group_size=32, bits=6)) for x in (k, v))
    plain = [mx.dequantize(*packed, group_size=32, bits=6) for packed in (keys, values)]
    stock = gear._softcap_attention(q, *plain, 0.5, SOFTCAP, "causal")
    with mlx_sdpa_ext.patched():
        ours = gear._softcap_attention(q, keys, values, 0.5, SOFTCAP, "causal")
    np.testing.assert_allclose(ours, stock, atol=2e-5)
