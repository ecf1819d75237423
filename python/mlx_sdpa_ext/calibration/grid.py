"""The calls that are measured: head dims, query rows, keys, heads and dtypes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from ..router import FEW_ROWS, flops
from ..words import Problem


class Call(NamedTuple):
    """One call; causal unless it has one query row."""

    D: int
    Dv: int
    Lq: int
    Lk: int
    Hq: int
    Hkv: int
    dtype: str

    @property
    def problem(self) -> Problem:
        mask = "causal" if self.Lq > 1 else "none"
        return Problem(1, self.Hq, self.Hkv, self.Lq, self.Lk, self.D, self.Dv, self.dtype, mask)

    @property
    def flops(self) -> int:
        return flops(self.problem)

    @property
    def decodes(self) -> bool:
        """Whether it is a decode step to the router."""
        return self.Lq <= FEW_ROWS


class Grid(NamedTuple):
    """Every combination, as far as there are as many keys as query rows."""

    dims: tuple[tuple[int, int], ...]  # (D, Dv)
    heads: tuple[tuple[int, int], ...]  # (Hq, Hkv)
    dtypes: tuple[str, ...]
    lengths: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]  # query rows, and keys with them

    def __iter__(self) -> Iterator[Call]:
        for rows, keys in self.lengths:
            for Lq in rows:
                for Lk in keys:
                    for dims in self.dims:
                        for heads in self.heads:
                            for dtype in self.dtypes:
                                if Lk >= Lq:
                                    yield Call(*dims, Lq, Lk, *heads, dtype)


BOTH = ("bfloat16", "float32")
CPU = Grid(
    dims=((64, 64), (128, 128), (192, 128), (256, 256), (512, 512)),
    heads=((8, 8), (8, 1)),
    dtypes=BOTH,
    lengths=(((1, 16, 48), (1024, 4096, 16384)), ((512, 2048), (2048, 8192, 32768))),
)
GPU = Grid(
    dims=((64, 64), (128, 128), (192, 192), (192, 128), (256, 256), (512, 512), (576, 512)),
    heads=((16, 16), (16, 2)),
    dtypes=BOTH,
    lengths=(((1, 16, 48), (4096, 16384, 65536)), ((512, 2048), (2048, 8192, 16384, 65536))),
)
QUICK = Grid(
    dims=((64, 64), (128, 128), (256, 256)),
    heads=((8, 2),),
    dtypes=("bfloat16",),
    lengths=(((1, 16), (1024, 4096)), ((512,), (1024, 2048, 4096))),
)


def calls(backend: str, quick: bool) -> list[Call]:
    """The work of a call decides when its turn is: what is slow on little work is left out on much.

    Args:
        backend: "cpu", "metal" or "cuda".
        quick: a minute's part of it, to see that it works.
    """
    chosen: Any = QUICK if quick else CPU if backend == "cpu" else GPU
    return sorted(chosen, key=lambda call: (call.flops, call))
