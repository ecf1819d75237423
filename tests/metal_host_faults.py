"""Faults planted in the Metal backend's host code, and the check that has to catch each.

python tests/metal_host_faults.py    plants all of them and prints which check caught which

Each is compiled into a backend of its own, which a process of its own runs through a few of the
tests of test_metal_host.py. What objects is one of

<kind>    a finding of the device or of the double of MLX's classes: a race, a commit out of order
numbers   the results are not those of the float64 reference
refused   an exception: a buffer that is not bound, a constant that is not set
work      the dispatches or the command buffers are not those of the plan
crash     the process ends
"""
# ruff: noqa: E501  (a table: one fault a line)

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TARGET = "softmetal_backend"
LANES = 2  # build folders, so that as many processes can plant at a time


class HostFault(NamedTuple):
    name: str
    file: str  # in src
    old: str
    new: str
    probes: str  # of PROBES
    caught_by: str

    @property
    def affinity(self) -> tuple:
        return ("host faults", HOST_FAULTS.index(self) % LANES)


HOST_FAULTS = [
    HostFault("a wrong buffer index", "backends/metal.cpp", "in_.v, kBufferV", "in_.v, kBufferK", "whole", "host-run"),
    HostFault("K in the place of V", "backends/metal.cpp", "in_.v, kBufferV", "in_.k, kBufferV", "whole", "numbers"),
    HostFault("a buffer that is not bound", "backends/metal.cpp", "    input_or_q(in_.mask, kBufferMask);\n", "", "whole", "host-run"),
    HostFault("parameters that are not bound", "backends/metal.cpp", "    encoder.set_bytes(d.part, kBufferPart);\n", "", "whole", "host-run"),
    HostFault("an output bound as an input", "backends/metal.cpp", "encoder.set_output_array(out(d.chunk), kBufferO);", "encoder.set_input_array(out(d.chunk), kBufferO);", "chunks", "read-only"),
    HostFault("half of the threads", "backends/metal.cpp", "MTL::Size(plan_.threads, 1, 1)", "MTL::Size(plan_.threads / 2, 1, 1)", "whole", "numbers"),
    HostFault("a row tile left out", "backends/metal.cpp", "MTL::Size(d.part.row_tiles, ", "MTL::Size(std::max(d.part.row_tiles - 1, 1), ", "rows", "numbers"),
    HostFault("splits of later dispatches in the place of the first", "backends/metal.cpp", "d.split0 * rows() * int64_t(sizeof(float))", "0 * d.split0", "cut splits", "numbers"),
    HostFault("splits of earlier dispatches forgotten", "backends/metal.cpp", "splits = std::max(splits, d.split0 + d.part.splits);", "splits = d.part.splits;", "cut splits", "numbers"),
    HostFault("a chunk that does not continue the one before", "backends/metal.cpp", "first ? in_.carry_out : &carry_O_", "in_.carry_out", "chunks", "numbers"),
    HostFault("a carried lse over the one that is read", "backends/metal.cpp", "carry_lse_[(d.chunk + 1) % 2]", "carry_lse_[d.chunk % 2]", "many chunks", "uninitialised"),
    HostFault("O over a Q that is read again", "backends/metal.cpp", "return read_first && plan.chunks == 1 && mx::is", "return mx::is", "donation", "numbers"),
    HostFault("O over a Q that others read", "backends/metal.cpp", "mx::is_donatable(q, out) && ", "", "kept q", "numbers"),
    HostFault("vector loads of rows that are not aligned", "launch.cpp", "bool aligned = s.col == 1 && x.offset() % 16 == 0;", "bool aligned = true; return true;", "unaligned", "misaligned"),
    HostFault("scratch that is too small", "backends/metal.cpp", "commands.scratch({plan_.splits, p.B, p.Hq, p.Lq, p.Dv}, mx::float32)", "commands.scratch({plan_.splits, p.B, p.Hq, p.Lq, p.Dv / 2}, mx::float32)", "splits", "out-of-bounds"),
    HostFault("no bound on a command buffer", "backends/metal_commands.cpp", "before > 0 && before + flops > budget_", "before < 0 && before + flops > budget_", "cut rows", "work"),
    HostFault("work that is not summed up over calls", "backends/metal_commands.cpp", "if (found.buffer != encoder.get_command_buffer()) found", "found", "calls", "work"),
    HostFault("a commit that MLX does not hear of", "backends/metal_commands.cpp", "  if (committed_ || (budget_ > 0 && work() > kFull * budget_)) let_mlx_commit();\n", "", "cut rows", "host-commit"),
    HostFault("a commit inside an encoding", "backends/metal_commands.cpp", "  encoder_.end_encoding();\n", "", "cut rows", "host-commit"),
    HostFault("a temporary on both sides of a commit", "backends/metal_commands.cpp", "  if (committed_) {\n", "  if (false) {\n", "cut splits", "host-fence"),
    HostFault("scratch that nobody keeps", "backends/metal_commands.cpp", "encoder_.add_temporaries(std::move(scratch_));", "scratch_.clear();", "splits", "host-lifetime"),
    HostFault("a thread limit that is not checked", "backends/metal_ready.cpp", "if (most >= ready.plan.threads) return ready;", "if (most >= 0) return ready;", "few threads", "host-threads"),
    HostFault("a missing constant", "backends/metal_pipeline.cpp", "{&c.window, kBool, kConstantWindow}", "{&c.window, kBool, kConstantVector}", "whole", "refused"),
    HostFault("constants mixed up", "backends/metal_pipeline.cpp", "{&c.causal, kBool, kConstantCausal}", "{&c.sinks, kBool, kConstantCausal}", "whole", "numbers"),
    HostFault("one pipeline for all constants", "backends/metal_pipeline.cpp", "kernel.name + spelled(constants)", "kernel.name", "two calls", "host-constants"),
    HostFault("rows and heads mixed up", "launch.cpp", "x.shape(1) == 1 ? 0 : x.strides(1),\n      x.shape(2) == 1 ? 0 : x.strides(2),", "x.shape(1) == 1 ? 0 : x.strides(2),\n      x.shape(2) == 1 ? 0 : x.strides(1),", "rows", "numbers"),
    HostFault("causality aligned to the first key", "launch.cpp", ".q_offset = p.q_offset,", ".q_offset = 0,", "whole", "numbers"),
    HostFault("sinks in every chunk", "plan_gpu.cpp", "p_.sinks && chunk == 0 && splits.first == 0", "p_.sinks && splits.first == 0", "chunks", "numbers"),
    HostFault("sinks in every dispatch of splits", "plan_gpu.cpp", "p_.sinks && chunk == 0 && splits.first == 0", "p_.sinks && chunk == 0", "cut splits", "numbers"),
    HostFault("no carry between chunks", "plan_gpu.cpp", "(chunk > 0 || p_.carry) && splits.first == 0", "p_.carry && splits.first == 0", "chunks", "numbers"),
    HostFault("a wrong chunk offset", "plan_gpu.cpp", ".key0 = begin,", ".key0 = begin + (chunk > 0),", "chunks", "numbers"),
    HostFault("keys beyond the last", "plan_gpu.cpp", "int(std::min<int64_t>(begin + plan_.chunk_keys, all_.end))", "int(begin + plan_.chunk_keys)", "last chunk", "out-of-bounds"),
    HostFault("a head left out", "plan_gpu.cpp", "const int n = std::min(step, heads() - h);\n        add(", "const int n = std::max(std::min(step, heads() - h) - 1, 1);\n        add(", "rows", "numbers"),
    HostFault("no bound on a dispatch", "plan_gpu.cpp", "if (sum <= most_flops_) {", "if (sum >= 0) {", "cut splits", "work"),
    HostFault("merge over the lse that it reads", "backends/metal_merge.cpp", "&lse[i % 2]", "&lse[(i + 1) % 2]", "merge", "device-race"),
    HostFault("rows of the merge left out", "backends/metal_merge.cpp", "ceil_div(rows, simdgroups), 1)", "rows / simdgroups, 1)", "merged rows", "numbers"),
    HostFault("two outputs of a merge mixed up", "backends/metal_merge.cpp", ".part_lses = inputs[n + i]", ".part_lses = inputs[n]", "merge", "numbers"),
]  # fmt: skip


