"""The environment variables, and the Limits that follow from them and a device's profile.

Every variable of this package is read here and nowhere else: at the first attention call, then
kept; `refresh()` reads them again. `MLX_SDPA_EXT_DISABLE` is read whenever `patch()` is called.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from .profiles import Value, profile
from .profiles.user import NONE
from .words import Device, Limits

_UNITS = {"": 1, "B": 1}
_UNITS |= {prefix + "B": 1000**power for power, prefix in enumerate("KMGT", 1)}
_UNITS |= {prefix + "iB": 1024**power for power, prefix in enumerate("KMGT", 1)}


MOST_KEYS = 2**31 - 1  # lengths are 32-bit integers in MLX
MOST_THREADS = 1024
MOST_MILLISECONDS = 60_000
LEAST_LIMIT = 16 << 20  # bytes that the temporaries of a call may always take
LIMIT_STEPS = 8
DEVICE = "MLX_SDPA_EXT_DEVICE"
CPU_ISA = "MLX_SDPA_EXT_CPU_ISA"
PROFILE = "MLX_SDPA_EXT_PROFILE"
DISPATCH_MS = "MLX_SDPA_EXT_DISPATCH_MS"
SOFTWARE_METAL = "software-metal"
SOFTWARE_ARCH = "applegpu_g15s"  # an M3 Max, unless another is named


def _count(first: int, last: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"\d{1,10}", text) or not first <= int(text) <= last:
            raise ValueError(f"a whole number from {first} to {last}")
        return int(text)

    return parse


def _switch(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("0 or 1")
    return text == "1"


def _instruction_set(text: str) -> str:
    """Which of them there are, only the build and the machine know: `_ext.set_cpu_isa` refuses."""
    if not re.fullmatch(r"[a-z0-9]+", text):
        raise ValueError("the name of an instruction set, such as avx2")
    return text


def _file(text: str) -> str:
    """A .json file, or none. Whether it is there shows where it is read (profiles/user.py)."""
    if text != NONE and not text.endswith(".json"):
        raise ValueError("the name of a .json file, or none")
    return text


def _device(text: str) -> str:
    """`cpu`, `metal`, `cuda`, or `software-metal:` with its architecture."""
    name, _, arch = text.partition(":")
    if text in ("cpu", "metal", "cuda"):
        return text
    if name != SOFTWARE_METAL or not re.fullmatch(r"(applegpu_g\d+[gsdpc])?", arch):
        raise ValueError(f"cpu, metal, cuda, {SOFTWARE_METAL} or {SOFTWARE_METAL}:{SOFTWARE_ARCH}")
    return f"{name}:{arch or SOFTWARE_ARCH}"


def parse_bytes(text: str) -> int:
    """`512MiB`, `2GB`, `1.5 GiB` or a plain number, in bytes.

    Raises:
        ValueError: it is none of these; the message says what is allowed.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", text.strip())
    unit = _UNITS.get(match[2]) if match else None
    if match is None or unit is None or float(match[1]) * unit < 1:
        raise ValueError("a number of bytes from 1 on, such as 536870912, 512MiB or 2GB")
    return int(float(match[1]) * unit)


class Variable(NamedTuple):
    """One row of the table of environment variables."""

    name: str
    default: str  # as documented
    meaning: str
    parse: Callable[[str], Any]
    field: str  # of Settings


