"""Which MLX a build is for, and what that asks of the build environment and of the metadata.

Two questions with two answers: `wanted_mlx()`, before there is a build environment, is what to put
into it; `found_mlx()`, inside it, is what CMake compiles against and what the metadata pins.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
VARIABLE = "MLX_SDPA_EXT_BUILD_MLX"

_versions = runpy.run_path(str(ROOT / "python/mlx_sdpa_ext/_mlx_versions.py"))
NANOBIND_FOR_MLX: dict[str, str] = _versions["NANOBIND_FOR_MLX"]
DEFAULT_MLX: str = _versions["DEFAULT_MLX"]


class UnsupportedMLX(SystemExit):
    """Ends the build with its message alone; front ends print a traceback for other exceptions."""


def wanted_mlx() -> str:
    """The MLX version to build for: the variable, else the target environment's, else the default.

    Raises UnsupportedMLX for a version that is not in NANOBIND_FOR_MLX.
    """
    if asked := os.environ.get(VARIABLE):
        return _supported(asked, f"{VARIABLE} asks for")
    if installed := _target_mlx():
        return _supported(installed, "the environment has")
    print(
        f"mlx-sdpa-ext: no MLX in sight, building for MLX {DEFAULT_MLX}. If this front end hides "
        f"the target environment's MLX, name it: {VARIABLE}=0.32.2",
        file=sys.stderr,
    )
    return DEFAULT_MLX


def found_mlx() -> str:
    """The MLX version of the build environment, after checking all that must agree with it.

    Raises UnsupportedMLX where the environment cannot give a working build.
    """
    try:
        mlx = metadata.version("mlx")
        nanobind = metadata.version("nanobind")
    except metadata.PackageNotFoundError as error:
        raise UnsupportedMLX(
            f"mlx-sdpa-ext: the build environment lacks {error.name}. Without build isolation, "
            f"install what the build needs first: {_install(wanted_mlx())}"
        ) from None
    _supported(mlx, "the build environment has")
    asked = os.environ.get(VARIABLE)
    if asked and asked != mlx:
        raise UnsupportedMLX(
            f"mlx-sdpa-ext: {VARIABLE} asks for MLX {asked}, but the build environment has {mlx}. "
            f"Without build isolation the variable cannot choose: {_install(asked)}"
        )
    if nanobind not in SpecifierSet(NANOBIND_FOR_MLX[mlx]):
        raise UnsupportedMLX(
            f"mlx-sdpa-ext: MLX {mlx} works with nanobind{NANOBIND_FOR_MLX[mlx]} alone, and the "
            f"build environment has {nanobind}: {_install(mlx)}"
        )
    return mlx


def build_requires() -> list[str]:
    """The MLX to compile against and its nanobind, as requirements of the build environment.

    The core ABI of every backend wheel is the same, so mlx[cpu] serves mlx[cuda13] as well. On
    macOS the extra is empty: MLX brings its Metal backend by itself.
    """
    mlx = wanted_mlx()
    return [f"mlx[cpu]=={mlx}", f"nanobind{NANOBIND_FOR_MLX[mlx]}"]


class Provider:
    """scikit-build-core's dynamic-metadata hooks: `Requires-Dist: mlx==X` of the wheel.

    The extras `cpu` and `cuda13` are static. They ask for `mlx[cpu]` without a version, and MLX's
    own extras pin their backend wheel to MLX's version, so one pin keeps all of them in step.
    """

    def build_state(self, state: str) -> None:
        self.state = state

    def dynamic_metadata(self, settings: Mapping[str, Any], project: Any) -> dict[str, Any]:
        # An sdist is for no MLX yet; its own metadata says that this field is dynamic.
        mlx = DEFAULT_MLX if self.state == "sdist" else found_mlx()
        return {"dependencies": [f"mlx=={mlx}"]}

    def dynamic_wheel(self, settings: Mapping[str, Any]) -> dict[str, bool]:
        return {"dependencies": True}


def _supported(mlx: str, who: str) -> str:
    if mlx not in NANOBIND_FOR_MLX:
        raise UnsupportedMLX(
            f"mlx-sdpa-ext: {who} MLX {mlx}; this version builds for "
            f"{', '.join(NANOBIND_FOR_MLX)}. "
            f"Install one of them first: pip install 'mlx[cpu]=={DEFAULT_MLX}'"
        )
    return mlx


def _target_mlx() -> str | None:
    # pip builds with the target's interpreter and shuts its packages out by PYTHONPATH alone (a
    # sitecustomize.py there): -E undoes just that. `build` and uv have interpreters of their own.
    code = (
        "import importlib.metadata as m; print(*[d.version for d in m.distributions(name='mlx')])"
    )
    command = [sys.executable, "-E", "-c", code]
    found = subprocess.run(command, cwd=sys.prefix, capture_output=True, text=True, check=True)
    versions = found.stdout.split()
    return versions[0] if versions else None


def _install(mlx: str) -> str:
    tools = "scikit-build-core cmake ninja"
    return f"pip install 'mlx[cpu]=={mlx}' 'nanobind{NANOBIND_FOR_MLX[mlx]}' {tools}"
