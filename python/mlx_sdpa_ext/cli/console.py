"""What every command shares: where it writes, and how it refuses."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import typer
from rich.console import Console

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130  # exit codes; 130 is 128 + SIGINT


def out(width: int | None = None) -> Console:
    """The console of results (standard output), looked up anew so that redirection works."""
    return Console(file=sys.stdout, highlight=False, width=width)


def err() -> Console:
    """The console of messages and progress (standard error)."""
    return Console(file=sys.stderr, highlight=False)


def fail(message: str, code: int = USAGE) -> NoReturn:
    """Prints one message to standard error and ends the command with `code`."""
    print(f"mlx-sdpa-ext: {message}", file=sys.stderr)
    raise typer.Exit(code)


def make_folder(command: str, folder: Path, what: str = "--out") -> None:
    """Makes a folder to write to; ends the command with one message where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        fail(f"{command}: cannot write to {what} {folder}: {error.strerror}")


def print_json(data: Any) -> None:
    """Prints `data` as indented JSON to standard output."""
    print(json.dumps(data, indent=2, ensure_ascii=False))


def bytes_text(count: float | None) -> str:
    """A byte count for people, in the binary unit that fits: `1.5 GiB`."""
    if count is None:
        return "-"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.3g} {unit}" if unit != "B" else f"{count:.0f} B"
        count /= 1024
    return f"{count:.3g} TiB"


def seconds_text(seconds: float | None) -> str:
    """A duration for people: `420 ms`, `3.2 s`, `4 min`."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 180 else f"{seconds / 60:.0f} min"
