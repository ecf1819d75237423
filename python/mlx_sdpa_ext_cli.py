"""The command `mlx-sdpa-ext`; `python -m mlx_sdpa_ext` is the same.

It lies outside the package, because the version gate may refuse to import the package. Every
command then prints what is wrong and how to mend it, without a traceback, and `doctor` all it can
find out.
"""

import sys
from importlib.util import find_spec
from types import ModuleType

PACKAGE = "mlx_sdpa_ext"


def main() -> int | None:
    """Run the command line on `sys.argv`; return or raise SystemExit with the exit code."""
    refusal = None
    try:
        __import__(PACKAGE)
    except ImportError as error:
        refusal = error
        _open_without_init()
    from mlx_sdpa_ext.cli import main as command

    return command(refusal=refusal)


def _open_without_init() -> None:
    """Make the modules of the package importable though its `__init__` has raised."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.submodule_search_locations is None:
        sys.exit(f"mlx-sdpa-ext: there is no package {PACKAGE} beside this command")
    package = ModuleType(PACKAGE)
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules[PACKAGE] = package


if __name__ == "__main__":
    sys.exit(main())
