"""stats(): counts of calls by path, provider and reason."""

from __future__ import annotations

from collections.abc import Mapping

import mlx.core as mx
import mlx_sdpa_ext
import pytest
from mlx_sdpa_ext import stats as stats_function
from mlx_sdpa_ext.stats import Stats, record, record_fallback, reset
from mlx_sdpa_ext.words import Route


@pytest.fixture(autouse=True)
def _from_zero():
    reset()
    yield
    reset()


def test_counts():
    for path, provider, reason, calls in (
        ("fused", "ext", "fast", 2),
        ("fused", "stock", "stock fuses it", 1),
        ("unfused", "ext", "fast", 4),
    ):
        for _ in range(calls):
            record(Route(path, provider, "kernel", reason))
    record_fallback("broken")
    stats = mlx_sdpa_ext.stats()
    assert stats.calls == 7
    assert stats.paths == {"unfused": 4, "fused": 3}
    assert stats.providers == {"ext": 6, "stock": 1}
    assert stats.reasons == {"fast": 6, "stock fuses it": 1}
    assert stats.routes == {
        ("unfused", "ext", "fast"): 4,
        ("fused", "ext", "fast"): 2,
        ("fused", "stock", "stock fuses it"): 1,
    }
    assert stats.fallbacks == 1
    assert stats.fallback_reasons == {"broken": 1}


def test_text():
    record(Route("fused", "ext", "kernel", "fast"))
    record_fallback("broken")
    assert str(mlx_sdpa_ext.stats()).splitlines() == [
        "attention calls: 1",
        "  1 fused by ext: fast",
        "fallbacks: 1",
        "  1: broken",
    ]


def test_is_a_mapping_and_a_snapshot():
    stats = mlx_sdpa_ext.stats()
    assert isinstance(stats, Mapping)
    assert dict(stats)["calls"] == stats["calls"] == 0
    record(Route("fused", "ext", "kernel", "fast"))
    assert stats.calls == 0
    assert len(stats) == len(list(stats))
    with pytest.raises(KeyError):
        stats["__init__"]
    assert "calls=0" in repr(stats)


def test_patch_starts_from_zero():
    q = mx.ones((1, 1, 2, 8))
    record(Route("fused", "ext", "kernel", "before"))
    with mlx_sdpa_ext.patched():
        mx.fast.scaled_dot_product_attention(q, q, q, scale=1.0)
        with mlx_sdpa_ext.patched():  # already on: goes on counting
            mx.fast.scaled_dot_product_attention(q, q, q, scale=1.0)
    assert mlx_sdpa_ext.stats().calls == 2
    assert "before" not in mlx_sdpa_ext.stats().reasons


def test_fallback_reasons_are_bounded():
    for number in range(1000):
        record_fallback(f"reason {number}")
    stats = mlx_sdpa_ext.stats()
    assert stats.fallbacks == 1000
    assert len(stats.fallback_reasons) <= 65


def test_exported_name_is_the_function():
    assert callable(stats_function)
    assert isinstance(stats_function(), Stats)
