"""Writes the table of docs/serving.md: bench/results/soak.json.

python tools/serving_table.py            # rewrite docs/serving.md between its markers
python tools/serving_table.py --check    # exit code 1, with the difference, if out of date
"""

from __future__ import annotations

import json
import sys

import cpu_tables
import readme_tables

PAGE = readme_tables.ROOT / "docs" / "serving.md"
MIB = 2**20
MEMORY = "resident memory, growth after the first 50"


def table() -> str:
    record = json.loads((readme_tables.RESULTS / "soak.json").read_text(encoding="utf-8"))
    titles = ("server", "requests, of them cancelled", "answers as stock's", MEMORY, "stock's")
    titles += ("threads, files left", "attention calls, by `stats()` and by the model")
    rows = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    rows += map(row, record["results"])
    return "\n".join([*rows, "", cpu_tables.where(record)])


def row(result: dict) -> str:
    ours, answers, stats = result["ours"], result["answers"], result["ours"]["stats"]
    compared = sum(answers.values())
    cells = [f"{result['name']} (`{result['module']}`)"]
    cells += [f"{result['requests']}, {result['cancelled']}"]
    cells += [f"{answers['equal']} of {compared}, {answers['part_at_a_tie']} part at a tie"]
    cells += [_memory(ours), _memory(result["stock"])]
    cells += [f"{ours['growth']['threads']}, {ours['growth']['files']}"]
    cells += [f"{stats['calls']:,}, {stats['expected_calls']:,}"]
    return f"| {' | '.join(cells)} |"


def _memory(side: dict) -> str:
    last = side["samples"][-1]["resident_bytes"]
    return f"{last / MIB:.0f} MiB, {side['growth']['resident']:+.1%}"


def main(arguments: list[str] | None = None) -> int:
    """Rewrites or checks the page."""
    return readme_tables.main(arguments, PAGE, {"soak": table})


if __name__ == "__main__":
    sys.exit(main())
