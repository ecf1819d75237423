"""The CPU's gradient kernel: every pair of features, against float64; what it takes of memory."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from cases import DTYPES, Case, expected, make, poison, replace, to_numpy
from features import FEATURES, MASKS, case
from memory import MiB, added
from mlx_sdpa_ext import _ext, attention, limits
from pairwise import pairwise
from test_gradients import check_gradients, cotangents, function, primals, reference_gradients
from tolerances import check_grad

# Below, at and above tiles of 128 and 96 rows and keys.
LENGTHS = [
    *((1, 1), (1, 131), (3, 40), (70, 1), (65, 127), (127, 129), (128, 128)),
    *((97, 96), (33, 200), (257, 260), (300, 140), (7, 385)),
]
DIMS = [(1, None), (8, 3), (16, None), (50, 49), (80, None), (96, 64), (192, 128), (256, None)]

FACTORS = {
    "dims": [*DIMS, (300, 72)],
    "heads": [(1, 8, 2), (2, 4, 4), (1, 6, 1), (3, 4, 2)],
    "lengths": LENGTHS,
    "dtype": DTYPES,
    "masking": MASKS,
    **FEATURES,
    "pathway": [{"path": "fused"}, {"path": "chunked", "chunk_size": 32}],
    "isa": tuple(_ext.cpu()["isas"]),
}


def nodes(tmp_path, *arrays) -> str:
    mx.export_to_dot(str(tmp_path / "graph"), *arrays)
    return (tmp_path / "graph").read_text()


def check_kernel(case: Case, rng, tmp_path) -> None:
    """Gradients of all inputs but the mask, whose gradient is another path's."""
    x = make(case, rng)
    named = {name: a for name, a in primals(x).items() if name != "mask"}
    d_out, d_lse, arrays = cotangents(case, x, rng)
    _ext.set_cpu_isa(case.isa)
    try:
        _, grads = mx.vjp(function(case, x, named), list(named.values()), arrays)
        assert '"SdpaBackward"' in nodes(tmp_path, *grads)
        poison(*((g.shape, g.dtype) for g in grads))
        mx.eval(grads)
    finally:
        _ext.set_cpu_isa("")
    want = reference_gradients(case, x, d_out, d_lse)
    tolerance = case.tolerance
    if case.q_layout == case.v_layout == "one_row":
        # All rows of O are one row, and so is what rounding takes from it: it adds up in dK.
        tolerance = tolerance._replace(grad=4 * tolerance.grad)
    for name, grad in zip(named, grads):
        assert grad.dtype == named[name].dtype
        check_grad(to_numpy(grad), want[name], tolerance, f"d{name}")


@pytest.mark.parametrize("case", [case(**row) for row in pairwise(FACTORS)], ids=str)
def test_every_pair_of_features(case, rng, tmp_path):
    check_kernel(case, rng, tmp_path)


@pytest.mark.parametrize("threads", (1, 2, 5))
@pytest.mark.parametrize("masking", ({}, {"mask": "causal"}, {"mask": "causal", "window": 150}))
@pytest.mark.parametrize("heads", ((4, 1), (2, 2)))
def test_many_tiles(heads, masking, threads, rng, tmp_path):
    """More tiles than threads and fewer, on one head at a time and on several."""
    _ext.set_cpu_threads(threads)
    try:
        check_kernel(
            Case(Hq=heads[0], Hkv=heads[1], Lq=700, Lk=900, D=24, Dv=16, **masking), rng, tmp_path
        )
    finally:
        _ext.set_cpu_threads(0)


def test_the_same_bits_whatever_the_threads(rng):
    q, k, v = (mx.array(rng.standard_normal((1, H, 900, 32)), mx.float32) for H in (4, 2, 2))

    def grads():
        f = mx.grad(lambda *x: _ext.sdpa(*x, scale=0.2, mask="causal")[0].square().sum(), (0, 1, 2))
        return [to_numpy(g) for g in f(q, k, v)]

    found = []
    try:
        for threads in (1, 2, 7):
            _ext.set_cpu_threads(threads)
            found.append(grads())
    finally:
        _ext.set_cpu_threads(0)
    for other in found[1:]:
        for one, same in zip(found[0], other):
            np.testing.assert_array_equal(one, same)


@pytest.mark.parametrize("name", ("q", "k", "v", "sinks"))
def test_against_differences_of_the_float64_output(name, rng):
    """Along one random direction of each input."""
    case = Case(Hq=4, Hkv=2, Lq=150, Lk=170, D=20, Dv=12, mask="causal", softcap=2.0, sinks=True)
    case = replace(case, lse=False)
    x = make(case, rng)
    d_out, _, (d_array,) = cotangents(case, x, rng)
    f = function(case, x, [name])
    grad = mx.grad(lambda a: (f(a)[0] * d_array).sum())(primals(x)[name])
    step = rng.standard_normal(getattr(x, name).shape)
    h, start, around = 1e-6, getattr(x, name), []
    for sign in (1, -1):
        setattr(x, name, start + sign * h * step)
        around.append((expected(case, x)[0] * d_out).sum())
    want = (around[0] - around[1]) / (2 * h)
    terms = to_numpy(grad) * step  # of either sign: their sum can be close to zero
    assert terms.sum() == pytest.approx(want, abs=1e-4 * np.linalg.norm(terms))


