"""Models of mlx-lm generate the same tokens on a Metal device as with stock MLX."""

from __future__ import annotations

import mlx.core as mx
import mlx_sdpa_ext
import numpy as np
import pytest
from metal_pool import ON_GPU
from mlx_lm.generate import generate_step
from mlx_sdpa_ext import attention, limits, router
from mlx_sdpa_ext.stock import Stock
from tiny_models import FAMILIES, VOCAB, make

pytestmark = pytest.mark.metal

PROMPT = 52
PREFILL_STEP = 40  # one step on keys of its own, one on a cache
TOKENS = 4
PASSES = 3 + TOKENS  # two of prefill, its last token, and one ahead of each token that is read
# Logits of size 1 to 5, scores up to 50: in float32 as in test_models.py.
ATOL = {"float32": 2e-4, "float16": 0.1}

# head_dim 256; 256 and 512; (192, 128) with sinks and a window; and one in 16 bits
MODELS = [
    ("gemma3_text", "float32"),
    ("gemma4_text", "float32"),
    ("mimo_v2_flash", "float32"),
    ("gemma3_text", "float16"),
]
NEVER = Stock("unfused", "", "stock MLX is not asked", force_fused=False)


def generated(model, prompt) -> tuple[np.ndarray, np.ndarray]:
    """mlx-lm's own loop: the tokens, and what it says of each candidate [TOKENS, VOCAB]."""
    steps = generate_step(
        mx.array(prompt), model, max_tokens=TOKENS, prefill_step_size=PREFILL_STEP
    )
    tokens, logprobs = zip(*steps, strict=True)
    return np.array(tokens), np.array([np.array(row.astype(mx.float32)) for row in logprobs])


def check(ours, stock, atol: float) -> None:
    """The same tokens up to a choice between equals, after which they are two texts."""
    (tokens, logprobs), (stock_tokens, stock_logprobs) = ours, stock
    second, first = np.partition(stock_logprobs, -2, axis=-1)[:, -2:].T
    unclear = first - second < 2 * atol
    clear = int(unclear.argmax()) if unclear.any() else TOKENS
    np.testing.assert_array_equal(tokens[:clear], stock_tokens[:clear])
    same = slice(clear + 1)  # also of the choice itself
    np.testing.assert_allclose(logprobs[same], stock_logprobs[same], atol=atol, rtol=0)


def failed_kernels() -> dict[str, str]:
    """Of this process: tests that plant failures may have run in it."""
    return mlx_sdpa_ext.stats().failed_kernels


def ours_only(monkeypatch) -> None:
    """Has the router choose kernels of ours wherever there is one."""
    found = limits.of
    monkeypatch.setattr(limits, "of", lambda *call: found(*call)._replace(fused_dim=1024))
    monkeypatch.setattr(router, "stock_route", lambda problem, device: NEVER)
    monkeypatch.setattr(attention, "_in_force", None)


@pytest.mark.parametrize("family, dtype", MODELS)
def test_the_same_tokens(family, dtype, rng, monkeypatch):
    model = make(family, getattr(mx, dtype))
    prompt = rng.integers(VOCAB, size=PROMPT)
    stock = generated(model, prompt)
    ours_only(monkeypatch)
    failed = failed_kernels()
    with mlx_sdpa_ext.patched():
        here = attention.place_of(None).device
        assert (here.backend, here.software) == ("metal", not ON_GPU)
        ours = generated(model, prompt)
        stats = mlx_sdpa_ext.stats()
    assert {route[:2] for route in stats.routes} == {("fused", "ext")}
    assert stats.calls == FAMILIES[family].attention_layers * PASSES
    assert stats.fallbacks == 0
    assert stats.failed_kernels == failed
    check(ours, stock, ATOL[dtype])


def test_the_routers_own_choice(rng):
    """Stock's paths on MLX's CPU operations, ours on the device, as a Mac would divide them."""
    model = make("mimo_v2_flash")
    prompt = rng.integers(VOCAB, size=PROMPT)
    stock = generated(model, prompt)
    failed = failed_kernels()
    with mlx_sdpa_ext.patched():
        ours = generated(model, prompt)
        stats = mlx_sdpa_ext.stats()
    assert set(stats.providers) == {"ext", "stock"}
    assert stats.failed_kernels == failed
    check(ours, stock, ATOL["float32"])
