"""Asks the functions inside the extension's binary: the macOS wheel's code, run by Unicorn.

probe.cpp is compiled twice. For macOS it calls the functions of the wheel's module, and brings the
C++ library, which macOS would have; on Linux it is compiled together with their sources.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

from macos import system_libraries
from macos.arm64 import Machine
from macos.needs import ROOT

HERE = Path(__file__).parent
SOURCES = ("launch", "plan", "plan_cuda", "plan_gpu", "tiles")

# What probe_plan takes and writes, in its order.
PROBLEM = (
    *("B", "Hq", "Hkv", "Lq", "Lk", "D", "Dv", "dtype", "causal", "window", "mask"),
    *("softcap", "sinks", "want_lse", "chunk_size"),
)
PLAN = (
    *("bq", "bk", "row_tiles", "splits", "split_keys", "chunks", "chunk_keys", "tasks"),
    *("tile_bytes", "scratch_bytes", "wm", "wd", "threads", "threadgroup_bytes", "longest_flops"),
)
PART = (
    *("chunk", "split0", "row_tile0", "row_tiles", "head0", "heads", "key0", "key1"),
    *("split_keys", "splits", "with_sinks", "with_carry", "flops"),
)
FLOATS = ("longest_flops", "flops")
CAPACITY = 1 << 16  # numbers that probe_plan may write
PARAMS_BYTES = 512  # more than sizeof(sdpa::Params)


def build_for_macos(zig: Path, mlx_wheels: Path, module: Path, to: Path) -> Path:
    """The probe for arm64 macOS, with what `module` imports of libc++.

    Raises:
        subprocess.CalledProcessError: it does not compile.
    """
    flags = (HERE / "flags.txt").read_text().split()
    includes = (HERE / "include", mlx_wheels / "mlx/include/metal_cpp", mlx_wheels / "mlx/include")
    library = [
        f"-Wl,-u,{symbol}"
        for symbol, home in system_libraries.imports(module).items()
        if home == system_libraries.LIBCXX
    ]
    command = [
        *(str(zig), "c++", "-target", "aarch64-macos.14.0", "-std=c++20", "-O1", "-shared"),
        *(*flags, "-D_METAL_", "-Wl,-undefined,dynamic_lookup", *library, f"-I{ROOT}"),
        *(part for folder in includes for part in ("-isystem", str(folder))),
        *(str(HERE / "probe.cpp"), "-o", str(to)),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return to


def build_here(to: Path) -> Path:
    """The probe with the sources of the functions, against the installed MLX.

    Raises:
        subprocess.CalledProcessError: it does not compile.
    """
    mlx = importlib.util.find_spec("mlx")
    (folder,) = (
        Path(place)
        for place in (mlx.submodule_search_locations if mlx else ())
        if (Path(place) / "lib/libmlx.so").exists()
    )
    command = [
        *(os.environ.get("CXX", "c++"), "-std=c++20", "-O2", "-shared", "-fPIC"),
        *("-fvisibility=hidden", f"-I{ROOT}", "-isystem", str(folder / "include")),
        *(str(HERE / "probe.cpp"), *(str(ROOT / f"src/{name}.cpp") for name in SOURCES)),
        *(str(folder / "lib/libmlx.so"), f"-Wl,-rpath,{folder / 'lib'}", "-o", str(to)),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return to


class MacOS:
    """The functions as the macOS wheel has them."""

    def __init__(self, module: Path, link_map: Path, probe: Path, mlx_wheels: Path) -> None:
        self.machine = Machine()
        self.machine.load(module, link_map)
        self.machine.load(probe)
        self.machine.load(mlx_wheels / "mlx/lib/libmlx.dylib")
        self.machine.bind()

    def plan(self, problem: Sequence[int], gpu: str) -> dict | str:
        """What plan() answers for a GPU: the plan, or the reason why there is none."""
        out = self.machine.allocate(8 * CAPACITY)
        name = self._buffer(gpu.encode() + b"\0")
        self.machine.call("_probe_plan", self._numbers(problem), name, out)
        return _plan(struct.unpack(f"<{CAPACITY}q", self.machine.read(out, 8 * CAPACITY)))

    def params(self, call: Sequence[int], scale: float, softcap: float) -> bytes:
        """What kernels are told of a call: the bytes of sdpa::Params."""
        out = self.machine.allocate(PARAMS_BYTES)
        size = self.machine.call("_probe_params", self._numbers(call), out, floats=(scale, softcap))
        return self.machine.read(out, size)

    def _numbers(self, numbers: Sequence[int]) -> int:
        return self._buffer(struct.pack(f"<{len(numbers)}q", *numbers))

    def _buffer(self, data: bytes) -> int:
        at = self.machine.allocate(len(data))
        self.machine.write(at, data)
        return at


class Linux:
    """The same functions, compiled here."""

    def __init__(self, probe: Path) -> None:
        self._library = ctypes.CDLL(str(probe))
        self._library.probe_params.restype = ctypes.c_int64

    def params(self, call: Sequence[int], scale: float, softcap: float) -> bytes:
        """What kernels are told of a call: the bytes of sdpa::Params."""
        out = ctypes.create_string_buffer(PARAMS_BYTES)
        numbers = (ctypes.c_int64 * len(call))(*call)
        floats = (ctypes.c_float(scale), ctypes.c_float(softcap))
        size = self._library.probe_params(numbers, *floats, out)
        return out.raw[:size]


def _plan(numbers: Sequence[int]) -> dict | str:
    if not numbers[0]:
        return _text(numbers[1:])
    plan: dict = _named(PLAN, numbers[1:])
    count = numbers[1 + len(PLAN)]
    parts = numbers[2 + len(PLAN) :]
    plan["parts"] = [_named(PART, parts[n * len(PART) :]) for n in range(count)]
    plan["kernel"] = _text(parts[count * len(PART) :])
    return plan


def _named(names: Sequence[str], numbers: Sequence[int]) -> dict[str, int | float]:
    return {
        name: struct.unpack("<d", struct.pack("<q", number))[0] if name in FLOATS else number
        for name, number in zip(names, numbers)
    }


def _text(numbers: Sequence[int]) -> str:
    return bytes(numbers[1 : 1 + numbers[0]]).decode()