@pytest.mark.parametrize("mapped", ("all", "d_out"))
def test_vmap_of_gradients(mapped, rng):
    case = Case(B=2, Hq=4, Hkv=2, Lq=9, Lk=13, D=8, mask="causal", sinks=True, lse=False)
    xs = [make(case, rng) for _ in range(3)]
    xs = xs if mapped == "all" else [xs[0]] * 3
    ds = [cotangents(case, x, rng) for x in xs]

    def grads(q, k, v, sinks, d):
        def loss(*a):
            return (_ext.sdpa(*a[:3], mask="causal", sinks=a[3], scale=case.scale)[0] * d).sum()

        return mx.grad(loss, argnums=(0, 1, 2, 3))(q, k, v, sinks)

    each = [(*x.arrays, x.sinks_arg) for x in xs]
    stacked = [mx.stack(column) for column in zip(*each)] if mapped == "all" else each[0]
    axes = (*[0 if mapped == "all" else None] * 4, 0)
    found = mx.vmap(grads, in_axes=axes)(*stacked, mx.stack([d[2][0] for d in ds]))
    for i, (x, (d_out, d_lse, _)) in enumerate(zip(xs, ds)):
        want = reference_gradients(case, x, d_out, d_lse)
        for name, grad in zip(("q", "k", "v", "sinks"), found):
            check_grad(to_numpy(grad[i]), want[name], case.tolerance, name)


def test_the_gradient_of_a_mask_runs_through_stock_operations(rng, tmp_path):
    case = Case(Lq=5, Lk=7, D=8, mask="additive", lse=False)
    x = make(case, rng)
    f = function(case, x, ["q", "mask"])
    both = mx.grad(lambda q, m: f(q, m)[0].sum(), argnums=(0, 1))
    assert '"SdpaBackward"' not in nodes(tmp_path, *both(x.arrays[0], x.mask_arg))
    check_gradients(case, rng)


def test_nan_in_hidden_keys_stays_out(rng):
    """Keys and values that no row sees, in the same tile as others."""
    case = Case(Hq=2, Hkv=1, Lq=40, Lk=90, D=16, mask="causal", window=20, lse=False)
    x = make(case, rng)
    d_out, d_lse, arrays = cotangents(case, x, rng)
    unseen = np.arange(90) < 90 - 40 - 19
    clean = reference_gradients(case, x, d_out, d_lse)
    q, k, v = x.arrays
    hide = mx.array(unseen)[:, None]
    k, v = (mx.where(hide, np.nan, a) for a in (k, v))
    _, grads = mx.vjp(
        lambda *a: _ext.sdpa(*a, mask="causal", window=20, scale=case.scale), [q, k, v], arrays
    )
    for name, grad in zip("qkv", grads):
        check_grad(to_numpy(grad), clean[name], case.tolerance, name)


@pytest.mark.parametrize("shapes", [(0, 5), (5, 0)], ids=("no queries", "no keys"))
def test_empty(shapes):
    q, k = (mx.ones((1, 2, L, 8)) for L in shapes)
    grads = mx.grad(lambda *a: _ext.sdpa(*a, scale=1.0)[0].sum(), argnums=(0, 1, 2))(q, k, k)
    for grad, like in zip(grads, (q, k, k)):
        assert grad.shape == like.shape
        assert not to_numpy(grad).any()


def gradient_memory(L: int, dtype: mx.Dtype) -> int:
    q, k, v, d = (mx.random.normal((1, H, L, 64)).astype(dtype) for H in (4, 2, 2, 4))

    def f(*a):
        return attention.scaled_dot_product_attention(*a, scale=0.125, mask="causal")

    def run():
        out, grads = mx.vjp(f, [q, k, v], [d])
        return [*out, *grads]

    return added(run, q, k, v, d)


@pytest.mark.usefixtures("default_cpu")
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_memory_is_linear_in_the_length(dtype):
    """Above inputs and results; the scores of 4096 would be 256 MiB in float32."""
    with limits.using(cpu_threads=2):  # each has tiles of its own
        short, long = (gradient_memory(L, getattr(mx, dtype)) for L in (2048, 4096))
    assert long < 16 * MiB
    assert long <= 2.2 * short


def test_the_lse_of_the_forward_pass_is_used_again(tmp_path):
    """One Sdpa node, not two."""
    q = mx.random.normal((1, 2, 9, 8))
    grad = mx.grad(lambda q: _ext.sdpa(q, q, q, scale=0.3)[0].sum())(q)
    graph = nodes(tmp_path, grad)
    assert graph.count('"Sdpa"') == 1
    assert graph.count('"SdpaBackward"') == 1
