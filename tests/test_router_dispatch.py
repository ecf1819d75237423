"""From the Route to the call: who is called with what. GPUs are stood in for by their names."""

from __future__ import annotations

import importlib
import logging
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from mlx_sdpa_ext import _ext, attention, device, limits, patched, stats
from mlx_sdpa_ext.words import Device

M4_MAX = Device.named("applegpu_g16s")


@pytest.fixture
def settings(monkeypatch):
    """Sets variables of the table for one test."""

    def set_variables(**variables):
        for name, text in variables.items():
            monkeypatch.setenv(name, text)
        limits.refresh()

    yield set_variables
    monkeypatch.undo()
    limits.refresh()


@pytest.fixture
def on(monkeypatch):
    """Runs on the CPU what the router chooses for another device; returns the calls to stock."""

    def stand_in(where, refuse=False):
        calls = []

        def stock(q, k, v, **arguments):
            calls.append(arguments)
            if arguments.pop("force_fused", False) and refuse:
                raise ValueError("no fused kernel is available")
            return found(q, k, v, **arguments)

        found = attention.stock_attention
        monkeypatch.setattr(attention, "stock_attention", stock)
        monkeypatch.setattr(device, "current", lambda stream=None: where)
        return calls

    return stand_in


def inputs(rng, Lq, Lk, D, Hq=4, Hkv=2):
    shapes = (1, Hq, Lq, D), (1, Hkv, Lk, D), (1, Hkv, Lk, D)
    return tuple(mx.array(rng.standard_normal(shape, dtype=np.float32)) for shape in shapes)


def close(a, b):
    return mx.allclose(a, b, rtol=1e-5, atol=1e-5).item()


def counted(reason):
    return sum(calls for route, calls in stats().routes.items() if reason in route[2])


@pytest.mark.parametrize("mlx", ("0.31.2", "0.32.4"))
def test_stocks_own_choice_is_left_alone(mlx, on, rng):
    calls = on(M4_MAX._replace(mlx=mlx))
    q, k, v = inputs(rng, 33, 70, 128)
    for options in ({}, {"path": "fused"}, {"force_fused": True}, {"path": "stock"}):
        attention.scaled_dot_product_attention(q, k, v, scale=0.1, mask="causal", **options)
    assert calls == 4 * [{"scale": 0.1, "mask": "causal", "sinks": None, "stream": None}]


def test_stock_is_told_to_force_its_kernel(on, settings, rng):
    settings(MLX_SDPA_EXT_FUSED_MIN_KEYS="64")
    calls = on(M4_MAX)
    q, k, v = inputs(rng, 33, 70, 256)
    attention.scaled_dot_product_attention(q, k, v, scale=0.1)
    attention.scaled_dot_product_attention(q, k, v, scale=0.1, path="fused")
    assert calls == 2 * [{"scale": 0.1, "mask": None, "sinks": None, "stream": None}]
    assert counted("beyond fused_min_keys") == 1


def test_a_refusal_of_that_kernel_is_no_error_of_the_call(on, settings, rng):
    """Stock MLX 0.32.4 refuses it for array masks while a gradient is traced."""
    settings(MLX_SDPA_EXT_FUSED_MIN_KEYS="64")
    q, k, v = inputs(rng, 33, 70, 256)
    expected = attention.scaled_dot_product_attention(q, k, v, scale=0.1)
    calls, before = on(M4_MAX, refuse=True), counted(attention.REFUSED_BY_STOCK)
    out = attention.scaled_dot_product_attention(q, k, v, scale=0.1)
    assert close(out, expected)
    assert len(calls) == 1
    assert counted(attention.REFUSED_BY_STOCK) == before + 1
    for asked in ({"path": "fused"}, {"force_fused": True}):
        with pytest.raises(ValueError, match="no fused kernel is available"):
            attention.scaled_dot_product_attention(q, k, v, scale=0.1, **asked)


def test_any_other_error_is_one_of_the_call(on, monkeypatch, rng):
    def broken(*arrays, **arguments):
        raise ValueError("stock is out of order")

    on(M4_MAX)
    monkeypatch.setattr(attention, "stock_attention", broken)
    with pytest.raises(ValueError, match="out of order"):
        attention.scaled_dot_product_attention(*inputs(rng, 33, 70, 128), scale=0.1)


@pytest.mark.parametrize("path", ("fused", "unfused", "chunked", "stock"))
def test_paths_agree(path, settings, rng):
    settings(MLX_SDPA_CHUNK_SIZE="7", MLX_SDPA_EXT_MEMORY_LIMIT="20KB")
    q, k, v = inputs(rng, 33, 70, 24)
    route = attention.explain(q, k, v, path=path)
    assert (route.chunks, route.block_rows) == {"chunked": (10, 0), "unfused": (1, 7)}.get(
        path, (1, 0)
    )
    out = attention.scaled_dot_product_attention(q, k, v, scale=0.2, mask="causal", path=path)
    assert close(out, attention.stock_attention(q, k, v, scale=0.2, mask="causal"))
    if path != "stock":
        again, lse = attention.scaled_dot_product_attention(
            q, k, v, scale=0.2, mask="causal", path=path, return_lse=True
        )
        assert close(again, out)
        assert (lse.shape, lse.dtype) == ((1, 4, 33), mx.float32)


