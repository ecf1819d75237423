"""The macOS wheel, cross-compiled once for all tests that look at it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"
# Four times what two slow cores take, downloads included.
LIMIT_SECONDS = 900

not_on_a_mac = pytest.mark.skipif(
    sys.platform == "darwin", reason="a Mac builds its own wheel and runs it"
)


@dataclass(frozen=True)
class Built:
    wheel: Path
    link_map: Path


def tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The finished tool, whatever its exit code; its output is in the report if a test fails."""
    done = subprocess.run(
        [sys.executable, str(TOOLS / name), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT_SECONDS,
    )
    print(done.stdout)
    return done


def build(folder: Path, *options: str) -> Built:
    link_map = folder / "link.map"
    done = tool("macos_wheel.py", "--outdir", folder, "--link-map", link_map, *options)
    assert done.returncode == 0, done.stdout
    (wheel,) = folder.glob("*.whl")
    return Built(wheel, link_map)


@pytest.fixture(scope="session")
def macos_wheel(tmp_path_factory) -> Built:
    """Of the default MLX, for the CPython that runs the tests."""
    return build(tmp_path_factory.mktemp("macos"))
