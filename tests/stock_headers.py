"""The headers of stock MLX's Metal kernels, from the macOS wheel of the installed MLX.

pip downloads the wheel once, 45 MB, and only its kernel headers are kept, in the user's cache.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import mlx.core as mx

INCLUDE = "mlx/include/"  # of the wheel
KERNELS = "mlx/backend/metal/kernels/"
# What these kernels need of MLX's utils.h. The header itself also brings complex numbers, and
# mathematics in terms of built-ins that only Apple's compiler has.
UTILS = """
template <typename T>
struct Limits {
  static constexpr constant T max = metal::numeric_limits<T>::infinity();
  static constexpr constant T min = -metal::numeric_limits<T>::infinity();
  static constexpr constant T finite_max = metal::numeric_limits<T>::max();
  static constexpr constant T finite_min = -metal::numeric_limits<T>::max();
};

template <typename T, typename U>
inline T ceildiv(T n, U m) {
  return (n + m - 1) / m;
}
"""


@cache
def headers() -> Path:
    """The folder that holds mlx/backend/metal/kernels."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = caches / "mlx-sdpa-ext" / f"mlx-metal-{mx.__version__}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f"{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
                unpacked = Path(scratch, "unpacked")
                _unpack(_download(Path(scratch)), unpacked)
                unpacked.rename(folder)
    return folder


def _download(to: Path) -> Path:
    platform = ["--platform", "macosx_14_0_arm64", "--python-version", "3.11"]
    only = ["--only-binary=:all:", "--no-deps", "--no-cache-dir", "--quiet"]
    command = [sys.executable, "-m", "pip", "download", *platform, *only, "--dest", str(to)]
    done = subprocess.run(
        [*command, f"mlx-metal=={mx.__version__}"], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"no Metal wheel of MLX {mx.__version__}:\n{done.stdout}{done.stderr}")
    (wheel,) = to.glob("*.whl")
    return wheel


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(INCLUDE + KERNELS) and name.endswith(".h"):
                path = folder / name.removeprefix(INCLUDE)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(name))


def _flattened(path: str, seen: set[str]) -> str:
    """A header with MLX's own includes in their place, each once: what MLX hands to Metal."""
    if path in seen:
        return ""
    seen.add(path)
    lines = [f'#line 1 "{path}"']
    for number, line in enumerate((headers() / path).read_text().splitlines(), 1):
        include = re.match(r'#include "(mlx/.+)"', line)
        if include:
            lines += [_flattened(include[1], seen), f'#line {number + 1} "{path}"']
        else:
            lines.append("" if line.startswith("#pragma once") else line)
    return "\n".join(lines) + "\n"


def source(header: str, *instantiations: tuple[str, str, str]) -> str:
    """A header of MLX and what it needs; then (host name, function, template arguments)."""
    seen: set[str] = set()
    text = "#include <metal_stdlib>\n"
    for path in ("bf16.h", "defines.h"):
        text += _flattened(KERNELS + path, seen)
    text += UTILS + _flattened(KERNELS + header, seen)
    for name, function, arguments in instantiations:
        text += f'instantiate_kernel("{name}", {function}, {arguments})\n'
    return text
