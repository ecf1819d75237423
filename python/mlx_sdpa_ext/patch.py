"""Puts this package's attention in the place of MLX's and mlx-lm's, and takes it off again.

What is replaced is listed in SITES. A module that is imported later is patched as it is imported:
neither this module nor `patch()` imports mlx-lm.
"""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

from . import limits, lm
from .stats import reset as reset_stats

Function = Callable[..., Any]


class Site(NamedTuple):
    """A function that `patch()` replaces."""

    module: str
    path: str  # attributes that lead to it from the module
    replace: Callable[[Function], Function]  # the function found there -> ours

    @property
    def name(self) -> str:
        return f"{self.module}.{self.path}"

    def owner(self, module: ModuleType) -> Any:
        """The object that holds the function; None if this version of the module has none."""
        *parents, name = self.path.split(".")
        owner: Any = module
        for parent in parents:
            owner = getattr(owner, parent, None)
        return owner if hasattr(owner, name) else None

    def get(self, owner: Any) -> Any:
        return getattr(owner, self.path.rpartition(".")[2], None)

    def set(self, owner: Any, function: Function) -> None:
        setattr(owner, self.path.rpartition(".")[2], function)


SITES = (
    Site("mlx.core", "fast.scaled_dot_product_attention", lm.fast_attention),
    Site(
        "mlx_lm.models.base",
        "quantized_scaled_dot_product_attention",
        lm.quantized_attention,
    ),
    Site("mlx_lm.models.gemma2", "Attention.__call__", lm.gemma2_attention),
    Site("mlx_lm.models.gear", "_softcap_attention", lm.softcap_attention),
)
MODULES = frozenset(site.module for site in SITES)


class Installed(NamedTuple):
    """A function of ours that is in place."""

    site: Site
    owner: Any
    found: Function
    ours: Function


_lock = threading.RLock()  # guards all that follows; never held while a module is imported
_switched_on = False  # by patch(), until unpatch()
_blocks = 0  # `with patched():` blocks that are open, in any thread
_active = False  # either; read without the lock on every call
_installed: list[Installed] = []
_loading: list[str] = []  # modules that are incomplete, and will be patched by their loader


def patch() -> bool:
    """Replaces MLX's attention, and what mlx-lm has beside it, in the whole process.

    Replaced are `mx.fast.scaled_dot_product_attention`, mlx-lm's attention for quantized KV caches
    and the attention of its models with soft-capped scores (gemma2, gear), also in modules that
    are imported later. Call it before anything is traced by `mx.compile`: a compiled function
    keeps what it was traced with.

    `patch()` and `unpatch()` are a switch: calling either twice is the same as once. Turning the
    switch on resets `stats()`. Another package's replacement that is found in place is put back by
    `unpatch()`; while the patch is on it is not called, since the paths of stock MLX go to the
    function that was there when this package was imported.

    Returns:
        Whether the patch is on: False if MLX_SDPA_EXT_DISABLE is set, and then nothing is done.

    Warns:
        RuntimeWarning: an imported mlx-lm module lacks the function to be replaced; its calls stay
            as they are.
    """
    global _switched_on
    if limits.disabled():
        return False
    _meet_imports()
    with _lock:
        _switched_on = True
        complaints = _update()
    _warn(complaints)
    return True


def unpatch() -> None:
    """Turns off what `patch()` turned on, and puts back exactly what it found.

    A `with patched():` block that is open keeps the patch on until it ends. Where something else
    replaced our function since, that stays in place with a warning; ours below it then only calls
    what `patch()` had found. The same holds for references to our function kept elsewhere.

    Warns:
        RuntimeWarning: something else is in the place of our function.
    """
    global _switched_on
    with _lock:
        _switched_on = False
        complaints = _update()
    _warn(complaints)


@contextmanager
def patched() -> Iterator[bool]:
    """`with patched(): ...` has the patch on inside, in the whole process, and then as before.

    Blocks may be nested and may overlap between threads: the patch stays on until the last one
    ends. Yields what `patch()` returns; warns as `patch()` and `unpatch()` do.
    """
    global _blocks
    if limits.disabled():
        yield False
        return
    _meet_imports()
    with _lock:
        _blocks += 1
        complaints = _update()
    try:
        _warn(complaints)
        yield True
    finally:
        with _lock:
            _blocks -= 1
            complaints = _update()
        _warn(complaints)


def _update() -> list[str]:
    """Installs or removes everything as the switch and the blocks ask; returns complaints."""
    global _active
    wanted = _switched_on or _blocks > 0
    if wanted == _active:
        return []
    if wanted:
        reset_stats()
        _active = True
        _watch_imports()
        names = MODULES.difference(_loading) & sys.modules.keys()
        return [complaint for name in names for complaint in _install(sys.modules[name])]
    _active = False
    if _late_imports in sys.meta_path:
        sys.meta_path.remove(_late_imports)
    complaints = [_restore(there) for there in _installed]
    _installed.clear()
    return [complaint for complaint in complaints if complaint]


def _install(module: ModuleType) -> Iterator[str]:
    for site in SITES:
        if site.module != module.__name__:
            continue
        owner = site.owner(module)
        if owner is None:
            yield (
                f"mlx_sdpa_ext.patch(): there is no {site.name} to replace in this version; its "
                "attention stays as it is"
            )
            continue
        found = site.get(owner)
        same = [there for there in _installed if there.site is site and there.owner is owner]
        if any(there.ours is found for there in same):
            continue
        for there in same:  # a module that was reloaded has overwritten ours
            _installed.remove(there)
        ours = _while_active(site.replace(found), found)
        _installed.append(Installed(site, owner, found, ours))
        site.set(owner, ours)


def _restore(there: Installed) -> str | None:
    now = there.site.get(there.owner)
    if now is there.ours:
        there.site.set(there.owner, there.found)
        return None
    return (
        f"mlx_sdpa_ext.unpatch(): {there.site.name} was replaced after patch() by {now!r}, which "
        "stays; our function below it is off"
    )


def _while_active(ours: Function, found: Function) -> Function:
    """`ours` while the patch is on, `found` for references that outlive it."""

    @functools.wraps(ours)
    def call(*args: Any, **kwargs: Any) -> Any:
        return (ours if _active else found)(*args, **kwargs)

    return call


def _warn(complaints: list[str]) -> None:
    for complaint in complaints:
        warnings.warn(complaint, RuntimeWarning, stacklevel=3)


def _watch_imports() -> None:
    if _late_imports not in sys.meta_path:
        sys.meta_path.insert(0, _late_imports)


def _meet_imports() -> None:
    """Watches for imports to come, then waits for those that other threads have under way."""
    with _lock:
        _watch_imports()
    for name in MODULES:
        # `import_module` waits too, but imports what is not yet in sys.modules: a module whose
        # finder has been asked, before we watched, is not there until its file has been read.
        importlib._bootstrap._lock_unlock_module(name)  # type: ignore[attr-defined]


class _LateImports(importlib.abc.MetaPathFinder):
    """Patches the modules of SITES as they are imported."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in MODULES:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find and finder is not self else None
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _PatchingLoader(spec.loader)
                return spec
        return None


class _PatchingLoader(importlib.abc.Loader):
    """Loads as `loader` does, leaves `loader` in the module, then patches the module."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = module.__loader__ = self.loader
        with _lock:
            _loading.append(module.__name__)
        complete = False
        try:
            self.loader.exec_module(module)
            complete = True
        finally:
            with _lock:
                _loading.remove(module.__name__)
                complaints = list(_install(module)) if complete and _active else []
        _warn(complaints)


_late_imports = _LateImports()
