"""`mlx-sdpa-ext bench --compare`: what became faster, and what is noise."""

import json
from pathlib import Path

import pytest
from command_line import call


def record(path: Path, suite: str, times: dict[str, tuple[float, float, float]]) -> Path:
    keys = ("best_s", "median_s", "worst_s")
    results = [
        {"case": name, "ours": dict(zip(keys, found, strict=True))} for name, found in times.items()
    ]
    path.write_text(json.dumps({"suite": suite, "results": results}))
    return path


def test_marks_as_noise_only_what_overlaps(tmp_path):
    before = {"apart": (1.9, 2.0, 2.1), "overlap": (1.9, 2.0, 2.3), "gone": (1, 1, 1)}
    after = {"apart": (0.9, 1.0, 1.1), "overlap": (2.2, 2.5, 2.6), "new": (1, 1, 1)}
    files = record(tmp_path / "a.json", "cpu", before), record(tmp_path / "b.json", "cpu", after)
    said = call("bench", "--compare", *files)
    assert said.returncode == 0, said.stderr
    lines = {
        name: line for line in said.stdout.splitlines() for name in before | after if name in line
    }
    assert set(lines) == {"apart", "overlap"}
    assert "2.00x" in lines["apart"] and "noise" not in lines["apart"]
    assert "0.80x" in lines["overlap"] and "noise" in lines["overlap"]
    found = json.loads(call("bench", "--json", "--compare", *files).stdout)
    assert {row["case"]: row["noise"] for row in found} == {"apart": False, "overlap": True}


def test_refuses_records_that_have_nothing_in_common(tmp_path):
    one = record(tmp_path / "a.json", "cpu", {"x": (1, 1, 1)})
    for suite, times in (("cuda", {"x": (1, 1, 1)}), ("cpu", {"y": (1, 1, 1)})):
        said = call("bench", "--compare", one, record(tmp_path / "b.json", suite, times))
        assert said.returncode == 2 and "Traceback" not in said.stderr


@pytest.mark.parametrize("text", (None, "no JSON", "[]", '{"suite": "cpu"}'))
def test_refuses_what_is_no_record(text, tmp_path):
    one, other = record(tmp_path / "a.json", "cpu", {"x": (1, 1, 1)}), tmp_path / "b.json"
    if text is not None:
        other.write_text(text)
    said = call("bench", "--compare", one, other)
    assert said.returncode == 2 and "b.json" in said.stderr and "Traceback" not in said.stderr
