"""Writes what was fitted as a profile of the user (profiles/user.py reads it)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import folders
from ..profiles import shipped
from ..profiles.user import THRESHOLDS
from .fit import Fit, Measured, Seconds
from .grid import Call
from .measure import Point
from .raw import now


def measured(points: Sequence[Point]) -> list[Measured]:
    """The calls with a time for each path; one that was left out is taken as slow as it was."""
    found = []
    for point in points:
        sides = point["sides"]
        paths = {
            name: Seconds(side["median_s"], *side["quartiles_s"])
            for name, side in sides.items()
            if "median_s" in side
        }
        if not paths:
            continue
        fastest = min(seconds.median for seconds in paths.values())
        for name, side in sides.items():
            if "at_least" in side:
                paths[name] = Seconds(*(3 * (side["at_least"] * fastest,)))
        found.append(Measured(Call(**point["call"]).problem, paths))
    return found


def content(fit: Fit, identity: dict[str, str], noise: float, calls: int, raw: str) -> dict:
    """The profile as data."""
    when = now()
    values: dict[str, Any] = {}
    for name in THRESHOLDS:
        if name in fit.values:
            found = fit.values[name]
            source = f"mlx-sdpa-ext calibrate, {when}: {found.calls} of {calls} calls depend on it"
            source += f"; shipped: {found.shipped}" if found.value != found.shipped else ""
            values[name] = {"value": found.value, "meaning": _meaning(name), "source": source}
    return {
        "for": identity,
        "measured": when,
        "calls": calls,
        "noise": round(noise, 4),
        "raw": raw,
        "values": values,
        "as_shipped": list(fit.undecided),
    }


def _meaning(name: str) -> str:
    return next(row.values[name].meaning for row in shipped() if name in row.values)


def write(profile: dict, file: Path) -> None:
    folders.write(file, json.dumps(profile, indent=2, ensure_ascii=False) + "\n")