VARIABLES = (
    Variable(
        "MLX_SDPA_CHUNK_THRESHOLD",
        "65536",
        "If set, the `chunked` path is taken from so many keys on. Unset, only where it is asked "
        "for: kernels split the keys themselves where they would else leave the device idle.",
        _count(1, MOST_KEYS),
        "chunk_threshold",
    ),
    Variable(
        "MLX_SDPA_CHUNK_SIZE",
        "32768",
        "Keys of one chunk on the `chunked` path.",
        _count(1, MOST_KEYS),
        "chunk_size",
    ),
    Variable(
        "MLX_SDPA_EXT_FUSED_MIN_KEYS",
        "16384",
        "Metal, head dims 129 to 256, more than 48 query rows: `unfused` up to so many keys, if "
        "its temporaries fit the memory limit; `fused` beyond. On neural accelerators (M5) only "
        "if set.",
        _count(0, MOST_KEYS),
        "fused_min_keys",
    ),
    Variable(
        "MLX_SDPA_EXT_MEMORY_LIMIT",
        "what the device can still give, less a margin",
        "What the temporaries of one call may take: bytes, or with a unit as in `512MiB`, `2GB`. "
        "If not set, it is read again as caches grow; the margin is half of what is free, or 1/8 "
        "of the device's memory if that is more.",
        parse_bytes,
        "memory_limit",
    ),
    Variable(
        PROFILE,
        "the one that `mlx-sdpa-ext calibrate` wrote, if any",
        "A file as `mlx-sdpa-ext calibrate` writes it, whose thresholds beat those of this "
        "package; `none`: no such file.",
        _file,
        "profile",
    ),
    Variable(
        DISPATCH_MS,
        "250",
        "Metal: milliseconds that one dispatch, and one command buffer, of this package's kernels "
        "may take by the estimate of the device's profile, for the sake of the GPU watchdog.",
        _count(1, MOST_MILLISECONDS),
        "dispatch_ms",
    ),
    Variable(
        DEVICE,
        "that of the call's stream",
        "`cpu` or `metal`: where attention without a `stream` argument runs. `software-metal` or "
        "`software-metal:applegpu_g13g`: the Metal kernels run on the CPU stream, on an emulator "
        "in this repository, thousands of times slower than a GPU: for tests.",
        _device,
        "device",
    ),
    Variable(
        "MLX_SDPA_EXT_CPU_THREADS",
        "the cores this process may use",
        "Threads of the CPU kernels.",
        _count(1, MOST_THREADS),
        "cpu_threads",
    ),
    Variable(
        CPU_ISA,
        "the best that the machine runs",
        "Instruction set of the CPU kernels: `amx`, `avx512bf16`, `avx512`, `avx2` or `baseline` "
        "on x86-64, `neon` on arm64.",
        _instruction_set,
        "cpu_isa",
    ),
    Variable(
        "MLX_SDPA_EXT_DISABLE",
        "0",
        "1: `patch()` does nothing.",
        _switch,
        "disable",
    ),
    Variable(
        "MLX_SDPA_EXT_LOG",
        "0",
        "1: each new route is written once to standard error (logger `mlx_sdpa_ext`).",
        _switch,
        "log",
    ),
)


class Settings(NamedTuple):
    """The variables as read; None where one is not set."""

    chunk_threshold: int | None = None
    chunk_size: int | None = None
    fused_min_keys: int | None = None
    memory_limit: int | None = None
    profile: str | None = None  # a .json file, or "none"
    dispatch_ms: int | None = None
    device: str | None = None  # "cpu", "metal", "cuda" or "software-metal:ARCH"
    cpu_threads: int | None = None
    cpu_isa: str | None = None
    disable: bool | None = None
    log: bool | None = None

    @property
    def software_arch(self) -> str | None:
        """The architecture that the software Metal device stands for, where that is asked for."""
        name, _, arch = (self.device or "").partition(":")
        return arch if name == SOFTWARE_METAL else None


NOTHING_SET = Settings()
NOTHING_MEASURED: Mapping[str, Value] = {}
DECIDES_UNFUSED = ("fused_min_keys", "unfused_dim")  # which MLX_SDPA_EXT_FUSED_MIN_KEYS replaces


def _value(variable: Variable, environment: Mapping[str, str]) -> Any:
    text = environment.get(variable.name, "").strip()
    if not text:
        return None
    try:
        return variable.parse(text)
    except ValueError as allowed:
        raise ValueError(f"{variable.name}: got {text!r}, allowed is {allowed}") from None


def read(environment: Mapping[str, str]) -> Settings:
    """The settings in `environment`; an empty value is the same as none.

    Raises:
        ValueError: a value is not allowed; names the variable, what it got and what is allowed.
    """
    return Settings(**{row.field: _value(row, environment) for row in VARIABLES})


