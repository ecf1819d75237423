"""Before the first use of a kernel of ours on a GPU: it is compiled, and on an Apple GPU checked.

A kernel that does not compile, that the device refuses, or whose result differs from stock's on
small inputs (selfcheck.py) is not used: one warning names it and the error, and the router is asked
for a route without it. All this happens while a call is made, before any of it is evaluated, since
an evaluation cannot fall back.

The check is an evaluation of its own: its arrays are made for it, so that a graph that is being
built, and a function that is being traced by mx.compile or mx.grad, take no part in it; they wait.
It is made once for each machine, MLX and version of this package; what came out is kept in a file
of the user's cache folder (verdicts.py).
"""

from __future__ import annotations

import sys
import threading
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import mlx.core as mx

from . import _ext, selfcheck, software, verdicts
from .words import Device, Limits, Problem


class Failure(NamedTuple):
    """A kernel that is not to be used here, and why."""

    kernel: str
    error: str


ANSWERS_KEPT = 256

_lock = threading.RLock()
_failed: dict[str, str] = {}  # kernel -> error, met in this process


def failures() -> dict[str, str]:
    """The kernels of ours that failed in this process, each with its first error."""
    with _lock:
        gpu = _ext.gpu()
        return {**dict(gpu["failures"] if gpu else ()), **_failed}


class Gate:
    """What the calls of one device pass before they take a kernel of ours."""

    def __init__(self, device: Device, limits: Limits) -> None:
        self.device = device
        self.limits = limits
        self._is_open = False
        self._answers: dict[tuple[Any, ...], Failure | None] = {}
        self._verdicts: verdicts.Verdicts = {}  # of this process

    def failure(
        self,
        problem: Problem,
        q: mx.array,
        k: mx.array,
        v: mx.array,
        *,
        mask: str | mx.array | None = None,
        sinks: mx.array | None = None,
        chunk_size: int = 0,
        float32_out: bool = False,
        carry: bool = False,
    ) -> Failure | None:
        """Why the kernel of a fused call is not to be used; None if it is. Warns once of each.

        Nothing of the arrays is computed, only shapes and dtypes are looked at.

        Raises:
            ImportError: this is the software device, and the emulator is not there.
            ValueError: no kernel of ours serves the call.
        """
        mask_dtype = mask.dtype if isinstance(mask, mx.array) else None
        key = (problem, mask_dtype, chunk_size, float32_out, carry)
        with _lock:
            if key in self._answers:
                return self._answers[key]
            self.open()
            refused = _ext.prepare(
                *(q, k, v),
                mask=mask,
                sinks=sinks,
                window=problem.window,
                softcap=problem.softcap,
                chunk_size=chunk_size,
                return_lse=problem.want_lse,
                float32_out=float32_out,
                carry=carry,
            )
            found = Failure(*refused) if refused else None
            if found is None and not self.device.software:
                later = problem.Lk // 2 + 1 if carry else 0  # a chunk that continues another
                found = self._check(problem, chunk_size or later)
            return self._keep(key, found)

    def packed_failure(
        self,
        problem: Problem,
        arrays: Sequence[mx.array],
        *,
        mask: str | mx.array | None,
        group_size: int,
        bits: int,
    ) -> Failure | None:
        """Why the kernel that reads a quantized cache is not to be used; None if it is.

        Args:
            problem: the call.
            arrays: q, then packed words, scales and biases of the keys and of the values.
            mask: of the call.
            group_size: of the quantization.
            bits: likewise.
        """
        key = (problem, group_size, bits)
        with _lock:
            if key in self._answers:
                return self._answers[key]
            self.open()
            refused = _ext.prepare_quantized(
                *arrays, mask=mask, softcap=problem.softcap, group_size=group_size, bits=bits
            )
            return self._keep(key, Failure(*refused) if refused else None)

    def _keep(self, key: tuple[Any, ...], found: Failure | None) -> Failure | None:
        """Notes an answer, and warns of a failure that is new."""
        if found and found.kernel not in _failed:
            _failed[found.kernel] = found.error
            _warn(found)
        if len(self._answers) >= ANSWERS_KEPT:
            self._answers.clear()
        self._answers[key] = found
        return found

    def follow(self, limits: Limits) -> None:
        """Goes on with limits that have changed."""
        self.limits = limits
        if self._is_open:
            self._is_open = False
            self.open()

    def open(self) -> None:
        """Has this device evaluate as its limits say; at the first call, and after a change.

        Raises:
            ImportError: this is the software device, and the emulator is not there.
        """
        if self._is_open:
            return
        if self.device.software:
            software.use(self.device.arch)
        _ext.set_gpu_limits(
            dispatch_flops=self.limits.dispatch_flops,
            fill=self.limits.fill_blocks,
            memory=self.limits.memory_limit,
        )
        self._is_open = True

    def _check(self, problem: Problem, chunk_size: int) -> Failure | None:
        """What the self-check says of the call's kernel and features, now or earlier."""
        check = selfcheck.small(problem, self.device, self.limits, chunk_size)
        name = str(check)
        error = self._verdicts.get(name)
        if error is None:
            error = verdicts.of(self.device).get(name)
        if error is None:
            outcome = run(check, self.device)
            error = outcome.error
            if outcome.is_verdict:
                verdicts.keep(self.device, {name: error})
        self._verdicts[name] = error
        return Failure(name, error) if error else None


class Outcome(NamedTuple):
    """Of a self-check."""

    difference: float | None  # from stock, the largest; None if there is no result
    allowed: float
    error: str  # what is wrong; empty if nothing is

    @property
    def is_verdict(self) -> bool:
        """Whether the next process may believe it: what was raised may pass, as lack of memory."""
        return self.difference is not None


def run(check: selfcheck.Check, device: Device) -> Outcome:
    """Runs a self-check on this machine's `device`; whatever it raises is in the outcome."""
    allowed = selfcheck.ATOL[check.problem.dtype]
    try:
        difference = selfcheck.run(check, device)
    except Exception as error:  # of a compiler, a driver, the emulator
        return Outcome(None, allowed, f"{type(error).__name__}: {error}")
    if difference <= allowed:
        return Outcome(difference, allowed, "")
    wrong = f"differs from stock by {difference:.3g}, where {allowed:g} is allowed"
    return Outcome(difference, allowed, wrong)


def _warn(failure: Failure) -> None:
    warnings.warn(
        f"mlx_sdpa_ext: {failure.kernel} is not used, stock MLX instead: {failure.error} "
        "(`mlx-sdpa-ext doctor --selftest` checks again)",
        RuntimeWarning,
        stacklevel=_callers_level(),
    )


def _callers_level() -> int:
    """The stacklevel that has a warning of our caller point at the program's own line."""
    frame, level = sys._getframe(1), 1
    while frame.f_back and frame.f_globals.get("__package__") == __package__:
        frame, level = frame.f_back, level + 1
    return level
