"""What this machine and this installation are, in words and numbers for reports."""

from __future__ import annotations

import json
import platform
import subprocess
from importlib import import_module, metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

NAME = "mlx-sdpa-ext"


def package_version() -> str:
    """The version of this package; of its build where it is used without being installed."""
    try:
        return metadata.version(NAME)
    except metadata.PackageNotFoundError:
        pass
    try:
        return import_module("mlx_sdpa_ext._build_info").VERSION
    except ModuleNotFoundError:
        return "unknown (neither built nor installed)"


def versions() -> dict[str, str | None]:
    """The versions that a measurement depends on."""
    from .._mend import installed, installed_backends

    return {
        "mlx-sdpa-ext": package_version(),
        "mlx": installed("mlx"),
        **installed_backends(),
        "mlx-lm": installed("mlx-lm"),
        "python": platform.python_version(),
        "platform": platform.platform(),
    }


def commit() -> str | None:
    """The git commit of this package's source, `-dirty` if changed; None if it is not known."""
    try:
        origin = json.loads(metadata.distribution(NAME).read_text("direct_url.json") or "{}")
    except metadata.PackageNotFoundError:
        origin = {}
    if "vcs_info" in origin:
        return origin["vcs_info"].get("commit_id")
    if origin.get("url", "").startswith("file:"):
        folder = Path(url2pathname(urlsplit(origin["url"]).path))
    else:
        folder = Path(__file__).resolve().parents[3]
    if not (folder / "python" / "mlx_sdpa_ext").is_dir():
        return None
    try:
        git = subprocess.run(
            ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return git.stdout.strip() or None


def device() -> dict[str, object]:
    """The device that MLX computes on by default: backend, name, architecture, CPU threads."""
    import mlx.core as mx

    from .. import _ext, limits
    from ..device import current, mlx_device

    here = current()
    where = mlx_device(None)
    info = mx.device_info(where) if hasattr(mx, "device_info") else {}
    name = info.get("device_name") or platform.processor() or platform.machine()
    return {
        "backend": here.backend,
        "name": f"SOFTWARE, no GPU, on {name}" if here.software else name,
        "architecture": here.arch,
        "memory_bytes": here.memory,
        "neural_accelerators": here.neural_accelerators,
        "cpu_threads": limits.settings().cpu_threads or _ext.cpu()["threads"],
    }


def bounds(device: Any) -> tuple[Any, str]:
    """The Limits of a Device, and what its memory limit follows from.

    Those in force where it is a device of this machine; else as if all its memory were free.
    """
    import mlx.core as mx

    from .. import attention, limits
    from ..device import current

    found, follows = limits.of(device, limits.settings()), "if all of its memory is free"
    for stream in (None, mx.cpu):
        if current(stream) == device:
            found, follows = attention.place_of(stream).limits, "by what is free now"
            break
    return found, "as set" if limits.settings().memory_limit else follows
