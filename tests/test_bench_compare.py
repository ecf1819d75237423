"""bench/compare.py: what became faster, and what is noise."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "bench" / "compare.py"


def record(path: Path, suite: str, times: dict[str, tuple[float, float, float]]) -> Path:
    keys = ("best_s", "median_s", "worst_s")
    results = [
        {"case": name, "ours": dict(zip(keys, found, strict=True))} for name, found in times.items()
    ]
    path.write_text(json.dumps({"suite": suite, "results": results}))
    return path


def compare(before: Path, after: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, SCRIPT, before, after]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_marks_as_noise_only_what_overlaps(tmp_path):
    before = {"apart": (1.9, 2.0, 2.1), "overlap": (1.9, 2.0, 2.3), "gone": (1, 1, 1)}
    after = {"apart": (0.9, 1.0, 1.1), "overlap": (2.2, 2.5, 2.6), "new": (1, 1, 1)}
    said = compare(
        record(tmp_path / "a.json", "cpu", before), record(tmp_path / "b.json", "cpu", after)
    )
    assert said.returncode == 0, said.stderr
    lines = {
        name: line for line in said.stdout.splitlines() for name in before | after if name in line
    }
    assert set(lines) == {"apart", "overlap"}
    assert "2.00x" in lines["apart"] and "noise" not in lines["apart"]
    assert "0.80x" in lines["overlap"] and "noise" in lines["overlap"]


def test_refuses_records_that_have_nothing_in_common(tmp_path):
    one = record(tmp_path / "a.json", "cpu", {"x": (1, 1, 1)})
    for suite, times in (("cuda", {"x": (1, 1, 1)}), ("cpu", {"y": (1, 1, 1)})):
        said = compare(one, record(tmp_path / "b.json", suite, times))
        assert said.returncode == 2 and "Traceback" not in said.stderr
