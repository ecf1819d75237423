"""Streams, devices and threads: wherever a call runs, it gives the same numbers."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np
import pytest
from cases import Case, call, expected, make, replace, to_numpy
from mlx_sdpa_ext import _ext, attention
from tolerances import TOLERANCES, check, check_lse

PREFILL = Case(B=2, Hq=4, Lq=70, Lk=150, D=64, mask="causal", sinks=True)
DECODE = Case(B=1, Hq=4, Hkv=2, Lq=1, Lk=2000, D=64)
CASES = {
    "prefill": PREFILL,
    "decode": DECODE,
    "chunked": replace(PREFILL, path="chunked", chunk_size=40),
    "chunked decode": replace(DECODE, path="chunked", chunk_size=701),
    "unfused": replace(PREFILL, path="unfused", block_rows=32),
    "bfloat16": replace(PREFILL, dtype="bfloat16"),
}


pytestmark = pytest.mark.usefixtures("default_cpu")


STREAMS = {
    "none": lambda: None,
    "device type": lambda: mx.cpu,
    "device": lambda: mx.Device(mx.cpu, 0),
    "default stream": lambda: mx.default_stream(mx.cpu),
    "new stream": lambda: mx.new_stream(mx.cpu),
}


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("name", CASES)
def test_stream_argument(name, stream, rng):
    case = CASES[name]
    x = make(case, rng)
    results = call(case, *x.arrays, x.mask_arg, x.sinks_arg, stream=STREAMS[stream]())
    mx.eval(results)
    out, lse = expected(case, x)
    check(to_numpy(results[0]), out, case.tolerance)
    check_lse(to_numpy(results[1]), lse, case.tolerance)


@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("path", ("auto", "fused", "unfused", "chunked", "stock"))
def test_stream_argument_of_the_public_functions(path, stream, rng):
    case = replace(PREFILL, sinks=False)
    x = make(case, rng)
    out = attention.scaled_dot_product_attention(
        *x.arrays, scale=case.scale, mask="causal", path=path, stream=STREAMS[stream]()
    )
    check(to_numpy(out), expected(case, x)[0], case.tolerance)


@pytest.mark.parametrize("name", CASES)
def test_with_stream(name, rng):
    case = CASES[name]
    x = make(case, rng)
    with mx.stream(mx.new_stream(mx.cpu)):
        results = call(case, *x.arrays, x.mask_arg, x.sinks_arg)
        mx.eval(results)
    check(to_numpy(results[0]), expected(case, x)[0], case.tolerance)


def test_one_stream_waits_for_another(rng):
    """Inputs made on one stream, attention on a second, its result used on a third."""
    case = replace(PREFILL, mask="none", sinks=False)
    x = make(case, rng)
    first, second, third = (mx.new_stream(mx.cpu) for _ in range(3))
    for _ in range(20):
        q = mx.multiply(x.arrays[0], 2.0, stream=first)
        out, _ = call(
            case, mx.divide(q, 2.0, stream=first), *x.arrays[1:], None, None, stream=second
        )
        total = mx.sum(mx.abs(out, stream=third), stream=third)
        np.testing.assert_allclose(
            total.item(), np.abs(expected(case, x)[0]).sum(), rtol=TOLERANCES["float32"].atol
        )


def test_two_streams_at_once(rng):
    """Evaluated together, so that both may be in a kernel at the same time."""
    inputs = [(case, make(case, rng)) for case in CASES.values()]
    streams = [mx.new_stream(mx.cpu) for _ in inputs]
    for _ in range(5):
        results = [
            call(case, *x.arrays, x.mask_arg, x.sinks_arg, stream=stream)
            for (case, x), stream in zip(inputs, streams)
        ]
        mx.eval(results)
        for (case, x), (out, lse) in zip(inputs, results):
            want = expected(case, x)
            check(to_numpy(out), want[0], case.tolerance)
            check_lse(to_numpy(lse), want[1], case.tolerance)


def test_async_eval(rng):
    x = make(PREFILL, rng)
    results = [call(PREFILL, *x.arrays, "causal", x.sinks_arg) for _ in range(8)]
    mx.async_eval(results)
    want = expected(PREFILL, x)
    for out, lse in results:
        check(to_numpy(out), want[0], PREFILL.tolerance)
        check_lse(to_numpy(lse), want[1], PREFILL.tolerance)


@pytest.mark.parametrize("name", CASES)
def test_many_python_threads(name, rng):
    """Each builds and evaluates its own graph: MLX 0.32 ties a graph to its thread."""
    case = CASES[name]
    inputs = [make(case, rng) for _ in range(4)]
    mx.eval([a for x in inputs for a in (*x.arrays, x.sinks_arg) if a is not None])
    start = threading.Barrier(8)

    def work(i):
        x = inputs[i % 4]
        start.wait()
        got = []
        for _ in range(4):
            results = call(case, *x.arrays, x.mask_arg, x.sinks_arg)
            mx.eval(results)
            got.append([to_numpy(r) for r in results])
        return got

    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(work, range(8)))
    for i, x in enumerate(inputs):
        check(runs[i][0][0], expected(case, x)[0], case.tolerance)
        for run in (*runs[i], *runs[i + 4]):
            for a, b in zip(run, runs[i][0]):
                np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("threads", (1, 2, 3, 5, 8, 64))
@pytest.mark.parametrize("name", CASES)
def test_thread_counts(name, threads, rng):
    """More threads than cores, than tasks, than keys: right, and bitwise the same when repeated."""
    case = CASES[name]
    x = make(case, rng)
    _ext.set_cpu_threads(threads)
    assert _ext.cpu()["threads"] == threads
    runs = []
    for _ in range(3):
        results = call(case, *x.arrays, x.mask_arg, x.sinks_arg)
        mx.eval(results)
        runs.append([to_numpy(r) for r in results])
    want = expected(case, x)
    check(runs[0][0], want[0], case.tolerance)
    check_lse(runs[0][1], want[1], case.tolerance)
    for run in runs[1:]:
        for a, b in zip(run, runs[0]):
            np.testing.assert_array_equal(a, b)


def test_thread_count_back_to_default():
    default = _ext.cpu()["threads"]
    _ext.set_cpu_threads(default + 3)
    assert _ext.cpu()["threads"] == default + 3
    _ext.set_cpu_threads(0)
    assert _ext.cpu()["threads"] == default
    with pytest.raises(ValueError, match="-1"):
        _ext.set_cpu_threads(-1)


def test_thread_count_changes_between_build_and_evaluation(rng):
    x = make(DECODE, rng)
    want = expected(DECODE, x)
    for built, evaluated in ((1, 8), (8, 1), (2, 5)):
        _ext.set_cpu_threads(built)
        results = call(DECODE, *x.arrays, None, None)
        _ext.set_cpu_threads(evaluated)
        check(to_numpy(results[0]), want[0], DECODE.tolerance)
        check_lse(to_numpy(results[1]), want[1], DECODE.tolerance)


def test_an_instruction_set_this_machine_lacks():
    have = _ext.cpu()
    assert have["isa"] in have["isas"]
    with pytest.raises(ValueError, match="no-such-isa"):
        _ext.set_cpu_isa("no-such-isa")
    assert _ext.cpu() == have
    for isa in have["isas"]:
        _ext.set_cpu_isa(isa)
        assert _ext.cpu()["isa"] == isa
    _ext.set_cpu_isa("")
    assert _ext.cpu() == have


CORES_OF_WORKERS = """
import os
from pathlib import Path
import mlx.core as mx
from mlx_sdpa_ext import attention

mx.set_default_device(mx.cpu)
q, k, v = (mx.ones((1, 1, n, 64)) for n in (1, 4096, 4096))
mx.eval(attention.scaled_dot_product_attention(q, k, v, scale=1.0))
own = os.sched_getaffinity(0)
for task in Path("/proc/self/task").iterdir():
    cores = os.sched_getaffinity(int(task.name))
    if cores != own:
        print(len(own - cores), len(cores - own))
"""


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or _ext.cpu()["threads"] < 2,
    reason="the workers keep off the caller's core on Linux, where there is another",
)
def test_workers_keep_off_the_core_of_their_caller():
    run = [sys.executable, "-c", CORES_OF_WORKERS]
    out = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    assert out == "1 0\n" * (_ext.cpu()["threads"] - 1)
