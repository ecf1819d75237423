"""actionlint on .github/workflows; nothing here runs them."""

import subprocess
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[1]


def lint(*files):
    actionlint = Path(sysconfig.get_path("scripts")) / "actionlint"
    command = [str(actionlint), "-no-color", *map(str, files)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_the_workflows():
    files = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    assert files
    done = lint(*files)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_wrong_workflow(tmp_path):
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(text.replace("matrix.machine.tag", "matrix.machine.tga"))
    done = lint(wrong)
    assert done.returncode == 1
    assert '"tga" is not defined' in done.stdout
