"""attention.merge: the exact combination of attentions over disjoint keys."""

from __future__ import annotations

from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
import reference
from cases import DTYPES, Case, call, expected, make, replace, to_numpy
from mlx_sdpa_ext import _ext, attention
from tolerances import EPS, TOLERANCES, check, check_grad, check_lse

CASE = Case(B=2, Hq=4, Hkv=2, Lq=9, Lk=120, D=24, Dv=20)


def parts(case, x, edges, sinks_with=0):
    """Attention over each [edges[i], edges[i + 1]) of the keys."""
    q, k, v = x.arrays
    results = []
    for i, (begin, end) in enumerate(pairwise(edges)):
        sinks = x.sinks_arg if i == sinks_with else None
        results.append(call(case, q, k[:, :, begin:end], v[:, :, begin:end], None, sinks))
    return [out for out, _ in results], [lse for _, lse in results]


@pytest.mark.parametrize("merge", (attention.merge, _ext.merge), ids=("public", "ext"))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("edges", ([0, 120], [0, 50, 120], [0, 1, 2, 60, 119, 120]), ids=str)
def test_merged_parts_are_the_whole(edges, dtype, merge, rng):
    case = replace(CASE, dtype=dtype, sinks=True)
    x = make(case, rng)
    out, lse = merge(*parts(case, x, edges))
    assert out.dtype == getattr(mx, dtype) and lse.dtype == mx.float32
    assert out.shape == (2, 4, 9, 20) and lse.shape == (2, 4, 9)
    want_out, want_lse = expected(case, x)
    # The parts were rounded to the dtype before they were merged: once more than one call rounds.
    check(to_numpy(out), want_out, TOLERANCES[dtype])
    check_lse(to_numpy(lse), want_lse, TOLERANCES[dtype])


def test_many_parts(rng):
    x = make(CASE, rng)
    out, lse = attention.merge(*parts(CASE, x, list(range(121))))
    want_out, want_lse = expected(CASE, x)
    check(to_numpy(out), want_out, TOLERANCES["float32"])
    check_lse(to_numpy(lse), want_lse, TOLERANCES["float32"])


def test_the_order_does_not_matter(rng):
    x = make(CASE, rng)
    outs, lses = parts(CASE, x, [0, 30, 60, 120])
    forth = attention.merge(outs, lses)
    back = attention.merge(outs[::-1], lses[::-1])
    check(to_numpy(forth[0]), to_numpy(back[0]), TOLERANCES["float32"])
    check_lse(to_numpy(forth[1]), to_numpy(back[1]), TOLERANCES["float32"])


def test_a_part_without_keys_adds_nothing(rng):
    """lse -inf: whatever stands in its output is ignored, and two such parts give 0 and -inf."""
    x = make(CASE, rng)
    outs, lses = parts(CASE, x, [0, 120])
    nothing = mx.full((2, 4, 9), -np.inf)
    for junk in (0.0, np.inf, np.nan):
        out, lse = attention.merge([mx.full((2, 4, 9, 20), junk), *outs], [nothing, *lses])
        np.testing.assert_array_equal(to_numpy(out), to_numpy(outs[0]))
        np.testing.assert_allclose(to_numpy(lse), to_numpy(lses[0]), rtol=EPS["float32"])
    out, lse = attention.merge([mx.zeros((2, 4, 9, 20))] * 2, [nothing] * 2)
    assert (to_numpy(out) == 0).all() and (to_numpy(lse) == -np.inf).all()


def test_some_rows_without_keys(rng):
    """Causal parts where the early rows see only the first part."""
    case = replace(CASE, Lq=120, mask="causal")
    x = make(case, rng)
    q, k, v = x.arrays
    halves = [
        call(case, q, k[:, :, i : i + 60], v[:, :, i : i + 60], "causal", None, q_offset=-i)
        for i in (0, 60)
    ]
    out, lse = attention.merge([h[0] for h in halves], [h[1] for h in halves])
    want_out, want_lse = expected(case, x)
    check(to_numpy(out), want_out, TOLERANCES["float32"])
    check_lse(to_numpy(lse), want_lse, TOLERANCES["float32"])


