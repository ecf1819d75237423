"""Models of mlx-lm with and without the patch: the same tokens, and logits that differ by rounding.

Both runs are given the same tokens, so that one token that differs does not hide the rest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx
import mlx_sdpa_ext
import numpy as np
import pytest
from mlx.utils import tree_map
from mlx_lm.generate import generate_step, speculative_generate_step
from mlx_lm.models.cache import QuantizedKVCache
from mlx_sdpa_ext import limits, router
from tiny_models import FAMILIES, VOCAB, make, make_cache, quantize

PROMPT = 150
PREFILL_STEP = 64
DECODED = 4
FORWARD_PASSES = -(-PROMPT // PREFILL_STEP) + DECODED
PADDING = [0, 53]  # of the two sequences of a batch

# Logits are of size 1 to 5. The scores go up to about 50, so that float32 rounding of 1e-7 * 50
# becomes a relative error of the probabilities; two or three layers and a head follow.
ATOL = 2e-4
# A cache of 8 bits rounds keys and values to steps of 1/255 of their range. A float32 rounding can
# move a value of the second layer on to the next step: up to 1e-2 was seen.
QUANTIZED_ATOL = 4e-2


class Trace(NamedTuple):
    """What a model says after each position."""

    logits: np.ndarray  # [B, PROMPT + DECODED, VOCAB], float32

    @property
    def tokens(self) -> np.ndarray:
        """The greedy choices [B, PROMPT + DECODED]."""
        return self.logits.argmax(-1)

    @property
    def margin(self) -> np.ndarray:
        """How far the first choice is above the second [B, PROMPT + DECODED]."""
        return margin(self.logits)

    def row(self, row: int, first: int) -> Trace:
        """One sequence of the batch, from position `first`."""
        return Trace(self.logits[row : row + 1, first:])


def margin(logits: np.ndarray) -> np.ndarray:
    second, first = np.moveaxis(np.partition(logits, -2, axis=-1)[..., -2:], -1, 0)
    return first - second


def prompt(rng: np.random.Generator, batch: int = 1) -> np.ndarray:
    return rng.integers(VOCAB, size=(batch, PROMPT + DECODED))


def trace(
    model: Any,
    tokens: np.ndarray,
    *,
    left_padding: list[int] | None = None,
    after_first_step: Callable[[list[Any]], None] = lambda cache: None,
) -> Trace:
    """Prefill in steps and then one token at a time, all from `tokens`."""
    cache = make_cache(model, left_padding)
    starts = [*range(0, PROMPT, PREFILL_STEP), *range(PROMPT, PROMPT + DECODED)]
    parts = []
    for start, stop in zip(starts, [*starts[1:-DECODED], *starts[-DECODED:], None], strict=True):
        parts.append(model(mx.array(tokens[:, start:stop]), cache=cache).astype(mx.float32))
        mx.eval(parts[-1])
        if start == 0:
            after_first_step(cache)
    return Trace(np.array(mx.concatenate(parts, axis=1)))


def check(ours: Trace, stock: Trace, atol: float = ATOL) -> None:
    """Logits within atol, and the same tokens wherever stock's choice is clear of it."""
    np.testing.assert_allclose(ours.logits, stock.logits, atol=atol, rtol=0)
    clear = stock.margin > 2 * atol
    assert clear.mean() > 0.5
    np.testing.assert_array_equal(ours.tokens[clear], stock.tokens[clear])


def check_counts(family: str, passes: int = FORWARD_PASSES) -> None:
    stats = mlx_sdpa_ext.stats()
    assert stats.calls == FAMILIES[family].attention_layers * passes
    assert stats.providers == {"ext": stats.calls}
    assert stats.fallbacks == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_prefill_and_decode(family, rng):
    model, tokens = make(family), prompt(rng)
    stock = trace(model, tokens)
    with mlx_sdpa_ext.patched():
        ours = trace(model, tokens)
        check_counts(family)
    check(ours, stock)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "gemma2"])
def test_batch_with_left_padding(family, rng):
    model, tokens = make(family), prompt(rng, batch=len(PADDING))
    stock = trace(model, tokens, left_padding=PADDING)
    with mlx_sdpa_ext.patched():
        ours = trace(model, tokens, left_padding=PADDING)
        check_counts(family)
    for row, padding in enumerate(PADDING):
        check(ours.row(row, padding), stock.row(row, padding))


def test_gemma2_batch_with_left_padding(rng):
    """mlx-lm's own gemma2 lays the batch dimension of the mask along the heads when GQA is on."""
    model, tokens = make("gemma2"), prompt(rng, batch=len(PADDING))
    with mlx_sdpa_ext.patched():
        ours = trace(model, tokens, left_padding=PADDING)
        check_counts("gemma2")
    for row, padding in enumerate(PADDING):
        cache = make_cache(model)
        alone = np.array(model(mx.array(tokens[row : row + 1, padding:]), cache=cache))
        check(ours.row(row, padding), Trace(alone))


@pytest.mark.parametrize("family", [f for f in FAMILIES if not FAMILIES[f].experts])
def test_bfloat16(family, rng):
    """Ours is no further from float32 than stock is, with the weights that bfloat16 can hold."""
    model, tokens = make(family, mx.bfloat16), prompt(rng)
    stock = trace(model, tokens)
    with mlx_sdpa_ext.patched():
        ours = trace(model, tokens)
        check_counts(family)
    model.set_dtype(mx.float32)
    exact = trace(model, tokens)

    def distance(other: Trace) -> float:
        return np.sqrt(np.mean((other.logits - exact.logits) ** 2))

    assert distance(ours) <= 1.25 * distance(stock)
    clear = stock.margin > 10 * distance(stock)
    assert clear.any()
    np.testing.assert_array_equal(ours.tokens[clear], stock.tokens[clear])


