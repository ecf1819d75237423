"""What was measured, a line of JSON for each call, written as it comes and read to go on."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .grid import Call
from .measure import Point


class Raw:
    """The file, and what is in it. The first line says for which machine and versions it is."""

    def __init__(self, file: Path, identity: dict[str, str]) -> None:
        self.file, self.identity = file, identity
        self.points: list[Point] = []
        self.noise: float | None = None
        self.other: str | None = None  # what else the file was for, and so is not gone on with

    def open(self, restart: bool = False) -> None:
        """Reads what there is, and leaves out what is no whole line: it was being written.

        Raises:
            OSError: the file cannot be read or written.
        """
        kept = [] if restart else self._kept()
        self.file.write_text("".join(kept), encoding="utf-8")
        if not kept:
            self._add({"for": self.identity, "started": now()})

    def _kept(self) -> list[str]:
        if not self.file.exists():
            return []
        kept: list[str] = []
        for line in self.file.read_text(encoding="utf-8", errors="replace").splitlines(True):
            try:
                data = json.loads(line)
                if not kept and data["for"] != self.identity:
                    differ = (k for k in self.identity if data["for"].get(k) != self.identity[k])
                    self.other = ", ".join(f"{key} {data['for'].get(key)}" for key in differ)
                    return []
                self._take(data)
            except (ValueError, KeyError, TypeError):
                break
            if not line.endswith("\n"):
                break
            kept.append(line)
        return kept

    def _take(self, data: dict[str, Any]) -> None:
        if "noise" in data:
            self.noise = float(data["noise"])
        elif "call" in data:
            Call(**data["call"])
            self.points.append(data)

    def _add(self, data: dict[str, Any]) -> None:
        with self.file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(data) + "\n")

    def add_noise(self, noise: float) -> None:
        self._add({"noise": noise})
        self.noise = noise

    def add(self, point: Point) -> None:
        self._add(point)
        self.points.append(point)

    def left(self, calls: list[Call]) -> list[Call]:
        """Those of `calls` that are not in it."""
        done = {Call(**point["call"]) for point in self.points}
        return [call for call in calls if call not in done]


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