_settings: Settings | None = None


def settings() -> Settings:
    """The settings in force. The same object until `refresh()`.

    Raises:
        ValueError: as `read`.
    """
    return _settings if _settings is not None else refresh()


def refresh() -> Settings:
    """Reads the environment again; attention calls from now on follow it.

    Raises:
        ValueError: as `read`; the settings stay as they were.
    """
    global _settings
    _settings = read(os.environ)
    return _settings


@contextmanager
def using(**changed: Any) -> Iterator[None]:
    """Inside, attention calls follow the settings with some of them changed."""
    global _settings
    before = settings()
    _settings = before._replace(**changed)
    try:
        yield
    finally:
        _settings = before


def disabled() -> bool:
    """Whether MLX_SDPA_EXT_DISABLE is set now.

    Raises:
        ValueError: its value is not allowed.
    """
    variable = next(row for row in VARIABLES if row.field == "disable")
    return bool(_value(variable, os.environ))


def in_force() -> dict[str, str]:
    """The variables of the table that are set, as they are set: name -> text."""
    return {row.name: os.environ[row.name] for row in VARIABLES if row.name in os.environ}


def less_margin(free: int, margin: int) -> int:
    """What the temporaries of one call may take of `free` bytes.

    Half of them, since MLX may hold the temporaries of two layers at once; and what leaves
    `margin`. Rounded down, because routes are remembered by it: to one of LIMIT_STEPS steps from
    one power of two to the next.
    """
    room = min(free // 2, free - margin)
    if room <= LEAST_LIMIT:
        return LEAST_LIMIT
    step = max(1, (1 << (room.bit_length() - 1)) // LIMIT_STEPS)
    return room // step * step


def of(
    device: Device, chosen: Settings = NOTHING_SET, measured: Mapping[str, Value] = NOTHING_MEASURED
) -> Limits:
    """The limits of a device while all its memory is free. Pure.

    Its shipped profile, on top of it what the user has `measured` there, on top of it the settings.
    """
    # Who sets fused_min_keys wants fused kernels beyond, also where matmuls are faster.
    accelerated = device.neural_accelerators and chosen.fused_min_keys is None
    rows = profile(device.backend, device.arch, accelerated)
    if chosen.fused_min_keys is not None:
        measured = {name: value for name, value in measured.items() if name not in DECIDES_UNFUSED}
    known = {name: entry.value for name, entry in (rows | dict(measured)).items()}
    plain = Limits._field_defaults
    fused_min_keys = chosen.fused_min_keys
    if fused_min_keys is None:
        fused_min_keys = int(known["fused_min_keys"])
    profile_ms = known.get("dispatch_ms", 0.0)
    dispatch_ms = (profile_ms and chosen.dispatch_ms) or profile_ms
    margin, block = (int(device.memory * known[x]) for x in ("memory_margin", "block_fraction"))
    return Limits(
        memory_limit=chosen.memory_limit or less_margin(device.memory, margin),
        memory_margin=margin,
        block_bytes=0 if chosen.memory_limit else block,
        chunk_threshold=chosen.chunk_threshold or plain["chunk_threshold"],
        chunk_size=chosen.chunk_size or plain["chunk_size"],
        fused_min_keys=fused_min_keys,
        chunk_asked=chosen.chunk_threshold is not None,
        fused_dim=int(known["fused_dim"]),
        unfused_dim=int(known["unfused_dim"]),
        middle_rows=int(known.get("middle_rows", plain["middle_rows"])),
        dispatch_flops=int(known["dispatch_flops"] * dispatch_ms / profile_ms) if profile_ms else 0,
        dispatch_ms=dispatch_ms,
        fill_blocks=int(known.get("fill_blocks", plain["fill_blocks"])),
        decode_over_stock=bool(known.get("decode_over_stock")),
        prefill_over_stock=bool(known.get("prefill_over_stock")),
        calibrated=tuple(sorted(measured)),
    )
