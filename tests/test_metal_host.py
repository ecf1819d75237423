"""The Metal backend's host code: what it launches, in which order, and what it does when it cannot.

src/backends/metal*.cpp runs here as it ships, on a double of MLX's encoder that objects to what
MLX or Metal would punish (emulator/double). A test fails on any finding that it does not take.
"""

from __future__ import annotations

import ctypes
import shutil
from contextlib import contextmanager
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from cases import Case, call, expected, make, replace, to_numpy
from mlx_sdpa_ext import _ext, software
from tolerances import check, check_lse

pytestmark = [pytest.mark.metal, pytest.mark.emulator]
KERNELS = Path(__file__).parents[1] / "kernels"
PREFILL = Case(Hq=2, Hkv=1, Lq=40, Lk=150, D=64, dtype="float16", mask="causal")
DECODE = Case(Hq=4, Hkv=2, Lq=1, Lk=600, D=64, dtype="float16", mask="causal")


@contextmanager
def device(dispatch_flops=1e15, fill=1, memory=0):
    """The software device with these limits; what was in force comes back."""
    loaded = software._loaded
    software.use(loaded or "applegpu_g13g")
    before = {name: _ext.gpu()[name] for name in ("dispatch_flops", "fill", "memory")}
    _ext.set_gpu_limits(dispatch_flops=dispatch_flops, fill=fill, memory=memory)
    take_commits()
    try:
        yield
    finally:
        _ext.set_gpu_limits(**before)
        software.use(loaded)


def take_report():
    import emulator

    return emulator.take_report()


def take_commits() -> list[int]:
    """The dispatches in each command buffer that was committed since this was last asked."""
    import emulator

    library = ctypes.CDLL(str(emulator.backend()))
    counts = (ctypes.c_int * 10_000)()
    return list(counts[: library.softmetal_take_commits(counts, len(counts))])


def plan(case: Case, **more):
    gpu = _ext.gpu()
    limits = {name: gpu[name] for name in ("dispatch_flops", "fill", "memory")}
    return _ext.plan(
        case.B, case.Hq, case.Hkv, case.Lq, case.Lk, case.D, case.v_dim, case.dtype, case.mask,
        window=case.window or 0, softcap=case.softcap is not None, sinks=case.sinks,
        want_lse=case.lse, chunk_size=case.chunk_size, backend="metal", arch=gpu["arch"],
        **limits, **more,
    )  # fmt: skip


def verify(case: Case, rng, **options) -> dict:
    """Runs the case and compares it; returns its plan, and asserts that it was what ran."""
    x = make(case, rng)
    take_report()
    results = call(case, *x.arrays, x.mask_arg, x.sinks_arg, **options)
    mx.eval(results)
    out, lse = expected(case, x)
    check(to_numpy(results[0]), out, case.tolerance)
    if case.lse:
        check_lse(to_numpy(results[1]), lse, case.tolerance)
    report, planned = take_report(), plan(case)
    assert not report.findings, report.findings
    assert planned["kernel"] in report.kernels
    assert report.counters.dispatches == planned["dispatches"]
    return planned


