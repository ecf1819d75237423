"""clang's syntax tree of a source, with lines of the original files."""

from __future__ import annotations

import json
import re
import tempfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import toolchain

MARKER = re.compile(r'^#\s*(?:line\s+)?(\d+)\s+"((?:\\.|[^"\\])*)"')


@dataclass(frozen=True)
class Diagnostic:
    """Something in the text of a kernel that Metal, or this project, does not allow."""

    rule: str
    where: str  # "file:line"
    message: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.where}: {self.rule}: {self.message}"


@dataclass
class Node:
    """A node of the tree."""

    data: dict[str, Any]
    parents: tuple[Node, ...]  # outermost first
    file: str
    line: int

    @property
    def kind(self) -> str:
        """clang's name for it, as in VarDecl."""
        return self.data.get("kind", "")

    @property
    def name(self) -> str:
        """Of a declaration."""
        return self.data.get("name", "")

    @property
    def type(self) -> str:
        """As it is written, and as it is without typedefs if that differs."""
        type_ = self.data.get("type", {})
        written, plain = type_.get("qualType", ""), type_.get("desugaredQualType", "")
        return f"{written} = {plain}" if plain and plain != written else written

    @property
    def is_implicit(self) -> bool:
        """Made by the compiler."""
        return bool(self.data.get("isImplicit")) or any(
            p.data.get("isImplicit") for p in self.parents
        )

    @property
    def is_ours(self) -> bool:
        """Not of the software device's own headers."""
        return not self.file.startswith(
            (str(toolchain.MSL), str(toolchain.RUNTIME), "<")
        )  # <built-in>

    @property
    def children(self) -> list[dict[str, Any]]:
        """Their data."""
        return [child for child in self.data.get("inner", ()) if child]

    def diagnostic(self, rule: str, message: str) -> Diagnostic:
        """Here."""
        return Diagnostic(rule, f"{self.file}:{self.line}", message)


class Source:
    """A preprocessed source that compiles.

    Raises:
        CompileError: it does not; the message is the compiler's text.
    """

    def __init__(self, text: str, flags: Sequence[str | Path]) -> None:
        """Run clang over it."""
        self._markers = [(0, "<input>", 1)]  # index of the line after, file, its line there
        for i, row in enumerate(text.splitlines()):
            marker = MARKER.match(row)
            if marker:
                self._markers.append((i + 1, marker[2], int(marker[1])))
        with tempfile.TemporaryDirectory(prefix="softmetal-") as folder:
            self._path = str(Path(folder) / "kernel")
            Path(self._path).write_text(text)
            command = [toolchain.zig(), "clang", *flags, "-fsyntax-only"]
            tree = toolchain.run([*command, "-Xclang", "-ast-dump=json", self._path])
        self._root = json.loads(tree)

    def nodes(self) -> Iterator[Node]:
        """All of them, parents before children."""
        # A location has a file or a line only if it differs from the last one that was printed.
        last: dict[str, Any] = {"file": "", "line": 0}

        def read(location: dict[str, Any]) -> tuple[str, int]:
            for part in ("spellingLoc", "expansionLoc"):
                if part in location:
                    at = read(location[part])
            if "spellingLoc" in location or "expansionLoc" in location:
                return at
            last.update({key: location[key] for key in ("file", "line") if key in location})
            return last["file"], last["line"]

        # Written without recursion: trees are deep.
        stack: list[tuple[dict[str, Any], tuple[Node, ...]]] = [(self._root, ())]
        while stack:
            data, parents = stack.pop()
            at = read(data["loc"]) if data.get("loc") else None
            for end in ("begin", "end"):
                location = data.get("range", {}).get(end)
                if location:
                    place = read(location)
                    at = at or place
            file, line = at or ("", 0)
            node = Node(data, parents, *self._original(file, line))
            yield node
            below = (*parents, node)
            stack += [(child, below) for child in reversed(node.children)]

    def _original(self, file: str, line: int) -> tuple[str, int]:
        if file != self._path:
            return file, line
        start, original, first = self._markers[
            bisect_right(self._markers, line - 1, key=lambda m: m[0]) - 1
        ]
        return original, line - 1 - start + first
