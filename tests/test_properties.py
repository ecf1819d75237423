"""Random problems of every kind, and what attention must satisfy whatever its inputs are."""

from __future__ import annotations

import layouts
import mlx.core as mx
import numpy as np
import pytest
from cases import DTYPES, Case, call, compute, expected, make, replace, to_numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_sdpa_ext import _ext, attention
from tolerances import TOLERANCES, Tolerance, check, check_lse

ANY = settings(max_examples=150, deadline=None, database=None)
MASK_SHAPES = (
    "",
    "1",
    "K",
    "Q1",
    "QK",
    "1QK",
    "HQK",
    "H1K",
    "11QK",
    "B11K",
    "1H1K",
    "B1QK",
    "BHQ1",
    "BHQK",
)


pytestmark = pytest.mark.usefixtures("default_cpu")


@st.composite
def cases(draw, **fixed):
    """Any problem of at most about 200 x 700 scores a head."""
    small = st.sampled_from((1, 2, 3, 7, 8, 16, 17, 31, 64, 65, 127, 129, 200))
    mask = fixed.get("mask") or draw(st.sampled_from(("none", "causal", "bool", "additive")))
    Hkv, group = draw(st.sampled_from((1, 2, 3))), draw(st.sampled_from((1, 2, 3, 8)))
    path = draw(st.sampled_from(("fused", "fused", "chunked", "unfused")))
    choices = {
        "B": draw(st.integers(1, 3)),
        "Hq": Hkv * group,
        "Hkv": Hkv,
        "Lq": draw(small),
        "Lk": draw(small | st.integers(1, 700)),
        "D": draw(st.integers(1, 40) | st.sampled_from((64, 72, 96, 130, 257))),
        "Dv": draw(st.integers(1, 40) | st.sampled_from((64, 72, 96, 130, 257))),
        "dtype": draw(st.sampled_from(DTYPES)),
        "mask": mask,
        "mask_shape": draw(st.sampled_from(MASK_SHAPES)),
        "window": draw(st.none() | st.integers(1, 100)) if mask == "causal" else None,
        "softcap": draw(st.none() | st.floats(0.5, 30, width=16)),
        "sinks": draw(st.booleans()),
        "path": path,
        "chunk_size": draw(st.integers(1, 300)) if path == "chunked" else 0,
        "block_rows": draw(st.integers(1, 100)) if path == "unfused" else 0,
    }
    return Case(**choices | fixed)


seeds = st.integers(0, 2**32 - 1).map(np.random.default_rng)


@ANY
@given(
    case=cases(),
    rng=seeds,
    threads=st.sampled_from((1, 2, 3, 8)),
    isa=st.sampled_from(_ext.cpu()["isas"]),
)
def test_any_problem_in_any_memory(case, rng, threads, isa):
    """Random strides, offsets and directions; NaN in all memory that is not an input."""
    x = make(case, rng)
    dtype = getattr(mx, case.dtype)
    x.arrays = tuple(layouts.random_view(a, dtype, rng) for a in (x.q, x.k, x.v))
    if isinstance(x.mask_arg, mx.array):
        x.mask_arg = layouts.random_view(x.mask, x.mask_arg.dtype, rng)
    _ext.set_cpu_threads(threads)
    _ext.set_cpu_isa(isa)
    out, lse = compute(case, x)
    want_out, want_lse = expected(case, x)
    check(out, want_out, case.tolerance)
    check_lse(lse, want_lse, case.tolerance)


@ANY
@given(case=cases(path="fused", block_rows=0, chunk_size=0), rng=seeds, parts=st.integers(1, 5))
def test_any_split_of_the_keys_merges_into_the_whole(case, rng, parts):
    x = make(replace(case, window=None), rng)
    case = replace(case, window=None)
    cuts = sorted(rng.integers(0, case.Lk + 1, parts - 1))
    outs, lses = [], []
    for i, (begin, end) in enumerate(zip([0, *cuts], [*cuts, case.Lk])):
        begin, end = int(begin), int(end)
        mask = x.mask_arg
        if isinstance(mask, mx.array) and case.mask_shape.endswith("K"):
            mask = mask[..., begin:end]
        sinks = x.sinks_arg if i == 0 else None
        q, k, v = x.arrays
        out, lse = call(
            case, q, k[:, :, begin:end], v[:, :, begin:end], mask, sinks,
            q_offset=case.Lk - case.Lq - begin, float32_out=True,
        )  # fmt: skip
        outs.append(out)
        lses.append(lse)
    out, lse = attention.merge(outs, lses)
    want_out, want_lse = expected(case, x)
    check(to_numpy(out), want_out, case.tolerance)
    check_lse(to_numpy(lse), want_lse, case.tolerance)


