"""The macOS wheels of MLX: downloaded with pip, unpacked once into the user's cache."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PLATFORM = "macosx_14_0_arm64"
UNUSED = (".metallib", ".py", ".pyi")  # the compiled kernels alone are 147 MB


class DownloadError(Exception):
    """pip could not bring a wheel; the message holds what it printed."""


def unpacked(mlx: str, python: str) -> Path:
    """The folder that holds `mlx/`: headers, CMake files, libmlx.dylib and the core module.

    Args:
        mlx: version, "0.32.4".
        python: CPython's version, "3.11".

    Raises:
        DownloadError: there is no such wheel, or no network.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = caches / "mlx-sdpa-ext" / f"mlx-{mlx}-cp{python.replace('.', '')}-{PLATFORM}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                wheels = _download(mlx, python, Path(scratch))
                contents = Path(scratch, "contents")
                for wheel in wheels:
                    _unpack(wheel, contents)
                contents.rename(folder)
    return folder


def _download(mlx: str, python: str, to: Path) -> list[Path]:
    target = ["--platform", PLATFORM, "--python-version", python, "--implementation", "cp"]
    only = ["--only-binary=:all:", "--no-deps", "--no-cache-dir", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *target, *only, "--dest", str(to)]
    done = subprocess.run(
        [*command, f"mlx=={mlx}", f"mlx-metal=={mlx}"], capture_output=True, text=True
    )
    if done.returncode:
        raise DownloadError(
            f"no macOS wheels of MLX {mlx} for CPython {python}:\n{done.stdout}{done.stderr}"
        )
    return sorted(to.glob("*.whl"))


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith("mlx/") and not name.endswith(UNUSED):
                archive.extract(name, folder)
