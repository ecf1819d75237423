"""Each kind of finding: a kernel that is wrong in that way and no other, and a right one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from emulator_kernels import SIZE, Bodies, numbers

pytestmark = pytest.mark.emulator

RUNTIME = Path(__file__).parents[1] / "emulator" / "runtime"


@dataclass(frozen=True)
class Case:
    """Bodies of emulator_kernels.py. The findings of the wrong one are in its last line."""

    kind: str
    name: str
    wrong: str
    right: str
    says: str  # a regular expression: the message of the first finding
    count: int = SIZE  # of all of them
    thread: int = 0  # of the first
    group: int = 0
    grid: int = 1
    threads: int = SIZE
    how: Mapping[str, object] = field(default_factory=dict)  # further arguments of Bodies.run

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


def read_only(x: np.ndarray) -> np.ndarray:
    x.flags.writeable = False
    return x


BOUNDS = [
    Case(
        "out-of-bounds", "behind the end of device memory",
        "out[i] = in[i + 1];",
        "out[i] = in[min(i + 1, 63u)];",
        says=r"reads 4 bytes at byte 256 of buffer 1 \(in\), which has 256", count=1, thread=63,
    ),
    Case(
        "out-of-bounds", "before the start of device memory",
        "out[i] = (in - 1)[i];",
        "out[i] = (in - 1)[i + 1];",
        says=r"reads 4 bytes at byte -4 of buffer 1 \(in\), which has 256", count=1,
    ),
    Case(  # what lies between is the rest of the allocation, which a GPU can reach too
        "out-of-bounds", "before the allocation of a buffer that is bound with an offset",
        "out[i] = in[int(i) - 5];",
        "out[i] = in[int(i) - 4];",
        says=r"reads 4 bytes at byte -20 of buffer 1 \(in\), which has 240", count=1,
        how={"buffers": {1: (numbers(), 16)}},
    ),
    Case(
        "out-of-bounds", "a write",
        "out[2 * i] = in[i];",
        "out[i] = in[i];",
        says=r"writes 4 bytes at byte 256 of buffer 0 \(out\), which has 256", count=32, thread=32,
    ),
    Case(
        "out-of-bounds", "the last bytes of a vector",
        "out[i] = ((device const float4*)in)[i / 4].x;",
        "out[i] = ((device const float4*)in)[i / 5].x;",
        says="reads 16 bytes at byte 240 of buffer 1 .*, which has 248", count=4, thread=60,
        how={"buffers": {1: numbers(62)}},
    ),
    Case(
        "out-of-bounds", "constant memory",
        "out[i] = table[i + 32];",
        "out[i] = table[i];",
        says=r"reads 4 bytes at byte 256 of buffer 2 \(table\), which has 256", count=32, thread=32,
    ),
    Case(
        "out-of-bounds", "threadgroup memory",
        "threadgroup float xs[64];\nxs[i] = in[i];\nBARRIER(threadgroup);\nout[i] = xs[i + 1];",
        "threadgroup float xs[64];\nxs[i] = in[i];\nBARRIER(threadgroup);\nout[i] = xs[63 - i];",
        says="reads 4 bytes at byte 256 of threadgroup array 0, which has 256", count=1, thread=63,
    ),
    Case(
        "out-of-bounds", "from one threadgroup array into the next",
        "threadgroup float xs[8];\nthreadgroup float ys[8];\nys[i] = 0;\nxs[8 + i] = in[i];",
        "threadgroup float xs[16];\nthreadgroup float ys[8];\nys[i] = 0;\nxs[8 + i] = in[i];",
        says="writes 4 bytes at byte 32 of threadgroup array ., which has 32", count=8, threads=8,
    ),
]  # fmt: skip

UNINITIALISED = [
    Case(
        "uninitialised", "an output that is read",
        "out[i] += in[i];",
        "out[i] = in[i];\nout[i] += in[i];",
        says=r"reads 4 bytes at byte 0 of buffer 0 \(out\), which has 256: nobody has written",
    ),
    Case(
        "uninitialised", "an input that holds nothing",
        "out[i] = in[i];",
        "out[i] = table[i];",
        says=r"reads 4 bytes at byte 0 of buffer 1 \(in\)", how={"poison": (0, 1)},
    ),
    Case(
        "uninitialised", "half of a float",
        "((device half*)out)[2 * i] = half(in[i]);\nout[i] += 1;",
        "((device half*)out)[2 * i] = half(in[i]);\n((device half*)out)[2 * i + 1] = 0;\n"
        "out[i] += 1;",
        says="reads 4 bytes at byte 0 of buffer 0",
    ),
    Case(
        "uninitialised", "threadgroup memory",
        "threadgroup float xs[64];\nif (i != 5) xs[i] = in[i];\nBARRIER(threadgroup);\n"
        "out[i] = xs[63 - i];",
        "threadgroup float xs[64];\nxs[i] = in[i];\nBARRIER(threadgroup);\nout[i] = xs[63 - i];",
        says="reads 4 bytes at byte 20 of threadgroup array 0, which has 256: nobody has written",
        count=1, thread=58,
    ),
    Case(
        "uninitialised", "what the threadgroup before wrote to threadgroup memory",
        "threadgroup float xs[64];\nif (group == 0) xs[i] = in[i];\nout[i + 32 * group] = xs[i];",
        "threadgroup float xs[64];\nxs[i] = in[i];\nout[i + 32 * group] = xs[i];",
        says="byte 0 of threadgroup array 0", count=32, group=1, grid=2, threads=32,
    ),
]  # fmt: skip

XS = "threadgroup float xs[64];\nxs[i] = in[i];\n"
RACES = [
    Case(
        "race", "read before a barrier publishes it",
        f"{XS}out[i] = i ? xs[i - 1] : 0;",
        f"{XS}BARRIER(threadgroup);\nout[i] = i ? xs[i - 1] : 0;",
        says=r"reads 4 bytes at byte 0 of threadgroup array 0, which has 256, which was written by "
        r"thread 0 \(lane 0 of simdgroup 0\) with no barrier in between", count=63, thread=1,
    ),
    Case(
        "race", "overwritten before a barrier frees it",
        f"{XS}BARRIER(threadgroup);\nif (i >= 32) out[i] = xs[i - 32];\nif (i < 32) xs[i] = 0;",
        f"{XS}BARRIER(threadgroup);\nif (i >= 32) out[i] = xs[i - 32];\n"
        "BARRIER(threadgroup);\nif (i < 32) xs[i] = 0;",
        says=r"writes 4 bytes at byte 0 .*, which was read by thread 32 \(lane 0 of simdgroup 1\)",
        count=32,
    ),
    Case(
        "race", "two threads write",
        "threadgroup float xs[64];\nxs[i / 2] = in[i];",
        "threadgroup float xs[64];\nif (i % 2 == 0) xs[i / 2] = in[i];",
        says="writes 4 bytes at byte 0 .*, which was written by thread 0", count=32, thread=1,
    ),
    Case(
        "race", "many read before it is overwritten",
        f"{XS}BARRIER(threadgroup);\nif (i >= 32) out[i] = xs[0];\nif (i == 31) xs[0] = 0;",
        f"{XS}BARRIER(threadgroup);\nif (i >= 32) out[i] = xs[0];\n"
        "BARRIER(threadgroup);\nif (i == 31) xs[0] = 0;",
        says="which was read by several threads of simdgroup 1", count=1, thread=31,
    ),
    Case(
        "race", "simdgroups read before it is overwritten",
        f"{XS}BARRIER(threadgroup);\nout[i] = xs[0];\nif (i == 31) xs[0] = 0;",
        f"{XS}BARRIER(threadgroup);\nout[i] = xs[0];\nBARRIER(threadgroup);\n"
        "if (i == 31) xs[0] = 0;",
        says="which was read by threads of several simdgroups", count=1, thread=31,
    ),
    Case(
        "race", "a barrier of other memory",
        f"{XS}BARRIER(device);\nif (i) out[i] = xs[i - 1];",
        f"{XS}BARRIER(threadgroup);\nif (i) out[i] = xs[i - 1];",
        says="which was written by thread 62", count=63, thread=63,
    ),
    Case(
        "race", "a barrier of no memory",
        f"{XS}BARRIER(none);\nif (i) out[i] = xs[i - 1];",
        f"{XS}BARRIER(device | mem_flags::mem_threadgroup);\nif (i) out[i] = xs[i - 1];",
        says="which was written by thread 62", count=63, thread=63,
    ),
    Case(
        "race", "a simdgroup_barrier between simdgroups",
        f"{XS}simdgroup_barrier(mem_flags::mem_threadgroup);\nif (i >= 32) out[i] = xs[i - 32];",
        f"{XS}simdgroup_barrier(mem_flags::mem_threadgroup);\nout[i] = xs[i ^ 1];",
        says=r"which was written by thread 31 \(lane 31 of simdgroup 0\)", count=32, thread=63,
    ),
]  # fmt: skip

DEVICE_RACES = [
    Case(
        "device-race", "read before a barrier publishes it",
        "out[i] = in[i];\nif (i) out[i + 32] = out[i - 1];",
        "out[i] = in[i];\nBARRIER(device);\nif (i) out[i + 32] = out[i - 1];",
        says=r"reads 4 bytes at byte 0 of buffer 0 \(out\), which has 256, which was written by "
        "thread 0 .* of the same threadgroup, with no barrier in between", count=31, thread=1,
        threads=32,
    ),
    Case(
        "device-race", "a barrier of other memory",
        "out[i] = in[i];\nBARRIER(threadgroup);\nif (i) out[i + 32] = out[i - 1];",
        "out[i] = in[i];\nBARRIER(device);\nif (i) out[i + 32] = out[i - 1];",
        says="which was written by thread 30", count=31, thread=31, threads=32,
    ),
    Case(
        "device-race", "two threads write different values",
        "out[i / 2] = in[i];",
        "out[i / 2] = in[i / 2];",
        says="writes 4 bytes at byte 0 of buffer 0 .*, which was written by thread 0 .* of the "
        "same threadgroup, with no barrier in between, which wrote something else",
        count=32, thread=1,
    ),
    Case(
        "device-race", "between threadgroups, which no barrier orders",
        "BARRIER(device);\nout[i + group] = 1;",
        "BARRIER(device);\nout[i + 32 * group] = 1;",
        says=r"writes 4 bytes at byte 4 of buffer 0 .* thread 1 .* of threadgroup \(0, 0, 0\)",
        count=31, group=1, grid=2, threads=32,
    ),
    Case(
        "device-race", "a threadgroup overwrites what another one reads",
        "if (group == 0) out[i + 32] = out[i]; else\nout[i] = 0;",
        "if (group == 0) out[i + 32] = out[i]; else\nout[i + 16] = 0;",
        says=r"writes 4 bytes at byte 0 .* read by thread 0 .* of threadgroup \(0, 0, 0\)",
        count=16, group=1, grid=2, threads=16, how={"buffers": {0: numbers()}, "poison": ()},
    ),
]  # fmt: skip

SUM = "out[i] = simd_sum(in[i]);"
MEETINGS = [
    Case(
        "divergent", "lanes of a simdgroup in two reductions",
        "float x = 0;\nif (lane < 16) x = simd_sum(in[i]); else\nx = simd_max(in[i]); out[i] = x;",
        "float x = 0;\nif (simdgroup == 0) x = simd_sum(in[i]); else\n"
        "x = simd_max(in[i]); out[i] = x;",
        says="the lanes of simdgroup 0 do not meet: lanes 0-15 wait in a simd reduction .*:2., "
        "lanes 16-31 wait in a simd reduction .*:3.$", count=1, thread=31,
    ),
    Case(
        "divergent", "lanes that skip a shuffle and come to the next",
        "float x = in[i];\nif (lane != 31) x += simd_shuffle_xor(x, 1);\nout[i] = simd_max(x);",
        "float x = in[i];\nx += simd_shuffle_xor(x, 1);\nout[i] = simd_max(x);",
        says="lanes 0-30 wait in a shuffle .*:2., lane 31 waits in a simd reduction .*:3.$",
        count=1, thread=31,
    ),
    Case(
        "divergent", "a matrix in half a simdgroup",
        "simdgroup_float8x8 a(1);\nsimdgroup_multiply(a, a, a); out[i] = a.thread_elements()[0];",
        "simdgroup_float8x8 a(1);\nout[i] = a.thread_elements()[0];",
        says="a simdgroup_matrix needs 32 lanes", count=1, thread=15, threads=16,
    ),
    Case(
        "early-return", "a lane before a reduction",
        f"if (lane == 5) return;\n{SUM}",
        f"if (simdgroup == 1) return;\n{SUM}",
        says="lanes 0-4, 6-31 wait in a simd reduction .*:2., lane 5 has returned", count=1,
        thread=31,
    ),
    Case(
        "early-return", "lanes that skip a reduction and have no more to do",
        f"if (lane < 16) {SUM}",
        f"if (simdgroup == 0) {SUM}",
        says="lanes 0-15 wait in a simd reduction .*, lanes 16-31 have returned", count=1,
    ),
    Case(
        "early-return", "a simdgroup before a barrier",
        "if (simdgroup == 0) return;\nBARRIER(threadgroup);",
        "if (group == 0) return;\nBARRIER(threadgroup);",
        says="1 simdgroup has returned, and simdgroup 1 waits in threadgroup_barrier", count=1,
        thread=63,
    ),
    Case(
        "barrier-mismatch", "simdgroups at two barriers",
        "if (simdgroup == 0) BARRIER(threadgroup); else\nBARRIER(threadgroup);",
        "if (group == 0) BARRIER(threadgroup); else\nBARRIER(threadgroup);",
        says="simdgroup 0 waits in threadgroup_barrier at .*:1, simdgroup 1 at .*:2", count=1,
        thread=63,
    ),
    Case(
        "barrier-mismatch", "lanes that wait at a barrier while others reduce",
        f"if (lane < 4) BARRIER(threadgroup);\n{SUM}",
        f"BARRIER(threadgroup);\n{SUM}",
        says="lanes 0-3 wait in threadgroup_barrier .*:1., lanes 4-31 wait in a simd reduction",
        count=1, thread=31,
    ),
]  # fmt: skip

LANES = [
    Case(
        "bad-lane", "a shuffle from a lane that does not exist",
        "out[i] = simd_shuffle(in[i], lane + 1);",
        "out[i] = simd_shuffle(in[i], (lane + 1) % 32);",
        says="lane 31 takes the value of lane 32, which is not there", count=2, thread=31,
    ),
    Case(
        "bad-lane", "a shuffle from a lane of a partial simdgroup",
        "out[i] = simd_shuffle_xor(in[i], 16);",
        "out[i] = simd_shuffle_xor(in[i], 8);",
        says="lane 0 takes the value of lane 16, which is not there", count=16, threads=16,
    ),
    Case(
        "bad-lane", "a broadcast of several lanes",
        "out[i] = simd_broadcast(in[i], lane / 16);",
        "out[i] = simd_broadcast(in[i], simdgroup);",
        says="simd_broadcast of lane 0 and of lane 1 in one call", count=32, thread=16,
    ),
]  # fmt: skip

ALIGNMENT = [
    Case(
        "misaligned", "a vector read",
        "out[i] = ((device const float4*)(in + 2))[i % 8].x;",
        "out[i] = ((device const float4*)(in + 4))[i % 8].x;",
        says=r"reads 16 bytes that must be aligned to 16, at byte 8 of buffer 1 \(in\)",
    ),
    Case(
        "misaligned", "a vector written",
        "((device float2*)(out + 1))[i] = 0;",
        "((device float2*)(out + 2))[i] = 0;",
        says="writes 8 bytes that must be aligned to 8, at byte 4 of buffer 0", count=16,
        threads=16,
    ),
    Case(
        "misaligned", "a vector of threadgroup memory",
        f"{XS}BARRIER(threadgroup);\nout[i] = ((threadgroup float2*)(xs + 1))[i / 3].x;",
        f"{XS}BARRIER(threadgroup);\nout[i] = ((threadgroup float2*)xs)[i / 3].x;",
        says="reads 8 bytes that must be aligned to 8, at byte 172 of threadgroup", thread=63,
    ),
    Case(  # the offset counts, and not where this CPU has the memory
        "misaligned", "a vector of a buffer that is bound with an offset",
        "out[i] = ((device const float4*)in)[i % 8].x;",
        "out[i] = ((device const float4*)(in + 3))[i % 8].x;",
        says="reads 16 bytes that must be aligned to 16, at byte 0 of buffer 1",
        how={"buffers": {1: (numbers(), 4)}},
    ),
]  # fmt: skip

READ_ONLY = [
    Case(
        "read-only", "a cast of an input",
        "((device float*)in)[i] = 1;",
        "out[i] = 1;",
        says=r"writes 4 bytes at byte 0 of buffer 1 \(in\), which has 256; it is bound as an input",
    ),
    Case(
        "read-only", "an output that is bound as an input",
        "out[i] = 1;",
        "float x = in[i];",
        says="writes 4 bytes at byte 0 of buffer 0 .*; it is bound as an input",
        how={"readonly": (0,), "poison": ()},
    ),
    Case(
        "read-only", "an array that numpy does not let write",
        "out[i] = 1;",
        "float x = in[i];",
        says="it is bound as an input", how={"buffers": {0: read_only(numbers())}, "poison": ()},
    ),
    Case(
        "read-only", "constant memory",
        "const_cast<__attribute__((address_space(2))) float&>(table[i]) = 1;",
        "out[i] = table[i];",
        says=r"writes 4 bytes at byte 0 of buffer 2 \(table\).*; constant memory is read-only",
    ),
]  # fmt: skip

CASES = [
    *BOUNDS, *UNINITIALISED, *RACES, *DEVICE_RACES, *MEETINGS, *LANES, *ALIGNMENT, *READ_ONLY,
]  # fmt: skip
DEVICE = Bodies(
    {f"{case}, {word}": getattr(case, word) for case in CASES for word in ("wrong", "right")}
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_wrong_is_found(case):
    title = f"{case}, wrong"
    _, report = DEVICE.run(title, grid=case.grid, threads=case.threads, **case.how)
    print(*report.findings, sep="\n")
    assert report.kinds == {case.kind}
    last_line = case.wrong.count("\n") + 1
    assert {finding.where for finding in report.findings} == {f"{title}:{last_line}"}
    first = report.findings[0]
    assert re.search(case.says, first.message)
    assert (first.thread, first.threadgroup) == ((case.thread, 0, 0), (case.group, 0, 0))
    assert sum(finding.count for finding in report.findings) == case.count


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_right_is_not(case):
    title = f"{case}, right"
    _, report = DEVICE.run(title, grid=case.grid, threads=case.threads, **case.how)
    assert report.findings == []
    assert report.counters.threads == case.grid * case.threads


def kinds_of_the_runtime() -> set[str]:
    """The kinds that the runtime's sources write."""
    texts = [path.read_text() for path in RUNTIME.glob("*.cpp")]
    calls = [call for text in texts for call in re.findall(r"\bfind\(([^;]*?), ", text)]
    return {kind for call in calls for kind in re.findall(r'"([a-z-]+)"', call)}


