"""What can be known on Linux of whether a macOS wheel loads and works beside its MLX."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import lief
from macos import mlx_wheels, system_libraries
from macos.needs import ROOT
from macos.signature import code_directory, wrong_pages
from macos.system_libraries import LIBCXX, OBJC, PYTHON, SYSTEM
from macos.wheel_file import NotOurWheel, Wheel

LIBMLX = "@rpath/libmlx.dylib"
LIBRARIES = (LIBMLX, LIBCXX, SYSTEM, OBJC)
RPATH = "@loader_path/../mlx/lib"  # from mlx_sdpa_ext/ to MLX's library, side by side
SOURCES = (".py", ".json", ".typed")
DEPLOYMENT_TARGET = [14, 0, 0]
# nanobind 3's "nanobind_system_libcpp_abi1_a1_v22", nanobind 2's "v19_system_libcpp_abi1"
ABI_TAG = re.compile(rb"\0((?:nanobind_\w+_v\d+)|(?:v\d+_\w*libcpp\w*))\0")
URL = re.compile(rb"https?://[^\s\0]+")
PATH = re.compile(rb"(?<![\w.+@-])/[\w.+-]+(?:/[\w.+-]+)+")
# What macOS and Linux have at the same place everywhere.
PUBLIC_PATHS = ("/usr/lib/", "/sys/fs/cgroup/", "/System/Library/")


@dataclass
class Row:
    """What a check found; it passes if it missed nothing."""

    check: str
    found: str
    misses: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Subject:
    """A wheel, its module on disk, and the MLX it is for."""

    wheel: Wheel
    module: Path
    mlx_wheels: Path

    @cached_property
    def binary(self) -> lief.MachO.Binary:
        return system_libraries.parse(self.module)

    @cached_property
    def libmlx(self) -> lief.MachO.Binary:
        return system_libraries.parse(self.mlx_wheels / "mlx/lib/libmlx.dylib")

    @cached_property
    def core(self) -> Path:
        (core,) = self.mlx_wheels.glob("mlx/core.*.so")
        return core

    @cached_property
    def imports(self) -> dict[str, str]:
        return system_libraries.imports(self.module)

    @cached_property
    def system(self) -> dict[str, set[str]]:
        return system_libraries.exports(self.mlx_wheels)


def run(path: Path, scratch: Path) -> Iterator[Row]:
    """One row a check.

    Raises:
        NotOurWheel: the file cannot be checked at all.
        mlx_wheels.DownloadError: the MLX that it pins cannot be had.
    """
    wheel = Wheel(path)
    module = scratch / Path(wheel.module).name
    module.write_bytes(wheel.files[wheel.module])
    if sys.version_info[:2] != tuple(map(int, wheel.python.split("."))):
        raise NotOurWheel(f"it is for CPython {wheel.python}: run this with that version")
    subject = Subject(wheel, module, mlx_wheels.unpacked(wheel.mlx, wheel.python))
    for check in CHECKS:
        yield check(subject)


def tags(s: Subject) -> Row:
    version = f"cp{s.wheel.python.replace('.', '')}"
    wanted = f"{version}-{version}-{mlx_wheels.PLATFORM}"
    written = set(s.wheel.about.get_all("Tag") or [])
    return Row(
        "tags of the name and of WHEEL",
        ", ".join(sorted(s.wheel.tags | written)),
        sorted((s.wheel.tags ^ {wanted}) | (written ^ {wanted})),
    )


def record(s: Subject) -> Row:
    return Row("RECORD", f"{len(s.wheel.files)} files", s.wheel.record_misses())


def metadata(s: Subject) -> Row:
    """What pip reads."""
    return Row("name, METADATA, WHEEL, entry points", s.wheel.path.stem, s.wheel.metadata_misses())


def mlx_pin(s: Subject) -> Row:
    info = s.wheel.files.get("mlx_sdpa_ext/_build_info.py", b"").decode()
    built = re.search(r'^MLX_VERSION = "(.+)"$', info, re.MULTILINE)
    misses = [] if built and built[1] == s.wheel.mlx else [f"built for {built and built[1]}"]
    return Row("MLX pinned, and compiled against", s.wheel.mlx, misses)


def package(s: Subject) -> Row:
    """Kernels and Python files are those of the checkout."""
    python, kernels = ROOT / "python", ROOT / "kernels"
    sources = [p for p in python.rglob("*") if p.suffix in SOURCES and "__pycache__" not in p.parts]
    here = {str(p.relative_to(python)): p for p in sources}
    gpu = [*kernels.glob("*.h"), *(kernels / "metal").glob("*.h")]
    here |= {f"mlx_sdpa_ext/kernels/{p.relative_to(kernels)}": p for p in gpu}
    # a native build writes stubs of the module that it can import
    made = {s.wheel.module, "mlx_sdpa_ext/_build_info.py", "mlx_sdpa_ext/_ext.pyi"}
    there = {n for n in s.wheel.files if ".dist-info/" not in n} - made
    misses = [f"{name} is missing" for name in sorted(here.keys() - there)]
    misses += [f"{name} is not in the checkout" for name in sorted(there - here.keys())]
    same = here.keys() & there
    misses += [f"{n} differs" for n in sorted(same) if here[n].read_bytes() != s.wheel.files[n]]
    return Row(
        "kernels and Python files as in the checkout", f"{len(gpu)} + {len(sources)}", misses
    )


def architecture(s: Subject) -> Row:
    header = s.binary.header
    found = (header.cpu_type.name, header.file_type.name)
    misses = [] if found == ("ARM64", "BUNDLE") else ["expected an arm64 bundle"]
    if header.cpu_subtype:
        misses.append(f"subtype {header.cpu_subtype:#x}: for another arm64")
    if not header.has(lief.MachO.Header.FLAGS.TWOLEVEL):
        misses.append("without a two-level namespace")
    if not s.binary.has_uuid:
        misses.append("without a UUID")
    return Row("architecture and kind", " ".join(found).lower(), misses)


def minimum_os(s: Subject) -> Row:
    if not s.binary.has_build_version:
        return Row("deployment target", "none", ["no LC_BUILD_VERSION"])
    build = s.binary.build_version
    platform, minimum = build.platform.name, list(build.minos)
    misses = [] if (platform, minimum) == ("MACOS", DEPLOYMENT_TARGET) else ["expected macOS 14.0"]
    if list(s.libmlx.build_version.minos) > DEPLOYMENT_TARGET:
        misses.append("libmlx itself asks for a newer one")
    return Row("deployment target", f"{platform} {'.'.join(map(str, minimum))}", misses)


def rpath(s: Subject) -> Row:
    found = [command.path for command in s.binary.rpaths]
    misses = [] if found == [RPATH] else [f"expected {RPATH}"]
    site = s.mlx_wheels / "mlx_sdpa_ext"
    if not Path(RPATH.replace("@loader_path", str(site)), "libmlx.dylib").resolve().exists():
        misses.append("MLX's wheel has no library there")
    return Row("rpath", ", ".join(found), misses)


def libraries(s: Subject) -> Row:
    found = [library.name for library in s.binary.libraries]
    misses = [f"{name} is not expected" for name in found if name not in LIBRARIES]
    misses += [f"{name} is not there once" for name in LIBRARIES if found.count(name) != 1]
    plain = lief.MachO.LoadCommand.TYPE.LOAD_DYLIB
    theirs = s.libmlx.get(lief.MachO.LoadCommand.TYPE.ID_DYLIB)
    for library in s.binary.libraries:
        if library.command != plain:
            misses.append(f"{library.name} is weak or re-exported")
        if library.name == LIBMLX and library.compatibility_version > theirs.compatibility_version:
            misses.append(f"libmlx {library.compatibility_version} is asked for")
    return Row("libraries", ", ".join(Path(name).name for name in found), misses)


def exported(s: Subject) -> Row:
    """The entry point alone, beside nanobind's exception classes, which modules may share."""
    found = sorted(symbol.name for symbol in s.binary.exported_symbols)
    others = [n for n in found if n != "_PyInit__ext" and not re.match("__ZT[ISV]N8nanobind", n)]
    misses = others if "_PyInit__ext" in found else [*others, "no _PyInit__ext"]
    return Row("exports", ", ".join(found[:1]) + f" and {len(found) - 1} of nanobind", misses)


