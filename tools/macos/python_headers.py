"""CPython's headers for the cross build: those of Linux serve, as they ask the compiler."""

from __future__ import annotations

import re
from pathlib import Path


class HeadersError(Exception):
    """The folder holds no headers that a wheel can be built with."""


def version(headers: Path) -> str:
    """CPython's version, as "3.11".

    Raises:
        HeadersError: the folder has no CPython, or one whose modules have another ABI.
    """
    try:
        text = (headers / "patchlevel.h").read_text()
        config = _config(headers).read_text()
    except OSError as error:
        raise HeadersError(f"{headers} holds no headers of CPython: {error}") from None
    for name in ("Py_GIL_DISABLED", "Py_DEBUG"):
        if re.search(rf"^#define {name} 1", config, re.MULTILINE):
            raise HeadersError(f"{headers} is of a CPython with {name}: not supported")
    numbers = dict(re.findall(r"^#define\s+PY_(MAJOR|MINOR)_VERSION\s+(\d+)", text, re.MULTILINE))
    if len(numbers) < 2:
        raise HeadersError(f"{headers}/patchlevel.h names no version")
    return f"{numbers['MAJOR']}.{numbers['MINOR']}"


def prepare(headers: Path, folder: Path) -> Path:
    """An include folder of the same headers that also works for another system than Linux."""
    folder.mkdir()
    for path in headers.iterdir():
        if path.name != "pyconfig.h":
            (folder / path.name).symlink_to(path.resolve())
    (folder / "pyconfig.h").symlink_to(_config(headers).resolve())
    return folder


def _config(headers: Path) -> Path:
    """The pyconfig.h itself: Debian's asks for Linux and includes that of the architecture."""
    for path in sorted(headers.parent.glob(f"*-linux-gnu*/{headers.name}/pyconfig.h")):
        return path
    return headers / "pyconfig.h"
