"""`run` starts a program as Python itself does, with the patch on."""

from __future__ import annotations

import signal
import subprocess
import zipfile

import pytest
from command_line import COMMAND, call, environment, python

SHOW = """
import os, sys
print(__name__, __package__, sys.argv, os.path.abspath(sys.path[0]))
print(__spec__.name if __spec__ else None, type(__loader__).__name__, os.path.abspath(__file__))
print(sys.modules["__main__"].__dict__ is globals())
"""
ATTENTION = """
import mlx.core as mx
x = mx.ones((1, 2, 4, 8))
mx.eval(mx.fast.scaled_dot_product_attention(x, x, x, scale=1.0))
"""


@pytest.fixture
def programs(tmp_path):
    """A folder of programs that print how they were started."""
    for path in ("show.py", "pkg/__main__.py", "pkg/module.py", "folder/__main__.py"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(SHOW)
    (tmp_path / "pkg/__init__.py").touch()
    (tmp_path / "link.py").symlink_to("folder/__main__.py")
    with zipfile.ZipFile(tmp_path / "archive.zip", "w") as archive:
        archive.writestr("__main__.py", SHOW)
    return tmp_path


@pytest.mark.parametrize(
    "args",
    [
        ["show.py", "a", "--stats", "--help", "-m", "--", "--version"],
        ["link.py"],
        ["folder", "x"],
        ["archive.zip"],
        ["-m", "pkg", "--help"],
        ["-m", "pkg.module", "--stats", "-x"],
        ["-mshow", "y"],
    ],
    ids=lambda args: args[-2 if args[0] == "-m" else 0],
)
def test_starts_as_python_does(programs, args):
    plain = python(*args, cwd=programs)
    ours = call("run", *args, cwd=programs)
    assert (ours.stdout, ours.stderr, ours.returncode) == (plain.stdout, plain.stderr, 0)


@pytest.mark.parametrize(
    "source",
    [
        "import sys; sys.exit(3)",
        "import sys; sys.exit('the reason')",
        "raise SystemExit",
        "def f():\n    raise ValueError('wrong')\nf()",
        "try:\n    1/0\nexcept ZeroDivisionError as e:\n    raise KeyError(2) from e",
        "def f(:",
        "import absent_module",
        "input()",
        "import atexit; atexit.register(print, 'bye'); raise EOFError",
    ],
)
def test_ends_as_python_does(tmp_path, source):
    (tmp_path / "program.py").write_text(source)
    plain = python(tmp_path / "program.py")
    ours = call("run", tmp_path / "program.py")
    assert (ours.stdout, ours.stderr, ours.returncode) == (
        plain.stdout,
        plain.stderr,
        plain.returncode,
    )


def test_patch_is_on_and_stats_are_last(tmp_path):
    (tmp_path / "program.py").write_text(
        f"{ATTENTION}\nimport atexit, sys\n"
        "atexit.register(lambda: print('exit handler', file=sys.stderr))\n"
        "raise ValueError('wrong')\n"
    )
    ours = call("run", "--stats", tmp_path / "program.py")
    assert ours.returncode == 1
    head, _, tail = ours.stderr.partition("attention calls: 1")
    assert "ValueError: wrong" in head
    assert "exit handler" in head
    assert tail
    assert "attention calls" not in call("run", tmp_path / "program.py").stderr


def test_disabled_patch_is_said_with_the_stats(tmp_path):
    (tmp_path / "program.py").write_text(ATTENTION)
    ours = call("run", "--stats", tmp_path / "program.py", env={"MLX_SDPA_EXT_DISABLE": "1"})
    assert ours.returncode == 0
    assert "MLX_SDPA_EXT_DISABLE" in ours.stderr
    assert "attention calls: 0" in ours.stderr


def test_interrupt_gives_130_and_no_traceback(tmp_path):
    (tmp_path / "program.py").write_text(
        f"{ATTENTION}\nimport time\nprint('ready', flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen(
        [*COMMAND, "run", "--stats", tmp_path / "program.py"],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "attention calls: 1" in errors


@pytest.mark.parametrize(
    ("args", "message", "code"),
    [
        (["absent.py"], "can't open file", 2),
        (["unreadable.py"], "can't open file", 2),
        (["empty"], "can't find '__main__' module in 'empty'", 1),
        (["-m", "absent"], "No module named absent", 1),
        (["-m", "absent.module"], "No module named absent.module", 1),
        (["-m", "pkg"], "'pkg' is a package and cannot be directly executed", 1),
        (["-m"], "-m", 2),
        ([], "give a script, or -m and a module", 2),
        (["--nonsense", "absent.py"], "--nonsense", 2),
    ],
)
def test_what_cannot_start_is_one_message(tmp_path, args, message, code):
    (tmp_path / "empty").mkdir()
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg/__init__.py").touch()
    (tmp_path / "unreadable.py").symlink_to("unreadable.py")  # a loop: so even for root
    ours = call("run", *args, cwd=tmp_path)
    assert message in ours.stderr
    assert "Traceback" not in ours.stderr
    assert ours.returncode == code
