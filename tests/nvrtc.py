"""NVRTC through ctypes: compiles a CUDA kernel for any compute capability on a machine with no GPU.

The library and the CUDA headers come from the packages nvidia-cuda-nvrtc and nvidia-cuda-runtime.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parent.parent


class Compiled(NamedTuple):
    """What NVRTC made of a kernel."""

    log: str
    cubin: bytes  # empty where it did not compile


class Resources(NamedTuple):
    """What ptxas says of a kernel, in registers of a thread and bytes."""

    registers: int
    stack: int
    spilled: int


@cache
def home() -> Path | None:
    """The folder with lib/libnvrtc and include/; None where the packages are not installed."""
    spec = find_spec("nvidia")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for library in Path(folder).glob("cu*/lib/libnvrtc.so.*"):
            if (library.parent.parent / "include" / "cuda_fp16.h").exists():
                return library.parent.parent
    return None


@cache
def library() -> ctypes.CDLL:
    """NVRTC, loaded: what asks for a loaded one by its name finds it from then on."""
    found = home()
    assert found, "pip install nvidia-cuda-nvrtc nvidia-cuda-runtime"
    # NVRTC asks for its builtins by name alone: they must be there already.
    ctypes.CDLL(str(next((found / "lib").glob("libnvrtc-builtins.so.*"))), ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(next((found / "lib").glob("libnvrtc.so.*"))))


def _bytes_of(program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    getattr(library(), f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(library(), f"nvrtcGet{what}")(program, text)
    return text.raw


def compile(source: str, arch: str, macros: Mapping[str, int]) -> Compiled:
    """Compile kernels/cuda/<source>.cuh for an arch such as "90a", as the extension does."""
    options = [
        f"--gpu-architecture=sm_{arch}",
        "-std=c++20",
        f"-I{REPO}",
        f"-I{home() / 'include'}",
        "--ptxas-options=-v",
        *(f"-D{name}={value}" for name, value in macros.items()),
    ]
    text = f'#include "kernels/cuda/{source}.cuh"\n'.encode()
    program = ctypes.c_void_p()
    made = library().nvrtcCreateProgram(
        ctypes.byref(program), text, f"{source}.cu".encode(), 0, None, None
    )
    assert made == 0, f"nvrtcCreateProgram: {made}"
    try:
        given = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = library().nvrtcCompileProgram(program, len(options), given)
        log = _bytes_of(program, "ProgramLog").decode().rstrip("\0")
        return Compiled(log, b"" if failed else _bytes_of(program, "CUBIN"))
    finally:
        library().nvrtcDestroyProgram(ctypes.byref(program))


def complaints(log: str) -> list[str]:
    """The lines of a log that are warnings or errors."""
    return [line for line in log.splitlines() if re.search(r"warning|error", line, re.IGNORECASE)]


def resources(log: str) -> Resources:
    """What the log says of its one kernel."""

    def number(pattern: str) -> int:
        found = re.search(pattern, log)
        assert found, f"no {pattern!r} in:\n{log}"
        return int(found[1])

    return Resources(
        number(r"Used (\d+) registers"),
        number(r"(\d+) bytes stack frame"),
        number(r"(\d+) bytes spill stores"),
    )
