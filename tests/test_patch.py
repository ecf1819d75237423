"""patch(), unpatch(), patched(): what is replaced when, and that all of it is put back."""

from __future__ import annotations

import importlib
import sys
import threading
import time

import mlx.core as mx
import mlx.nn as nn
import mlx_sdpa_ext
import numpy as np
import pytest
from mlx_lm.models import base, gear, gemma2
from mlx_sdpa_ext import attention

SITES = {
    "fast": (mx.fast, "scaled_dot_product_attention"),
    "quantized": (base, "quantized_scaled_dot_product_attention"),
    "gemma2": (gemma2.Attention, "__call__"),
    "gear": (gear, "_softcap_attention"),
}


def functions() -> dict:
    return {name: vars(owner)[attribute] for name, (owner, attribute) in SITES.items()}


STOCK = functions()


@pytest.fixture(autouse=True)
def found_as_it_was():
    before, finders = functions(), list(sys.meta_path)
    yield
    mlx_sdpa_ext.unpatch()
    assert functions() == before
    assert sys.meta_path == finders


def attend(q: mx.array | None = None) -> mx.array:
    q = mx.ones((1, 2, 4, 8)) if q is None else q
    return mx.fast.scaled_dot_product_attention(q, q, q, scale=1.0)


def is_on() -> bool:
    now = functions()
    on = [now[name] is not STOCK[name] for name in SITES]
    assert all(on) or not any(on)
    return all(on)


def test_patch_and_unpatch():
    assert not is_on()
    assert mlx_sdpa_ext.patch() is True
    assert is_on()
    mlx_sdpa_ext.unpatch()
    assert functions() == STOCK


def test_both_are_idempotent():
    mlx_sdpa_ext.patch()
    first = functions()
    mlx_sdpa_ext.patch()
    assert functions() == first
    mlx_sdpa_ext.unpatch()
    assert not is_on()
    mlx_sdpa_ext.unpatch()
    assert not is_on()


def test_blocks_nest():
    with mlx_sdpa_ext.patched() as on:
        assert on is True
        with mlx_sdpa_ext.patched():
            assert is_on()
        assert is_on()
    assert not is_on()


def test_block_leaves_the_switch_as_it_was():
    mlx_sdpa_ext.patch()
    with mlx_sdpa_ext.patched():
        assert is_on()
    assert is_on()


def test_unpatch_in_a_block_waits_for_its_end():
    mlx_sdpa_ext.patch()
    with mlx_sdpa_ext.patched():
        mlx_sdpa_ext.unpatch()
        assert is_on()
    assert not is_on()


def test_block_ends_with_an_exception():
    with pytest.raises(KeyError), mlx_sdpa_ext.patched():
        raise KeyError
    assert not is_on()


def test_calls_are_ours_and_their_results_stocks():
    q = mx.random.normal((1, 4, 33, 64))
    stock = attend(q)
    with mlx_sdpa_ext.patched():
        ours = attend(q)
        assert mlx_sdpa_ext.stats().calls == 1
    np.testing.assert_allclose(ours, stock, atol=1e-5)


def test_signature_is_stocks():
    q = mx.ones((1, 1, 2, 8))
    with mlx_sdpa_ext.patched():
        function = mx.fast.scaled_dot_product_attention
        function(q=q, k=q, v=q, scale=1.0, mask="causal", sinks=None, stream=mx.cpu)
        for wrong in (lambda: function(q, q, q, 1.0), lambda: function(q, q, q)):
            with pytest.raises(TypeError):
                wrong()


def test_mlx_layers_go_through_it():
    layer = nn.MultiHeadAttention(32, 4)
    x = mx.random.normal((1, 5, 32))
    with mlx_sdpa_ext.patched():
        layer(x, x, x)
        assert mlx_sdpa_ext.stats().calls == 1


def test_compiled_functions_count_when_traced():
    with mlx_sdpa_ext.patched():
        compiled = mx.compile(attend)
        for _ in range(3):
            mx.eval(compiled(mx.ones((1, 2, 4, 8))))
        assert mlx_sdpa_ext.stats().calls == 1


def test_threads():
    """Blocks that overlap at random: on inside each of them, off after the last."""
    failures = []

    def work(seed: int) -> None:
        pause = np.random.default_rng(seed)
        try:
            for _ in range(20):
                with mlx_sdpa_ext.patched():
                    time.sleep(pause.random() * 1e-3)
                    assert is_on()
                    attend()
                time.sleep(pause.random() * 1e-3)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert not is_on()