# --- In a process of its own --------------------------------------------------------------------


def probes() -> dict:
    import test_metal_host as host
    from cases import replace

    heads = replace(host.PREFILL, B=2, Hq=4, Hkv=2, sinks=True)
    whole = replace(host.PREFILL, softcap=3.0)

    def verify(*cases, fill=1):
        def run(rng):
            with host.device(fill=fill):
                for case in cases:
                    host.verify(case, rng)

        return run

    def of(test, **values):
        return lambda rng: test(**values, rng=rng)

    bounded = of(
        host.test_a_bound_on_dispatches_cuts_the_grid, bound=1e5, fill=1, case=host.PREFILL
    )
    split = of(host.test_a_bound_on_dispatches_cuts_the_grid, bound=1e5, fill=8, case=host.DECODE)
    return {
        "whole": verify(whole),
        "last chunk": verify(replace(host.PREFILL, mask="none", path="chunked", chunk_size=64)),
        "merged rows": verify(replace(host.PREFILL, mask="none", Lq=33, Lk=600), fill=8),
        "two calls": verify(host.PREFILL, replace(host.PREFILL, mask="none")),
        "rows": verify(replace(heads, Lq=70)),
        "cut rows": bounded,
        "cut splits": split,
        "splits": of(host.test_split_keys_are_merged, chunk_size=0, dtype="float16"),
        "chunks": of(
            host.test_chunks_run_one_after_the_other,
            case=host.PREFILL, chunk_size=50, lse=True, dtype="float16",
        ),
        "many chunks": verify(replace(host.PREFILL, path="chunked", chunk_size=40)),
        "donation": of(
            host.test_the_result_may_take_the_place_of_q,
            dtype="float32", Hq=16, fill=1, chunk_size=300,
        ),
        "kept q": of(host.test_q_stays_as_it_is_where_it_is_used_again),
        "unaligned": of(host.test_rows_that_are_not_aligned, D=60),
        "calls": of(host.test_large_calls_do_not),
        "few threads": of(host.test_a_pipeline_of_few_threads_makes_the_plan_take_another_tile),
        "merge": of(host.test_merge_adds_up_parts_in_arrays_of_their_own, n=5, dtype="float16"),
    }  # fmt: skip


