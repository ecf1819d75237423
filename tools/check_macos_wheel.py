"""Checks a macOS wheel on Linux: imports, deployment target, ABI tag, signature, files.

    python tools/check_macos_wheel.py dist/*macosx*

Prints a table; the exit code is 1 if anything is missed. It needs `pip install '.[test]'`, and the
macOS wheels of the MLX that the wheel pins, which pip downloads once. What it cannot see is in
docs/metal.md: dyld's load, Apple's codesign and the Metal compiler.
"""

from __future__ import annotations

import datetime
import json
import platform
import sys
import tempfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Annotated

from macos.needs import require

require("lief", "packaging", "rich", "typer", "ziglang")

import typer  # noqa: E402
from macos import checks  # noqa: E402
from macos.mlx_wheels import DownloadError  # noqa: E402
from macos.wheel_file import NotOurWheel  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402


def show(wheel: Path, rows: list[checks.Row]) -> None:
    table = Table(title=wheel.name, title_justify="left")
    for heading in ("check", "found", ""):
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(row.check, row.found, "[red]miss[/]" if row.misses else "[green]ok[/]")
    console = Console()
    console.print(table)
    for row in rows:
        for miss in row.misses:
            console.print(f"{row.check}: {miss}", markup=False, highlight=False, soft_wrap=True)


def main(
    wheels: Annotated[
        list[Path],
        typer.Argument(metavar="WHEEL", help="Wheels to check.", exists=True, dir_okay=False),
    ],
    write: Annotated[
        Path | None, typer.Option("--json", help="File for the rows, with date and versions.")
    ] = None,
) -> None:
    """Check macOS wheels of this package."""
    written, missed = [], False
    for wheel in wheels:
        try:
            with tempfile.TemporaryDirectory() as scratch:
                rows = list(checks.run(wheel, Path(scratch)))
        except (NotOurWheel, DownloadError, OSError, ValueError) as error:
            print(f"check_macos_wheel: {wheel.name}: {error}", file=sys.stderr)
            missed = True
            continue
        show(wheel, rows)
        missed |= any(row.misses for row in rows)
        written.append({"wheel": wheel.name, "rows": [asdict(row) for row in rows]})
    if write:
        made = {
            "date": datetime.date.today().isoformat(),
            "python": platform.python_version(),
            "lief": metadata.version("lief"),
            "ziglang": metadata.version("ziglang"),
            "wheels": written,
        }
        write.write_text(json.dumps(made, indent=1) + "\n")
    raise SystemExit(int(missed))


if __name__ == "__main__":
    typer.run(main)
