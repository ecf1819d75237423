"""Memory above inputs and outputs is bounded: by a tile, by the output, or by a limit."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from cases import DTYPES
from memory import MiB, added, process_peak, reset_process_peak
from mlx_sdpa_ext import _ext, attention, limits


@pytest.fixture(autouse=True)
def two_threads(default_cpu):
    """Bounds are of as many: each thread has tiles of its own."""
    _ext.set_cpu_threads(2)


def normal(*shape, dtype=mx.float32):
    return mx.random.normal(shape, dtype=dtype)


LONG = {"q": (1, 16, 2048, 256), "k": (1, 2, 32768, 256)}


@pytest.mark.parametrize("chunk_size", (0, 4096), ids=("fused", "chunked"))
def test_a_long_prefill_step(chunk_size):
    """2048 queries against 32768 keys, H16/2, D 256: below 64 MiB, where scores take 2 GiB."""
    q, k, v = (normal(*LONG[name], dtype=mx.bfloat16) for name in "qkk")

    def run():
        return _ext.sdpa(q, k, v, scale=1 / 16, mask="causal", chunk_size=chunk_size)

    mx.eval(q, k, v)
    watched = reset_process_peak()
    before = process_peak() if watched else 0
    assert added(run, q, k, v) < 64 * MiB
    if watched:  # counts scratch from elsewhere too, and the output
        assert process_peak() - before < 64 * MiB + q.nbytes


@pytest.mark.parametrize("isa", _ext.cpu()["isas"])
@pytest.mark.parametrize("path", ("fused", "chunked"))
@pytest.mark.parametrize(
    "Lq, Lk, D", [(1, 3000, 64), (4, 70000, 256), (300, 40000, 80), (64, 9, 512)]
)
def test_what_explain_says_is_enough(isa, path, Lq, Lk, D):
    """The transient of a route is what it takes at most, and not many times that."""
    q, k = normal(1, 4, Lq, D, dtype=mx.float16), normal(1, 2, Lk, D, dtype=mx.float16)
    call = {"scale": 0.1, "path": path}
    _ext.set_cpu_isa(isa)
    try:
        said = attention.explain(q, k, k, **call).transient_bytes
        took = added(lambda: [attention.scaled_dot_product_attention(q, k, k, **call)], q, k)
    finally:
        _ext.set_cpu_isa("")
    slack = 4096  # MLX rounds its buffers up
    assert took <= said + slack
    assert said <= 4 * took + slack


@pytest.fixture
def memory_limit(monkeypatch):
    def set_limit(text: str):
        monkeypatch.setenv("MLX_SDPA_EXT_MEMORY_LIMIT", text)
        limits.refresh()

    yield set_limit
    monkeypatch.undo()
    limits.refresh()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mask", (None, "causal"))
@pytest.mark.parametrize("return_lse", (False, True), ids=("", "lse"))
def test_unfused_stays_under_the_limit(return_lse, mask, dtype, memory_limit):
    """The step above at 1/64 of its scores, 64 MiB in float32, under 1/64 of its limit: 4 MiB.

    The peak may be 320/256 of the limit. (Stock's matmul takes minutes for the whole step.)
    """
    memory_limit("4MiB")
    q, k, v = (
        normal(1, 16, 256, 16, dtype=getattr(mx, dtype)),
        *(normal(1, 2, 4096, 16) for _ in "kv"),
    )
    k, v = k.astype(q.dtype), v.astype(q.dtype)

    def run():
        results = attention.scaled_dot_product_attention(
            q, k, v, scale=0.25, mask=mask, path="unfused", return_lse=return_lse
        )
        return results if return_lse else [results]

    assert added(run, q, k, v) < 4 * MiB * 320 / 256


@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
@pytest.mark.parametrize("features", ({"return_lse": True}, {"softcap": 3.0}), ids=str)
def test_unfused_counts_keys_and_scores_in_float32(dtype, features, memory_limit):
    """Few rows on many keys: the keys widened for the logsumexp are the larger part."""
    memory_limit("64MiB")
    q, k = (normal(1, 8, L, 64, dtype=getattr(mx, dtype)) for L in (64, 16384))
    call = {"scale": 0.1, "path": "unfused"} | features
    said = attention.explain(q, k, k, **call).transient_bytes
    took = added(lambda: attention.scaled_dot_product_attention(q, k, k, **call), q, k)
    assert took <= said + MiB // 2  # a block's own operands
    assert took <= 64 * MiB * 320 / 256


def test_unfused_blocks_are_chained():
    """MLX evaluates breadth first: without an order, all 64 blocks would be alive at once.

    It also runs a few operations ahead of the CPU, so a few blocks are.
    """
    q, k, v = normal(1, 4, 512, 16), normal(1, 4, 1024, 16), normal(1, 4, 1024, 16)
    one, many = (
        added(lambda rows=rows: _ext.unfused(q, k, v, scale=0.25, block_rows=rows), q, k, v)
        for rows in (0, 8)
    )
    scores = 4 * 512 * 1024 * 4
    assert one >= scores  # the measure sees them
    assert many < scores / 4


@pytest.mark.parametrize("return_lse", (False, True), ids=("", "lse"))
def test_every_input_of_a_block_waits_for_the_block_before(return_lse, tmp_path):
    """Else its keys may be widened, in memory of their own, while that block still computes."""
    q, k, v = normal(1, 4, 64, 16), normal(1, 4, 128, 16), normal(1, 4, 128, 16)
    mask = normal(1, 1, 64, 128)
    results = _ext.unfused(q, k, v, scale=0.25, mask=mask, block_rows=16, return_lse=return_lse)
    mx.export_to_dot(str(tmp_path / "graph"), *results)
    graph = (tmp_path / "graph").read_text()
    assert graph.count('"SdpaBarrier"') == 3  # of four blocks
    assert graph.count('"SdpaAfter"') == 3 * len((q, k, v, mask))


@pytest.mark.parametrize("Hq, Hkv", [(8, 1), (8, 2), (8, 8)])
@pytest.mark.parametrize("Lq", (1, 4))
@pytest.mark.parametrize("dtype", DTYPES)
def test_decode_does_not_repeat_or_widen_keys_and_values(dtype, Lq, Hq, Hkv):
    q = normal(1, Hq, Lq, 64, dtype=getattr(mx, dtype))
    k, v = (normal(1, Hkv, 16384, 64, dtype=getattr(mx, dtype)) for _ in "kv")
    assert added(lambda: _ext.sdpa(q, k, v, scale=0.1), q, k, v) < MiB
    assert k.nbytes >= 2 * MiB


@pytest.mark.parametrize("Lq", (1, 32))
@pytest.mark.parametrize("layout", ("heads", "cache", "transposed", "reversed", "one head"))
def test_strided_inputs_are_not_copied(layout, Lq):
    def operand(H, L):  # 8 MiB at H 4, L 8192
        if layout == "heads":
            return normal(1, L, H, 64).swapaxes(1, 2)
        if layout == "cache":
            return normal(1, H, L + 512, 64)[:, :, :L]
        if layout == "transposed":
            return normal(1, H, 64, L).swapaxes(2, 3)
        if layout == "reversed":
            return normal(1, H, L, 64)[..., ::-1]
        return mx.broadcast_to(normal(1, 1, L, 64), (1, H, L, 64))

    q, k, v = operand(8, Lq), operand(4, 8192), operand(4, 8192)
    assert added(lambda: _ext.sdpa(q, k, v, scale=0.1), q, k, v) < MiB


MASKS = {
    "11QK": (1, 1, 256, 4096),
    "B11K": (4, 1, 1, 4096),
    "1H1K": (1, 8, 1, 4096),
    "K": (4096,),
    "QK transposed": (4096, 256),
}


@pytest.mark.parametrize("kind", ("bool", "float32", "float16"))
@pytest.mark.parametrize("shape", MASKS)
@pytest.mark.parametrize("path", ("fused", "chunked"))
def test_a_broadcast_mask_is_never_expanded(path, shape, kind):
    """[4, 8, 256, 4096] would be 32 MiB of bool and 128 MiB of float32."""
    q, k, v = normal(4, 8, 256, 8), normal(4, 2, 4096, 8), normal(4, 2, 4096, 8)
    mask = mx.random.normal(MASKS[shape])
    mask = mask > 0 if kind == "bool" else mask.astype(getattr(mx, kind))
    if "transposed" in shape:
        mask = mask.T
    chunk_size = 512 if path == "chunked" else 0

    def run():
        return _ext.sdpa(q, k, v, scale=0.3, mask=mask, chunk_size=chunk_size)

    # a narrower mask may be widened to the inputs' dtype at its own shape
    widened = mask.size * 4 if kind == "float16" else 0
    assert added(run, q, k, v, mask) < 2 * MiB + widened


@pytest.mark.parametrize("Lq", (1, 64))
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_many_chunks_take_no_more_than_two(dtype, Lq):
    """The carried output is one, however many chunks add to it."""
    q = normal(1, 8, Lq, 64, dtype=getattr(mx, dtype))
    k, v = (normal(1, 2, 8192, 64, dtype=getattr(mx, dtype)) for _ in "kv")
    peaks = [
        added(lambda n=n: _ext.sdpa(q, k, v, scale=0.1, chunk_size=n), q, k, v)
        for n in (4096, 512, 32)
    ]
    outputs = 8 * Lq * 65 * 4
    assert max(peaks) <= peaks[0] + 2 * outputs + 4096


def test_a_bool_mask_of_one_row_costs_nothing_in_decode():
    """As batched generation with left padding has it: [B, 1, 1, Lk] beside one query."""
    q, k, v = normal(4, 8, 1, 64), normal(4, 2, 4096, 64), normal(4, 2, 4096, 64)
    mask = mx.random.uniform(shape=(4, 1, 1, 4096)) > 0.2
    assert added(lambda: _ext.sdpa(q, k, v, scale=0.1, mask=mask), q, k, v, mask) < MiB // 2


TILES = 2 * MiB  # Q, K, V, S and O tiles of one thread fit its L2 cache


@pytest.mark.parametrize(
    ("Lq", "Lk", "chunk_size"), [(1, 8192, 0), (1, 8192, 2048), (64, 4096, 1000), (300, 500, 0)]
)
def test_plan_says_the_scratch_that_is_taken(Lq, Lk, chunk_size):
    """The scratch that explain() prints bounds what the call takes, beside the tiles."""
    _ext.set_cpu_threads(4)
    q, k, v = normal(1, 8, Lq, 64), normal(1, 1, Lk, 64), normal(1, 1, Lk, 64)
    plan = _ext.plan(1, 8, 1, Lq, Lk, 64, 64, "float32", chunk_size=chunk_size, threads=4)
    taken = added(lambda: _ext.sdpa(q, k, v, scale=0.1, chunk_size=chunk_size), q, k, v)
    assert taken <= plan["scratch_bytes"] + 4 * TILES


def test_nothing_is_left_behind():
    """Active memory returns to where it was."""
    q, k, v = normal(1, 8, 64, 64), normal(1, 2, 1024, 64), normal(1, 2, 1024, 64)
    mx.eval(q, k, v)
    mx.eval(_ext.sdpa(q, k, v, scale=0.1))  # thread pools and their scratch are made once
    before = mx.get_active_memory()
    for _ in range(5):
        mx.eval(_ext.sdpa(q, k, v, scale=0.1, chunk_size=100, return_lse=True))
        mx.eval(_ext.unfused(q, k, v, scale=0.1, block_rows=16))
        mx.eval(mx.grad(lambda q: _ext.sdpa(q, k, v, scale=0.1)[0].sum())(q))
    assert mx.get_active_memory() == before
    assert np.isfinite(before)