# --- Chunks, splits, dispatches ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", ("float16", "float32"))
@pytest.mark.parametrize("lse", (True, False))
@pytest.mark.parametrize("chunk_size", (64, 50, 149))
@pytest.mark.parametrize("case", (PREFILL, DECODE), ids=("prefill", "decode"))
def test_chunks_run_one_after_the_other(case, chunk_size, lse, dtype, rng):
    """Between them O is carried, in place where it is float32, and lse, in two places in turns."""
    case = replace(case, dtype=dtype, lse=lse, path="chunked", chunk_size=chunk_size, sinks=True)
    with device():
        planned = verify(case, rng)
    assert planned["chunks"] == -(-case.Lk // chunk_size) == planned["dispatches"]
    rows = case.B * case.Hq * case.Lq
    scratch = 4 * rows * (case.D * (dtype != "float32") + min(planned["chunks"] - 1, 2))
    assert planned["scratch_bytes"] == scratch


@pytest.mark.parametrize("chunk_size", (0, 512))
@pytest.mark.parametrize("dtype", ("float16", "float32"))
def test_split_keys_are_merged(chunk_size, dtype, rng):
    """Of each chunk, whose result the splits of the next one continue."""
    case = replace(DECODE, Lk=1200, dtype=dtype, path="chunked", chunk_size=chunk_size, sinks=True)
    with device(fill=8):
        planned = verify(case, rng)
    assert planned["splits"] == (4 if not chunk_size else 2)
    assert planned["dispatches"] == 2 * planned["chunks"]


@pytest.mark.parametrize("case", (PREFILL, DECODE), ids=("prefill", "decode"))
@pytest.mark.parametrize("bound", (1e7, 1e6, 1e5))
@pytest.mark.parametrize("fill", (1, 8))
def test_a_bound_on_dispatches_cuts_the_grid(bound, fill, case, rng):
    """Over heads and rows, then over splits, then over keys; each command buffer is bounded too."""
    case = replace(case, B=2, sinks=True)
    with device(dispatch_flops=bound, fill=fill):
        planned = verify(case, rng)
        block = 2 * planned["bq"] * planned["bk"] * 2 * case.D
        assert planned["longest_flops"] <= max(bound, block)
        commits = take_commits()
    if bound < 1e7:
        assert planned["dispatches"] > 2
    if planned["dispatches"] > 2:
        assert len(commits) > 1, "the parts do not share a command buffer"


def test_a_window_leaves_out_what_no_row_sees(rng):
    case = replace(DECODE, Lk=3000, window=300, path="chunked", chunk_size=500)
    with device():
        assert verify(case, rng)["chunks"] == 1


# --- Command buffers -----------------------------------------------------------------------------


def test_small_calls_share_a_command_buffer(rng):
    """And MLX ends it, by the number of operations."""
    with device():
        x = make(DECODE, rng)
        mx.eval([call(DECODE, *x.arrays, x.mask_arg, None) for _ in range(100)])
        commits = take_commits()
    assert sum(commits) == 100 and min(commits[:-1]) > 40
    assert not take_report().findings


def test_large_calls_do_not(rng):
    """Their work is summed up over calls: two of 0.4 share a buffer, two of 0.6 do not."""
    with device():
        work = plan(PREFILL)["longest_flops"]
    for share, most in ((0.4, 2), (0.6, 1)):
        with device(dispatch_flops=work / share):
            x = make(PREFILL, rng)
            # one after the other in the graph, so that MLX evaluates them in one go
            q = x.arrays[0]
            for _ in range(6):
                q = call(replace(PREFILL, lse=False), q, *x.arrays[1:], x.mask_arg, None)[0]
            mx.eval(q)
            commits = take_commits()
        assert len(commits) == 6 // most and max(commits) == most
    assert not take_report().findings


def test_several_streams(rng):
    with device(dispatch_flops=1e6):
        x = make(PREFILL, rng)
        streams = [mx.new_stream(mx.cpu) for _ in range(3)]
        results = [call(PREFILL, *x.arrays, x.mask_arg, None, stream=s) for s in streams]
        mx.eval(results)
        out, _ = expected(PREFILL, x)
        for result in results:
            check(to_numpy(result[0]), out, PREFILL.tolerance)
    assert not take_report().findings


# --- Memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("Hq", (2, 16, 32))  # one row, all rows of decode, and of a tile of many
@pytest.mark.parametrize("fill", (1, 8))
@pytest.mark.parametrize("chunk_size", (0, 300))
@pytest.mark.parametrize("dtype", ("float16", "float32"))  # whose O is also what chunks carry
def test_the_result_may_take_the_place_of_q(dtype, Hq, fill, chunk_size, rng):
    """Where q is a temporary; several in a row, so that a wrong one would show in the next."""
    case = replace(DECODE, dtype=dtype, Hq=Hq, lse=False, path="chunked", chunk_size=chunk_size)
    x = make(case, rng)
    once, _ = expected(case, x)
    with device(fill=fill):
        q = mx.multiply(x.arrays[0], 1)
        for _ in range(3):
            out = call(case, q, *x.arrays[1:], x.mask_arg, None)[0]
            q = mx.where(True, x.arrays[0], out)  # uses out, and is q again
        del out
        mx.eval(q)
        result = call(case, mx.multiply(x.arrays[0], 1), *x.arrays[1:], x.mask_arg, None)[0]
        mx.eval(result)
        check(to_numpy(result), once, case.tolerance)
    assert not take_report().findings


def test_q_stays_as_it_is_where_it_is_used_again(rng):
    with device():
        x = make(DECODE, rng)
        q = mx.multiply(x.arrays[0], 1)
        out = call(DECODE, q, *x.arrays[1:], x.mask_arg, None)[0]
        mx.eval(out, q)
        np.testing.assert_array_equal(to_numpy(q), x.q)


LAYOUTS = ("heads", "ring", "columns", "strided", "reversed_last", "reversed_rows", "one_head")


@pytest.mark.parametrize("case", (PREFILL, DECODE), ids=("prefill", "decode"))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_operands_are_read_where_they_lie(layout, case, rng):
    """Offsets, strides of any sign, and vector loads only where all rows are aligned."""
    for operand in ("q_layout", "k_layout", "v_layout"):
        with device(fill=4):
            verify(replace(case, **{operand: layout}), rng)


@pytest.mark.parametrize("D", (64, 60, 52, 33))
def test_rows_that_are_not_aligned(D, rng):
    for case in (PREFILL, DECODE):
        with device(fill=4):
            verify(replace(case, D=D), rng)


@pytest.mark.parametrize("dtype", ("float16", "float32"))
@pytest.mark.parametrize("n", (1, 2, 3, 5))
def test_merge_adds_up_parts_in_arrays_of_their_own(n, dtype, rng):
    case = replace(PREFILL, dtype=dtype, mask="none", Lk=30 * n)
    x = make(case, rng)
    q, k, v = x.arrays
    with device(dispatch_flops=1e5):
        parts = [
            call(case, q, k[:, :, i : i + 30], v[:, :, i : i + 30], None, None)
            for i in range(0, case.Lk, 30)
        ]
        empty = [mx.full(parts[0][0].shape, float("nan"), q.dtype), mx.full(x.q.shape[:3], -np.inf)]
        outs, lses = zip(*parts, empty)
        out, lse = _ext.merge(list(outs), list(lses))
        mx.eval(out, lse)
    want, want_lse = expected(case, x)
    # each part is rounded to the dtype before it is merged
    tolerance = case.tolerance._replace(rms=2 * case.tolerance.rms, rtol=2 * case.tolerance.rtol)
    check(to_numpy(out), want, tolerance)
    check_lse(to_numpy(lse), want_lse, tolerance)
    assert not take_report().findings


# --- What the device refuses ---------------------------------------------------------------------


@contextmanager
def max_threads(name: str, threads: int):
    """Pipelines of kernels with this in their names take so many threads."""
    import emulator

    emulator.set_max_threads(name, threads)
    try:
        yield
    finally:
        emulator.set_max_threads(name, 0)


def test_a_pipeline_of_few_threads_makes_the_plan_take_another_tile(rng):
    case = replace(PREFILL, D=256)
    wide = _ext.plan(1, 2, 1, 40, 150, 256, 256, "float16", "causal", backend="metal")["kernel"]
    x = make(case, rng)
    with device(), max_threads("sdpa_prefill_", 128):
        assert _ext.prepare(*x.arrays, mask="causal", return_lse=True) is None
        take_report()
        results = call(case, *x.arrays, "causal", None)
        mx.eval(results)
        report = take_report()
    assert not report.findings
    (kernel,) = report.kernels
    assert "_middle_" in kernel and kernel != wide
    check(to_numpy(results[0]), expected(case, x)[0], case.tolerance)


def test_a_device_that_takes_no_tile_is_a_failure_by_name(rng):
    x = make(PREFILL, rng)
    with device(), max_threads("", 32):
        name, error = _ext.prepare(*x.arrays, mask="causal")
        assert name == plan(PREFILL)["kernel"] and "32 threads" in error
        assert (name, error) in _ext.gpu()["failures"]
        with pytest.raises(_ext.KernelFailure, match=f"{name}.*32 threads"):
            mx.eval(call(PREFILL, *x.arrays, "causal", None))
    report = take_report()
    assert not report.kernels and not report.findings


@contextmanager
def kernel_folder(path: Path):
    before = _ext.gpu()["kernels"]
    _ext.set_kernel_folder(str(path))
    try:
        yield
    finally:
        _ext.set_kernel_folder(before)


def copied(folder: Path) -> Path:
    shutil.copytree(KERNELS, folder / "kernels")
    return folder / "kernels"


def test_a_kernel_that_does_not_compile_is_a_failure_by_name(tmp_path, rng):
    """prepare() says so before anything is evaluated; its message has our file and line."""
    kernels = copied(tmp_path)
    text = (kernels / "metal/softmax.h").read_text()
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if "inline float score(" in line)
    lines[at] = lines[at].replace("score(", "score(no_such_type x, ")
    (kernels / "metal/softmax.h").write_text("\n".join(lines) + "\n")
    x = make(PREFILL, rng)
    with device(), kernel_folder(kernels):
        name, error = _ext.prepare(*x.arrays, mask="causal")
        assert name == plan(PREFILL)["kernel"]
        assert "no_such_type" in error and f"kernels/metal/softmax.h:{at + 1}" in error
        assert _ext.prepare(*x.arrays, mask="causal") == (name, error), "not compiled again"
        with pytest.raises(_ext.KernelFailure, match=f"kernel {name}: .*"):
            mx.eval(call(PREFILL, *x.arrays, "causal", None))
        assert name in dict(_ext.gpu()["failures"])
    with device():
        assert _ext.prepare(*x.arrays, mask="causal") is None
        verify(PREFILL, rng)


