"""ruff and clang-format, as a commit would run them (.pre-commit-config.yaml), and actionlint."""

import subprocess
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPTS = Path(sysconfig.get_path("scripts"))


def finished(tool, *arguments):
    command = [str(SCRIPTS / tool), *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def run(tool, *arguments):
    done = finished(tool, *arguments)
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


def test_the_workflows():
    """Nothing here runs them."""
    files = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    assert files
    run("actionlint", "-no-color", *files)


def test_a_wrong_workflow(tmp_path):
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(text.replace("matrix.machine.tag", "matrix.machine.tga"))
    done = finished("actionlint", "-no-color", wrong)
    assert done.returncode == 1
    assert '"tga" is not defined' in done.stdout
