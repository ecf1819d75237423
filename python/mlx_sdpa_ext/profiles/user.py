"""The profile that `mlx-sdpa-ext calibrate` measured on this machine; it beats the shipped ones.

One file for each backend, in the user's folder of settings, or where MLX_SDPA_EXT_PROFILE says. It
counts for the MLX, the version of this package and the device it was measured with, and for no
other. One that does not count, or cannot be read, is ignored with one warning: attention never
fails for it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .. import _build_info, folders
from ..words import Device
from . import Value

NONE = "none"  # of MLX_SDPA_EXT_PROFILE: no profile of the user
MOST = 2**31 - 1
# What a profile may hold, with the largest value allowed; from 0 on.
THRESHOLDS = {
    "fused_dim": MOST,
    "unfused_dim": MOST,
    "fused_min_keys": MOST,
    "middle_rows": MOST,
    "decode_over_stock": 1,
    "prefill_over_stock": 1,
}


class Found(NamedTuple):
    """What there is for a device."""

    file: Path | None = None  # None: no file was looked for
    values: dict[str, Value] = {}  # noqa: RUF012  (never changed)
    measured: str = ""  # when
    ignored: str = ""  # why it does not count, where there is one
    broken: bool = False  # and that is a mistake, not another machine's profile


def file_name(backend: str) -> str:
    return f"profile-{backend}.json"


def identity(device: Device, name: str) -> dict[str, str]:
    """What a profile is measured with, and counts for alone.

    name: of the device, as the system gives it
    """
    return {
        "backend": device.backend,
        "arch": device.arch,
        "device": name,
        "mlx": device.mlx,
        "mlx_sdpa_ext": _build_info.VERSION,
    }


def find(device: Device, name: Callable[[], str], chosen: str | None = None) -> Found:
    """The profile of a device of this machine. Never raises.

    name:   of the device, as the system gives it; asked for where there is a profile
    chosen: a file, "none", or None for the user's folder
    """
    if chosen == NONE or device.software:
        return Found()
    try:
        file = Path(chosen).expanduser() if chosen else folders.config() / file_name(device.backend)
        text = file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        return Found(file, ignored=f"{error.strerror}", broken=True) if chosen else Found(file)
    except OSError as error:
        return Found(file, ignored=f"{error.strerror}", broken=True)
    except RuntimeError:  # no home folder
        return Found()
    except ValueError:
        return Found(file, ignored="it is not a text in UTF-8", broken=True)
    try:
        data = _checked(json.loads(text))
    except ValueError as error:
        why = str(error) if not isinstance(error, json.JSONDecodeError) else f"no JSON: {error}"
        return Found(file, ignored=why, broken=True)
    for key, here in identity(device, name()).items():
        if data["for"][key] != here:
            other = f"it was measured with {WORDS[key]} {data['for'][key]}, and here is {here}"
            return Found(file, measured=data["measured"], ignored=other)
    values = {
        name: Value(entry["value"], entry["meaning"], entry["source"], file.name)
        for name, entry in data["values"].items()
    }
    return Found(file, values, data["measured"])


WORDS = {
    "backend": "the backend",
    "arch": "the architecture",
    "device": "the device",
    "mlx": "MLX",
    "mlx_sdpa_ext": "mlx-sdpa-ext",
}


def _checked(data: Any) -> dict[str, Any]:
    """A profile as `calibrate` writes it, perhaps edited by hand.

    Raises:
        ValueError: it is none; says where.
    """
    if not isinstance(data, dict):
        raise ValueError("it is not a JSON object")
    for part, kind in {"for": dict, "measured": str, "values": dict}.items():
        if not isinstance(data.get(part), kind):
            raise ValueError(f"it has no {part!r}")
    for key in WORDS:
        if not isinstance(data["for"].get(key), str):
            raise ValueError(f"it does not say for which {key!r} it is")
    for name, entry in data["values"].items():
        if name not in THRESHOLDS:
            raise ValueError(f"values: got {name!r}, allowed are {', '.join(THRESHOLDS)}")
        value = entry.get("value") if isinstance(entry, dict) else None
        most = THRESHOLDS[name]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise ValueError(f"{name}: got {value!r}, allowed is a whole number from 0 to {most}")
        for part in ("meaning", "source"):
            if not isinstance(entry.get(part), str):
                raise ValueError(f"{name}: it has no {part!r}")
    return data


_said: set[tuple[Path | None, str]] = set()


def warn(found: Found) -> None:
    """Says once in a process that a profile does not count, and how to be rid of the warning."""
    if not found.ignored or (found.file, found.ignored) in _said:
        return
    _said.add((found.file, found.ignored))
    mend = "correct it, or delete it" if found.broken else "`mlx-sdpa-ext calibrate` measures anew"
    warnings.warn(
        f"mlx_sdpa_ext: the profile {found.file} is ignored: {found.ignored} ({mend}; "
        "MLX_SDPA_EXT_PROFILE=none looks for none)",
        RuntimeWarning,
        stacklevel=2,
    )
