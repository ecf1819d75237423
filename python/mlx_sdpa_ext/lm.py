"""Our side of each function that patch.py replaces; each takes the function it replaces.

What ours cannot do is left to that function, counted in `stats().fallbacks`, with a warning. If it
refuses too, ours says why.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from . import attention, quantized
from . import device as devices
from .first_use import Gate
from .stats import record, record_fallback
from .words import Device, Problem, Route

Function = Callable[..., Any]
REFUSALS = (TypeError, ValueError, RuntimeError)


def fast_attention(found: Function) -> Function:
    """Replaces `mx.fast.scaled_dot_product_attention`."""

    def scaled_dot_product_attention(
        q: mx.array,
        k: mx.array,
        v: mx.array,
        *,
        scale: float,
        mask: str | mx.array | None = None,
        sinks: mx.array | None = None,
        force_fused: bool = False,
        stream: Any = None,
    ) -> mx.array:
        """`mx.fast.scaled_dot_product_attention` by mlx_sdpa_ext: same arguments, same result."""
        options = {"scale": scale, "mask": mask, "sinks": sinks, "stream": stream}
        if force_fused:
            options["force_fused"] = True
        try:
            return attention.scaled_dot_product_attention(q, k, v, **options)
        except REFUSALS as error:
            return _left_to(found, error, q, k, v, **options)

    # For attention.py, should it be imported again while the patch is on.
    scaled_dot_product_attention.__mlx_sdpa_ext_stock__ = attention.stock_attention
    return scaled_dot_product_attention


def quantized_attention(found: Function) -> Function:
    """Replaces `mlx_lm.models.base.quantized_scaled_dot_product_attention`."""

    def quantized_scaled_dot_product_attention(
        queries: mx.array,
        q_keys: tuple[mx.array, ...],
        q_values: tuple[mx.array, ...],
        scale: float,
        mask: str | mx.array | None,
        group_size: int = 64,
        bits: int = 8,
    ) -> mx.array:
        """mlx-lm's attention over a quantized cache, read packed or a block at a time."""
        options = {"scale": scale, "mask": mask, "group_size": group_size, "bits": bits}
        try:
            keys = quantized.Quantized(q_keys, group_size, bits)
            values = quantized.Quantized(q_values, group_size, bits)
            out = _streamed(queries, keys, values, scale, mask)
        except REFUSALS as error:
            return _left_to(found, error, queries, q_keys, q_values, **options)
        return found(queries, q_keys, q_values, **options) if out is None else out

    return quantized_scaled_dot_product_attention


def softcap_attention(found: Function) -> Function:
    """Replaces `mlx_lm.models.gear._softcap_attention`."""

    def _softcap_attention(
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        scale: float,
        softcap: float,
        mask: str | mx.array | None,
    ) -> mx.array:
        """Attention with soft-capped scores. Keys and values may come from a quantized cache."""
        try:
            return _softcapped(queries, keys, values, scale, softcap, mask)
        except REFUSALS as error:
            return _left_to(found, error, queries, keys, values, scale, softcap, mask)

    return _softcap_attention


def gemma2_attention(found: Function) -> Function:
    """Replaces `mlx_lm.models.gemma2.Attention.__call__`."""

    def __call__(
        self: Any, x: mx.array, mask: mx.array | None = None, cache: Any | None = None
    ) -> mx.array:
        """The layer of mlx-lm, also with per-sequence masks and with a quantized cache."""
        B, L, _ = x.shape

        def heads(projection: Function, count: int) -> mx.array:
            return projection(x).reshape(B, L, count, -1).transpose(0, 2, 1, 3)

        offset = 0 if cache is None else cache.offset
        if isinstance(offset, mx.array):
            offset = mx.array(offset)  # batch caches add to theirs in place
        q = self.rope(heads(self.q_proj, self.n_heads), offset=offset)
        k = self.rope(heads(self.k_proj, self.n_kv_heads), offset=offset)
        v = heads(self.v_proj, self.n_kv_heads)
        if cache is not None:
            k, v = cache.update_and_fetch(k, v)
        try:
            out = _softcapped(q, k, v, self.scale, self.attn_logit_softcapping, mask)
        except REFUSALS as error:
            return _left_to(found, error, self, x, mask, _Updated(offset, k, v))
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(B, L, -1))

    return __call__