def test_every_kind_has_a_case():
    assert {case.kind for case in CASES} == kinds_of_the_runtime()


# --- Over several runs ----------------------------------------------------------------------------


def test_what_one_run_wrote_another_one_may_read():
    out, report = DEVICE.run("uninitialised: an output that is read, right")
    assert report.findings == []
    wrong = "uninitialised: an output that is read, wrong"
    again, report = DEVICE.run(wrong, buffers={0: out}, poison=())
    assert report.findings == []
    np.testing.assert_array_equal(again, 3 * numbers())


def test_memory_that_is_bound_twice_is_one_memory():
    x, copy = numbers(), "out-of-bounds: a write, right"
    _, report = DEVICE.run(copy, buffers={0: x, 1: x}, poison=())
    assert report.findings == []
    _, report = DEVICE.run(copy, buffers={0: x, 1: (x, 4)}, threads=63, poison=())
    assert report.kinds == {"device-race"}
    assert "buffer 0 (out)" in str(report.findings[0])
    assert "which was read by thread 0" in str(report.findings[0])


def test_what_was_poisoned_is_so_for_one_run():
    x = numbers()
    DEVICE.run("uninitialised: an input that holds nothing, wrong", buffers={1: x}, poison=(1,))
    assert np.isnan(x).all()
    _, report = DEVICE.run("uninitialised: an input that holds nothing, wrong", buffers={1: x})
    assert report.findings == []
