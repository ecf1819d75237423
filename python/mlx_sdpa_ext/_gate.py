"""The version gate: load `_ext` only beside the MLX that it was built for.

libmlx's C++ ABI changes with every release. Loaded beside another one, `_ext` fails with an
undefined symbol at best, so the versions are compared first. The way that succeeds imports nothing
but `mlx.core` and `_ext`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path


def load_ext() -> None:
    """Import `_ext`, or raise ImportError with what is wrong and the command that mends it.

    Imports `mlx.core` first, so that libmlx is in the process before `_ext` asks for it.
    """
    try:
        info = import_module("._build_info", __package__)
    except ModuleNotFoundError:
        raise _no_build() from None
    try:
        core = import_module("mlx.core")
    except ImportError as error:
        raise _no_mlx(info.MLX_VERSION, error) from error
    if core.__version__ != info.MLX_VERSION:  # libmlx's own version, not that of the Python wheel
        raise _other_mlx(info.MLX_VERSION, core)
    try:
        import_module("._ext", __package__)
    except ImportError as error:
        raise _no_ext(info, error) from error


def _no_build() -> ImportError:
    from . import _mend

    return _error(
        "is not built: its _build_info.py is missing", _mend.rebuild(_mend.installed_mlx())
    )


def _no_mlx(built: str, error: ImportError) -> ImportError:
    from . import _mend

    mlx = _mend.installed_mlx()
    if mlx is None:
        return _error(
            f"is built for MLX {built}, and no MLX is installed", _mend.install_mlx(built)
        )
    backends = _mend.installed_backends()
    parts = ", ".join(f"{name} {version}" for name, version in {"mlx": mlx, **backends}.items())
    if not backends:
        finding = f"there is {parts} without a backend (mlx-cpu, ...)"
    elif set(backends.values()) != {mlx}:
        finding = f"there are {parts}, which work in step only"
    else:  # files are missing or overwritten, or a driver is missing
        finding = f"there are {parts}, which do not load: {error}"
    return _error(f"is built for MLX {built}; {finding}", _mend.install_mlx(built))


def _other_mlx(built: str, core) -> ImportError:
    from . import _mend

    finding = f"is built for MLX {built}, and MLX {core.__version__} is installed ({core.__file__})"
    return _error(finding, _mend.match(core.__version__, built))


def _no_ext(info, error: ImportError) -> ImportError:
    from . import _mend

    if isinstance(error, ModuleNotFoundError) and error.name == f"{__package__}._ext":
        files = sorted(file.name for file in Path(info.__file__).parent.glob("_ext.*so"))
        finding = f"has no compiled module for this Python (found: {', '.join(files) or 'none'})"
    else:
        finding = f"has a compiled module that does not load: {error}"
    return _error(finding, _mend.rebuild(info.MLX_VERSION))


def _error(finding: str, command: str) -> ImportError:
    return ImportError(f"mlx-sdpa-ext {finding}. To mend it:\n\n    {command}\n")
