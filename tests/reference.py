"""Attention in float64 numpy, written from its definition: what every test compares with.

    S   = mask(softcap(scale * Q K^T))                          [B, Hq, Lq, Lk]
    P   = exp(S - lse),  lse = log(sum_j exp(S_j) + exp(sink))  [B, Hq, Lq]
    out = P V                                                   [B, Hq, Lq, Dv]

A key that causality, the window, a False or a -inf in the mask hides takes no part at all, whatever
it holds. A row that sees no key gives 0, and -inf (with sinks: the sink) as its lse.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

Mask = None | str | np.ndarray  # None, "causal", bool (True = visible) or additive


def is_additive(mask: Mask) -> bool:
    return mask is not None and not isinstance(mask, str) and np.asarray(mask).dtype != bool


def softcapped(scores: np.ndarray, softcap: float | None) -> np.ndarray:
    return scores if softcap is None else softcap * np.tanh(scores / softcap)


def visible(shape, mask: Mask, window: int | None, q_offset: int | None) -> np.ndarray:
    """[B, Hq, Lq, Lk] bool: which key each query sees. Query row i sits at key q_offset + i."""
    Lq, Lk = shape[-2:]
    if mask is not None and not isinstance(mask, str):
        return np.broadcast_to(mask != -np.inf if is_additive(mask) else mask, shape)
    seen = np.ones((Lq, Lk), bool)
    if mask == "causal":
        row = np.arange(Lq)[:, None] + (Lk - Lq if q_offset is None else q_offset)
        key = np.arange(Lk)[None, :]
        seen = key <= row
        if window is not None:
            seen &= key > row - window
    return np.broadcast_to(seen, shape)


class Weights(NamedTuple):
    P: np.ndarray  # [B, Hq, Lq, Lk]
    capped: np.ndarray  # [B, Hq, Lq, Lk] scores after the softcap, before the mask
    seen: np.ndarray  # [B, Hq, Lq, Lk] bool
    lse: np.ndarray  # [B, Hq, Lq]
    sink: np.ndarray  # [B, Hq, Lq] the weight the sink takes


def grouped(x: np.ndarray, Hkv: int) -> np.ndarray:
    """[B, Hq, ...] as [B, Hkv, Hq / Hkv, ...]: the query heads that share a key/value head."""
    return x.reshape(x.shape[0], Hkv, x.shape[1] // Hkv, *x.shape[2:])


def weights(q, k, *, scale, mask=None, sinks=None, window=None, softcap=None, q_offset=None):
    B, Hq, Lq, _ = q.shape
    Hkv, Lk = k.shape[1:3]
    with np.errstate(all="ignore"):  # NaN and inf in the inputs are cases, not mistakes
        raw = scale * np.einsum("bhgqd,bhkd->bhgqk", grouped(q, Hkv), k).reshape(B, Hq, Lq, Lk)
        capped = softcapped(raw, softcap)
        seen = visible(capped.shape, mask, window, q_offset)
        S = np.where(seen, capped + mask if is_additive(mask) else capped, -np.inf)
        sink = np.full((B, Hq, 1), -np.inf) if sinks is None else sinks.reshape(1, Hq, 1)
        m = np.maximum(S.max(-1, initial=-np.inf), sink)
        m = np.where(m == -np.inf, 0.0, m)
        lse = m + np.log(np.exp(S - m[..., None]).sum(-1) + np.exp(sink - m))
        lse_or_0 = np.where(lse == -np.inf, 0.0, lse)
        P = np.where(seen, np.exp(S - lse_or_0[..., None]), 0.0)
        return Weights(P, capped, seen, lse, np.exp(sink - lse_or_0))


def attention(q, k, v, **how) -> tuple[np.ndarray, np.ndarray]:
    """The outputs out [B, Hq, Lq, Dv] and lse [B, Hq, Lq].

    Of q [B, Hq, Lq, D], k [B, Hkv, Lk, D], v [B, Hkv, Lk, Dv].

    how: scale, mask, sinks [Hq], window, softcap, q_offset, as for the functions under test.
    """
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    w = weights(q, k, **how)
    P = grouped(w.P, k.shape[1])
    if np.isfinite(v).all():
        out = np.einsum("bhgqk,bhkd->bhgqd", P, v)
    else:  # a hidden key adds nothing even where 0 * V is NaN
        with np.errstate(invalid="ignore"):
            terms = P[..., None] * v[:, :, None, None]
        out = np.where(grouped(w.seen, k.shape[1])[..., None], terms, 0.0).sum(-2)
    return out.reshape(*q.shape[:3], v.shape[-1]), w.lse


class Gradients(NamedTuple):
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    mask: np.ndarray | None
    sinks: np.ndarray | None


def unbroadcast(x: np.ndarray, shape) -> np.ndarray:
    """The gradient of a broadcast: sums over the dimensions it repeated."""
    x = x.sum(tuple(range(x.ndim - len(shape))))
    return x.sum(tuple(i for i, n in enumerate(shape) if n == 1), keepdims=True).reshape(shape)


def gradients(q, k, v, d_out, d_lse=None, **how) -> Gradients:
    """Gradients of sum(out * d_out) + sum(lse * d_lse); d_out [B, Hq, Lq, Dv], d_lse [B, Hq, Lq].

    mask and sinks are None where there is nothing to differentiate.
    """
    q, k, v, d_out = (np.asarray(x, np.float64) for x in (q, k, v, d_out))
    Hkv, mask, sinks, softcap = (
        k.shape[1],
        how.get("mask"),
        how.get("sinks"),
        how.get("softcap"),
    )
    w = weights(q, k, **how)
    out, _ = attention(q, k, v, **how)
    d_lse = np.zeros(w.lse.shape) if d_lse is None else d_lse
    # dS = P * (dP - rowsum(dO * O) + dlse)
    dP = np.einsum("bhgqd,bhkd->bhgqk", grouped(d_out, Hkv), v).reshape(w.P.shape)
    pull = d_lse - (d_out * out).sum(-1)
    dS = w.P * (dP + pull[..., None])
    d_raw = dS if softcap is None else dS * (1 - (w.capped / softcap) ** 2)
    d_raw = how["scale"] * grouped(d_raw, Hkv)
    return Gradients(
        q=np.einsum("bhgqk,bhkd->bhgqd", d_raw, k).reshape(q.shape),
        k=np.einsum("bhgqk,bhgqd->bhkd", d_raw, grouped(q, Hkv)),
        v=np.einsum("bhgqk,bhgqd->bhkd", grouped(w.P, Hkv), grouped(d_out, Hkv)),
        mask=unbroadcast(dS, mask.shape) if is_additive(mask) else None,
        sinks=None if sinks is None else (w.sink * pull).sum((0, 2)),
    )