def probe(library: str, name: str) -> dict[str, str]:
    """Runs one probe on this backend: {check: what it says}."""
    import emulator

    emulator.backend = lambda: Path(library)

    import conftest  # noqa: F401  (MLX's default device)
    import numpy as np
    import test_metal_host as host
    from metal_pool import ARCHITECTURE
    from mlx_sdpa_ext import software

    software.use(ARCHITECTURE)
    findings = []

    def take_report():
        report = emulator.take_report()
        findings.extend(report.findings)
        return report

    host.take_report = take_report
    raised = None
    try:
        probes()[name](np.random.default_rng(0))
    except Exception as error:
        raised = error
    take_report()
    found = {finding.kind: str(finding) for finding in findings}
    if isinstance(raised, AssertionError):
        text = str(raised) or traceback.format_exception(raised)[-2]
        wrong = re.search(r"tolerance|rms error|Arrays are not equal|NaN", text)
        if wrong or not found:
            found["numbers" if wrong else "work"] = text
    elif raised:
        found["refused"] = str(raised)
    return found


# --- Planting -----------------------------------------------------------------------------------


class Tree:
    """A copy of what the backend is built of, and its build folder."""

    def __init__(self):
        import emulator
        from emulator.toolchain import tool

        self._folder = tempfile.TemporaryDirectory()
        self.root = Path(self._folder.name)
        for name in ("emulator", "kernels", "src"):
            shutil.copytree(ROOT / name, self.root / name)
        self._cmake = tool("cmake")
        self._build = self.root / "build"
        command = [self._cmake, "-S", self.root / "emulator", "-B", self._build, "-G", "Ninja"]
        command += [
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
        ]
        command += [f"-DSOFTMETAL_TARGET={TARGET}", f"-DSOFTMETAL_LIBRARY={emulator.runtime()}"]
        self._run(command)

    @staticmethod
    def _run(command) -> None:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    def built(self) -> Path:
        self._run([self._cmake, "--build", self._build, "--target", TARGET, "--parallel", "1"])
        (library,) = self._build.rglob(f"lib{TARGET}.*")
        return library

    def check(self, fault: HostFault | None, names: str) -> dict[str, str]:
        path = self.root / "src" / (fault.file if fault else "launch.cpp")
        text = path.read_text()
        if fault:
            count = text.count(fault.old)
            assert count == 1, f"{fault.name}: {count} places to plant it"
            path.write_text(text.replace(fault.old, fault.new))
        try:
            library = self.built()
            command = [sys.executable, __file__, "--probe", str(library), names]
            paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
            done = subprocess.run(
                command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
            )
            if done.returncode:
                return {"crash": f"ended with {done.returncode}: {done.stderr[-1000:]}"}
            return json.loads(done.stdout.splitlines()[-1])
        finally:
            path.write_text(text)


@functools.cache
def tree() -> Tree:
    """Of this process."""
    return Tree()


def caught(fault: HostFault | None, probes: str = "") -> dict[str, str]:
    """What objects to the host code with this fault in it: {check: what it says}."""
    return tree().check(fault, probes or fault.probes)


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--probe"]:
        print(json.dumps(probe(*arguments[1:])))
        return
    for fault in HOST_FAULTS:
        found = caught(fault)
        print(f"{fault.name:54} {fault.file:28} {', '.join(found) or 'NOT CAUGHT'}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
