"""The README's tables are those of the code (tools/readme_tables.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOL = ROOT / "tools" / "readme_tables.py"
NAMES = ["support", "environment", "speed", "quantized", "memory", "training", "cuda", "models"]
EMPTY = "".join(f"# {name}\n<!-- table: {name} -->\n<!-- /table -->\n" for name in NAMES)


def run(*arguments):
    command = [sys.executable, TOOL, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_readme_is_up_to_date():
    done = run("--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_check_tells_what_is_out_of_date(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(EMPTY)
    assert run(page, "--check").returncode == 1
    assert page.read_text() == EMPTY
    assert run(page).returncode == 0
    written = page.read_text()
    assert run(page, "--check").returncode == 0
    page.write_text(written.replace("| 65536 |", "| 65537 |"))
    done = run(page, "--check")
    assert done.returncode == 1
    assert "-| `MLX_SDPA_CHUNK_THRESHOLD` | 65537 |" in done.stdout
    assert run(page).returncode == 0
    assert page.read_text() == written


@pytest.mark.parametrize("text", ("", EMPTY.replace("support", "limits"), 2 * EMPTY))
def test_a_page_without_a_place_for_each_table_is_refused(text, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(text)
    done = run(page)
    assert done.returncode == 1
    assert f"expected one each of {NAMES}" in done.stderr
    assert page.read_text() == text
