"""What the self-check of GPU kernels found, kept for the next process in the user's cache folder.

One file for each machine, MLX and version of this package, so that a change of any of them checks
again; so does `mlx-sdpa-ext doctor --selftest`. Without a folder that can be written to, every
process checks for itself.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from . import _build_info, _ext, folders
from .words import Device

Verdicts = dict[str, str]  # a kernel with its features (selfcheck.Check) -> what is wrong, or ""


def file(device: Device) -> Path:
    """The file of this machine's device, MLX and build of this package."""
    words = [
        *(platform.node(), platform.platform(), device.arch),  # macOS brings the Metal compiler
        *(device.mlx, _build_info.VERSION, _kernels()),
    ]
    name = hashlib.sha256("\n".join(words).encode()).hexdigest()[:16]
    return folders.cache() / f"kernels-{device.arch}-{name}.json"


@lru_cache(maxsize=1)
def _kernels() -> str:
    """Which kernels these are: a digest of their rows and of their sources."""
    digest = hashlib.sha256(repr(_ext.tiles()).encode())
    gpu = _ext.gpu()
    for source in sorted(Path(gpu["kernels"]).rglob("*.h")) if gpu else ():
        digest.update(source.read_bytes())
    return digest.hexdigest()


def of(device: Device) -> Verdicts:
    """What is known; nothing if the file is missing or is not one of ours."""
    try:
        read = json.loads(file(device).read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # RuntimeError: there is no home folder
        return {}
    if not isinstance(read, dict):
        return {}
    return {str(kernel): str(error) for kernel, error in read.items()}


def keep(device: Device, found: Verdicts) -> None:
    """Adds to the file; a reader sees the old one or the new one. Never raises."""
    with suppress(OSError, RuntimeError):
        path = file(device)
        path.parent.mkdir(parents=True, exist_ok=True)
        both = {**of(device), **found}
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".part-") as folder:
            part = Path(folder) / path.name
            part.write_text(json.dumps(both, indent=1), encoding="utf-8")
            os.replace(part, path)


def forget(device: Device) -> None:
    """Has every kernel checked again. Never raises."""
    with suppress(OSError, RuntimeError):
        file(device).unlink(missing_ok=True)
