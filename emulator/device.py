"""The runtime from Python: libraries, kernels, runs and reports."""

from __future__ import annotations

import ctypes
import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import compile as compiler
from .build import runtime
from .errors import EmulatorError


@dataclass
class Counters:
    """What kernels did. Bytes and exp2 are of all threads together."""

    dispatches: int = 0
    threadgroups: int = 0
    threads: int = 0
    multiplies: int = 0  # 8x8x8 products, one for a simdgroup
    device_read_bytes: int = 0
    device_write_bytes: int = 0
    constant_read_bytes: int = 0
    threadgroup_read_bytes: int = 0
    threadgroup_write_bytes: int = 0
    threadgroup_barriers: int = 0  # one for a threadgroup
    simdgroup_barriers: int = 0  # one for a simdgroup
    shuffles: int = 0  # one for a simdgroup
    reductions: int = 0  # one for a simdgroup
    exp2: int = 0  # one for a thread
    threadgroup_memory_bytes: int = 0  # of one threadgroup


@dataclass
class Finding:
    """One thing that a kernel or the host did wrong, with its first occurrence and their number."""

    kind: str
    kernel: str
    where: str  # "file:line", or ""
    message: str
    threadgroup: tuple[int, int, int]
    thread: tuple[int, int, int]
    count: int

    def __str__(self) -> str:
        """One line."""
        place = f"{self.where}: " if self.where else ""
        times = f" ({self.count} times)" if self.count > 1 else ""
        return (
            f"{place}{self.kind}: {self.kernel}, threadgroup {self.threadgroup}, "
            f"thread {self.thread} {self.message}{times}"
        )


@dataclass
class Report:
    """Counters and findings of a run, or of all runs since the last report."""

    counters: Counters = field(default_factory=Counters)
    findings: list[Finding] = field(default_factory=list)
    kernels: dict[str, Counters] = field(default_factory=dict)  # by host name

    @property
    def kinds(self) -> set[str]:
        """The kinds of the findings."""
        return {finding.kind for finding in self.findings}

    def check(self) -> Report:
        """This report.

        Raises:
            EmulatorError: it has findings.
        """
        if self.findings:
            raise EmulatorError("\n".join(map(str, self.findings)))
        return self


class _Binding(ctypes.Structure):
    _fields_ = (
        ("index", ctypes.c_int),
        ("writable", ctypes.c_int),
        ("data", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("before", ctypes.c_size_t),
    )


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(runtime()), mode=ctypes.RTLD_GLOBAL)
    pointers = ("open", "names", "specialise", "parameters", "run", "take_report", "coverage")
    for name in pointers:
        getattr(library, f"softmetal_c_{name}").restype = ctypes.c_void_p
    return library


def _text(pointer: int) -> str:
    text = ctypes.string_at(pointer).decode()
    _library().softmetal_c_free(ctypes.c_void_p(pointer))
    return text


def _checked(result: int | None, error: ctypes.c_void_p) -> int:
    if error.value:
        raise EmulatorError(_text(error.value))
    assert result is not None
    return result


def _report(text: str) -> Report:
    data = json.loads(text)
    findings = [
        Finding(**{**f, "threadgroup": tuple(f["threadgroup"]), "thread": tuple(f["thread"])})
        for f in data["findings"]
    ]
    kernels = {name: Counters(**counters) for name, counters in data.get("kernels", {}).items()}
    return Report(Counters(**data["counters"]), findings, kernels)


class Library:
    """Compiled MSL.

    Args:
        source: MSL text, self-contained but for Metal's headers and `includes`.
        stock: also accept `threadgroup T name[n];`, which is how Metal's own programs declare
            threadgroup memory (ours use a macro, and are compiled without any rewriting of bodies).
        includes: folders of further headers.
        coverage: count executed lines; by default if $SOFTMETAL_COVERAGE is set.

    Raises:
        CompileError: the source does not compile; the message is the compiler's text.
        ToolMissing: there is no compiler.
    """

    def __init__(
        self,
        source: str,
        *,
        stock: bool = False,
        includes: Sequence[Path] = (),
        coverage: bool | None = None,
    ) -> None:
        """Compile, or find the result in the cache."""
        self.path = compiler.compiled(
            source, stock=stock, includes=tuple(includes), coverage=coverage
        )
        self._handle = ctypes.c_void_p(_library().softmetal_c_open(str(self.path).encode()))

    def __del__(self) -> None:
        """Give back the runtime's handle."""
        handle = getattr(self, "_handle", None)
        if handle:
            _library().softmetal_c_close_library(handle)

    def names(self) -> list[str]:
        """The host names of the kernels."""
        error = ctypes.c_void_p()
        return json.loads(
            _text(_checked(_library().softmetal_c_names(self._handle, ctypes.byref(error)), error))
        )

    def kernel(self, name: str, constants: Mapping[int, Any] | None = None) -> Kernel:
        """A kernel with its function constants set.

        Args:
            name: its host name.
            constants: by index: bool, int (32 bits), float (32 bits), a numpy scalar or bytes.

        Raises:
            EmulatorError: no such kernel; a constant is missing or of another size.
        """
        values = {index: _bytes(value) for index, value in (constants or {}).items()}
        n = len(values)
        error = ctypes.c_void_p()
        handle = _library().softmetal_c_specialise(
            self._handle,
            name.encode(),
            n,
            (ctypes.c_int * n)(*values),
            (ctypes.c_int * n)(*(len(value) for value in values.values())),
            b"".join(values.values()),
            ctypes.byref(error),
        )
        return Kernel(name, _checked(handle, error))


