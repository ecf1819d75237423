"""What a device of this machine can still give."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from .words import Device

READ_EVERY = 0.1  # seconds; a reading of /proc and of the control group takes 60 us
CGROUPS = (  # of the limit, of what is used, of what of that is files that can be dropped
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


def free(device: Device) -> int:
    """Bytes that this process may still take on `device`, what MLX keeps for reuse included.

    Metal: the recommended working set less what MLX has in use. CUDA: the GPU's free memory. CPU:
    the machine's available memory, or what is left of the control group's limit; where the system
    does not say (macOS), all of it less what MLX has in use.
    """
    if device.backend == "cuda":
        info = mx.device_info(mx.Device(mx.gpu, 0))
        if "free_memory" in info:
            return int(info["free_memory"]) + mx.get_cache_memory()
    if device.backend == "cpu" or device.software:
        available = _available()
        if available is not None:
            return available + mx.get_cache_memory()
    return max(0, device.memory - mx.get_active_memory())


def _available(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that Linux can give without swapping; None on other systems."""
    try:
        left = 1024 * _number(proc / "meminfo", "MemAvailable:")
    except (OSError, ValueError):
        return None
    for limit, used, stat, dropped in CGROUPS:
        try:
            room = int((cgroups / limit).read_text()) - int((cgroups / used).read_text())
            left = min(left, room + _number(cgroups / stat, dropped))
        except (OSError, ValueError):  # no such group, or "max"
            continue
    return max(0, left)


def _number(file: Path, name: str) -> int:
    """The number after `name` at the start of a line.

    Raises:
        OSError: there is no such file.
        ValueError: there is no such line.
    """
    for line in file.read_text().splitlines():
        words = line.split()
        if words and words[0] == name:
            return int(words[1])
    raise ValueError(f"{file} has no line {name}")


class Headroom:
    """What a device can still give, cheaply: read now and then, and followed in between.

    In between, what MLX has allocated since is taken off.
    """

    def __init__(
        self,
        device: Device,
        read: Callable[[Device], int] = free,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device, self._read, self._clock = device, read, clock
        self._due = -1.0
        self._free = self._active = 0

    def now(self) -> int:
        """Bytes; about 0.2 us where nothing has to be read."""
        active, clock = mx.get_active_memory(), self._clock()
        if clock >= self._due:
            self._free, self._active = self._read(self._device), active
            self._due = clock + READ_EVERY
        return max(0, self._free - (active - self._active))
