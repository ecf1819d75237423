"""The Device that a stream, a device or the current default stands for.

The setting `device` (limits.py) changes the default, for calls without a stream; with
`software-metal` the CPU stands for an Apple GPU (software.py).
"""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx

from . import _ext, cuda, limits
from .words import Device, Tile, has_neural_accelerators


def current(stream: Any = None) -> Device:
    """The Device of a `stream` argument as MLX takes it; detected once, then the same object.

    Args:
        stream: None (the default device), an mx.Device, an mx.DeviceType, or a stream.

    Raises:
        TypeError: `stream` is none of these.
        ValueError: it is a GPU, and this MLX has none; or the setting `device` has a value that is
            not allowed, or names a device that is not here.
    """
    where = mlx_device(stream)
    arch = limits.settings().software_arch
    software = arch is not None and where.type == mx.cpu
    if where.type == mx.cpu and not software:
        return cpu()
    key: Any = arch if software else where.type if _single(where.type) else str(where)
    found = _found.get(key)
    if found is None:
        found = _found[key] = _software(arch) if software else _detect(where)
    return found


def cpu() -> Device:
    """This machine's CPU, also where it stands for a GPU.

    Raises:
        ValueError: the setting `cpu_isa` names an instruction set that is not here.
    """
    isa = limits.settings().cpu_isa
    found = _found.get(("cpu", isa))
    if found is None:
        use_instruction_set(isa)
        found = _found["cpu", isa] = _detect(mx.Device(mx.cpu, 0))
    return found


def use_instruction_set(name: str | None) -> None:
    """The CPU kernels' from now on; None = the best.

    Raises:
        ValueError: this machine or this build has none of that name.
    """
    try:
        _ext.set_cpu_isa(name or "")
    except ValueError as error:
        raise ValueError(f"{limits.CPU_ISA}: {error}") from None


def stream_of(stream: Any) -> Any:
    """`stream`, or for None where the setting `device` says that attention runs.

    Raises:
        ValueError: it says metal or cuda, and this MLX has no such GPU.
    """
    if stream is not None:
        return stream
    chosen = limits.settings().device
    if chosen is None:
        return None
    if chosen not in ("metal", "cuda"):  # cpu, or what stands for a GPU there
        return mx.cpu
    if not getattr(mx, chosen).is_available():
        gpu = "Metal" if chosen == "metal" else "CUDA"
        raise ValueError(f"{limits.DEVICE}: got {chosen!r}, and this MLX has no {gpu} GPU")
    return mx.gpu


def default() -> AbstractContextManager[Any]:
    """Inside, operations without a stream run where the setting `device` says."""
    stream = stream_of(None)
    return nullcontext() if stream is None else mx.stream(stream)


def mlx_device(stream: Any) -> mx.Device:
    """The mx.Device of a `stream` argument.

    Raises:
        TypeError: `stream` is not what MLX takes.
        ValueError: as `stream_of`.
    """
    stream = stream_of(stream)
    if stream is None:
        return mx.default_device()
    if isinstance(stream, mx.Device):
        return stream
    if isinstance(stream, mx.DeviceType):
        return mx.Device(stream, 0)
    device = getattr(stream, "device", None)
    if not isinstance(device, mx.Device):
        raise TypeError(
            f"stream: got {type(stream).__name__}; allowed are None, a stream, a device or a "
            "device type"
        )
    return device


_found: dict[Any, Device] = {}


@lru_cache(maxsize=2)
def _single(kind: mx.DeviceType) -> bool:
    return mx.device_count(kind) < 2


@lru_cache(maxsize=1)
def tiles() -> tuple[Tile, ...]:
    """Every kernel that this package has, for all backends."""
    return tuple(Tile.of(row) for row in _ext.tiles())


def _detect(where: mx.Device) -> Device:
    if where.type == mx.cpu:
        return _device("cpu", _ext.cpu()["isa"], cpu_memory())
    info = mx.device_info(where) if mx.device_count(mx.gpu) else {}
    if mx.metal.is_available():
        arch = str(info["architecture"])
        return _device("metal", arch, int(info["max_recommended_working_set_size"]))
    if mx.cuda.is_available():
        found = _device("cuda", str(info["architecture"]), int(info["total_memory"]))
        return found._replace(tiles=()) if cuda.refusal() else found
    raise ValueError(f"stream: got {where}, and this MLX has no GPU")


def _software(arch: str) -> Device:
    """The device that the emulator stands for, with the memory of the CPU that it is."""
    return _device("metal", arch, cpu_memory())._replace(
        neural_accelerators=has_neural_accelerators(arch), software=True
    )


def _device(backend: str, arch: str, memory: int) -> Device:
    return Device(
        backend=backend,
        arch=arch,
        mlx=mx.__version__,
        memory=memory,
        neural_accelerators=backend == "metal" and _neural_accelerators(arch),
        tiles=tuple(tile for tile in tiles() if tile.backend == backend),
        tf32=os.environ.get("MLX_ENABLE_TF32", "1") != "0",
        d512_min_keys=int(os.environ.get("MLX_SDPA_D512_MIN_KL", "1024")),
    )


def cpu_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its control group's limit."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return total


@lru_cache(maxsize=4)
def name(backend: str) -> str:
    """What the system calls a device of this machine, such as "Apple M4 Max" or "AMD EPYC"."""
    if backend != "cpu":
        return str(mx.device_info(mx.Device(mx.gpu, 0)).get("device_name", backend))
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _neural_accelerators(arch: str) -> bool:
    """As MLX asks: the GPU has them, macOS is 26.2 or later, and the wheel was built with them.

    Of the wheels only those for macOS 26 on are.
    """
    release = tuple(int(part) for part in platform.mac_ver()[0].split(".")[:2] if part)
    return has_neural_accelerators(arch) and release >= (26, 2) and _wheel_macos() >= 26


def _wheel_macos() -> int:
    """The major macOS version that the installed mlx-metal wheel was built for; 0 if unknown."""
    try:
        wheel = metadata.distribution("mlx-metal").read_text("WHEEL") or ""
    except metadata.PackageNotFoundError:
        return 0
    tags = [line.split("-macosx_")[1] for line in wheel.splitlines() if "-macosx_" in line]
    return max((int(tag.split("_")[0]) for tag in tags), default=0)
