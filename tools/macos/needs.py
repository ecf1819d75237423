"""Says what is missing before anything is begun."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
INSTALL = f"pip install '{ROOT}[test]'"


def require(*packages: str) -> None:
    """End the script, with the command that helps, if a Python package is not installed."""
    missing = [package for package in packages if importlib.util.find_spec(package) is None]
    if missing:
        script = Path(sys.argv[0]).stem
        raise SystemExit(f"{script}: not installed: {', '.join(missing)}. {INSTALL}")
