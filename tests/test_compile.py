"""mx.compile: the same results, traced once for many shapes, and only equal calls are merged."""

from __future__ import annotations

import re

import mlx.core as mx
import numpy as np
import pytest
from cases import Case, call, expected, make, options, replace, to_numpy
from mlx_sdpa_ext import _ext, attention
from tolerances import check, check_lse

BASE = Case(B=2, Hq=4, Hkv=2, Lq=7, Lk=19, D=12, Dv=10)
PATHS = {
    "fused": {"path": "fused"},
    "chunked": {"path": "chunked", "chunk_size": 8},
    "unfused": {"path": "unfused"},
    "unfused blocks": {"path": "unfused", "block_rows": 3},
}
KINDS = {
    "none": {},
    "causal": {"mask": "causal"},
    "window": {"mask": "causal", "window": 3, "softcap": 2.0},
    "bool": {"mask": "bool", "mask_shape": "11QK"},
    "additive": {"mask": "additive", "mask_shape": "H1K", "sinks": True},
}
SHAPES = [{}, {"Lk": 40}, {"Lq": 1, "Lk": 40}, {"B": 1}, {"B": 3, "Lq": 30, "Lk": 30}]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_compiled(kind, path, rng):
    """Traced anew for each shape."""
    case = replace(BASE, **KINDS[kind] | PATHS[path])
    compiled = {}
    for shape in SHAPES:
        changed = replace(case, **shape)
        check_compiled(changed, compiled, rng)


@pytest.mark.parametrize("path", ("fused", "chunked"))
@pytest.mark.parametrize("kind", KINDS)
def test_shapeless(kind, path, rng):
    """One trace serves every shape: positions, scale and chunks follow the shapes at evaluation."""
    case = replace(BASE, **KINDS[kind] | PATHS[path])
    compiled = {}
    for shape in SHAPES:
        changed = replace(case, **shape)
        check_compiled(changed, compiled, rng, shapeless=True)


def check_compiled(case, compiled, rng, **how):
    x = make(case, rng)
    optional = [a for a in (x.mask_arg, x.sinks_arg) if isinstance(a, mx.array)]

    if not compiled:

        def f(q, k, v, *rest):
            rest = list(rest)
            mask = rest.pop(0) if isinstance(x.mask_arg, mx.array) else x.mask_arg
            return call(case, q, k, v, mask, rest[0] if case.sinks else None, scale=BASE.scale)

        compiled["f"] = mx.compile(f, **how)
    out, lse = compiled["f"](*x.arrays, *optional)
    reference_case = replace(case, D=BASE.D)
    want = expected_at_scale(reference_case, x, BASE.scale)
    check(to_numpy(out), want[0], case.tolerance)
    check_lse(to_numpy(lse), want[1], case.tolerance)


def expected_at_scale(case, x, scale):
    import reference

    how = options(case) | {"scale": scale}
    return reference.attention(x.q, x.k, x.v, mask=x.mask, sinks=x.sinks, **how)


def test_shapeless_head_dims(rng):
    """D and Dv may change too."""
    f = mx.compile(lambda q, k, v: _ext.sdpa(q, k, v, scale=0.3, return_lse=True), shapeless=True)
    for D, Dv in ((12, 10), (64, 64), (1, 3)):
        x = make(replace(BASE, D=D, Dv=Dv), rng)
        out, lse = f(*x.arrays)
        assert out.shape == (2, 4, 7, Dv)
        want = expected_at_scale(BASE, x, 0.3)
        check(to_numpy(out), want[0], BASE.tolerance)
        check_lse(to_numpy(lse), want[1], BASE.tolerance)


def nodes(*outputs) -> list[str]:
    """Names of the primitives that the outputs wait for."""
    import io

    dot = io.StringIO()
    mx.export_to_dot(dot, *outputs)
    return re.findall(r'label ="(\w+)"', dot.getvalue())


def attention_nodes(outputs) -> int:
    return sum("sdpa" in name.lower() for name in nodes(outputs))


MASK = mx.array(np.triu(np.ones((19, 19), bool)))
VARIANTS = {
    "plain": {},
    "scale": {"scale": 0.31},
    "causal": {"mask": "causal"},
    "window": {"mask": "causal", "window": 3},
    "wider window": {"mask": "causal", "window": 4},
    "softcap": {"softcap": 1.0},
    "higher softcap": {"softcap": 2.0},
    "mask": {"mask": MASK},
    "sinks": {"sinks": mx.array([1.0, 2.0, 3.0, 4.0])},
    "q_offset": {"mask": "causal", "q_offset": 5},
    "float32": {"float32_out": True},
}


@pytest.mark.parametrize("one", VARIANTS)
@pytest.mark.parametrize("other", VARIANTS)
def test_only_equal_calls_are_merged(one, other, rng):
    """compile merges nodes that say they are equivalent. Each difference in the call must count."""
    x = make(replace(BASE, Lq=19), rng)

    def both(q, k, v):
        results = [
            _ext.sdpa(q, k, v, **{"scale": 0.3, **VARIANTS[name]})[0] for name in (one, other)
        ]
        return results[0] - results[1], results[0] + results[1]

    got = mx.compile(both)(*x.arrays)
    if "float32" not in (one, other):
        assert attention_nodes(got[0]) == (1 if one == other else 2)
    for a, b in zip(got, both(*x.arrays)):
        np.testing.assert_array_equal(to_numpy(a), to_numpy(b))
    if one != other and "float32" not in (one, other):
        assert np.abs(to_numpy(got[0])).max() > 0


def test_with_and_without_lse_are_not_merged(rng):
    x = make(BASE, rng)

    def both(q, k, v):
        (alone,) = _ext.sdpa(q, k, v, scale=0.3)
        out, lse = _ext.sdpa(q, k, v, scale=0.3, return_lse=True)
        return alone + out, lse * 2

    for a, b in zip(mx.compile(both)(*x.arrays), both(*x.arrays)):
        np.testing.assert_allclose(to_numpy(a), to_numpy(b), rtol=1e-6)


@pytest.mark.parametrize("path", ("auto", "fused", "unfused", "chunked", "stock"))
def test_the_public_function(path, rng):
    case = replace(BASE, mask="causal", lse=False)
    f = mx.compile(
        lambda q, k, v: attention.scaled_dot_product_attention(
            q, k, v, scale=case.scale, mask="causal", path=path
        )
    )
    for shape in ({}, {"Lk": 30}):
        changed = replace(case, **shape)
        x = make(changed, rng)
        want = expected_at_scale(changed, x, case.scale)
        check(to_numpy(f(*x.arrays)), want[0], case.tolerance)


def test_ops_around_attention_fuse_into_nothing_wrong(rng):
    """Elementwise ops before and after are fused by compile; attention stays between them."""
    x = make(replace(BASE, Dv=12), rng)

    def block(q, k, v):
        (out,) = _ext.sdpa(mx.tanh(q) * 2, k + 1, v * v, scale=0.3)
        return mx.sigmoid(out) * out

    np.testing.assert_allclose(
        to_numpy(mx.compile(block)(*x.arrays)), to_numpy(block(*x.arrays)), rtol=1e-5, atol=1e-6
    )


def test_a_compiled_function_called_twice_gives_the_same(rng):
    x = make(BASE, rng)
    f = mx.compile(lambda q, k, v: call(BASE, q, k, v, None, None))
    first, second = f(*x.arrays), f(*x.arrays)
    np.testing.assert_array_equal(to_numpy(first[0]), to_numpy(second[0]))
    want = expected(BASE, x)
    check(to_numpy(second[0]), want[0], BASE.tolerance)
