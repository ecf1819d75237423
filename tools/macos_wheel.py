"""Builds the arm64 macOS wheel on Linux: our CMake project, compiled by zig, linked by ld64.lld.

    python tools/macos_wheel.py                  # dist/mlx_sdpa_ext-...-macosx_14_0_arm64.whl
    python tools/macos_wheel.py --mlx 0.32.2     # for another MLX than the default

It needs what `pip install '.[test]'` brings; an ld64.lld on the PATH is preferred to the one there.
The wheel is for the CPython that runs this, or for the one whose headers --python-headers names.
tools/check_macos_wheel.py checks what it writes. A wheel built on a Mac needs none of this.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Annotated

from macos.needs import ROOT, require

require("build", "lief", "pip", "typer", "wheel", "ziglang")

import typer  # noqa: E402
from macos import mlx_wheels, python_headers, system_libraries, toolchain  # noqa: E402

VERSIONS = runpy.run_path(str(ROOT / "python/mlx_sdpa_ext/_mlx_versions.py"))
OWN_HEADERS = Path(sysconfig.get_path("include"))
# What a user may have set for builds of this machine.
NATIVE = ("CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS", "CMAKE_ARGS", "SKBUILD_CMAKE_ARGS")


class BuildError(Exception):
    """What is missing or failed, and what to do about it."""


def run(command: list[str], **environment: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if name not in NATIVE}
    done = subprocess.run(command, env=inherited | environment)
    if done.returncode:
        raise BuildError(f"{' '.join(command[:5])} ... failed with exit code {done.returncode}")


def build(
    mlx: str, headers: Path, asked_linker: Path | None, link_map: Path | None, outdir: Path
) -> Path:
    """The wheel's path."""
    if mlx not in VERSIONS["NANOBIND_FOR_MLX"]:
        known = ", ".join(VERSIONS["NANOBIND_FOR_MLX"])
        raise BuildError(f"--mlx {mlx}: this version builds for {known}")
    python = python_headers.version(headers)
    tag = f"cp{python.replace('.', '')}"
    outdir.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryDirectory(dir=outdir, prefix=".macos_wheel-") as beside,
    ):
        scratch = Path(folder)
        linker = toolchain.linker(asked_linker, scratch)
        say(f"linker: {linker}")
        say(f"the macOS wheels of MLX {mlx} for CPython {python}, from the registry or the cache")
        wheels = mlx_wheels.unpacked(mlx, python)
        system_libraries.write_stubs(wheels, scratch / "stubs")

        say("compiling and linking, about 40 s on two cores")
        defines = {
            "SDPA_ZIG": toolchain.zig(),
            "SDPA_LD64": linker,
            "SDPA_STUBS": scratch / "stubs",
            "SDPA_PYTHON_HEADERS": python_headers.prepare(headers, scratch / "python"),
            "MLX_DIR": wheels / "mlx/share/cmake/MLX",
        }
        settings = [f"cmake.define.{name}={value}" for name, value in defines.items()]
        settings += [
            f"cmake.args=--toolchain={ROOT / 'tools/macos/toolchain.cmake'}",
            f"build-dir={scratch / 'build'}",
            "install.strip=false",  # the linker did; another strip would break the signature
        ]
        config = [argument for setting in settings for argument in ("-C", setting)]
        run(
            [sys.executable, "-m", "build", "--wheel", "--outdir", beside, *config, str(ROOT)],
            MLX_SDPA_EXT_BUILD_MLX=mlx,
            SETUPTOOLS_EXT_SUFFIX=f".cpython-{tag[2:]}-darwin.so",
        )
        (wheel,) = Path(beside).glob("*.whl")  # tagged for this machine
        say("tagging the wheel")
        platform = ["--platform-tag", mlx_wheels.PLATFORM, "--python-tag", tag, "--abi-tag", tag]
        run([sys.executable, "-m", "wheel", "tags", "--remove", *platform, str(wheel)])
        (wheel,) = Path(beside).glob("*.whl")
        done = wheel.replace(outdir / wheel.name)
        if link_map:
            (written,) = (scratch / "build").glob("_ext.*.map")
            shutil.copy(written, link_map)
        return done


def say(line: str) -> None:
    typer.echo(f"macos_wheel: {line}")


def main(
    mlx: Annotated[str, typer.Option(help="MLX to build for.")] = VERSIONS["DEFAULT_MLX"],
    headers: Annotated[
        Path,
        typer.Option("--python-headers", help="Folder with Python.h of the CPython to build for."),
    ] = OWN_HEADERS,
    linker: Annotated[Path | None, typer.Option(help="ld64.lld to link with.")] = None,
    link_map: Annotated[
        Path | None, typer.Option(help="File for the addresses of the binary's functions.")
    ] = None,
    outdir: Annotated[Path, typer.Option(help="Folder for the wheel.")] = Path("dist"),
) -> None:
    """Build the arm64 macOS wheel on Linux."""
    try:
        wheel = build(mlx, headers, linker, link_map, outdir)
    except (
        *(BuildError, OSError, mlx_wheels.DownloadError),
        *(python_headers.HeadersError, toolchain.NoLinker),
    ) as error:
        raise SystemExit(f"macos_wheel: {error}") from None
    say(f"wrote {wheel}")


if __name__ == "__main__":
    typer.run(main)
