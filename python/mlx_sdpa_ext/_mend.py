"""The commands that bring this package and MLX back into step, for the way they were installed."""

from __future__ import annotations

import json
import shlex
import sys
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ._mlx_versions import NANOBIND_FOR_MLX

NAME = "mlx-sdpa-ext"
_BACKENDS = ("mlx-cpu", "mlx-cuda-12", "mlx-cuda-13", "mlx-metal")


def installed(name: str) -> str | None:
    """The version of an installed distribution, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def installed_mlx() -> str | None:
    """The version of the installed MLX, or None. Does not import it."""
    return installed("mlx")


def installed_backends() -> dict[str, str]:
    """The installed backend wheels of MLX with their versions: `{"mlx-cpu": "0.32.4"}`."""
    return {name: version for name in _BACKENDS if (version := installed(name))}


def match(mlx: str, built: str) -> str:
    """The command for a build made for MLX `built` beside an installed MLX `mlx`.

    That MLX was the user's choice, so it stays and this package is built again, where that can be.
    """
    if mlx in NANOBIND_FOR_MLX and not _source_is_gone():
        return rebuild(mlx)
    return install_mlx(built)


def install_mlx(version: str) -> str:
    """The command that installs MLX `version` in step with the backend in use.

    All of it is installed again: the wheel `mlx` and its backend wheels share files, so that to
    replace one of them removes files of the other.
    """
    default = "mlx-metal" if sys.platform == "darwin" else "mlx-cpu"
    names = ["mlx", *(installed_backends() or [default])]
    return _install([f"{name}=={version}" for name in names])


def rebuild(mlx: str | None) -> str:
    """The command that builds and installs this package again, for MLX `mlx` (None: not installed).

    `--no-cache-dir`, because pip's cache may hold the build for another MLX; `--no-binary`, because
    an index's wheel is for one MLX; `--no-deps`, because MLX is to stay as it is.
    """
    if mlx is None:
        return _install(_target("[cpu]"), rebuild=True)
    return _install(["--no-deps", *_target()], rebuild=True, build_mlx=mlx)


def _target(extra: str = "") -> list[str]:
    """What to hand to `pip install` so as to build this package from where it came (PEP 610)."""
    origin = _origin()
    if origin is None:  # not installed: used from a checkout, or from a copy of the folder
        checkout = Path(__file__).resolve().parents[2]
        return [f"{checkout if (checkout / 'pyproject.toml').exists() else NAME}{extra}"]
    if not origin or _source_is_gone():
        return ["--no-binary", NAME, f"{NAME}{extra}=={installed(NAME)}"]
    if path := _local_path(origin):
        return ["-e"] * origin.get("dir_info", {}).get("editable", False) + [f"{path}{extra}"]
    url = origin["url"]
    if vcs := origin.get("vcs_info"):
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    return [f"{NAME}{extra} @ {url}"]


def _source_is_gone() -> bool:
    """Whether this was installed from a wheel file, or from files that are no longer there."""
    path = _local_path(_origin() or {})
    return path is not None and (path.suffix == ".whl" or not path.exists())


def _origin() -> dict | None:
    """direct_url.json of the installed package: {} from an index, None where not installed."""
    try:
        return json.loads(metadata.distribution(NAME).read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:
        return None


def _local_path(origin: dict) -> Path | None:
    url = urlsplit(origin.get("url", ""))
    return Path(unquote(url.path)) if url.scheme == "file" else None


def _install(arguments: list[str], rebuild: bool = False, build_mlx: str | None = None) -> str:
    """A shell line for this interpreter, with the installer that installed this package or MLX."""
    if _installer() == "uv":
        command = ["uv", "pip", "install", "--python", sys.executable, "--reinstall"]
        if build_mlx:  # uv hides the environment from the build
            command.insert(0, f"MLX_SDPA_EXT_BUILD_MLX={build_mlx}")
        cache = "--no-cache"
    else:
        command = [sys.executable, "-m", "pip", "install", "--force-reinstall"]
        cache = "--no-cache-dir"
    return shlex.join([*command, *([cache] if rebuild else []), *arguments])


def _installer() -> str:
    for name in (NAME, "mlx"):
        try:
            return (metadata.distribution(name).read_text("INSTALLER") or "").strip()
        except metadata.PackageNotFoundError:
            continue
    return ""
