"""The programs that the software device needs, and the cache of what they make."""

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
from collections.abc import Callable, Sequence
from pathlib import Path

from .errors import CompileError, ToolMissing

ROOT = Path(__file__).resolve().parent
MSL = ROOT / "msl"
RUNTIME = ROOT / "runtime"
REPOSITORY = ROOT.parent


@functools.cache
def zig() -> Path:
    """The program that the PyPI package `ziglang` carries: `zig clang` is a plain clang.

    Raises:
        ToolMissing: the package is not installed.
    """
    spec = importlib.util.find_spec("ziglang")
    for folder in (spec and spec.submodule_search_locations) or ():
        program = Path(folder) / "zig"
        if program.exists():
            return program
    raise ToolMissing(
        "the software Metal device compiles kernels with the clang of the package ziglang, which "
        f"{sys.executable} does not have: pip install ziglang"
    )


def tool(name: str, package: str | None = None) -> str:
    """The path of a program: beside this Python, else on PATH.

    Raises:
        ToolMissing: it is in neither place.
    """
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ToolMissing(f"{name} was not found: pip install {package or name}")
    return found


def run(command: Sequence[str | Path], stdin: str | None = None) -> str:
    """The standard output of a compiler.

    Raises:
        CompileError: it failed; the message is what it wrote to standard error.
    """
    arguments = [str(part) for part in command]
    done = subprocess.run(arguments, input=stdin, capture_output=True, text=True)
    if done.returncode:
        raise CompileError(done.stderr.strip() or f"{arguments[0]} ended with {done.returncode}")
    return done.stdout


@functools.cache
def machine_flags() -> tuple[str, ...]:
    """Instructions to use: conversions of half are slow without F16C."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        cpu = Path("/proc/cpuinfo")
        flags = cpu.read_text().partition("\nflags")[2].partition("\n")[0] if cpu.exists() else ""
        if {"avx2", "f16c", "fma", "bmi2", "movbe"} <= set(flags.split()):
            return ("-march=x86-64-v3",)
    return ()


@functools.cache
def fingerprint() -> str:
    """Changes with the compiler, with the shim headers and with the passes."""
    digest = hashlib.sha256(repr((machine_flags(), platform.machine())).encode())
    version = (zig().parent / "lib" / "include" / "__clang_hip_math.h", zig())
    for path in version:
        digest.update(str(path.stat().st_size if path.exists() else 0).encode())
    digest.update(_ziglang_version().encode())
    sources = [*MSL.rglob("*"), *RUNTIME.glob("*.h"), *ROOT.glob("*.py")]
    for path in sorted(p for p in sources if p.is_file()):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _ziglang_version() -> str:
    from importlib import metadata

    try:
        return metadata.version("ziglang")
    except metadata.PackageNotFoundError:
        return ""


def cache_folder() -> Path:
    """Of compiled kernels and the runtime: $MLX_SDPA_EXT_EMULATOR_CACHE, or the user's."""
    chosen = os.environ.get("MLX_SDPA_EXT_EMULATOR_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mlx-sdpa-ext" / "emulator"


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """The file `name` of the cache; make(path) writes it if there is none.

    Processes that make the same file at the same time each make their own, and the last one stays:
    they are the same.
    """
    path = cache_folder() / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as folder:
            made = Path(folder) / path.name
            make(made)
            os.replace(made, path)
    return path