def _resolved(s: Subject, library: str, known: Callable[[str], bool], name: str = "") -> Row:
    symbols = [symbol for symbol, home in s.imports.items() if home == library]
    misses = [symbol for symbol in symbols if not known(symbol)]
    return Row(
        f"imports from {name or Path(library).name}",
        f"{len(symbols) - len(misses)} of {len(symbols)} resolved",
        misses,
    )


def from_libmlx(s: Subject) -> Row:
    exports = {symbol.name for symbol in s.libmlx.exported_symbols}
    return _resolved(s, LIBMLX, exports.__contains__, "libmlx")


def from_python(s: Subject) -> Row:
    """Against the CPython that runs this: of the same version, though on Linux."""
    name = f"CPython {s.wheel.python}"
    return _resolved(s, PYTHON, lambda symbol: hasattr(ctypes.pythonapi, symbol[1:]), name)


def from_system(library: str) -> Callable[[Subject], Row]:
    return lambda s: _resolved(s, library, s.system[library].__contains__)


def abi_tag(s: Subject) -> Row:
    ours, theirs = (
        {tag.decode() for tag in ABI_TAG.findall(path.read_bytes())} for path in (s.module, s.core)
    )
    misses = []
    if len(theirs) != 1 or ours != theirs:
        misses = [f"MLX's core module has {', '.join(sorted(theirs)) or 'none'}"]
    return Row("nanobind's ABI tag, as in mlx.core", ", ".join(sorted(ours)), misses)


def signature(s: Subject) -> Row:
    try:
        directory = code_directory(s.module)
    except ValueError as error:
        return Row("signature", "none that is whole", [str(error)])
    misses = [f"page {n} has another hash" for n in wrong_pages(s.module, directory)]
    if not directory.adhoc:
        misses.append("it is not ad hoc")
    end = s.binary.code_signature.data_offset
    if directory.code_limit != end:
        misses.append(f"it ends at {directory.code_limit}, the signature begins at {end}")
    return Row("signature", f"ad hoc, {len(directory.pages)} SHA-256 page hashes", misses)


def no_paths(s: Subject) -> Row:
    binary = s.binary
    strings = b"".join(
        bytes(section.content)
        for section in binary.sections
        if section.name in ("__cstring", "__const", "__data")
    )
    paths = {found.decode() for found in PATH.findall(URL.sub(b"", strings))}
    own = sorted(path for path in paths if not path.startswith(PUBLIC_PATHS))
    data = s.module.read_bytes()
    own += [str(place) for place in (ROOT, Path.home()) if str(place).encode() in data]
    return Row("paths of the build machine", "none" if not own else f"{len(own)}", own)


CHECKS: tuple[Callable[[Subject], Row], ...] = (
    tags,
    record,
    metadata,
    mlx_pin,
    package,
    architecture,
    minimum_os,
    rpath,
    libraries,
    exported,
    from_libmlx,
    from_system(LIBCXX),
    from_system(SYSTEM),
    from_system(OBJC),
    from_python,
    abi_tag,
    signature,
    no_paths,
)
