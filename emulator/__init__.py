"""A software Metal device: compiles MSL with clang, runs it on the CPU, checks and counts.

    library = emulator.Library(source)
    kernel = library.kernel("name", constants={0: True})
    report = kernel.run(grid=(4,), threads=256, buffers={0: a, 1: out})
    print(report.counters.threadgroup_read_bytes, report.findings)

README.md has a whole example. What it cannot show: registers, occupancy, speed, Apple's compiler.
"""

from __future__ import annotations

import os
import sys

from .build import backend, runtime
from .device import (
    Counters,
    Finding,
    Kernel,
    Library,
    Report,
    set_max_threads,
    take_report,
)
from .errors import CompileError, EmulatorError, ToolMissing
from .lint import lint
from .strict import check_types
from .syntax import Diagnostic
from .toolchain import REPOSITORY

__all__ = [
    "CompileError",
    "Counters",
    "Diagnostic",
    "EmulatorError",
    "Finding",
    "Kernel",
    "Library",
    "Report",
    "ToolMissing",
    "backend",
    "check_types",
    "lint",
    "runtime",
    "set_max_threads",
    "take_report",
]

# How the runtime's compile() finds this package (runtime/compile.cpp).
os.environ["SOFTMETAL_PYTHON"] = sys.executable
os.environ["SOFTMETAL_PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), *filter(None, sys.path)])
