"""The same values in memory in every way a caller may hand them over. Unused memory holds NaN."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np

EXTRA = 5  # unused rows and columns around a slice


def filler(dtype: mx.Dtype):
    """What unused memory holds: NaN; True for bool, where a stray read would make a key visible."""
    return True if dtype == mx.bool_ else math.nan


def contiguous(x: mx.array) -> mx.array:
    return x


def heads(x: mx.array) -> mx.array:
    """Stored [B, L, H, D], as a projection leaves it."""
    return mx.contiguous(x.swapaxes(-3, -2)).swapaxes(-3, -2)


def cache(x: mx.array) -> mx.array:
    """The first rows of a longer key/value cache."""
    unused = mx.full((*x.shape[:-2], EXTRA, x.shape[-1]), filler(x.dtype), x.dtype)
    return mx.concatenate([x, unused], axis=-2)[..., : x.shape[-2], :]


def ring(x: mx.array) -> mx.array:
    """Rows from the middle of a cache stored [B, L, H, D]: an offset, unused rows on both sides."""
    stored = x.swapaxes(-3, -2)
    shape = (*stored.shape[:-3], EXTRA, *stored.shape[-2:])
    unused = mx.full(shape, filler(x.dtype), x.dtype)
    stored = mx.concatenate([unused, stored, unused], axis=-3)
    return stored[..., EXTRA : EXTRA + x.shape[-2], :, :].swapaxes(-3, -2)


def columns(x: mx.array) -> mx.array:
    """A slice of the last dimension, as splitting a fused QKV projection gives."""
    unused = mx.full((*x.shape[:-1], EXTRA), filler(x.dtype), x.dtype)
    return mx.concatenate([unused, x, unused], axis=-1)[..., EXTRA : EXTRA + x.shape[-1]]


def strided(x: mx.array) -> mx.array:
    """Last dimension at stride 2, NaN between."""
    stored = mx.stack([x, mx.full(x.shape, filler(x.dtype), x.dtype)], axis=-1)
    return stored.flatten(-2)[..., ::2]


def reversed_last(x: mx.array) -> mx.array:
    """Last dimension at stride -1."""
    return mx.contiguous(x[..., ::-1])[..., ::-1]


def reversed_rows(x: mx.array) -> mx.array:
    """Rows at a negative stride."""
    return mx.contiguous(x[..., ::-1, :])[..., ::-1, :]


def transposed(x: mx.array) -> mx.array:
    """The last two dimensions swapped in memory: unit stride over rows."""
    return mx.contiguous(x.swapaxes(-1, -2)).swapaxes(-1, -2)


def one_head(x: mx.array) -> mx.array:
    """Every head the same memory, at stride 0."""
    return mx.broadcast_to(mx.contiguous(x[..., :1, :, :]), x.shape)


def one_batch(x: mx.array) -> mx.array:
    """Every batch the same memory, at stride 0."""
    return mx.broadcast_to(mx.contiguous(x[:1]), x.shape)


def one_row(x: mx.array) -> mx.array:
    """Every row the same memory, at stride 0."""
    return mx.broadcast_to(mx.contiguous(x[..., :1, :]), x.shape)


LAYOUTS = {
    f.__name__: f
    for f in (
        contiguous,
        heads,
        cache,
        ring,
        columns,
        strided,
        reversed_last,
        reversed_rows,
        transposed,
        one_head,
        one_batch,
        one_row,
    )
}
REPEATED_AXIS = {"one_head": -3, "one_batch": 0, "one_row": -2}
MASK_LAYOUTS = ("contiguous", "cache", "columns", "strided", "reversed_last", "transposed")


def values(x: np.ndarray, layout: str) -> np.ndarray:
    """x with the repetition that a stride-0 layout implies."""
    axis = REPEATED_AXIS.get(layout)
    if axis is None or x.size == 0:
        return x
    return np.broadcast_to(np.take(x, [0], axis), x.shape)


def arrange(x: np.ndarray, dtype: mx.Dtype, layout: str) -> mx.array:
    """x as an mx array of that dtype; layouts of two dimensions leave shorter x alone."""
    array = mx.array(np.array(x, order="C"), dtype)
    if array.size == 0 or (array.ndim < 2 and layout in ("cache", "transposed", "reversed_rows")):
        return array
    return LAYOUTS[layout](array)


def random_view(x: np.ndarray, dtype: mx.Dtype, rng: np.random.Generator) -> mx.array:
    """x somewhere inside a larger buffer: any order of axes, any steps, forwards or backwards."""
    steps = rng.choice((1, 1, 1, 2, 3, -1, -2), x.ndim)
    before, after = rng.integers(0, 3, (2, x.ndim))
    order = rng.permutation(x.ndim)
    length = [(n - 1) * abs(s) + 1 if n else 0 for n, s in zip(x.shape, steps)]
    index = []
    for first, n, step in zip(before, length, steps):
        forth = slice(int(first), int(first + n), int(abs(step)))
        last = first + n - 1
        back = slice(int(last), int(first - 1) if first else None, int(step))
        index.append(forth if step > 0 or n == 0 else back)
    buffer = np.full([int(sum(sizes)) for sizes in zip(before, length, after)], filler(dtype))
    buffer[tuple(index)] = x
    stored = mx.array(np.array(buffer.transpose(order), order="C"), dtype)
    return stored.transpose(*(int(i) for i in np.argsort(order)))[tuple(index)]
