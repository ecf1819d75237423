"""Where a user's files of this package are, by the rules of the system, and how they are written.

As the library platformdirs has it; here without it, because attention reads them too and needs
nothing but MLX.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

NAME = "mlx-sdpa-ext"


def cache() -> Path:
    """What may be deleted at any time.

    Raises:
        RuntimeError: the user has no home folder.
    """
    return _folder("XDG_CACHE_HOME", "Caches", ".cache")


def config() -> Path:
    """What the user has settled.

    Raises:
        RuntimeError: the user has no home folder.
    """
    return _folder("XDG_CONFIG_HOME", "Application Support", ".config")


def write(file: Path, text: str) -> None:
    """A reader sees the old file or the new one, never half of one."""
    part = file.with_name(file.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, file)


def _folder(variable: str, on_macos: str, elsewhere: str) -> Path:
    if named := os.environ.get(variable):
        return Path(named) / NAME
    if sys.platform == "darwin":
        return Path.home() / "Library" / on_macos / NAME
    return Path.home() / elsewhere / NAME
