"""Adds up which lines of kernels were executed: `python -m emulator.coverage FOLDER`.

With SOFTMETAL_COVERAGE=FOLDER in the environment kernels are compiled so that they note it, and
each process that ran some leaves a file of rows (file, line, 0 or 1) there when it ends.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path

Lines = dict[str, dict[int, bool]]  # file -> line -> executed


def read(folder: Path) -> Lines:
    """What all processes left. A line counts as executed if one specialisation executed it."""
    lines: Lines = defaultdict(dict)
    for path in sorted(folder.glob("*.lines")):
        for row in path.read_text().splitlines():
            file, line, executed = row.split("\t")
            lines[file][int(line)] = lines[file].get(int(line), False) or executed == "1"
    return dict(lines)


def table(lines: Lines) -> list[str]:
    """A row for each file, and one for all: lines executed, lines with code, share, the rest."""
    rows = []
    for file, found in sorted(lines.items()):
        rest = ", ".join(str(line) for line, executed in sorted(found.items()) if not executed)
        rows.append((file, sum(found.values()), len(found), rest))
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows), ""))
    width = max(len(row[0]) for row in rows)
    return [
        f"{file:{width}} {done:5} of {n:5} lines {done / n if n else 1:6.1%}"
        + (f"  not {rest}" if rest else "")
        for file, done, n, rest in rows
    ]


def main(arguments: list[str]) -> int:
    """Print the table of the folder; returns the exit status."""
    if len(arguments) != 1:
        print("usage: python -m emulator.coverage FOLDER", file=sys.stderr)
        return 2
    lines = read(Path(arguments[0]))
    if not lines:
        print(f"no *.lines in {arguments[0]}: see SOFTMETAL_COVERAGE", file=sys.stderr)
        return 1
    print("\n".join(table(lines)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
