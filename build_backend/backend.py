"""PEP 517 backend: scikit-build-core, built against the MLX of the environment it installs into.

pip builds in an isolated environment, which would get the newest MLX; a module compiled against
any MLX but the user's does not load. So the hooks below ask for the target's MLX (mlx_pin.py), and
pin it in the wheel's metadata.
"""

from __future__ import annotations

from typing import Any

from mlx_pin import build_requires, found_mlx
from scikit_build_core import build as _build
from scikit_build_core.build import build_sdist, get_requires_for_build_sdist

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

Settings = dict[str, Any] | None


# The parameters' names are part of PEP 517: front ends pass them as keywords.
def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    return _build.get_requires_for_build_wheel(config_settings) + build_requires()


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    return _build.get_requires_for_build_editable(config_settings) + build_requires()


def prepare_metadata_for_build_wheel(
    metadata_directory: str, config_settings: Settings = None
) -> str:
    return _build.prepare_metadata_for_build_wheel(metadata_directory, _tagged(config_settings))


def prepare_metadata_for_build_editable(
    metadata_directory: str, config_settings: Settings = None
) -> str:
    return _build.prepare_metadata_for_build_editable(metadata_directory, _tagged(config_settings))


def build_wheel(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    return _build.build_wheel(wheel_directory, _tagged(config_settings), metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    return _build.build_editable(wheel_directory, _tagged(config_settings), metadata_directory)


def _tagged(config_settings: Settings) -> dict[str, Any]:
    """Put the MLX version into the wheel's build tag: mlx_sdpa_ext-0.1.0-1mlx0.32.4-cp311-...whl.

    Wheels for several MLX versions can then lie in one folder and be told apart. A local version
    (0.1.0+mlx0.32.4) would say the same, but pip refuses a wheel whose version is not its sdist's,
    and PyPI refuses local versions. Neither makes pip's cache choose: it files what it built from
    an sdist under the sdist's address alone, and beside another MLX that is wrong. Its `mlx==X`
    then moves MLX, visibly; the commands that mend a mismatch say --no-cache-dir.
    """
    return {"wheel.build-tag": f"1mlx{found_mlx()}", **(config_settings or {})}