def test_threads_count_every_call():
    with mlx_sdpa_ext.patched():
        threads = [threading.Thread(target=lambda: [attend() for _ in range(50)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert mlx_sdpa_ext.stats().calls == 200


def test_restores_what_another_package_had_put_there(monkeypatch):
    def theirs(*args, **kwargs):
        return STOCK["fast"](*args, **kwargs)

    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", theirs)
    with mlx_sdpa_ext.patched():
        assert mx.fast.scaled_dot_product_attention is not theirs
    assert mx.fast.scaled_dot_product_attention is theirs


def test_leaves_what_another_package_put_on_top(monkeypatch):
    calls = []
    monkeypatch.setattr(mx.fast, "scaled_dot_product_attention", STOCK["fast"])  # to be undone
    mlx_sdpa_ext.patch()
    ours = mx.fast.scaled_dot_product_attention

    def theirs(*args, **kwargs):
        calls.append(args)
        return ours(*args, **kwargs)

    mx.fast.scaled_dot_product_attention = theirs
    with pytest.warns(
        RuntimeWarning, match=r"mlx\.core\.fast\.scaled.*replaced after patch.*theirs"
    ):
        mlx_sdpa_ext.unpatch()
    assert mx.fast.scaled_dot_product_attention is theirs
    assert {**functions(), "fast": None} == {**STOCK, "fast": None}

    mlx_sdpa_ext.patch()
    mlx_sdpa_ext.unpatch()  # what this patch found is put back: theirs
    assert mx.fast.scaled_dot_product_attention is theirs
    counted = mlx_sdpa_ext.stats().calls
    attend()  # through theirs, and through ours, which is off
    assert len(calls) == 1
    assert mlx_sdpa_ext.stats().calls == counted


def test_a_reference_that_outlives_the_patch_calls_stock():
    with mlx_sdpa_ext.patched():
        kept = mx.fast.scaled_dot_product_attention
    counted = mlx_sdpa_ext.stats().calls
    q = mx.random.normal((1, 4, 33, 64))
    assert mx.array_equal(kept(q, q, q, scale=1.0), attend(q))
    assert mlx_sdpa_ext.stats().calls == counted


def test_disabled(monkeypatch):
    monkeypatch.setenv("MLX_SDPA_EXT_DISABLE", "1")
    assert mlx_sdpa_ext.patch() is False
    assert not is_on()
    with mlx_sdpa_ext.patched() as on:
        assert on is False
        assert not is_on()


def test_disabling_does_not_keep_it_from_being_taken_off(monkeypatch):
    mlx_sdpa_ext.patch()
    monkeypatch.setenv("MLX_SDPA_EXT_DISABLE", "1")
    mlx_sdpa_ext.unpatch()
    assert not is_on()


def test_a_function_that_is_gone_is_said_and_the_rest_is_patched(monkeypatch):
    monkeypatch.delattr(gear, "_softcap_attention")
    with pytest.warns(RuntimeWarning, match=r"no mlx_lm\.models\.gear\._softcap_attention"):
        mlx_sdpa_ext.patch()
    assert mx.fast.scaled_dot_product_attention is not STOCK["fast"]
    assert not hasattr(gear, "_softcap_attention")
    mlx_sdpa_ext.unpatch()
    monkeypatch.undo()


def test_a_module_that_is_reloaded_is_patched_again(monkeypatch):
    monkeypatch.setattr(gear, "_softcap_attention", STOCK["gear"])  # to be undone
    mlx_sdpa_ext.patch()
    try:
        importlib.reload(gear)
        assert gear._softcap_attention.__module__ == "mlx_sdpa_ext.lm"
        fresh = gear._softcap_attention.__globals__  # of the wrapper: this package's
        assert fresh["__name__"] == "mlx_sdpa_ext.patch"
        mlx_sdpa_ext.unpatch()
        assert gear._softcap_attention.__module__ == "mlx_lm.models.gear"
        assert gear._softcap_attention is not STOCK["gear"]
    finally:
        mlx_sdpa_ext.unpatch()


def refuse(*args, **kwargs):
    raise ValueError("ours cannot")


def test_what_ours_cannot_do_is_left_to_stock(monkeypatch):
    q = mx.random.normal((1, 4, 9, 16))
    stock = attend(q)
    monkeypatch.setattr(attention, "scaled_dot_product_attention", refuse)
    with mlx_sdpa_ext.patched(), pytest.warns(RuntimeWarning, match="ours cannot"):
        ours = attend(q)
    assert mx.array_equal(ours, stock)
    stats = mlx_sdpa_ext.stats()
    assert stats.calls == 0
    assert stats.fallbacks == 1
    assert list(stats.fallback_reasons) == ["scaled_dot_product_attention: ValueError: ours cannot"]
    assert "ours cannot" in str(stats)


def test_what_both_refuse_is_refused_in_our_words():
    q, k = mx.ones((1, 3, 4, 8)), mx.ones((1, 2, 4, 8))
    with pytest.raises(ValueError, match=r".") as stock:
        mx.fast.scaled_dot_product_attention(q, k, k, scale=1.0)
    with mlx_sdpa_ext.patched(), pytest.raises(ValueError, match=r".") as ours:
        mx.fast.scaled_dot_product_attention(q, k, k, scale=1.0)
    assert ours.type is stock.type
    assert mlx_sdpa_ext.stats().fallbacks == 0


def test_gradients_pass_through():
    q = mx.random.normal((1, 2, 5, 16))

    def loss(q):
        return attend(q).square().sum()

    stock = mx.grad(loss)(q)
    with mlx_sdpa_ext.patched():
        np.testing.assert_allclose(mx.grad(loss)(q), stock, rtol=1e-4, atol=1e-4)
