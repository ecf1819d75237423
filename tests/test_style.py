"""ruff and clang-format, as a commit would run them (.pre-commit-config.yaml)."""

import subprocess
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(sysconfig.get_path("scripts"))


def run(tool, *arguments):
    command = [str(SCRIPTS / tool), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_check():
    run("ruff", "check", "--no-cache")


def test_ruff_format():
    run("ruff", "format", "--check", "--no-cache")


def test_clang_format():
    suffixes = {".cpp", ".h", ".hpp", ".cuh"}
    rooms = ("kernels", "src", "emulator", "tools")
    files = [f for d in rooms for f in (ROOT / d).rglob("*") if f.suffix in suffixes]
    assert files
    run("clang-format", "--dry-run", "--Werror", *sorted(files))
