"""Tiny kernels for the tests of the software Metal device: bodies of a few statements.

All bodies of a test file are compiled together, each as a kernel of its own, because the compiler's
start takes longer than they do. A body's first line is line 1 of the "file" that has its name.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

import numpy as np

import emulator

HEAD = """\
#include <metal_simdgroup_matrix>
#include <metal_stdlib>
using namespace metal;
#define BARRIER(memory) threadgroup_barrier(mem_flags::mem_##memory)
"""
KERNEL = """\
kernel void {name}(
    device float* out [[buffer(0)]],
    device const float* in [[buffer(1)]],
    constant float* table [[buffer(2)]],
    uint i [[thread_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint group [[threadgroup_position_in_grid]]) {{
#line 1 "{title}"
{body}
}}
"""
SIZE = 64  # elements of each buffer


def identifier(title: str) -> str:
    """The kernel's name."""
    return "k_" + re.sub(r"\W", "_", title)


@functools.cache
def _library(bodies: tuple[tuple[str, str], ...]) -> emulator.Library:
    kernels = [
        KERNEL.format(name=identifier(title), title=title, body=body) for title, body in bodies
    ]
    return emulator.Library(HEAD + "".join(kernels), stock=True)


class Bodies:
    """The kernels of these {title: body}, compiled when one of them runs first."""

    def __init__(self, bodies: Mapping[str, str]):
        self._bodies = tuple(bodies.items())

    def run(
        self,
        title: str,
        *,
        grid: int = 1,
        threads: int = SIZE,
        buffers: Mapping[int, object] | None = None,
        **arguments,
    ) -> tuple[np.ndarray, emulator.Report]:
        """What a run wrote to `out`, which held nothing, and the report. `in` is 0, 1, 2 ...

        The device's sum of reports is as it was: empty.
        """
        bound = {0: np.empty(SIZE, np.float32), 1: numbers(), 2: numbers()} | (buffers or {})
        kernel = _library(self._bodies).kernel(identifier(title))
        arguments.setdefault("poison", (0,))
        try:
            report = kernel.run(grid, threads, bound, **arguments)
        finally:
            emulator.take_report()
        return bound[0], report


def numbers(n: int = SIZE) -> np.ndarray:
    """0, 1, 2 ..."""
    return np.arange(n, dtype=np.float32)
