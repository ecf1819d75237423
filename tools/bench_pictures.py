"""Draws the records of bench/results/ that have a picture, into docs/.

python tools/bench_pictures.py [NAME ...]     all, or those whose names start so: cpu cuda-h100
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mlx_sdpa_ext.bench.suites import SUITES

ROOT = Path(__file__).resolve().parents[1]


def main(names: list[str]) -> None:
    paths = sorted((ROOT / "bench" / "results").glob("*.json"))
    for name in names:
        if not any(path.stem.startswith(name) for path in paths):
            sys.exit(f"no record's name starts with {name}")
    for path in paths:
        record = json.loads(path.read_text(encoding="utf-8"))
        suite = SUITES.get(record.get("suite", ""))
        if suite and suite.plot and (not names or path.stem.startswith(tuple(names))):
            picture = ROOT / "docs" / f"{path.stem}.png"
            suite.plot(record, picture)
            print(f"wrote {picture}")


if __name__ == "__main__":
    main(sys.argv[1:])
