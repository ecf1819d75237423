"""A model of mlx-lm run with and without the patch, and what its table says of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import lm_modules
import mlx.core as mx
import mlx_sdpa_ext
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_sdpa_ext import attention, limits, router
from mlx_sdpa_ext.words import Problem

STEPS = (24, 17, 1, 1, 1)  # tokens of each forward pass: a prefill in two steps, then decode
# Of logits of 2 to 20. Most differ by 1e-5 at most; deepseek_v41 rounds keys to fp8 steps, which
# moved them by 2e-4 (three seeds, three instruction sets).
ATOL = 5e-4
SHOWS = 1000  # times that: what a wrong scale must move logits by, or equality says nothing
REFUSALS = (TypeError, ValueError, RuntimeError)


class Run(NamedTuple):
    """What one model did."""

    problems: tuple[Problem, ...] = ()  # each that the router was asked for
    prefill_calls: int = 0  # of attention, in one step
    decode_calls: int = 0
    paths: tuple[str, ...] = ()
    fallbacks: int = 0
    own: int = 0  # softmax over keys outside of what is replaced, in one step
    difference: float = 0.0  # of the logits, ours from stock's
    same_tokens: bool = True
    moved: float = 0.0  # by how much a wrong scale changes the logits
    stock_error: str = ""
    error: str = ""  # of ours

    @property
    def equal(self) -> bool:
        """Logits within ATOL, the same tokens where stock's choice is clear, and all of it ours."""
        close = self.difference <= ATOL and self.same_tokens and not self.fallbacks
        return close and self.moved > SHOWS * self.difference and self.moved > 0


def run(name: str, seed: int = 1) -> Run:
    """One model, the same tokens on stock attention, on ours and on ours with a wrong scale."""
    model = lm_modules.make(name, seed)
    tokens = np.random.default_rng(seed).integers(lm_modules.VOCAB, size=(1, sum(STEPS)))
    try:
        stock = _trace(model, tokens)
    except REFUSALS as error:
        return Run(stock_error=_line(error), error=_error_of_ours(model, tokens))
    found: dict[str, Any] = {}
    with mlx_sdpa_ext.patched(), _problems() as problems, _own_softmaxes() as own:
        counts = []
        ours = _trace(model, tokens, lambda: counts.append((mlx_sdpa_ext.stats().calls, len(own))))
        stats = mlx_sdpa_ext.stats()
        found["prefill_calls"], found["own"] = counts[0]
        found["decode_calls"] = counts[-1][0] - counts[-2][0]
        found |= {"paths": tuple(stats.paths), "fallbacks": stats.fallbacks}
        with _wrong_scale():
            wrong = _trace(model, tokens)
    visible = np.isfinite(stock)  # phi3small hides tokens
    assert (visible == np.isfinite(ours)).all(), name
    clear = _margin(stock) > 2 * ATOL
    return Run(
        problems=tuple(dict.fromkeys(problems)),
        difference=_apart(ours, stock, visible),
        same_tokens=bool((ours.argmax(-1) == stock.argmax(-1))[clear].all()),
        moved=_apart(wrong, stock, visible),
        **found,
    )


def _trace(model: Any, tokens: np.ndarray, after: Any = lambda: None) -> np.ndarray:
    """Logits [1, L, V] in float32, of the tokens given."""
    cache, parts, first = make_prompt_cache(model), [], 0
    for count in STEPS:
        logits = model(mx.array(tokens[:, first : first + count]), cache=cache)
        parts.append(np.array(logits.astype(mx.float32)))
        first += count
        after()
    return np.concatenate(parts, axis=1)


def _error_of_ours(model: Any, tokens: np.ndarray) -> str:
    with mlx_sdpa_ext.patched():
        try:
            _trace(model, tokens)
        except REFUSALS as error:
            return _line(error)
    return ""


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _apart(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
    return float(np.abs(np.subtract(a, b, where=where, out=np.zeros_like(a))).max())


def _margin(logits: np.ndarray) -> np.ndarray:
    second, first = np.moveaxis(np.partition(logits, -2, axis=-1)[..., -2:], -1, 0)
    return first - second


@contextmanager
def _problems() -> Iterator[list[Problem]]:
    """Collects what the router is asked; it forgets the answers that it has."""
    asked: list[Problem] = []
    route = router.route

    def recorded(problem: Problem, *args: Any, **kwargs: Any) -> Any:
        asked.append(problem)
        return route(problem, *args, **kwargs)

    limits.refresh()
    with mock.patch.object(router, "route", recorded):
        yield asked


@contextmanager
def _own_softmaxes() -> Iterator[list[tuple[int, ...]]]:
    """Collects softmaxes over the last axis of 4 or 5 dimensions that a model calls itself."""
    shapes: list[tuple[int, ...]] = []
    softmax = mx.softmax

    def recorded(x: mx.array, axis: Any = None, **kwargs: Any) -> mx.array:
        if x.ndim >= 4 and axis in (-1, x.ndim - 1) and x.shape[-1] >= STEPS[0]:
            shapes.append(x.shape)
        return softmax(x, axis=axis, **kwargs)

    with mock.patch.object(mx, "softmax", recorded):
        yield shapes


@contextmanager
def _wrong_scale() -> Iterator[None]:
    attend = attention.scaled_dot_product_attention

    def wrong(*args: Any, scale: Any, **kwargs: Any) -> Any:
        return attend(*args, scale=0.5 * scale, **kwargs)

    with mock.patch.object(attention, "scaled_dot_product_attention", wrong):
        yield
