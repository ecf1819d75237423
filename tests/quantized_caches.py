"""Packed keys and values in several layouts, and what they stand for: for every backend."""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
from cases import rounded, to_numpy

# Rows before and after those of a slice: an odd number, so that scales start in mid-word.
UNUSED = 3


def filler(x: mx.array):
    return 0xFFFFFFFF if x.dtype == mx.uint32 else math.nan


def cache(x: mx.array) -> mx.array:
    """Rows from the middle of a longer cache."""
    B, H, L, n = x.shape
    unused = mx.full((B, H, UNUSED, n), filler(x), x.dtype)
    return mx.concatenate([unused, x, unused], axis=2)[:, :, UNUSED : UNUSED + L]


def heads(x: mx.array) -> mx.array:
    """Stored [B, L, H, n]."""
    return mx.contiguous(x.swapaxes(1, 2)).swapaxes(1, 2)


def strided(x: mx.array) -> mx.array:
    """Columns at stride 2."""
    stored = mx.stack([x, mx.full(x.shape, filler(x), x.dtype)], axis=-1)
    return stored.flatten(-2)[..., ::2]


LAYOUTS = {"contiguous": lambda x: x, "cache": cache, "heads": heads, "strided": strided}


def allowed(row: dict) -> bool:
    return all(n % row["packing"][1] == 0 for n in row["dims"])


def quantities(
    row: dict, n: int, rng: np.random.Generator, layouts: dict = LAYOUTS
) -> tuple[list[mx.array], np.ndarray]:
    """[words, scales, biases] in the row's layout, and what they stand for in float64."""
    bits, group = row["packing"]
    B, _, Hkv, _ = row["heads"]
    normal = rng.standard_normal((B, Hkv, row["keys"], n)).astype(np.float32)
    words, *groups = mx.quantize(mx.array(normal), group_size=group, bits=bits)
    groups = [x.astype(getattr(mx, row["dtype"])) for x in groups]
    exact = mx.dequantize(words, *(x.astype(mx.float32) for x in groups), group, bits)
    return [layouts[row["layout"]](x) for x in (words, *groups)], to_numpy(exact)


def mask_of(row: dict, rng: np.random.Generator):
    """As the reference takes it, and as the operation does."""
    kind = row["masking"]["mask"]
    if kind in ("none", "causal"):
        mask = None if kind == "none" else kind
        return mask, mask
    B, Hq, _, Lq = row["heads"]
    sizes = {"B": B, "H": Hq, "Q": Lq, "K": row["keys"], "1": 1}
    shape = tuple(sizes[letter] for letter in row["masking"]["mask_shape"])
    seen = np.asarray(rng.random(shape) < 0.7)
    if kind == "bool":
        return seen, mx.array(seen)
    bias = np.where(seen, rounded(np.asarray(rng.standard_normal(shape)), row["dtype"]), -np.inf)
    return bias, mx.array(bias.astype(np.float32)).astype(getattr(mx, row["dtype"]))