def test_without_its_kernel_merge_runs_on_stock_operations(tmp_path, rng):
    kernels = copied(tmp_path)
    (kernels / "metal/merge.h").write_text("#pragma once\n#error merge is broken\n")
    outs = [mx.array(rng.standard_normal((1, 2, 3, 8)).astype(np.float32)) for _ in range(2)]
    lses = [mx.array(rng.standard_normal((1, 2, 3)).astype(np.float32)) for _ in range(2)]
    with device():
        want = _ext.merge(outs, lses)
        mx.eval(want)
        take_report()
        with kernel_folder(kernels):
            with pytest.warns(RuntimeWarning, match="(?s)sdpa_merge_float32.*merge is broken"):
                got = _ext.merge(outs, lses)
            _ext.merge(outs, lses)  # warnings are errors here: there is no second one
            mx.eval(got)
    assert not take_report().kernels
    for a, b in zip(got, want):
        np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=1e-5, atol=1e-6)


def test_kernel_files_that_are_missing_or_not_ascii(tmp_path, rng):
    kernels = copied(tmp_path)
    x = make(PREFILL, rng)
    with (kernels / "metal/mask.h").open("a") as file:
        file.write("// \N{GREEK SMALL LETTER ALPHA}\n")
    with device(), kernel_folder(kernels):
        assert "mask.h" in _ext.prepare(*x.arrays)[1]
    (kernels / "params.h").unlink()
    (kernels / "metal/mask.h").unlink()
    with device(), kernel_folder(kernels):
        assert "mask.h cannot be read" in _ext.prepare(*x.arrays)[1]
    with device():
        verify(PREFILL, rng)


