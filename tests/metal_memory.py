"""Operands as a Metal kernel sees them: one allocation, an offset into it, strides in elements.

The layouts are those of layouts.py, here on numpy storage, so that the software device knows where
each allocation ends. Memory that no operand covers holds NaN; a bfloat16 is a uint16.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import mlx.core as mx
import numpy as np

STORED = {"float32": np.float32, "float16": np.float16, "bfloat16": np.uint16, "bool": np.uint8}
ALIGNMENT = 64  # of an allocation
EXTRA = 5  # unused rows and columns around a slice, as in layouts.py


class Operand(NamedTuple):
    allocation: np.ndarray  # [n] in the storage type
    offset: int  # of element 0, in elements
    strides: tuple[int, ...]  # in elements

    @property
    def binding(self) -> tuple[np.ndarray, int]:
        """What is bound: the allocation, and where in it the operand starts, in bytes."""
        return self.allocation, self.offset * self.allocation.itemsize

    def in_vectors(self) -> bool:
        """Whether rows are contiguous and start at multiples of 16 bytes."""
        itemsize = self.allocation.itemsize
        places = (self.offset, *self.strides[:-1])
        return self.strides[-1] == 1 and all(n * itemsize % 16 == 0 for n in places)


def allocate(n: int, dtype: str) -> np.ndarray:
    """n elements that start at a multiple of ALIGNMENT bytes; they hold NaN (bool: 1)."""
    kind = np.dtype(STORED[dtype])
    raw = np.empty(n * kind.itemsize + ALIGNMENT, np.uint8)
    first = -raw.ctypes.data % ALIGNMENT
    allocation = raw[first : first + n * kind.itemsize].view(kind)
    allocation[:] = 1 if dtype == "bool" else to_storage(np.array([math.nan]), dtype)
    return allocation


def to_storage(x: np.ndarray, dtype: str) -> np.ndarray:
    """float64 (or bool) values in the storage type, rounded to the dtype."""
    if dtype != "bfloat16":
        return np.asarray(x).astype(STORED[dtype])
    rounded = mx.array(np.asarray(x, np.float32)).astype(mx.bfloat16)
    return np.array(rounded.view(mx.uint16), copy=True)


def from_storage(x: np.ndarray, dtype: str) -> np.ndarray:
    """float64 values."""
    if dtype == "bfloat16":
        x = (x.astype(np.uint32) << 16).view(np.float32)
    return x.astype(np.float64)


# Of [B, H, L, C]: the shape of the allocation, and the operand as a view of it.
def _contiguous(shape):
    return shape, lambda a: a


def _heads(shape):
    B, H, L, C = shape
    return (B, L, H, C), lambda a: a.swapaxes(1, 2)


def _cache(shape):
    B, H, L, C = shape
    return (B, H, L + EXTRA, C), lambda a: a[:, :, :L]


def _ring(shape):
    B, H, L, C = shape
    return (B, L + 2 * EXTRA, H, C), lambda a: a[:, EXTRA : EXTRA + L].swapaxes(1, 2)


def _columns(shape):
    B, H, L, C = shape
    return (B, H, L, C + 2 * EXTRA), lambda a: a[..., EXTRA : EXTRA + C]


def _strided(shape):
    B, H, L, C = shape
    return (B, H, L, 2 * C), lambda a: a[..., ::2]


def _reversed_last(shape):
    return shape, lambda a: a[..., ::-1]


def _reversed_rows(shape):
    return shape, lambda a: a[:, :, ::-1]


def _transposed(shape):
    B, H, L, C = shape
    return (B, H, C, L), lambda a: a.swapaxes(2, 3)


def _repeated(axis):
    def layout(shape):
        stored = tuple(1 if i == axis else n for i, n in enumerate(shape))
        return stored, lambda a: np.broadcast_to(a, shape)

    return layout


LAYOUTS = {
    "contiguous": _contiguous,
    "heads": _heads,
    "cache": _cache,
    "ring": _ring,
    "columns": _columns,
    "strided": _strided,
    "reversed_last": _reversed_last,
    "reversed_rows": _reversed_rows,
    "transposed": _transposed,
    "one_head": _repeated(1),
    "one_batch": _repeated(0),
    "one_row": _repeated(2),
}


def arrange(x: np.ndarray, dtype: str, layout: str = "contiguous") -> Operand:
    """x [B, H, L, C] in memory. A layout that repeats a dimension takes its first element."""
    shape, view_of = LAYOUTS[layout](x.shape)
    allocation = allocate(math.prod(shape), dtype)
    view = view_of(allocation.reshape(shape))
    if not view.flags.writeable:  # repeated
        first = tuple(slice(0, 1) if n == 1 else slice(None) for n in shape)
        allocation.reshape(shape)[...] = to_storage(x[first], dtype)
    else:
        view[...] = to_storage(x, dtype)
    itemsize = allocation.itemsize
    offset = (view.__array_interface__["data"][0] - allocation.ctypes.data) // itemsize
    return Operand(allocation, offset, tuple(s // itemsize for s in view.strides))
