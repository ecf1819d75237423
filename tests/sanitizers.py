"""CPU kernels and thread pool compiled under sanitizers, as they are and with faults planted.

python tests/sanitizers.py    plants all of them and prints which are reported
"""
# ruff: noqa: E501  (a table: one fault a line)

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
COMPILER = os.environ.get("CXX") or next(filter(shutil.which, ("g++", "c++", "clang++")), None)
MEMORY, THREADS = "address,undefined", "thread"
SOURCES = [
    "src/backends/cpu_isa.cpp", "src/backends/cpu_pool.cpp", "src/plan.cpp", "src/plan_backward.cpp",
    "src/plan_cuda.cpp", "src/plan_gpu.cpp", "src/tiles.cpp", "tests/sanitized_kernels.cpp",
]  # fmt: skip


class Fault(NamedTuple):
    name: str
    sanitizer: str
    file: str
    old: str
    new: str
    reported: str


OVERFLOW = "ERROR: AddressSanitizer"
RACE = "ThreadSanitizer: data race"

FAULTS = [
    Fault("loads past the end of a row", MEMORY, "kernels/cpu/simd.h", "if (n >= W) return load(p);", "if (n >= 1) return load(p);", OVERFLOW),
    Fault("stores past the end of a row", MEMORY, "kernels/cpu/simd.h", "if (n >= W) return store(p, v);", "if (n >= 1) return store(p, v);", OVERFLOW),
    Fault("half of the scratch", MEMORY, "kernels/cpu/decode.h", "DecodeScratch<decltype(type)>(p, bq, bk, nullptr).bytes;", "DecodeScratch<decltype(type)>(p, bq, bk, nullptr).bytes / 2;", OVERFLOW),
    Fault("a NaN's exponent as a signed number", MEMORY, "kernels/cpu/math.h", "UVec exponent = (bits_as<UVec>(shifted) + 127)", "IVec exponent = (bits_as<IVec>(shifted) + 127)", "signed integer overflow"),
    Fault("a job that nobody waits for", THREADS, "src/backends/cpu_pool.cpp", "  job.done.wait(lock, [&] { return job.active == 0; });\n", "", RACE),
    Fault("scratch of two workers in one", THREADS, "src/backends/cpu_pool.cpp", "const int worker = job->next_worker++;", "const int worker = 1;", RACE),
    Fault("jobs listed under another lock", THREADS, "src/backends/cpu_pool.cpp", "std::unique_lock lock(mutex_, std::defer_lock);", "static std::mutex another;\n  std::unique_lock lock(another, std::defer_lock);", RACE),
    Fault("rows of dQ that two tasks add to", THREADS, "src/plan_backward.cpp", "out.rounds = std::max(", "out.rounds = std::min(", RACE),
]  # fmt: skip


def flags_of(isa: str) -> list[str]:
    """The compiler flags that CMakeLists.txt gives the kernels of an instruction set."""
    text = (ROOT / "CMakeLists.txt").read_text()
    (avx512,) = re.findall(r"set\(avx512 ([^)]*)\)", text)
    (flags,) = re.findall(rf"add_isa\({isa}\b([^)]*)\)", text)
    return flags.replace("${avx512}", avx512).split()


@functools.cache
def has(sanitizer: str) -> bool:
    """Whether the compiler comes with its runtime, and programs with it run here."""
    if COMPILER is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "nothing.cpp"
        source.write_text("int main() {}\n")
        program = source.with_suffix("")
        command = [COMPILER, f"-fsanitize={sanitizer}", source, "-o", program]
        built = subprocess.run(command, capture_output=True).returncode == 0
        return built and subprocess.run([program], capture_output=True).returncode == 0


def report(
    folder: Path,
    sanitizer: str,
    isa: str,
    fault: Fault | None = None,
    flags: tuple[str, ...] = (),
    seed: int = 1,
    calls: int = 30,
) -> str:
    """What the sanitizer says of random calls, or "", compiled in this empty folder.

    Without optimization, which would leave out what has no effect on results.
    """
    root = ROOT
    if fault:
        root = folder / "planted"
        for name in ("kernels", "src", "tests"):
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("*.py*"))
        path = root / fault.file
        text = path.read_text()
        assert text.count(fault.old) == 1, f"{text.count(fault.old)} places to plant it"
        path.write_text(text.replace(fault.old, fault.new))
    program = folder / "kernels"
    command = [COMPILER, "-std=c++20", "-O0", "-g1", "-pthread", f"-fsanitize={sanitizer}"]
    command += ["-fno-sanitize-recover=all", f"-I{root}", f"-DSDPA_ISA={isa}", *flags]
    command += [*(root / source for source in SOURCES), "-o", program]
    subprocess.run(command, check=True)
    try:
        done = subprocess.run(
            [program, str(seed), str(calls)],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1"},
        )
    except subprocess.TimeoutExpired:
        return "it does not end"
    if done.returncode == 0:
        return ""
    return (done.stdout + done.stderr).strip() or f"ended with {done.returncode}"


def main() -> None:
    for fault in FAULTS:
        with tempfile.TemporaryDirectory() as folder:
            said = report(Path(folder), fault.sanitizer, "baseline", fault)
        print(f"{fault.name:40} {'reported' if fault.reported in said else said or 'NOT REPORTED'}")


if __name__ == "__main__":
    main()
