"""What the software Metal device refuses, and what the refusal says."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from emulator_kernels import HEAD, Bodies, numbers

import emulator
from emulator import build, toolchain

pytestmark = pytest.mark.emulator

EmulatorError, CompileError, ToolMissing = (
    emulator.EmulatorError, emulator.CompileError, emulator.ToolMissing,
)  # fmt: skip

# --- The source ---------------------------------------------------------------------------------

SOURCES = {
    "a name that is not declared": (
        "kernel void f(device float* x [[buffer(0)]]) {\n  x[0] = y;\n}",
        r"^kernel.metal:2:10: error: use of undeclared identifier 'y'",
    ),
    "an error in a file that is included": (
        '#line 7 "kernels/a.h"\nint f(x);',
        r"^kernels/a.h:7:7: error: unknown type name 'x'",
    ),
    "an include that is missing": ('#include "nothing.h"', r"kernel.metal:1:10: .*file not found"),
    "#error": ("#ifndef ONE\n#error one is missing\n#endif", r"kernel.metal:2:2: .*one is missing"),
    "an assertion": ('static_assert(1 > 2, "small");', r"kernel.metal:1:15: .*small"),
    "threadgroup memory that is declared in Metal's way, without stock": (
        "kernel void f() {\n  threadgroup float x[4];\n}",
        "kernel.metal:2:21: error: automatic variable qualified with an address space",
    ),
    "a cast between address spaces": (
        "kernel void f(device float* x [[buffer(0)]]) {\n  *(thread float*)x = 1;\n}",
        r"^kernel.metal:2: a cast between address spaces$",
    ),
    "a kernel's pointer without address space": (
        "kernel void f(float* x [[buffer(0)]]) {}",
        "a buffer is in device or constant memory: its parameter says which",
    ),
    "a buffer that is a value": (
        "kernel void f(float x [[buffer(0)]]) {}",
        r"\[\[buffer\(n\)\]\] goes with a pointer or a reference",
    ),
    "a value without attribute": (
        "kernel void f(uint x) {}",
        "kernel f: parameter 'x' has no attribute",
    ),
    "an attribute that is not there": (
        "kernel void f(uint x [[quadgroup_index_in_threadgroup]]) {}",
        r"parameter 'x': the software device has no \[\[quadgroup_index_in_threadgroup\]\]",
    ),
    "indices for some buffers": (
        "kernel void f(device float* x [[buffer(0)]], device float* y) {}",
        r"kernel f: parameter 'y' has no \[\[buffer\(index\)\]\]",
    ),
    "an instance of nothing": (
        'template [[host_name("g_4")]] [[kernel]] decltype(g<4>) g<4>;',
        r'host_name\("g_4"\): there is no kernel function g',
    ),
    "a constant that another one is made of": (
        "constant bool a [[function_constant(0)]];\nconstant bool b = !a;\n"
        "kernel void f(device float* x [[buffer(0)]]) { x[0] = b; }",
        r"^kernel.metal:2: a variable outside of all functions whose value is not a constant",
    ),
}


@pytest.mark.parametrize("name", SOURCES)
def test_a_source_that_does_not_compile(name):
    source, says = SOURCES[name]
    with pytest.raises(CompileError, match=says):
        emulator.Library(source)


# --- A kernel of it -----------------------------------------------------------------------------

KERNELS = (
    HEAD
    + """\
