"""What ran since the patch: counts of attention calls by path, provider and reason."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from .first_use import failures
from .words import Route

REASONS_KEPT = 64  # of fallbacks: they quote errors, which may differ from call to call

_lock = threading.Lock()
_routes: Counter[tuple[str, str, str]] = Counter()  # (path, provider, reason) -> calls
_fallbacks: Counter[str] = Counter()  # why the replaced function ran instead of ours -> calls


class Stats(Mapping[str, Any]):
    """A snapshot of the counts; a read-only mapping with the names of its attributes as keys.

    A call is counted when it is made, which is when MLX builds its graph. A function under
    `mx.compile` is traced once and then evaluated without being called, so that its attention
    counts once however often it runs.

    Attributes:
        calls: attention calls routed by this package.
        paths: calls by path: fused, unfused, chunked, stock.
        providers: calls by who did the work: ext (this package), stock (MLX).
        reasons: calls by the router's reason, most frequent first.
        routes: calls by (path, provider, reason).
        fallbacks: calls that this package could not do, left to the function it replaces.
        fallback_reasons: fallbacks by the error that led to them.
        failed_kernels: GPU kernels of this package that are not used, because they failed in this
            process or in the self-check of this machine, each with its error. Their calls are among
            the routes, under the reason that they failed.
    """

    _KEYS = (
        *("calls", "paths", "providers", "reasons", "routes", "fallbacks", "fallback_reasons"),
        "failed_kernels",
    )

    def __init__(
        self,
        routes: Mapping[tuple[str, str, str], int],
        fallbacks: Mapping[str, int],
        failed_kernels: Mapping[str, str],
    ) -> None:
        self.routes = dict(Counter(routes).most_common())
        self.calls = sum(routes.values())
        self.paths = self._by(0)
        self.providers = self._by(1)
        self.reasons = self._by(2)
        self.fallback_reasons = dict(Counter(fallbacks).most_common())
        self.fallbacks = sum(fallbacks.values())
        self.failed_kernels = dict(failed_kernels)

    def _by(self, field: int) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for route, calls in self.routes.items():
            counts[route[field]] += calls
        return dict(counts.most_common())

    def __getitem__(self, key: str) -> Any:
        if key not in self._KEYS:
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._KEYS)

    def __len__(self) -> int:
        return len(self._KEYS)

    def __repr__(self) -> str:
        return f"Stats({', '.join(f'{key}={value!r}' for key, value in self.items())})"

    def __str__(self) -> str:
        lines = [f"attention calls: {self.calls}"]
        for (path, provider, reason), calls in self.routes.items():
            lines.append(f"  {calls} {path} by {provider}: {reason}")
        lines.append(f"fallbacks: {self.fallbacks}")
        for reason, calls in self.fallback_reasons.items():
            lines.append(f"  {calls}: {reason}")
        for kernel, error in self.failed_kernels.items():
            lines.append(f"kernel not used: {kernel}: {error}")
        return "\n".join(lines)


def record(route: Route) -> None:
    """Counts one call that takes `route`. Any thread; about 0.3 us."""
    key = (route.path, route.provider, route.reason)
    with _lock:
        _routes[key] += 1


def record_fallback(reason: str) -> None:
    """Counts one call left to the replaced function, and why."""
    with _lock:
        known = reason in _fallbacks or len(_fallbacks) < REASONS_KEPT
        _fallbacks[reason if known else "other reasons"] += 1


def reset() -> None:
    """Starts again from zero, as `patch()` does."""
    with _lock:
        _routes.clear()
        _fallbacks.clear()


def stats() -> Stats:
    """The counts since the patch was last turned on, or since the import if it never was."""
    failed = failures()
    with _lock:
        return Stats(_routes, _fallbacks, failed)
