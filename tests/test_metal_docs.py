"""The tables of docs/metal.md are those of the code (tools/metal_tables.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).parents[1] / "tools" / "metal_tables.py"


def test_the_page_is_up_to_date():
    command = [sys.executable, TOOL, "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