constant bool kFlag [[function_constant(0)]];
constant int kNumber [[function_constant(1)]];
constant half kScale [[function_constant(2)]];
namespace one {
template <class T, int N>
[[kernel]] void choose(device T* out [[buffer(0)]],
                       device const T* in [[buffer(1), function_constant(kFlag)]]) {
  out[0] = kFlag ? in[0] : T(kNumber * N * kScale);
}
}
template [[host_name("choose_2")]] [[kernel]] decltype(one::choose<float, 2>) one::choose<float, 2>;
template [[host_name("choose_5")]] [[kernel]] decltype(one::choose<int, 5>) one::choose<int, 5>;
kernel void same_index(device float* x [[buffer(3)]], device float* y [[buffer(3)]]) {}
kernel void index_31(device float* x [[buffer(31)]]) {}
[[kernel, max_total_threads_per_threadgroup(64)]] void small(device float* x [[buffer(0)]]) {}
"""
)
CONSTANTS = {0: False, 1: 3, 2: np.float16(0.5)}


def choose(constants) -> emulator.Kernel:
    return emulator.Library(KERNELS).kernel("choose_2", constants)


SPECIALISATIONS = {
    "no such kernel": ("choose_3", CONSTANTS, "no kernel choose_3 .*it has choose_2, choose_5, "),
    "a constant is missing": (
        "choose_2",
        {0: True, 2: np.float16(1)},
        r"kernel choose_2: function constant 1 \(kNumber\) is not set",
    ),
    "a constant of another size": (
        "choose_2",
        CONSTANTS | {2: 0.5},
        r"function constant 2 \(kScale\) has 2 bytes, but is set to 4",
    ),
    "two buffers of one index": ("same_index", CONSTANTS, "'x' and 'y' have the same buffer index"),
    "an index that does not exist": ("index_31", CONSTANTS, "has buffer index 31; the last .* 30"),
}


@pytest.mark.parametrize("name", SPECIALISATIONS)
def test_a_kernel_that_cannot_be_made(name):
    kernel, constants, says = SPECIALISATIONS[name]
    with pytest.raises(EmulatorError, match=says):
        emulator.Library(KERNELS).kernel(kernel, constants)


@pytest.mark.parametrize("number", (3, np.int32(3), (3).to_bytes(4, "little")))
def test_constants(number):
    out = np.zeros(1, np.float32)
    choose(CONSTANTS | {1: number}).run(1, 1, {0: out})
    assert out == [3 * 2 * 0.5]
    choose(CONSTANTS | {0: True}).run(1, 1, {0: out, 1: np.float32([7])})
    assert out == [7]
    emulator.take_report()


def test_what_a_kernel_says_of_its_buffers():
    parameters = [
        {"name": "out", "index": 0, "used": True, "writable": True},
        {"name": "in", "index": 1, "used": False, "writable": False},
    ]
    assert choose(CONSTANTS).parameters == parameters
    parameters[1]["used"] = True
    assert choose(CONSTANTS | {0: True}).parameters == parameters


# --- A launch -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Launch:
    """A launch of a body of emulator_kernels.py."""

    body: str
    says: str
    grid: object = 1
    threads: object = 32
    buffers: tuple = ()  # of (index, what is bound)
    poison: tuple = (0,)


COPY = "out[i % 64] = in[i % 64];"
FULL = "threadgroup float xs[8192]; xs[i] = 1; out[i] = xs[i];"
LAUNCHES = {
    "None": Launch(COPY, "not NoneType", buffers=((1, None),)),
    "an index too much": Launch(COPY, "buffer index 31; there are 0 to 30", buffers=((31, b""),)),
    "too many threads": Launch(COPY, "1025 threads per threadgroup.* allows 1024$", threads=1025),
    "too many threads of two dimensions": Launch(COPY, "1056 threads per", threads=(33, 32)),
    "no threads": Launch(COPY, "the grid is empty", threads=0),
    "no threadgroups": Launch(COPY, "the grid is empty", grid=(1, 0, 1)),
    "a negative grid": Launch(COPY, r"\(1, -1\) is no size of a grid", grid=(1, -1)),
    "a grid of four dimensions": Launch(COPY, "is no size of a grid", grid=(1, 1, 1, 1)),
    "too much threadgroup memory": Launch(
        FULL.replace("8192", "8193"), "takes 32772 bytes of threadgroup memory; .* has 32768$"
    ),
    "too much threadgroup memory in two arrays": Launch(
        f"threadgroup half ys[1]; ys[0] = 0; {FULL}", "takes 32784 bytes of threadgroup memory"
    ),
    "an array with gaps": Launch(COPY, "contiguous", buffers=((1, numbers(128)[::2]),)),
    "an offset behind the end": Launch(
        COPY, "index 1: no byte 257 in memory of 256", buffers=((1, (numbers(), 257)),)
    ),
    "an offset before the start": Launch(
        COPY, "index 1: no byte -1 in memory of 256", buffers=((1, (numbers(), -1)),)
    ),
    "poison of what cannot be written": Launch(
        COPY, "index 1 is read-only", buffers=((1, bytes(256)),), poison=(0, 1)
    ),
    "poison of what is not there": Launch(COPY, "nothing is bound at .* 3", poison=(0, 3)),
}
DEVICE = Bodies({"full": FULL, "copy": COPY} | {name: x.body for name, x in LAUNCHES.items()})


@pytest.mark.parametrize("name", LAUNCHES)
def test_a_launch_that_is_refused(name):
    launch = LAUNCHES[name]
    out = np.zeros(64, np.float32)
    buffers = {0: out} | dict(launch.buffers)
    with pytest.raises(EmulatorError, match=launch.says):
        DEVICE.run(
            name, grid=launch.grid, threads=launch.threads, buffers=buffers, poison=launch.poison
        )
    # nothing of it is left: what was to be poisoned may be read
    _, report = DEVICE.run("copy", buffers={1: out, 0: numbers()})
    assert report.findings == []


def test_all_of_the_threadgroup_memory_and_all_threads():
    _, report = DEVICE.run("full", threads=64)
    assert report.counters.threadgroup_memory_bytes == 32 * 1024
    _, report = DEVICE.run("copy", threads=(32, 8, 4), buffers={0: numbers(1024)}, poison=())
    assert report.counters.threads == 1024


def test_the_findings_of_a_launch_that_was_refused_are_not_the_next_ones():
    source = HEAD + (
        "kernel void f(device float* out [[buffer(0)]]) {\n"
        "  out[9] = 1;\n  BARRIER(device);\n  threadgroup float xs[9000];\n"
        "  xs[0] = out[0];\n  out[0] = xs[0] + 1;\n}\n"
        "kernel void g(device float* out [[buffer(0)]]) { out[0] = 1; }\n"
    )
    library, x = emulator.Library(source, stock=True), np.zeros(4, np.float32)
    with pytest.raises(EmulatorError, match="takes 36000 bytes"):
        library.kernel("f").run(1, 1, {0: x})
    assert library.kernel("g").run(1, 1, {0: x}).findings == []
    emulator.take_report()


def test_the_threads_of_a_pipeline():
    kernel = emulator.Library(KERNELS).kernel("small", CONSTANTS)
    assert kernel.max_threads == 64
    with pytest.raises(EmulatorError, match="65 threads per threadgroup; the pipeline allows 64"):
        kernel.run(1, 65, {0: numbers()})
    emulator.set_max_threads("sma", 32)
    try:
        assert kernel.max_threads == 32
        assert choose(CONSTANTS).max_threads == 1024
        with pytest.raises(EmulatorError, match=r"33 threads .* allows 32"):
            kernel.run(1, 33, {0: numbers()})
    finally:
        emulator.set_max_threads("sma", 0)
    assert kernel.max_threads == 64


def test_nothing_at_an_index_that_the_kernel_uses():
    kernel = choose(CONSTANTS | {0: True})
    with pytest.raises(EmulatorError, match=r"nothing is bound at buffer index 1 \(in\)$"):
        kernel.run(1, 1, {0: numbers()})


def test_a_buffer_may_be_bytes_or_an_object_of_ctypes():
    x = numbers()
    for value in (x.tobytes(), (ctypes.c_float * 64)(*x), x.reshape(8, 8), x.reshape(8, 8).T):
        out, report = DEVICE.run("copy", buffers={1: value})
        np.testing.assert_array_equal(out, x)
        assert report.findings == []


# --- Programs that are missing --------------------------------------------------------------------


@pytest.fixture
def empty_machine(monkeypatch, tmp_path):
    """Nothing compiled, nothing installed, no name of a program found."""
    monkeypatch.setenv("MLX_SDPA_EXT_EMULATOR_CACHE", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(toolchain, "zig", toolchain.zig.__wrapped__)
    return monkeypatch


def test_without_the_package_ziglang(empty_machine):
    calls = (emulator.Library, emulator.lint, emulator.check_types)
    for call in calls:
        with pytest.raises(ToolMissing, match="pip install ziglang"):
            call("kernel void f() {}")


def test_without_what_builds_the_runtime(empty_machine, tmp_path):
    for program, says in (("cmake", "pip install cmake"), ("ninja", "pip install ninja")):
        with pytest.raises(ToolMissing, match=f"^{program} was not found: {says}$"):
            build.runtime.__wrapped__()
        (tmp_path / program).touch(mode=0o755)
    with pytest.raises(ToolMissing, match=r"needs a C\+\+20 compiler: set CXX"):
        build.runtime.__wrapped__()


def test_a_runtime_that_cannot_be_built(monkeypatch, tmp_path):
    monkeypatch.setenv("MLX_SDPA_EXT_EMULATOR_CACHE", str(tmp_path))
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho no compiler today >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(EmulatorError, match="no compiler today"):
        build.runtime.__wrapped__()


# --- The cache -----------------------------------------------------------------------------------


def test_what_is_compiled_is_kept_by_its_content(monkeypatch, tmp_path):
    monkeypatch.setenv("MLX_SDPA_EXT_EMULATOR_CACHE", str(tmp_path))
    sources = ("kernel void f() {}", "kernel void g() {}")
    paths = [emulator.Library(source).path for source in (*sources, *sources)]
    assert paths[:2] == paths[2:] and paths[0] != paths[1]
    assert sorted(tmp_path.rglob("*.so")) == sorted(paths[:2])


def test_files_keep_their_names_wherever_they_are_compiled(monkeypatch, tmp_path):
    source = HEAD + "kernel void f(device float* x [[buffer(0)]]) {\n  BARRIER(device);\n}"
    source += "kernel void g(device float* x [[buffer(0)]], uint i [[thread_index_in_threadgroup]])"
    source += " {\n  if (i < 32) return;\n  BARRIER(device);\n}"
    for folder in (Path(__file__).parents[1], tmp_path):
        monkeypatch.setenv("MLX_SDPA_EXT_EMULATOR_CACHE", str(tmp_path / folder.name))
        monkeypatch.chdir(folder)
        (finding,) = emulator.Library(source).kernel("g").run(1, 64, {0: numbers()}).findings
        assert finding.where == "kernel.metal:9"
    emulator.take_report()
