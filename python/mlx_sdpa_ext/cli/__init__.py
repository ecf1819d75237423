"""The command line `mlx-sdpa-ext`: run, doctor, explain, demo, bench, calibrate.

Nothing here is imported by `import mlx_sdpa_ext`, and nothing here needs the compiled module until
a command does, so that `doctor` starts where the rest of the package refuses to.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

LIBRARIES = ("typer", "rich", "matplotlib")  # the extra `cli`


def main(argv: Sequence[str] | None = None, *, refusal: ImportError | None = None) -> int:
    """Runs one command; raises SystemExit with its exit code, or returns it.

    argv:    the arguments after the program's name; None takes `sys.argv[1:]`
    refusal: what `import mlx_sdpa_ext` raised, if it did
    """
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        print(
            f"mlx-sdpa-ext: the command line needs {', '.join(missing)}; "
            "install with: pip install 'mlx-sdpa-ext[cli]'",
            file=sys.stderr,
        )
        return 1
    from .app import execute

    return execute(sys.argv[1:] if argv is None else list(argv), refusal)