# In 4 bits only where no attention comes before: rounding to the next step would be a large one.
QUANTIZED = [(family, 8) for family in FAMILIES if FAMILIES[family].kv_bits == "runs"]
QUANTIZED += [("qwen3_next", 4), ("qwen3_5", 4)]


@pytest.mark.parametrize(("family", "bits"), QUANTIZED)
def test_quantized_cache(family, bits, rng):
    model, tokens = make(family), prompt(rng)
    stock = trace(model, tokens, after_first_step=partial(quantize, bits=bits))
    with mlx_sdpa_ext.patched():
        ours = trace(model, tokens, after_first_step=partial(quantize, bits=bits))
        check_counts(family)
        reasons = mlx_sdpa_ext.stats().reasons
    check(ours, stock, ATOL if FAMILIES[family].attention_layers == 1 else QUANTIZED_ATOL)
    quantized = sum(calls for reason, calls in reasons.items() if "packed keys" in reason)
    assert quantized == FAMILIES[family].quantized_layers * (FORWARD_PASSES - 1)


class Dequantized(QuantizedKVCache):
    """A quantized cache that hands out plain arrays: what it should amount to."""

    def __init__(self, cache: QuantizedKVCache) -> None:
        self.cache = cache
        self.quantization = {"group_size": cache.group_size, "bits": cache.bits}

    offset = property(lambda self: self.cache.offset)
    make_mask = property(lambda self: self.cache.make_mask)

    def update_and_fetch(self, keys, values):
        return tuple(
            mx.dequantize(*packed, **self.quantization)
            for packed in self.cache.update_and_fetch(keys, values)
        )


@pytest.mark.parametrize("family", [f for f in FAMILIES if FAMILIES[f].kv_bits == "mended"])
def test_quantized_cache_that_stock_does_not_take(family, rng):
    model, tokens = make(family), prompt(rng)
    with pytest.raises((TypeError, ValueError, AttributeError)):
        trace(model, tokens, after_first_step=partial(quantize, bits=8))
    with mlx_sdpa_ext.patched():
        ours = trace(model, tokens, after_first_step=partial(quantize, bits=8))
        check_counts(family)

    def quantize_and_hide(cache):
        quantize(cache, bits=8)
        for i, layer in enumerate(cache):
            if isinstance(layer, QuantizedKVCache):
                cache[i] = Dequantized(layer)

    check(ours, trace(model, tokens, after_first_step=quantize_and_hide), atol=QUANTIZED_ATOL)


@pytest.mark.parametrize("family", [f for f in FAMILIES if FAMILIES[f].kv_bits == "refused"])
def test_quantized_cache_refused_as_by_stock(family, rng):
    model, tokens = make(family), prompt(rng)
    with pytest.raises((TypeError, ValueError, AttributeError)) as stock:
        trace(model, tokens, after_first_step=partial(quantize, bits=8))
    with mlx_sdpa_ext.patched(), pytest.raises(stock.type) as ours:
        trace(model, tokens, after_first_step=partial(quantize, bits=8))
    assert ours.type is stock.type


@pytest.mark.parametrize("kv_bits", [None, 8])
def test_generate_step(kv_bits, rng):
    """mlx-lm's own loop, cache and prefill steps: the same text up to a choice between equals."""
    model, tokens = make("llama"), prompt(rng)[0]

    def generate() -> tuple[list[int], list[np.ndarray]]:
        steps = generate_step(
            mx.array(tokens),
            model,
            max_tokens=24,
            prefill_step_size=PREFILL_STEP,
            kv_bits=kv_bits,
            quantized_kv_start=0,
        )
        chosen, logprobs = zip(*steps, strict=True)
        return list(chosen), [np.array(row) for row in logprobs]

    stock, logprobs = generate()
    with mlx_sdpa_ext.patched():
        ours, _ = generate()
        stats = mlx_sdpa_ext.stats()
    unclear = margin(np.stack(logprobs)) < 2 * (QUANTIZED_ATOL if kv_bits else ATOL)
    clear = unclear.argmax() if unclear.any() else len(stock)
    assert ours[:clear] == stock[:clear]
    # Prefill of all but the last token; that token; then one pass ahead of each token read.
    passes = -(-(len(tokens) - 1) // PREFILL_STEP) + 1 + len(stock)
    assert stats.calls == FAMILIES["llama"].attention_layers * passes
    assert stats.fallbacks == 0


@pytest.mark.parametrize("drafted", [8, 31, 47])
def test_drafts_are_verified_at_once(drafted, rng, monkeypatch):
    """9 to 48 query rows: mlx-lm's speculative loop says what its plain one says."""
    model, tokens = make("llama"), prompt(rng)[0]
    draft = make("llama")
    draft.update(tree_map(lambda weight: weight * 1.001, draft.parameters()))
    plain = list(generate_step(mx.array(tokens), model, max_tokens=60))
    rows, route = set(), router.route

    def recorded(problem, *arguments, **options):
        rows.add(problem.Lq)
        return route(problem, *arguments, **options)

    monkeypatch.setattr(router, "route", recorded)
    limits.refresh()  # forgets the routes that it knows
    with mlx_sdpa_ext.patched():
        steps = speculative_generate_step(
            mx.array(tokens), model, draft, num_draft_tokens=drafted, max_tokens=60
        )
        chosen, _, from_draft = zip(*steps, strict=True)
        assert mlx_sdpa_ext.stats().fallbacks == 0
    assert drafted + 1 in rows
    assert sum(from_draft) > 20
    unclear = margin(np.stack([np.array(row) for _, row in plain])) < 2 * ATOL
    clear = unclear.argmax() if unclear.any() else len(plain)
    assert list(chosen[:clear]) == [token for token, _ in plain[:clear]]