class Kernel:
    """A kernel that can run: made by Library.kernel()."""

    def __init__(self, name: str, handle: int) -> None:
        """Own the runtime's `handle`."""
        self.name = name
        self._handle = ctypes.c_void_p(handle)
        #: Its buffers: dicts of name, index, used, writable.
        self.parameters = json.loads(_text(_library().softmetal_c_parameters(self._handle)))

    def __del__(self) -> None:
        """Give back the runtime's handle."""
        if getattr(self, "_handle", None):
            _library().softmetal_c_close_kernel(self._handle)

    @property
    def max_threads(self) -> int:
        """The most threads that a threadgroup may have."""
        return _library().softmetal_c_max_threads(self._handle)

    def run(
        self,
        grid: int | Sequence[int],
        threads: int | Sequence[int],
        buffers: Mapping[int, Any],
        *,
        poison: Sequence[int] = (),
        readonly: Sequence[int] = (),
    ) -> Report:
        """Run it and wait.

        Args:
            grid: threadgroups, in one to three dimensions.
            threads: threads of a threadgroup, in one to three dimensions.
            buffers: by index: a numpy array, or (array, offset in bytes), or bytes, or a ctypes
                object. Arrays must be contiguous; those that the kernel declares as writable and
                that numpy lets write are bound for writing.
            poison: indices of buffers that hold nothing yet. They are filled with NaN bytes, and
                reading a byte of them before a kernel wrote it is a finding.
            readonly: indices of buffers that are bound as inputs whatever the kernel declares.

        Raises:
            EmulatorError: what a Metal device refuses too: an index that is not bound, too many
                threads, too much threadgroup memory. And an argument that makes no sense.
        """
        for what, indices in (("poison", poison), ("readonly", readonly)):
            for index in indices:
                if index not in buffers:
                    raise EmulatorError(f"{what}: nothing is bound at buffer index {index}")
        writable = {p["index"] for p in self.parameters if p["writable"]} - set(readonly)
        bindings = (_Binding * len(buffers))()
        for binding, (index, value) in zip(bindings, buffers.items()):
            value, before = value if isinstance(value, tuple) else (value, 0)
            (address, size), may_write = _memory(value)
            if not 0 <= before <= size:
                raise EmulatorError(f"buffer index {index}: no byte {before} in memory of {size}")
            if index in poison and not may_write:
                raise EmulatorError(f"poison: what is bound at buffer index {index} is read-only")
            binding.index = index
            binding.writable = may_write and index in writable
            binding.data = address + before
            binding.bytes = size - before
            binding.before = before
        poisoned = [
            (ctypes.c_void_p(b.data - b.before), ctypes.c_size_t(b.bytes + b.before))
            for b in bindings
            if b.index in poison
        ]
        error = ctypes.c_void_p()
        grid, threads = _size(grid), _size(threads)
        try:
            for memory in poisoned:
                _library().softmetal_c_poison(*memory)
            text = _checked(
                _library().softmetal_c_run(
                    self._handle, grid, threads, len(bindings), bindings, ctypes.byref(error)
                ),
                error,
            )
        finally:
            for memory in poisoned:
                _library().softmetal_c_forget(*memory)
        return _report(_text(text))


def take_report() -> Report:
    """What all kernels of this process did since the last call."""
    return _report(_text(_library().softmetal_c_take_report()))


def set_max_threads(name_part: str, threads: int) -> None:
    """Let kernels whose name contains `name_part` have at most `threads` threads; 0 undoes it."""
    _library().softmetal_c_set_max_threads(name_part.encode(), threads)


def covered_lines() -> str:
    """Rows of file, line and 1 or 0 (executed) of the kernels compiled with coverage."""
    return _text(_library().softmetal_c_coverage())


def _size(value: int | Sequence[int]) -> Any:
    sizes = [int(v) for v in np.atleast_1d(value)]
    if not 1 <= len(sizes) <= 3 or not all(0 <= size < 1 << 32 for size in sizes):
        raise EmulatorError(f"{value} is no size of a grid: one to three numbers of 32 bits")
    return (ctypes.c_size_t * 3)(*sizes, *[1] * (3 - len(sizes)))


def _bytes(value: Any) -> bytes:
    if isinstance(value, (bytes, bytearray)):
        return bytes(value)
    if isinstance(value, bool):
        return np.bool_(value).tobytes()
    if isinstance(value, int):
        return np.int32(value).tobytes()
    if isinstance(value, float):
        return np.float32(value).tobytes()
    return np.asarray(value).tobytes()


def _memory(value: Any) -> tuple[tuple[int, int], bool]:
    """(address, bytes), and whether it may be written."""
    if isinstance(value, np.ndarray):
        if not value.flags.c_contiguous and not value.flags.f_contiguous:
            raise EmulatorError("a buffer is contiguous: pass the whole array, and strides apart")
        return (value.ctypes.data, value.nbytes), bool(value.flags.writeable)
    if isinstance(value, bytes):
        return (ctypes.cast(ctypes.c_char_p(value), ctypes.c_void_p).value or 0, len(value)), False
    try:
        return (ctypes.addressof(value), ctypes.sizeof(value)), False
    except TypeError:
        kind = type(value).__name__
        raise EmulatorError(f"a buffer is an array, bytes or a ctypes object, not {kind}") from None
