"""Builds the arm64 macOS wheel on Linux: our CMake project, compiled by zig, linked by ld64.lld.

    python tools/macos_wheel.py                  # dist/mlx_sdpa_ext-...-macosx_14_0_arm64.whl
    python tools/macos_wheel.py --mlx 0.32.2     # for another MLX than the default

It needs what `pip install '.[test]'` brings; an ld64.lld on the PATH is preferred to the one there.
The wheel is for the CPython that runs this, or for the one whose headers --python-headers names.
tools/check_macos_wheel.py checks what it writes. A wheel built on a Mac needs none of this.
"""

from __future__ import annotations

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parents[1]
VERSIONS = runpy.run_path(str(ROOT / "python/mlx_sdpa_ext/_mlx_versions.py"))
INSTALL = f"pip install '{ROOT}[test]'"
LINKERS = ("ld64.lld", *(f"ld64.lld-{version}" for version in range(30, 15, -1)))


class BuildError(Exception):
    """What is missing or failed, and what to do about it."""


def zig() -> Path:
    spec = importlib.util.find_spec("ziglang")
    if not (spec and spec.submodule_search_locations):
        raise BuildError(f"the compiler is missing: {INSTALL}")
    return Path(spec.submodule_search_locations[0]) / "zig"


def linker(asked: Path | None, scratch: Path) -> Path:
    """LLVM's linker for Mach-O: the one asked for, one on the PATH, or IREE's compiler's."""
    if asked:
        if not shutil.which(asked):
            raise BuildError(f"--linker {asked} is not an executable")
        return Path(shutil.which(asked)).absolute()  # not resolved: lld goes by its name
    for name in LINKERS:
        if found := shutil.which(name):
            return Path(found)
    iree = importlib.util.find_spec("iree")
    for folder in (iree.submodule_search_locations or ()) if iree else ():
        lld = Path(folder, "compiler/_mlir_libs/iree-lld")
        if lld.exists():
            script = scratch / "ld64.lld"
            script.write_text(f'#!/bin/sh\nexec "{lld}" -flavor darwin "$@"\n')
            script.chmod(0o755)
            return script
    raise BuildError(
        "the linker ld64.lld (16 or newer) is missing: pip install iree-base-compiler, or on "
        "Debian and Ubuntu apt-get install lld-19"
    )


def python_version(headers: Path | None) -> str:
    """Of the headers or of this interpreter, as "3.11"."""
    if headers is None:
        return f"{sys.version_info.major}.{sys.version_info.minor}"
    try:
        text = (headers / "patchlevel.h").read_text()
        major, minor = (
            re.search(rf"#define\s+PY_{part}_VERSION\s+(\d+)", text)[1]
            for part in ("MAJOR", "MINOR")
        )
    except (OSError, TypeError) as error:
        raise BuildError(
            f"--python-headers {headers} holds no headers of CPython: {error}"
        ) from None
    return f"{major}.{minor}"


def run(command: list[str], **environment: str) -> None:
    done = subprocess.run(command, env=os.environ | environment)
    if done.returncode:
        raise BuildError(f"{' '.join(command[:5])} ... failed with exit code {done.returncode}")


def build(
    mlx: str, headers: Path | None, asked_linker: Path | None, link_map: Path | None, outdir: Path
) -> Path:
    from macos import mlx_wheels, system_libraries

    if mlx not in VERSIONS["NANOBIND_FOR_MLX"]:
        known = ", ".join(VERSIONS["NANOBIND_FOR_MLX"])
        raise BuildError(f"--mlx {mlx}: this version builds for {known}")
    python = python_version(headers)
    tag = f"cp{python.replace('.', '')}"
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        defines = {"SDPA_ZIG": zig(), "SDPA_LD64": linker(asked_linker, scratch)}
        say(f"linker: {defines['SDPA_LD64']}")
        say(f"the macOS wheels of MLX {mlx} for CPython {python}, from the registry or the cache")
        wheels = mlx_wheels.unpacked(mlx, python)
        system_libraries.write_stubs(wheels, scratch / "stubs")
        defines |= {"SDPA_STUBS": scratch / "stubs", "MLX_DIR": wheels / "mlx/share/cmake/MLX"}
        if headers:
            defines["Python_INCLUDE_DIR"] = headers.resolve()

        say("compiling and linking, about a minute on two cores")
        settings = [f"cmake.define.{name}={value}" for name, value in defines.items()]
        settings += [
            f"cmake.args=--toolchain={ROOT / 'tools/macos/toolchain.cmake'}",
            f"build-dir={scratch / 'build'}",
            "install.strip=false",  # the linker did; another strip would break the signature
        ]
        config = [argument for setting in settings for argument in ("-C", setting)]
        run(
            [
                sys.executable,
                "-m",
                "build",
                "--wheel",
                "--outdir",
                str(scratch),
                *config,
                str(ROOT),
            ],
            MLX_SDPA_EXT_BUILD_MLX=mlx,
            SETUPTOOLS_EXT_SUFFIX=f".cpython-{tag[2:]}-darwin.so",
        )
        (wheel,) = scratch.glob("*.whl")  # tagged for this machine
        say("tagging the wheel")
        platform = ["--platform-tag", mlx_wheels.PLATFORM, "--python-tag", tag, "--abi-tag", tag]
        run([sys.executable, "-m", "wheel", "tags", "--remove", *platform, str(wheel)])
        (wheel,) = scratch.glob("*.whl")
        if link_map:
            (written,) = (scratch / "build").glob("_ext.*.map")
            shutil.copy(written, link_map)
        outdir.mkdir(parents=True, exist_ok=True)
        return Path(shutil.move(wheel, outdir / wheel.name))


def say(line: str) -> None:
    typer.echo(f"macos_wheel: {line}")


def main(
    mlx: Annotated[str, typer.Option(help="MLX to build for.")] = VERSIONS["DEFAULT_MLX"],
    python_headers: Annotated[
        Path | None, typer.Option(help="Headers of the CPython to build for, if another.")
    ] = None,
    linker: Annotated[Path | None, typer.Option(help="ld64.lld to link with.")] = None,
    link_map: Annotated[
        Path | None, typer.Option(help="File for the addresses of the binary's functions.")
    ] = None,
    outdir: Annotated[Path, typer.Option(help="Folder for the wheel.")] = Path("dist"),
) -> None:
    """Build the arm64 macOS wheel on Linux."""
    for module in ("build", "lief", "wheel"):
        if importlib.util.find_spec(module) is None:
            raise SystemExit(f"macos_wheel: the Python package {module} is missing: {INSTALL}")
    from macos.mlx_wheels import DownloadError

    try:
        wheel = build(mlx, python_headers, linker, link_map, outdir)
    except (BuildError, DownloadError) as error:
        raise SystemExit(f"macos_wheel: {error}") from None
    say(f"wrote {wheel}")


if __name__ == "__main__":
    typer.run(main)
