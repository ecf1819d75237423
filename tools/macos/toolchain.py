"""The compiler and the linker of the cross build, as they are installed here."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

LINKERS = ("ld64.lld", *(f"ld64.lld-{version}" for version in range(30, 15, -1)))


class NoLinker(Exception):
    """There is none, or it is not LLVM's for Mach-O; says what to install."""


def zig() -> Path:
    """The compiler, of the package ziglang."""
    spec = importlib.util.find_spec("ziglang")
    assert spec and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "zig"


def linker(asked: Path | None, scratch: Path) -> Path:
    """LLVM's linker for Mach-O: the one asked for, one on the PATH, or IREE's compiler's.

    Raises:
        NoLinker: see there.
    """
    if asked:
        found = shutil.which(asked)
        if not (found and _is_lld(found)):
            raise NoLinker(f"--linker {asked} is not LLVM's ld64.lld")
        return Path(found).absolute()  # not resolved: lld goes by its name
    for name in LINKERS:
        if found := shutil.which(name):
            return Path(found)
    iree = importlib.util.find_spec("iree")
    for folder in (iree.submodule_search_locations or ()) if iree else ():
        lld = Path(folder, "compiler/_mlir_libs/iree-lld")
        if lld.exists():
            script = scratch / "ld64.lld"
            script.write_text(f'#!/bin/sh\nexec "{lld}" -flavor darwin "$@"\n')
            script.chmod(0o755)
            return script
    raise NoLinker(
        "the linker ld64.lld (16 or newer) is missing: pip install iree-base-compiler, or on "
        "Debian and Ubuntu apt-get install lld-19"
    )


def _is_lld(program: str) -> bool:
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True)
    except OSError:
        return False
    return done.returncode == 0 and "LLD" in done.stdout