@ANY
@given(case=cases(mask="additive", mask_shape="BHQK", dtype="float32"), rng=seeds)
def test_the_order_of_the_keys_does_not_matter(case, rng):
    x = make(case, rng)
    order = mx.array(rng.permutation(case.Lk))
    q, k, v = x.arrays
    forth = call(case, q, k, v, x.mask_arg, x.sinks_arg)
    other = call(case, q, k[:, :, order], v[:, :, order], x.mask_arg[..., order], x.sinks_arg)
    both = Tolerance(*(2 * bound for bound in TOLERANCES["float32"]))  # either is off by as much
    check(to_numpy(other[0]), to_numpy(forth[0]), both)
    check_lse(to_numpy(other[1]), to_numpy(forth[1]), both)


@ANY
@given(
    case=cases(dtype="float32", mask="none", sinks=False),
    rng=seeds,
    shift=st.floats(-50, 50, width=16),
)
def test_a_constant_in_the_mask_moves_only_lse(case, rng, shift):
    x = make(case, rng)
    plain = call(case, *x.arrays, None, None)
    moved = call(case, *x.arrays, mx.array(shift), None)
    # A shift of 50 costs the scores eps/2 * 50: as much again as the scores of 12 allow for.
    tolerance = TOLERANCES["float32"]._replace(rms=4 * TOLERANCES["float32"].rms)
    check(to_numpy(moved[0]), to_numpy(plain[0]), tolerance)
    check_lse(to_numpy(moved[1]), to_numpy(plain[1]) + shift, TOLERANCES["float32"])


@ANY
@given(case=cases(dtype="float32"), rng=seeds)
def test_each_batch_is_on_its_own(case, rng):
    """One batch alone gives what it gave among others."""
    x = make(case, rng)
    together = call(case, *x.arrays, x.mask_arg, x.sinks_arg)
    b = int(rng.integers(case.B))
    mask = x.mask_arg
    if isinstance(mask, mx.array) and mask.ndim == 4:
        mask = mask[min(b, mask.shape[0] - 1)][None]
    alone = call(case, *(a[b : b + 1] for a in x.arrays), mask, x.sinks_arg)
    check(to_numpy(alone[0]), to_numpy(together[0][b : b + 1]), TOLERANCES["float32"])
    check_lse(to_numpy(alone[1]), to_numpy(together[1][b : b + 1]), TOLERANCES["float32"])


@ANY
@given(case=cases(sinks=False), rng=seeds)
def test_every_output_is_an_average_of_values(case, rng):
    """Within the range of v; 0 where lse is -inf."""
    x = make(case, rng)
    out, lse = map(to_numpy, call(case, *x.arrays, x.mask_arg, None))
    nothing = np.isneginf(lse)
    assert (out[nothing] == 0).all()
    low, high = (
        np.repeat(f(x.v, axis=-2, keepdims=True), case.Hq // case.Hkv, 1) for f in (np.min, np.max)
    )
    slack = case.tolerance.rtol * np.abs(x.v).max()
    inside = (out >= low - slack) & (out <= high + slack)
    assert inside[~nothing].all()


@ANY
@given(case=cases(mask="causal", window=None, sinks=False), rng=seeds)
def test_a_causal_row_is_attention_over_its_own_prefix(case, rng):
    x = make(case, rng)
    q, k, v = x.arrays
    row = int(rng.integers(case.Lq))
    end = case.Lk - case.Lq + row + 1
    out, lse = call(case, q, k, v, "causal", None)
    if end <= 0:
        assert (to_numpy(lse[:, :, row]) == -np.inf).all()
        return
    alone = call(case, q[:, :, row : row + 1], k[:, :, :end], v[:, :, :end], None, None)
    check(to_numpy(alone[0]), to_numpy(out[:, :, row : row + 1]), case.tolerance)
    check_lse(to_numpy(alone[1]), to_numpy(lse[:, :, row : row + 1]), case.tolerance)