def test_a_call_without_a_kernel_is_refused_early():
    q, k = mx.zeros((1, 1, 1, 600)), mx.zeros((1, 1, 8, 600))
    with device():
        with pytest.raises(ValueError, match=r"no metal kernel for head_dim 600"):
            _ext.sdpa(q, k, k, scale=1.0)
        with pytest.raises(ValueError, match=r"no metal kernel for head_dim 600"):
            _ext.prepare(q, k, k)


@pytest.mark.parametrize("shape", [(0, 2, 3, 64), (1, 2, 0, 64)], ids=str)
def test_nothing_is_launched_for_nothing(shape):
    q, k = mx.zeros(shape), mx.zeros((shape[0], 1, 5, 64))
    with device():
        out, lse = _ext.sdpa(q, k, k, scale=1.0, return_lse=True)
        mx.eval(out, lse)
        assert _ext.prepare(q, k, k) is None
    assert out.shape == shape and not take_report().kernels


# --- Loading -------------------------------------------------------------------------------------


def test_libraries_that_are_no_backend(tmp_path):
    import emulator

    with pytest.raises(RuntimeError, match=r"missing\.so.*does not load"):
        _ext.load_gpu_backend(str(tmp_path / "missing.so"))
    with pytest.raises(RuntimeError, match="exports no sdpa_gpu_abi"):
        _ext.load_gpu_backend(str(emulator.runtime()))
    with device():
        assert _ext.gpu()["name"] == "software-metal", "as before"


def test_the_backend_can_be_left(rng):
    case = replace(PREFILL, D=40)
    x = make(case, rng)
    with device(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(software, "_loaded", None)
        _ext.load_gpu_backend("")
        assert _ext.gpu() is None
        assert _ext.prepare(*x.arrays) is None
        mx.eval(call(case, *x.arrays, "causal", None))
        assert not take_report().kernels
        software.use("applegpu_g15s")
        assert _ext.gpu()["arch"] == "applegpu_g15s"


def test_limits_are_checked():
    with device():
        for name in ("dispatch_flops", "fill", "memory"):
            with pytest.raises(ValueError, match=name):
                _ext.set_gpu_limits(**{name: -1})
        _ext.set_gpu_limits(dispatch_flops=5e9, fill=7, memory=1000)
        assert (_ext.gpu()["dispatch_flops"], _ext.gpu()["fill"]) == (5e9, 7)
        assert _ext.gpu()["memory"] == 1000
        _ext.set_gpu_limits()
        assert (_ext.gpu()["dispatch_flops"], _ext.gpu()["fill"]) == (2e11, 20)
