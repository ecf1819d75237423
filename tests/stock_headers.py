"""The headers of stock MLX's Metal kernels, from the macOS wheel of the installed MLX."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import mlx.core as mx
from macos import mlx_wheels

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
    return mlx_wheels.unpacked(mx.__version__, "3.11") / "mlx/include"


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