class _Updated:
    """A cache that has its new keys and values already: update_and_fetch only fetches."""

    def __init__(self, offset: Any, keys: Any, values: Any) -> None:
        self.offset, self.keys, self.values = offset, keys, values

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[Any, Any]:
        return self.keys, self.values


def _softcapped(
    q: mx.array, k: Any, v: Any, scale: float, softcap: float, mask: str | mx.array | None
) -> mx.array:
    if isinstance(k, mx.array):
        if isinstance(mask, mx.array) and mask.dtype != mx.bool_:
            q = q.astype(mx.result_type(q, mask))  # as adding the mask to the scores would
        return attention.scaled_dot_product_attention(
            q, k, v, scale=scale, mask=mask, softcap=softcap
        )
    # mlx-lm's own softcap attention does not take a quantized cache, and so is not told its
    # parameters: they follow from the shapes.
    D = q.shape[3]
    bits, group_size = k[0].shape[3] * 32 // D, D // k[1].shape[3]
    keys = quantized.Quantized(k, group_size, bits)
    values = quantized.Quantized(v, group_size, bits)
    return _streamed(q, keys, values, scale, mask, softcap)


def _streamed(
    q: mx.array,
    keys: quantized.Quantized,
    values: quantized.Quantized,
    scale: float,
    mask: str | mx.array | None,
    softcap: float | None = None,
) -> mx.array | None:
    """Attention over a quantized cache, or None where mlx-lm's function is the path to take."""
    place = attention.place_of(None)
    problem = quantized.problem_of(q, keys, values, mask, softcap)
    route = _packed_route(place.gate, place.device, problem, q, keys, values, mask)
    route = route or quantized.route(problem, place.device, place.limits)
    if place.gate and route.path == "chunked" and not route.block_rows:
        failed = _failed_kernel(place.gate, problem, route, q, keys, values, mask)
        if failed:
            route = quantized.route(problem, place.device, place.limits, failed)
    out = None
    if route.path != "stock":
        if isinstance(scale, mx.array):
            q, scale = q * scale, 1.0
        with devices.default():
            out = quantized.attention(
                q, keys, values, scale=scale, mask=mask, softcap=softcap, route=route
            )
    place.announce(route, problem)
    record(route)
    return out


def _packed_route(
    gate: Gate | None,
    device: Device,
    problem: Problem,
    q: mx.array,
    keys: quantized.Quantized,
    values: quantized.Quantized,
    mask: str | mx.array | None,
) -> Route | None:
    """The route of a kernel that reads the packed cache, where there is one that works."""
    kernel = quantized.packed_kernel(problem, device, keys, values)
    if kernel is None:
        return None
    if gate is None:  # a CPU, whose kernels are compiled
        return quantized.packed_route(problem, kernel, keys)
    arrays = (q.astype(getattr(mx, problem.dtype)), *keys.arrays, *values.arrays)
    sizes = {"group_size": keys.group_size, "bits": keys.bits}
    if gate.packed_failure(problem, arrays, mask=mask, **sizes):
        return None
    return quantized.packed_route(problem, kernel, keys)


def _failed_kernel(
    gate: Gate,
    problem: Problem,
    route: Route,
    q: mx.array,
    keys: quantized.Quantized,
    values: quantized.Quantized,
    mask: str | mx.array | None,
) -> str | None:
    """The kernel of a block of keys, where it is not to be used on this device."""
    n = min(route.chunk_size, problem.Lk)
    block = problem._replace(Lk=n, want_lse=True)
    dtype = getattr(mx, problem.dtype)
    k, v = (mx.zeros((problem.B, problem.Hkv, n, D), dtype) for D in (problem.D, problem.Dv))
    if isinstance(mask, mx.array):
        mask = mask[..., :n]
    for carry in (False, True)[: route.chunks]:  # the first block; those after it
        failure = gate.failure(
            block, q.astype(dtype), k, v, mask=mask, float32_out=True, carry=carry
        )
        if failure:
            return failure.kernel
    return None


def _left_to(found: Function, error: Exception, *args: Any, **kwargs: Any) -> Any:
    try:
        result = found(*args, **kwargs)
    except Exception:
        raise error from None
    name = getattr(found, "__qualname__", repr(found))
    reason = f"{name}: {type(error).__name__}: {error}"
    record_fallback(reason)
    warnings.warn(
        f"mlx_sdpa_ext left a call to the function it replaces: {reason}",
        RuntimeWarning,
        stacklevel=3,
    )
    return result
