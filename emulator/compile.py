"""MSL text -> a shared library that the runtime loads: `python -m emulator.compile SOURCE OUTPUT`.

preprocess -> rewrite declarations -> compile to intermediate code -> checks -> machine code.
Nothing of a kernel's body is rewritten in mode X; the optimiser sees it as it is written.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
from pathlib import Path

from . import toolchain
from .debug_info import DebugInfo
from .errors import CompileError, EmulatorError
from .instrument import instrument
from .rewrite import entries, rewrite
from .stock import threadgroup_arrays

VERSION = "310"  # Metal 3.1
INCLUDES = ("-nostdinc", "-nostdinc++", "-isystem", toolchain.MSL, "-isystem", toolchain.RUNTIME)
DEFINES = (f"-D__METAL_VERSION__={VERSION}", "-D__METAL__", "-D__HAVE_BFLOAT__")
WARNINGS = ("-w", "-Wno-c++11-narrowing")

# What changes results: no contraction of a * b + c, rounding of half and bfloat after every
# operation, float constants. What keeps counts exact: no vectorising of loads, no calls of memcpy
# for loops. What keeps meetings of threads exact: no call of the runtime is duplicated.
OPTIMISE = (
    "-O2",
    "-fno-vectorize",
    "-fno-slp-vectorize",
    "-mllvm",
    "-disable-vector-combine",
)
FLAGS = (
    *OPTIMISE,
    "-std=c++17",
    "-g1",
    "-fdebug-compilation-dir=/softmetal",  # of which no path is a part: paths stay whole
    "-fPIC",
    "-fvisibility=hidden",
    "-fconvergent-functions",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-Xclang",
    "-ffloat16-excess-precision=none",
    "-Xclang",
    "-fbfloat16-excess-precision=none",
    "-fno-builtin",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-strict-aliasing",
    "-fno-stack-protector",
    "-Xclang",
    "-cl-single-precision-constant",
)
# The optimiser may read what a reference refers to earlier than the kernel does, or although the
# kernel does not. Here such a read would be a finding.
_DEREFERENCEABLE = re.compile(r" dereferenceable(?:_or_null)?\(\d+\)")


# clang 22 inserts bytes into vectors of bool, which its own reader of the text refuses.
_BOOL_ELEMENT = re.compile(r"^( +)(%(\S+) = insertelement <\d+ x i1> \S+), i8 (\S+), (.*)$", re.M)


def cleaned(code: str) -> str:
    """Unoptimised intermediate code, without what the optimiser must not know."""
    code = _BOOL_ELEMENT.sub(
        r"\1%softmetal.bool\3 = trunc i8 \4 to i1\n\1\2, i1 %softmetal.bool\3, \5", code
    )
    return _DEREFERENCEABLE.sub("", code)


def _refuse_initialisers(code: str) -> None:
    """They would run before the function constants are set, which they may depend on."""
    start = code.find(" @__cxx_global_var_init")
    if start < 0:
        return
    body = code[start : code.index("\n}", start)]
    info = DebugInfo(code)
    lines = [info.line(at) for at in re.findall(r"!dbg (!\d+)", body)]
    where = next((f"{line.file}:{line.line}" for line in lines if line and line.line), "kernel")
    raise CompileError(
        f"{where}: a variable outside of all functions whose value is not a constant expression; "
        "the software device has no constants that depend on function constants"
    )


def preprocess(source: str, defines: tuple[str, ...] = (), includes: tuple[Path, ...] = ()) -> str:
    """The source with its includes, the words of MSL still in it.

    Raises:
        CompileError: an include is missing, or #error.
    """
    paths = [part for folder in includes for part in ("-I", folder)]
    command = [toolchain.zig(), "clang", "-x", "c++", "-std=c++17", "-E", *INCLUDES, *DEFINES]
    named = f'#line 1 "kernel.metal"\n{source}'
    return toolchain.run([*command, *defines, *paths, *WARNINGS, "-"], stdin=named)


def build(
    source: str,
    output: Path,
    stock: bool = False,
    includes: tuple[Path, ...] = (),
    coverage: bool = False,
) -> None:
    """Compile MSL into the shared library `output`.

    Args:
        source: MSL, self-contained but for the Metal headers.
        output: file to write.
        stock: also accept `threadgroup T name[n];` in blocks (stock.py).
        includes: folders of further headers.
        coverage: count which lines are executed.

    Raises:
        CompileError: with the compiler's text.
        ToolMissing: no compiler.
    """
    text = preprocess(source, includes=includes)
    if stock:
        text = threadgroup_arrays(text)
    rewritten = rewrite(text)
    clang = [toolchain.zig(), "clang", *toolchain.machine_flags()]
    prefix = ["-include", toolchain.MSL / "softmetal" / "prefix.h"]
    optimise = [*clang, "-x", "ir", *OPTIMISE, "-fPIC", "-w"]
    with tempfile.TemporaryDirectory(prefix="softmetal-") as folder:
        cpp, raw, code, checked, objects = (
            Path(folder) / name
            for name in ("kernel.cpp", "raw.ll", "kernel.ll", "checked.ll", "kernel.o")
        )
        cpp.write_text(rewritten.text + entries(rewritten))
        front = [*clang, "-x", "c++", *FLAGS, *INCLUDES, *DEFINES, *WARNINGS, *prefix]
        front += ["-S", "-emit-llvm", "-Xclang", "-disable-llvm-passes"]
        toolchain.run([*front, "-o", raw, cpp])
        unoptimised = raw.read_text()
        _refuse_initialisers(unoptimised)
        raw.write_text(cleaned(unoptimised))
        toolchain.run([*optimise, "-S", "-emit-llvm", "-o", code, raw])
        checked.write_text(instrument(code.read_text(), coverage))
        toolchain.run([*optimise, "-c", "-o", objects, checked])
        toolchain.run([toolchain.zig(), "ld.lld", "-shared", "-z", "now", "-o", output, objects])


def compiled(
    source: str,
    stock: bool = False,
    includes: tuple[Path, ...] = (),
    coverage: bool | None = None,
) -> Path:
    """As build(), but the file is one of the cache, by the content of everything that went into it.

    `coverage` is on by default where $SOFTMETAL_COVERAGE is set.
    """
    if coverage is None:
        coverage = bool(os.environ.get("SOFTMETAL_COVERAGE"))
    digest = hashlib.sha256(toolchain.fingerprint().encode())
    digest.update(repr((stock, coverage)).encode())
    content = preprocess(source, includes=includes) if includes else source
    digest.update(content.encode())
    return toolchain.cached(
        f"kernels/{digest.hexdigest()[:32]}.so",
        lambda path: build(source, path, stock=stock, includes=includes, coverage=coverage),
    )


def main(arguments: list[str]) -> int:
    """Compile the file SOURCE (- is standard input) and write the library's path to OUTPUT.

    Returns the exit status; what is wrong is written to standard error.
    """
    if len(arguments) != 2:
        print("usage: python -m emulator.compile SOURCE OUTPUT", file=sys.stderr)
        return 2
    source, output = arguments
    text = sys.stdin.read() if source == "-" else Path(source).read_text()
    try:
        path = compiled(text)
    except EmulatorError as error:
        print(error, file=sys.stderr)
        return 1
    Path(output).write_text(str(path))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
