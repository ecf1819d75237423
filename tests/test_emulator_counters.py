"""The counters, on kernels whose counts can be told from their text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import pytest
from emulator_kernels import HEAD, Bodies, numbers

import emulator

pytestmark = pytest.mark.emulator


@dataclass(frozen=True)
class Case:
    """A body of emulator_kernels.py and the counters that are not 0."""

    name: str
    body: str
    counts: Mapping[str, int]
    threads: int = 64
    grid: int = 1

    def __str__(self) -> str:
        return self.name


REVERSE = "threadgroup float xs[64]; xs[i] = in[i]; BARRIER(threadgroup); out[i] = xs[63 - i];"
PRODUCT = """\
simdgroup_float8x8 a, b, c(0);
simdgroup_load(a, in);
simdgroup_load(b, in, 8, ulong2(0), true);
for (int n = 0; n < 3; ++n) simdgroup_multiply_accumulate(c, a, b, c);
if (simdgroup == 0) simdgroup_store(c, out);"""
COPY = {"device_read_bytes": 64 * 4, "device_write_bytes": 64 * 4}
WRITE = {"device_write_bytes": 64 * 4}
CASES = [
    Case("a copy", "out[i] = in[i];", COPY),
    Case("half of the threads", "if (i < 32) out[i] = in[i];", dict.fromkeys(COPY, 128)),
    Case("a copy of vectors", "((device float4*)out)[i] = ((device float4*)in)[i];", COPY, 16),
    Case(
        "a copy of halves",
        "((device half*)out)[i] = ((device half*)in)[i];",
        {"device_read_bytes": 64 * 2, "device_write_bytes": 64 * 2},
    ),
    Case("one number for all", "out[i] = in[0];", COPY),
    # what the optimised program reads: a value that it still has it does not read again
    Case("one number twice", "out[i] = in[i] + in[i];", COPY),
    Case(  # but everything may have changed at a function of Metal's
        "one number twice, around a shuffle",
        "out[i] = in[i] + simd_shuffle_xor(in[i], 1) + in[i];",
        {**COPY, "device_read_bytes": 2 * 256, "shuffles": 2},
    ),
    Case("constant memory", "out[i] = table[i];", {"constant_read_bytes": 256, **WRITE}),
    Case(
        "constants of the program are no memory",
        "constexpr float x[4] = {1, 2, 3, 4}; out[i] = x[i % 4];",
        WRITE,
    ),
    Case(
        "outside of a buffer nothing is read",
        "out[i] = in[i + 60];",
        {"device_read_bytes": 4 * 4, **WRITE},
    ),
    Case(
        "a reversal",
        REVERSE,
        {
            **COPY, "threadgroup_write_bytes": 256, "threadgroup_read_bytes": 256,
            "threadgroup_barriers": 1, "threadgroup_memory_bytes": 256,
        },
    ),
    Case(
        "a reversal in each of three threadgroups",
        REVERSE.replace("out[i] =", "if (group == 1) out[i] ="),
        {
            "device_read_bytes": 3 * 256, "device_write_bytes": 256,
            "threadgroup_write_bytes": 3 * 256, "threadgroup_read_bytes": 256,
            "threadgroup_barriers": 3, "threadgroup_memory_bytes": 256,
        },
        grid=3,
    ),
    Case(  # each array starts at a multiple of 16 bytes
        "two arrays",
        "threadgroup float xs[3];\nthreadgroup float ys[3];\nxs[0] = ys[0] = 1;",
        {"threadgroup_write_bytes": 8, "threadgroup_memory_bytes": 16 + 12},
        threads=1,
    ),
    Case(
        "barriers in a loop",
        "for (uint n = 0; n < 5; ++n) BARRIER(none);",
        {"threadgroup_barriers": 2 * 5},
        grid=2,
    ),
    Case(
        "simdgroup barriers in a loop",
        "for (uint n = 0; n < 5; ++n) simdgroup_barrier(mem_flags::mem_none);",
        {"simdgroup_barriers": 2 * 5},
    ),
    Case("a shuffle", "out[i] = simd_shuffle_xor(in[i], 1);", {**COPY, "shuffles": 2}),
    Case(
        "a shuffle of four elements",
        "out[i] = simd_broadcast(float4(in[i]), 1).w;",
        {**COPY, "shuffles": 2 * 4},
    ),
    Case(
        "a reduction, a prefix sum and a vote",
        "float x = in[i]; out[i] = simd_sum(x) + simd_prefix_exclusive_sum(1) + simd_any(x < 0);",
        {**COPY, "reductions": 2 * 3},
    ),
    Case("exp2", "float x = in[i]; out[i] = exp2(x) + fast::exp2(-x);", {**COPY, "exp2": 64 * 2}),
    Case("exp2 of a vector", "out[i] = exp2(float4(in[i])).x;", {**COPY, "exp2": 64 * 4}),
    Case("exp is no exp2", "out[i] = exp(-in[i]);", COPY),
    Case(
        "three products of 8x8 matrices in each of two simdgroups",
        PRODUCT,
        {"multiplies": 2 * 3, "device_read_bytes": 2 * 2 * 256, "device_write_bytes": 256},
    ),
]  # fmt: skip
DEVICE = Bodies({case.name: case.body for case in CASES})


@pytest.mark.parametrize("case", CASES, ids=str)
def test_counts(case):
    _, report = DEVICE.run(case.name, threads=case.threads, grid=case.grid)
    work = {"dispatches": 1, "threadgroups": case.grid, "threads": case.grid * case.threads}
    counted = {name: n for name, n in asdict(report.counters).items() if n}
    assert counted == {**work, **case.counts}


def test_every_counter_has_a_case():
    named = {"dispatches", "threadgroups", "threads"}.union(*(case.counts for case in CASES))
    assert named == set(asdict(emulator.Counters()))


def test_the_report_of_several_runs():
    kernels = "".join(
        f"kernel void {name}(device float* out [[buffer(0)]],\n"
        f"    uint i [[thread_index_in_threadgroup]]) {{\n{body}\n}}\n"
        for name, body in (
            ("small", "threadgroup float xs[4]; xs[i] = 1; out[i] = xs[i];"),
            ("large", "threadgroup float xs[8]; xs[i] = 1; out[i] = xs[i];"),
            ("outside", "out[i + 1] = 1;"),
        )
    )
    library = emulator.Library(HEAD + kernels, stock=True)
    assert sorted(library.names()) == ["large", "outside", "small"]
    emulator.take_report()
    for name, threads in (("large", 8), ("small", 4), ("small", 3), ("outside", 8), ("outside", 8)):
        library.kernel(name).run(1, threads, {0: np.zeros(8, np.float32)})
    report = emulator.take_report()
    assert (report.counters.dispatches, report.counters.threads) == (5, 31)
    assert report.counters.threadgroup_memory_bytes == 32
    assert {name: counters.dispatches for name, counters in report.kernels.items()} == {
        "large": 1, "small": 2, "outside": 2,
    }  # fmt: skip
    assert report.kernels["small"].device_write_bytes == 4 * 7
    (finding,) = report.findings
    assert (finding.kernel, finding.count) == ("outside", 2)
    with pytest.raises(emulator.EmulatorError, match=r"out-of-bounds: outside.* \(2 times\)"):
        report.check()
    assert emulator.take_report() == emulator.Report()
    assert emulator.Report().check() == emulator.Report()


def test_positions():
    names = (
        "thread_position_in_grid", "thread_position_in_threadgroup", "threads_per_grid",
        "threads_per_threadgroup", "threadgroup_position_in_grid", "threadgroups_per_grid",
    )  # fmt: skip
    numbers_of = (
        "thread_index_in_threadgroup", "thread_index_in_simdgroup",
        "simdgroup_index_in_threadgroup", "threads_per_simdgroup", "simdgroups_per_threadgroup",
    )  # fmt: skip
    parameters = [f"uint3 {name} [[{name}]]" for name in names]
    parameters += [f"uint {name} [[{name}]]" for name in numbers_of]
    store = [f"out[at++] = {name}.{xyz};" for name in names for xyz in "xyz"]
    store += [f"out[at++] = {name};" for name in numbers_of]
    n = len(store)
    kernel = emulator.Library(
        f"{HEAD}kernel void positions(device uint* out [[buffer(0)]], {', '.join(parameters)}) {{\n"
        "const uint3 p = thread_position_in_grid, n = threads_per_grid;\n"
        f"uint at = {n} * ((p.z * n.y + p.y) * n.x + p.x);\n{' '.join(store)}\n}}"
    ).kernel("positions")
    grid, threads = np.array((2, 3, 2)), np.array((5, 4, 2))
    out = np.zeros((*(grid * threads)[::-1], n), np.uint32)
    assert kernel.run(tuple(grid), tuple(threads), {0: out}, poison=[0]).findings == []
    emulator.take_report()
    z, y, x = np.indices(out.shape[:3])
    position = np.stack((x, y, z), -1)
    inside, group = position % threads, position // threads
    index = inside @ (1, threads[0], threads[0] * threads[1])
    wanted = [position, inside, grid * threads, threads, group, grid]
    wanted = [np.broadcast_to(w, position.shape) for w in wanted]
    wanted += [np.stack((index, index % 32, index // 32, 0 * x + 32, 0 * x + 2), -1)]
    np.testing.assert_array_equal(out, np.concatenate(wanted, -1))


def test_a_buffer_with_an_offset_starts_there():
    x = numbers()
    _, report = DEVICE.run("a copy", buffers={1: (x, 16), 0: (out := numbers(), 32)}, threads=56)
    assert report.findings == []
    assert np.isnan(out[:8]).all()  # poisoned, and not written
    np.testing.assert_array_equal(out[8:], x[4:60])
