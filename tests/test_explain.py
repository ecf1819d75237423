"""explain() and supports(): the answers, and that nothing is computed for them."""

from __future__ import annotations

import re

import mlx.core as mx
import pytest
from cases import DTYPES
from mlx_sdpa_ext import _ext, attention, device, limits, router, stats
from mlx_sdpa_ext.words import Problem, Route


def zeros(*shape, dtype=mx.bfloat16):
    return mx.zeros(shape, dtype=dtype)


def test_of_a_long_prefill_step():
    """Arrays of 1.3 TB, which no test machine has: they are never evaluated."""
    q, k = zeros(1, 16, 2048, 256), zeros(1, 2, 1 << 30, 256)
    route = attention.explain(q, k, k, mask="causal")
    assert (route.path, route.provider, route.chunks) == ("fused", "ext", 1)
    assert route.kernel.startswith("sdpa_prefill_bfloat16_d256_v256_")
    assert route.reason.startswith("stock MLX has no fused kernel on the CPU; ")
    seen = 2048 * (1 << 30) - 2047 * 2048 // 2
    assert route.flops == 2 * 16 * seen * (256 + 256)


def test_it_is_what_the_call_does():
    q, k = zeros(1, 4, 33, 64), zeros(1, 2, 70, 64)
    for asked in (
        {},
        {"mask": "causal", "window": 5, "softcap": 9.0},
        {"path": "stock"},
        {"path": "chunked", "return_lse": True},
        {"path": "unfused", "mask": zeros(33, 70)},
        {"force_fused": True, "sinks": zeros(4)},
    ):
        route = attention.explain(q, k, k, **asked)
        key = (route.path, route.provider, route.reason)
        before = stats().routes.get(key, 0)
        attention.scaled_dot_product_attention(q, k, k, scale=1.0, **asked)
        assert stats().routes[key] == before + 1, asked


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("Lq", "kernel"), [(1, "decode"), (100, "prefill")])
def test_kernel_and_scratch_are_those_of_the_plan(Lq, kernel, dtype):
    q, k = (zeros(1, 4, L, 40, dtype=getattr(mx, dtype)) for L in (Lq, 5000))
    for path, chunk_size in {"fused": 0, "chunked": limits.of(device.current()).chunk_size}.items():
        route = attention.explain(q, k, k, path=path, return_lse=True)
        plan = _ext.plan(1, 4, 4, Lq, 5000, 40, 40, dtype, want_lse=True, chunk_size=chunk_size)
        scratch = plan["tile_bytes"] + plan["scratch_bytes"]
        assert (route.kernel, route.transient_bytes) == (plan["kernel"], scratch)
        assert f"_{kernel}_{dtype}_" in route.kernel


def test_router_and_plan_take_the_same_tile():
    """The router chooses among the rows of tiles.def as src/plan.cpp does."""
    here = device.current(mx.cpu)
    for D in (1, 255, 256, 257, 1024):
        for Lq in (1, 2, 8, 9, 16, 100):
            for group in (1, 4, 8, 9):
                problem = Problem(2, 3 * group, 3, Lq, 999, D, 64, "float16")
                route = router.route(problem, here, limits.of(here))
                plan = _ext.plan(*problem[:8])
                assert plan["kernel"].startswith(f"sdpa_{route.kernel}_"), problem


def test_it_refuses_what_the_call_refuses():
    q, k = zeros(1, 4, 33, 64), zeros(1, 2, 70, 64)
    for asked in ({"path": "stock", "softcap": 1.0}, {"path": "best"}, {"mask": "upper"}):
        with pytest.raises(ValueError, match=next(iter(asked.values()))) as explained:
            attention.explain(q, k, k, **asked)
        with pytest.raises(ValueError, match=re.escape(str(explained.value))):
            attention.scaled_dot_product_attention(q, k, k, scale=1.0, **asked)


def test_a_route_prints_its_fields():
    route = attention.explain(zeros(1, 1, 9, 8), zeros(1, 1, 9, 8), zeros(1, 1, 9, 8))
    assert isinstance(route, Route)
    for field in ("path", "provider", "kernel", "reason", "transient_bytes", "flops", "chunks"):
        assert f"{field}={getattr(route, field)!r}" in repr(route)


# head dim, v_head_dim, dtype, backend, prefill and decode by
@pytest.mark.parametrize(
    ("D", "Dv", "dtype", "backend", "prefill", "decode"),
    [
        (1, None, mx.float32, None, "ext", "ext"),
        (576, 512, mx.bfloat16, "cpu", "ext", "ext"),
        (1025, None, mx.float16, None, None, None),
        (64, None, mx.float64, "cpu", None, None),
        (128, None, mx.float16, "metal", "stock", "stock"),
        (128, None, mx.float16, "cuda", "ext", "ext"),
        (112, None, mx.float16, "metal", "ext", "ext"),
        (256, None, mx.float16, "metal", "ext", "stock"),
        (512, None, mx.float32, "metal", "ext", "stock"),
        (1024, None, mx.float16, "metal", None, None),
        (256, None, mx.float16, "cuda", "ext", "ext"),
    ],
)
def test_supports(D, Dv, dtype, backend, prefill, decode):
    answer = attention.supports(D, Dv, dtype, backend)
    assert (answer.prefill, answer.decode) == (prefill, decode)
    assert bool(answer) is (prefill is not None)
    if not answer:
        assert "this package has no" in answer.reason


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((0,), "head_dim: got 0; allowed are whole numbers from 1"),
        ((64.0,), "head_dim: got 64.0"),
        ((64, -1), "v_head_dim: got -1"),
        ((64, 64, mx.int32), "dtype: got mlx.core.int32; allowed are the floating dtypes"),
        ((64, 64, "float16"), "dtype: got 'float16'"),
        ((64, 64, mx.float16, "rocm"), "backend: got 'rocm'; allowed are cpu, metal, cuda or None"),
    ],
)
def test_supports_refuses(arguments, says):
    with pytest.raises(ValueError, match=says):
        attention.supports(*arguments)
