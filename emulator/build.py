"""Builds the runtime, and the double of MLX's Metal classes, with CMake and Ninja."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from .errors import EmulatorError, ToolMissing
from .toolchain import REPOSITORY, ROOT, cache_folder, tool

SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"

# What the double is made of, beside emulator/: the host's own sources and their headers.
HOST = ("src", "kernels")


@functools.cache
def runtime() -> Path:
    """The library that kernels run on.

    Raises:
        EmulatorError: it cannot be built; the message has the compiler's text.
        ToolMissing: no C++ compiler, cmake or ninja.
    """
    return _built("softmetal", [ROOT / "runtime"])


@functools.cache
def backend() -> Path:
    """The library that `_ext.load_gpu_backend` loads: the shipped Metal host code on the double.

    Raises:
        EmulatorError: it cannot be built; the message has the compiler's text.
        ToolMissing: no C++ compiler, cmake or ninja.
    """
    spec = importlib.util.find_spec("mlx")
    if spec is None:
        raise ToolMissing(f"{sys.executable} has no MLX to build against: pip install 'mlx[cpu]'")
    runtime()  # so that both are found in one place whichever is asked for first
    folders = [ROOT / "runtime", ROOT / "double", *(REPOSITORY / name for name in HOST)]
    return _built("softmetal_backend", folders)


def _built(target: str, sources: list[Path]) -> Path:
    key = _key(target, sources)
    folder = cache_folder() / "libraries" / f"{target}-{key}"
    library = folder / f"lib{target}{SUFFIX}"
    if not library.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as making:
            made = _make(target, Path(making))
            try:
                os.rename(made, folder)
            except OSError:  # another process was first
                if not library.exists():
                    raise
    return library


def _make(target: str, making: Path) -> Path:
    cmake, ninja = tool("cmake"), tool("ninja")
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        raise ToolMissing("the software Metal device needs a C++20 compiler: set CXX")
    build, made = making / "build", making / "made"
    configure = [cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja"]
    configure += [f"-DCMAKE_MAKE_PROGRAM={ninja}", f"-DPython_EXECUTABLE={sys.executable}"]
    configure += [f"-DCMAKE_CXX_COMPILER={compiler}", f"-DSOFTMETAL_TARGET={target}"]
    if target != "softmetal":
        configure.append(f"-DSOFTMETAL_LIBRARY={runtime()}")
    for command in (configure, [cmake, "--build", str(build), "--target", target]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise EmulatorError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    made.mkdir()
    (library,) = build.rglob(f"lib{target}{SUFFIX}")
    shutil.copy2(library, made / library.name)
    return made


def _key(target: str, sources: list[Path]) -> str:
    mlx = importlib.util.find_spec("mlx")
    parts = [target, platform.machine(), sys.version, os.environ.get("CXX", ""), _compiler()]
    parts += [*(mlx.submodule_search_locations or ())] if mlx and target != "softmetal" else []
    digest = hashlib.sha256(repr(parts).encode())
    files = [ROOT / "CMakeLists.txt"]
    for folder in sources:
        files += (path for path in folder.rglob("*") if path.is_file())
    for path in sorted(files):
        digest.update(path.relative_to(REPOSITORY).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:24]


def _compiler() -> str:
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        return ""
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True)
    return done.stdout.partition("\n")[0]
