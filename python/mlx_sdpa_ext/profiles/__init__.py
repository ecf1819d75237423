"""Shipped thresholds per device, as data: each number says where it comes from.

A file applies to the devices whose architecture matches its pattern, and only to those with neural
accelerators if it says so; of two that give the same number, the longer pattern wins. What the user
has measured (user.py) is on top of them.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple


class Value(NamedTuple):
    """One number of a profile."""

    value: float
    meaning: str
    source: str
    file: str


class Profile(NamedTuple):
    backend: str
    arch: str  # pattern: * stands for any characters
    values: dict[str, Value]
    neural_accelerators: bool  # only where MLX may use them


@lru_cache(maxsize=1)
def shipped() -> tuple[Profile, ...]:
    """Every profile of this package, general ones first."""
    read = []
    for file in sorted(Path(__file__).parent.glob("*.json")):
        data = json.loads(file.read_text(encoding="utf-8"))
        values = {name: Value(**entry, file=file.name) for name, entry in data["values"].items()}
        accelerated = data.get("neural_accelerators", False)
        read.append(Profile(data["backend"], data["arch"], values, accelerated))
    return tuple(sorted(read, key=lambda profile: len(profile.arch)))


def profile(backend: str, arch: str, neural_accelerators: bool = False) -> dict[str, Value]:
    """What is known of a device: name -> Value."""
    known: dict[str, Value] = {}
    for row in shipped():
        applies = row.backend == backend and fnmatchcase(arch, row.arch)
        if applies and (neural_accelerators or not row.neural_accelerators):
            known.update(row.values)
    return known
