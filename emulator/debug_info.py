"""Source lines in LLVM's textual metadata."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

NODE = re.compile(r"^(!\d+) = (?:distinct )?!(DI\w+)\((.*)\)$")
REFERENCE = re.compile(r"(\w+): (!\d+|\d+)")
FILE_NAME = re.compile(r'filename: "((?:\\.|[^"\\])*)"')


@dataclass(frozen=True)
class Line:
    """A line of a source file."""

    file: str
    line: int


class DebugInfo:
    """Locations of a module, by the number of their metadata node."""

    def __init__(self, module: str) -> None:
        """Read the metadata of `module`, LLVM's textual intermediate code."""
        self._nodes: dict[str, tuple[str, dict[str, str]]] = {}
        self._files: dict[str, str] = {}
        for row in module[module.find("\n!") :].splitlines():
            match = NODE.match(row)
            if match is None:
                continue
            self._nodes[match[1]] = (match[2], dict(REFERENCE.findall(match[3])))
            if match[2] == "DIFile":
                name = FILE_NAME.search(match[3])
                self._files[match[1]] = name[1] if name else ""
        self._known: dict[str, Line | None] = {}

    def line(self, location: str) -> Line | None:
        """Where the innermost function at `location` (as "!12") is written."""
        if location not in self._known:
            self._known[location] = self._line(location)
        return self._known[location]

    def caller(self, location: str, is_ours: Callable[[str], bool]) -> Line | None:
        """The innermost line around `location` in a file that is_ours(file) says yes to."""
        at: str | None = location
        while at is not None:
            line = self.line(at)
            if line is not None and line.line and is_ours(line.file):
                return line
            at = self._nodes.get(at, ("", {}))[1].get("inlinedAt")
        return None

    def _line(self, location: str) -> Line | None:
        kind, fields = self._nodes.get(location, ("", {}))
        if kind != "DILocation":
            return None
        scope = fields.get("scope")
        while scope is not None:
            _, at = self._nodes.get(scope, ("", {}))
            if "file" in at:
                return Line(self._files.get(at["file"], ""), int(fields.get("line", "0")))
            scope = at.get("scope")
        return None