def test_chunks_by_the_environment(settings, rng):
    q, k, v = inputs(rng, 33, 70, 24)
    settings(MLX_SDPA_CHUNK_THRESHOLD="70", MLX_SDPA_CHUNK_SIZE="32")
    assert attention.explain(q, k, v).chunks == 3
    assert attention.explain(q, k[:, :, 1:], v[:, :, 1:]).path == "fused"


def test_threads_follow_the_environment(settings, rng):
    q, k, v = inputs(rng, 3, 7, 24)
    default = _ext.cpu()["threads"]
    settings(MLX_SDPA_EXT_CPU_THREADS="1")
    attention.scaled_dot_product_attention(q, k, v, scale=1.0)
    assert _ext.cpu()["threads"] == 1
    settings(MLX_SDPA_EXT_CPU_THREADS="")
    attention.scaled_dot_product_attention(q, k, v, scale=1.0)
    assert _ext.cpu()["threads"] == default


def test_the_instruction_set_follows_the_environment(settings, rng):
    q, k, v = inputs(rng, 3, 7, 24)
    best, *others = _ext.cpu()["isas"]
    for isa in others:
        settings(MLX_SDPA_EXT_CPU_ISA=isa)
        assert attention.explain(q, k, v, scale=1.0).kernel.endswith(f"_{isa}")
        attention.scaled_dot_product_attention(q, k, v, scale=1.0)
        assert _ext.cpu()["isa"] == isa
    settings(MLX_SDPA_EXT_CPU_ISA="mmx")
    with pytest.raises(ValueError, match=f"instruction set 'mmx': .* run {best}"):
        attention.scaled_dot_product_attention(q, k, v, scale=1.0)
    settings(MLX_SDPA_EXT_CPU_ISA="")
    attention.scaled_dot_product_attention(q, k, v, scale=1.0)
    assert _ext.cpu()["isa"] == best


def test_under_the_patch_stock_is_stock(rng):
    """The stock path does not come back to the function that the patch put in stock's place."""
    q, k, v = inputs(rng, 3, 7, 24)
    found = mx.fast.scaled_dot_product_attention
    expected = found(q, k, v, scale=0.3)
    with patched():
        assert mx.fast.scaled_dot_product_attention is not found
        out = attention.scaled_dot_product_attention(q, k, v, scale=0.3, path="stock")
        importlib.reload(attention)
        again = attention.scaled_dot_product_attention(q, k, v, scale=0.3, path="stock")
    assert close(out, expected)
    assert close(again, expected)
    assert attention.stock_attention is found


def test_each_new_route_is_logged_once(settings, rng, caplog, monkeypatch):
    settings(MLX_SDPA_EXT_LOG="1")
    monkeypatch.setattr(attention, "_announced", set())
    with caplog.at_level(logging.INFO, "mlx_sdpa_ext"):
        for Lk in (70, 71, 72):
            q, k, v = inputs(rng, 33, Lk, 24)
            attention.scaled_dot_product_attention(q, k, v, scale=1.0)
            attention.scaled_dot_product_attention(q, k, v, scale=1.0, path="stock")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    assert lines[0].startswith("fused by ext (prefill; D 24, Dv 24, float32): stock MLX has no")
    assert lines[1].startswith("stock by stock (matmul, softmax, matmul; ")


CALL = """
import mlx.core as mx
from mlx_sdpa_ext import attention
q = mx.zeros((1, 1, 9, 8))
attention.scaled_dot_product_attention(q, q, q, scale=1.0)
"""


@pytest.mark.parametrize(("text", "lines"), [("1", 1), ("0", 0)])
def test_the_log_goes_to_standard_error(text, lines, monkeypatch):
    monkeypatch.setenv("MLX_SDPA_EXT_LOG", text)
    done = subprocess.run([sys.executable, "-c", CALL], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert done.stderr.count("mlx_sdpa_ext: fused by ext") == lines


def test_a_bad_variable_fails_the_call_not_the_import(monkeypatch):
    monkeypatch.setenv("MLX_SDPA_CHUNK_SIZE", "many")
    done = subprocess.run([sys.executable, "-c", CALL], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ValueError: MLX_SDPA_CHUNK_SIZE: got 'many', allowed is" in done.stderr
    assert "in scaled_dot_product_attention" in done.stderr


def test_remembered_routes_are_bounded(rng):
    q, k, v = inputs(rng, 1, 2 * attention.ROUTES_KEPT, 8)
    for Lk in range(1, k.shape[2]):
        attention.scaled_dot_product_attention(q, k[:, :, :Lk], v[:, :, :Lk], scale=1.0)
    assert 0 < len(attention.place_of(None).routes) <= attention.ROUTES_KEPT
