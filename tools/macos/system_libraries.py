"""What macOS 14's libraries export, as far as that can be known without macOS.

The macOS wheels of MLX are built for macOS 14 and load there, so what their binaries import exists.
`ALSO` has what this package imports beside that, each with where its age is known from. Everything
else counts as missing: the linker's stubs are written from this list, and the check reads it.
"""

from __future__ import annotations

from pathlib import Path

import lief

LIBCXX = "/usr/lib/libc++.1.dylib"
SYSTEM = "/usr/lib/libSystem.B.dylib"
OBJC = "/usr/lib/libobjc.A.dylib"
PYTHON = "CPython"  # not a library: the interpreter that loads the file
STUBS = {"libc++": LIBCXX, "libSystem": SYSTEM, "libobjc": OBJC}

# C++98 and C++11 classes that libc++ has had since OS X 10.7: its availability markup
# (<__configuration/availability.h>), by which a newer function fails to compile, has none of them.
ALSO = {
    LIBCXX: {
        # the macOS wheels of MLX 0.32 import this too, those of 0.31.2 do not
        "__ZNSt13runtime_errorC2ERKNSt3__112basic_stringIcNS0_11char_traitsIcEENS0_9allocatorIcEEEE",
        "__ZNSt3__113basic_istreamIcNS_11char_traitsIcEEE6sentryC1ERS3_b",
        "__ZNSt3__113basic_istreamIcNS_11char_traitsIcEEErsERd",
        "__ZNSt3__16thread6detachEv",
    }
}


def exports(mlx_wheels: Path) -> dict[str, set[str]]:
    """Symbols that each system library is known to export, by its install name."""
    known: dict[str, set[str]] = {name: set() for name in STUBS.values()}
    for module in (mlx_wheels / "mlx/lib/libmlx.dylib", *mlx_wheels.glob("mlx/core.*.so")):
        for symbol, library in imports(module).items():
            known.setdefault(library, set()).add(symbol)
    for library, symbols in ALSO.items():
        known[library] |= symbols
    return known


def imports(module: Path) -> dict[str, str]:
    """Every symbol that a Mach-O file imports, and its library.

    Two kinds name none, and take what any file that is loaded has: Python's, and weak ones
    (operator new, type_infos), which are libc++'s if nothing else overrides them.
    """
    found: dict[str, str] = {}
    binary = parse(module)
    for symbol in binary.imported_symbols:
        info = symbol.binding_info
        unnamed = PYTHON if symbol.name.startswith(("_Py", "__Py")) else LIBCXX
        found[symbol.name] = info.library.name if info and info.has_library else unnamed
    return found


def parse(module: Path) -> lief.MachO.Binary:
    """The one binary of a Mach-O file.

    Raises:
        ValueError: it is not one, or holds several architectures.
    """
    parsed = lief.MachO.parse(str(module))
    if parsed is None or parsed.size != 1:
        raise ValueError(f"{module} is not a Mach-O file of one architecture")
    return parsed.at(0)


def write_stubs(mlx_wheels: Path, folder: Path) -> None:
    """libc++.tbd, libSystem.tbd and libobjc.tbd, which the linker takes for the libraries."""
    folder.mkdir(parents=True, exist_ok=True)
    known = exports(mlx_wheels)
    for name, library in STUBS.items():
        symbols = ", ".join(f"'{symbol}'" for symbol in sorted(known[library]))
        (folder / f"{name}.tbd").write_text(
            "--- !tapi-tbd\n"
            "tbd-version: 4\n"
            "targets: [ arm64-macos ]\n"
            f"install-name: '{library}'\n"
            "exports:\n"
            "  - targets: [ arm64-macos ]\n"
            f"    symbols: [ {symbols} ]\n"
            "...\n"
        )
