"""`run`: any Python program with the patch on, started as Python itself would have started it."""

from __future__ import annotations

import atexit
import importlib.machinery
import io
import os
import pkgutil
import sys
import types
from collections.abc import Callable
from importlib.util import find_spec

from .console import FAILED, INTERRUPTED, USAGE, fail


def protect(argv: list[str]) -> list[str]:
    """`argv` with `--` where the target's own arguments start, so that none of them is parsed."""
    if argv[:1] != ["run"]:
        return argv
    for i, arg in enumerate(argv[1:], start=1):
        if arg == "--":
            return argv
        if arg == "-m" and argv[i + 1 :]:
            return [*argv[: i + 2], "--", *argv[i + 2 :]]
        if (arg.startswith("-m") and arg != "-m") or not arg.startswith("-"):
            end = i + 1 if arg.startswith("-m") else i
            return [*argv[:end], "--", *argv[end:]]
    return argv


def target(module: str | None, args: list[str], stats: bool) -> Callable[[], int]:
    """What is to run: a function of no arguments that returns the exit code."""
    if module is None and not args:
        fail("run: give a script, or -m and a module; see mlx-sdpa-ext run --help")
    return lambda: _run(module, args, stats)


class _NotFound(Exception):
    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def _run(module: str | None, args: list[str], stats: bool) -> int:
    import mlx_sdpa_ext

    if stats:
        # The first to be registered is the last to run: after the target's own exit handlers
        # and, when it failed, after its traceback.
        atexit.register(_print_stats)
    if not mlx_sdpa_ext.patch() and stats:
        print("mlx-sdpa-ext: the patch is off: MLX_SDPA_EXT_DISABLE is set", file=sys.stderr)
    try:
        if module is not None:
            code, main = _load_module(module, args)
        else:
            code, main = _load_script(args)
        sys.modules["__main__"] = main
        exec(code, main.__dict__)
    except _NotFound as error:
        print(f"mlx-sdpa-ext: {error}", file=sys.stderr)
        return error.code
    except SystemExit:
        raise
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseException as error:
        # Without the frames of this file the traceback is the one of plain Python.
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename in _STARTERS:
            trace = trace.tb_next
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        return FAILED
    return 0


_STARTERS = (__file__, *(f"<frozen importlib._bootstrap{part}>" for part in ("", "_external")))


def _load_script(args: list[str]) -> tuple[types.CodeType, types.ModuleType]:
    path = args[0]
    sys.argv = list(args)
    if os.path.isdir(path) or _is_archive(path):
        _set_path0(os.path.abspath(path))
        spec = importlib.machinery.PathFinder.find_spec("__main__", [path])
        if spec is None or not hasattr(spec.loader, "get_code"):
            raise _NotFound(f"can't find '__main__' module in {path!r}", FAILED)
        return _from_spec(spec)
    full = os.path.abspath(path)
    try:
        with io.open_code(full) as file:
            code = pkgutil.read_code(file)  # None unless it is a .pyc
        if code is None:
            with io.open_code(full) as file:
                source = file.read()
    except OSError as error:
        raise _NotFound(
            f"can't open file {full!r}: [Errno {error.errno}] {error.strerror}", USAGE
        ) from None
    _set_path0(os.path.dirname(os.path.realpath(full)))
    main = types.ModuleType("__main__")
    main.__file__ = full
    main.__cached__ = None
    main.__loader__ = importlib.machinery.SourceFileLoader("__main__", full)
    if code is None:
        code = compile(source, full, "exec", dont_inherit=True)
    return code, main


def _load_module(name: str, args: list[str]) -> tuple[types.CodeType, types.ModuleType]:
    sys.argv = ["-m", *args]
    _set_path0(os.getcwd())
    spec = _find(name)
    if spec.submodule_search_locations is not None:
        try:
            spec = _find(f"{name}.__main__")
        except _NotFound as error:
            raise _NotFound(
                f"{error}; {name!r} is a package and cannot be directly executed", FAILED
            ) from None
    code, main = _from_spec(spec)
    sys.argv[0] = spec.origin or name
    return code, main


def _find(name: str) -> importlib.machinery.ModuleSpec:
    try:
        spec = find_spec(name)
    except ModuleNotFoundError as error:
        # A parent package is missing; an import that fails inside one is the target's own error.
        if error.name is None or not (name + ".").startswith(error.name + "."):
            raise
        spec = None
    except ValueError:  # relative names, empty parts
        spec = None
    if spec is None:
        raise _NotFound(f"No module named {name}", FAILED)
    return spec


def _from_spec(spec: importlib.machinery.ModuleSpec) -> tuple[types.CodeType, types.ModuleType]:
    code = spec.loader.get_code(spec.name) if hasattr(spec.loader, "get_code") else None
    if code is None:
        raise _NotFound(f"No code object available for {spec.name}", FAILED)
    main = types.ModuleType("__main__")
    main.__spec__ = spec
    main.__loader__ = spec.loader
    main.__package__ = spec.parent
    main.__file__ = spec.origin
    main.__cached__ = spec.cached
    return code, main


def _is_archive(path: str) -> bool:
    finder = pkgutil.get_importer(path) if os.path.isfile(path) else None
    return finder is not None and not isinstance(finder, importlib.machinery.FileFinder)


def _set_path0(entry: str) -> None:
    """Replaces the folder of this command on sys.path, as `python SCRIPT` would have set it."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path[0] = entry


def _print_stats() -> None:
    import mlx_sdpa_ext

    print(mlx_sdpa_ext.stats(), file=sys.stderr)
