"""Runs the command line as a user does: in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

COMMAND = (sys.executable, "-m", "mlx_sdpa_ext_cli")


def call(
    *args: str | os.PathLike,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """`mlx-sdpa-ext ARGS...`: its exit code, output and errors."""
    return python(*COMMAND[1:], *args, cwd=cwd, env=env, timeout=timeout)


def python(
    *args: str | os.PathLike,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """`python ARGS...` with this Python."""
    return subprocess.run(
        [sys.executable, *map(os.fspath, args)],
        cwd=cwd,
        env=environment(env),
        capture_output=True,
        text=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without what changes the commands, and wide enough for tables."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MLX_SDPA", "TYPER_"))}
    return {**kept, "COLUMNS": "200", "NO_COLOR": "1", **(extra or {})}


def call_in_process(capsys, *args: str) -> tuple[int, str, str]:
    """The same without a process: exit code, output, errors. For commands that only answer."""
    from mlx_sdpa_ext.cli import main

    try:
        code = main(args)
    except SystemExit as exit:
        code = exit.code
    return code, *capsys.readouterr()