@pytest.mark.parametrize("offset", (-1000.0, 1000.0))
def test_lse_far_from_zero(offset, rng):
    outs = [rng.standard_normal((1, 2, 3, 4)) for _ in range(2)]
    lses = [offset + rng.standard_normal((1, 2, 3)) for _ in range(2)]
    lses = [to_numpy(mx.array(lse)) for lse in lses]
    out, lse = attention.merge([mx.array(o) for o in outs], [mx.array(l) for l in lses])
    weight = 1 / (1 + np.exp(lses[1] - lses[0]))[..., None]
    check(to_numpy(out), weight * outs[0] + (1 - weight) * outs[1], TOLERANCES["float32"])
    check_lse(to_numpy(lse), np.logaddexp(*lses), TOLERANCES["float32"])


@pytest.mark.parametrize("layout", ("transposed", "sliced", "broadcast"))
def test_strided_parts(layout, rng):
    outs = [rng.standard_normal((2, 4, 9, 20)) for _ in range(2)]
    lses = [rng.standard_normal((2, 4, 9)) for _ in range(2)]

    def arrange(x):
        if layout == "transposed":
            return mx.array(np.ascontiguousarray(x.swapaxes(1, 2))).swapaxes(1, 2)
        if layout == "sliced":
            return mx.array(np.concatenate([x, np.full_like(x, np.nan)], axis=2))[:, :, :9]
        return mx.broadcast_to(mx.array(x[:, :1]), x.shape)

    if layout == "broadcast":
        outs, lses = ([np.broadcast_to(x[:, :1], x.shape) for x in xs] for xs in (outs, lses))
    out, lse = attention.merge([arrange(o) for o in outs], [arrange(l) for l in lses])
    weight = 1 / (1 + np.exp(lses[1] - lses[0]))[..., None]
    check(to_numpy(out), weight * outs[0] + (1 - weight) * outs[1], TOLERANCES["float32"])
    check_lse(to_numpy(lse), np.logaddexp(*lses), TOLERANCES["float32"])


def test_empty_parts():
    out, lse = attention.merge([mx.zeros((0, 4, 9, 20))] * 2, [mx.zeros((0, 4, 9))] * 2)
    assert out.shape == (0, 4, 9, 20) and lse.shape == (0, 4, 9)


def test_gradients_through_a_merge(rng):
    """As if the keys had never been split."""
    case = replace(CASE, sinks=True)
    x = make(case, rng)
    d_out, d_lse = rng.standard_normal((2, 4, 9, 20)), rng.standard_normal((2, 4, 9))

    def split(q, k, v, sinks):
        outs, lses = [], []
        for begin, end in ((0, 50), (50, 120)):
            out, lse = call(
                case, q, k[:, :, begin:end], v[:, :, begin:end], None, sinks if begin else None
            )
            outs.append(out)
            lses.append(lse)
        return attention.merge(outs, lses)

    _, grads = mx.vjp(split, [*x.arrays, x.sinks_arg], [mx.array(d_out), mx.array(d_lse)])
    want = reference.gradients(x.q, x.k, x.v, d_out, d_lse, sinks=x.sinks, scale=case.scale)
    for name, grad in zip(("q", "k", "v", "sinks"), grads):
        check_grad(to_numpy(grad), getattr(want, name), TOLERANCES["float32"], name)


def test_vmap_and_compile(rng):
    outs = [mx.array(rng.standard_normal((3, 2, 4, 9, 20))) for _ in range(2)]
    lses = [mx.array(rng.standard_normal((3, 2, 4, 9))) for _ in range(2)]
    alone = [attention.merge([o[i] for o in outs], [l[i] for l in lses]) for i in range(3)]
    mapped = mx.vmap(lambda a, b, c, d: attention.merge([a, b], [c, d]))(*outs, *lses)
    compiled = mx.compile(lambda a, b, c, d: attention.merge([a, b], [c, d]), shapeless=True)
    for i in range(3):
        again = compiled(*(o[i] for o in outs), *(l[i] for l in lses))
        for j in range(2):
            np.testing.assert_array_equal(to_numpy(mapped[j][i]), to_numpy(alone[i][j]))
            np.testing.assert_array_equal(to_numpy(again[j]), to_numpy(alone[i][j]))
