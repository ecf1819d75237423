"""Gradients for q, k, v, additive masks and sinks, and through lse, against float64."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
import reference
from cases import DTYPES, Case, call, make, options, replace, to_numpy
from mlx_sdpa_ext import attention
from tolerances import check, check_grad

BASE = Case(B=2, Hq=4, Hkv=2, Lq=7, Lk=19, D=12, Dv=10)
PATHS = {
    "fused": {"path": "fused"},
    "chunked": {"path": "chunked", "chunk_size": 8},
    "unfused": {"path": "unfused", "block_rows": 3},
}
KINDS = {
    "none": {},
    "causal": {"mask": "causal"},
    "tall causal": {"mask": "causal", "Lq": 19, "Lk": 7},  # rows that see nothing
    "window": {"mask": "causal", "window": 4, "sinks": True},
    "bool": {"mask": "bool", "mask_shape": "BHQK"},  # a row that sees nothing
    "bool keys": {"mask": "bool", "mask_shape": "B11K", "sinks": True},
    "additive": {"mask": "additive", "mask_shape": "BHQK"},
    "additive row": {"mask": "additive", "mask_shape": "K", "sinks": True},
    "additive heads": {"mask": "additive", "mask_shape": "1H1K"},
    "additive scalar": {"mask": "additive", "mask_shape": ""},
    "softcap": {"softcap": 1.5, "mask": "additive", "mask_shape": "1QK", "sinks": True},
    "mqa": {"Hkv": 1, "sinks": True},
    "mha": {"Hkv": 4, "mask": "causal"},
}


def primals(x):
    """The differentiable inputs, by name."""
    named = dict(zip("qkv", x.arrays))
    if isinstance(x.mask_arg, mx.array) and x.mask_arg.dtype != mx.bool_:
        named["mask"] = x.mask_arg
    if x.sinks_arg is not None:
        named["sinks"] = x.sinks_arg
    return named


def function(case, x, names, **more):
    """f(*arrays in the order of names) -> the case's outputs."""
    fixed = {
        "q": x.arrays[0],
        "k": x.arrays[1],
        "v": x.arrays[2],
        "mask": x.mask_arg,
        "sinks": x.sinks_arg,
    }

    def f(*arrays):
        return call(case, **{**fixed, **dict(zip(names, arrays))}, **more)

    return f


def cotangents(case, x, rng):
    """Random d_out and d_lse, as float64 and as arrays."""
    d_out = rng.standard_normal((case.B, case.Hq, case.Lq, case.v_dim))
    d_out = to_numpy(mx.array(d_out).astype(x.arrays[0].dtype))
    d_lse = to_numpy(mx.array(rng.standard_normal(d_out.shape[:3]), mx.float32))
    arrays = [mx.array(d_out).astype(x.arrays[0].dtype), mx.array(d_lse, mx.float32)]
    return d_out, d_lse, arrays if case.lse else arrays[:1]


def reference_gradients(case, x, d_out, d_lse):
    return reference.gradients(
        x.q,
        x.k,
        x.v,
        d_out,
        d_lse if case.lse else None,
        mask=x.mask,
        sinks=x.sinks,
        **options(case),
    )._asdict()


def check_gradients(case, rng):
    x = make(case, rng)
    named = primals(x)
    d_out, d_lse, cotangent_arrays = cotangents(case, x, rng)
    _, grads = mx.vjp(function(case, x, named), list(named.values()), cotangent_arrays)
    want = reference_gradients(case, x, d_out, d_lse)
    for name, grad in zip(named, grads):
        assert grad.dtype == named[name].dtype
        check_grad(to_numpy(grad), want[name], case.tolerance, f"d{name}")


@pytest.mark.parametrize("lse", (False, True), ids=("", "lse"))
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_vjp(kind, path, lse, rng):
    check_gradients(replace(BASE, lse=lse, **KINDS[kind] | PATHS[path]), rng)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ("causal", "additive", "softcap"))
def test_vjp_in_every_dtype(kind, dtype, rng):
    check_gradients(replace(BASE, dtype=dtype, **KINDS[kind]), rng)


@pytest.mark.parametrize("layout", ("heads", "cache", "reversed_last", "one_head"))
def test_vjp_of_strided_inputs(layout, rng):
    check_gradients(replace(BASE, q_layout=layout, k_layout=layout, v_layout=layout), rng)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", KINDS)
def test_jvp(kind, path, rng):
    """Directional derivatives against central differences of the float64 reference."""
    case = replace(BASE, **KINDS[kind] | PATHS[path])
    x = make(case, rng)
    named = primals(x)
    steps = {name: np.asarray(rng.standard_normal(a.shape)) for name, a in named.items()}
    tangents = [mx.array(step, mx.float32) for step in steps.values()]
    _, moved = mx.jvp(function(case, x, named), list(named.values()), tangents)
    h = 1e-5

    def at(sign):
        values = {"q": x.q, "k": x.k, "v": x.v, "mask": x.mask, "sinks": x.sinks}
        values |= {name: values[name] + sign * h * step for name, step in steps.items()}
        return reference.attention(**values, **options(case))

    with np.errstate(invalid="ignore"):
        want = [(up - down) / (2 * h) for up, down in zip(at(1), at(-1))]
    seen = np.isfinite(want[1])
    assert seen.any()
    check_grad(to_numpy(moved[0]), want[0], case.tolerance, "out")
    check_grad(to_numpy(moved[1])[seen], want[1][seen], case.tolerance, "lse")


@pytest.mark.parametrize("name", ("q", "k", "v", "mask", "sinks"))
def test_grad_of_one_input(name, rng):
    """With the other inputs constant."""
    case = replace(BASE, mask="additive", mask_shape="1QK", sinks=True, lse=False)
    x = make(case, rng)
    d_out, d_lse, (d_array,) = cotangents(case, x, rng)
    f = function(case, x, [name])
    value, grad = mx.value_and_grad(lambda a: (f(a)[0] * d_array).sum())(primals(x)[name])
    want = reference_gradients(case, x, d_out, d_lse)[name]
    check_grad(to_numpy(grad), want, case.tolerance, name)
    out, _ = reference.attention(x.q, x.k, x.v, mask=x.mask, sinks=x.sinks, **options(case))
    size = np.abs(out * d_out).sum()
    np.testing.assert_allclose(value.item(), (out * d_out).sum(), atol=case.tolerance.grad * size)


@pytest.mark.parametrize("used", ("out", "lse"))
def test_grad_when_only_one_output_is_used(used, rng):
    case = replace(BASE, mask="causal", sinks=True)
    x = make(case, rng)
    named = primals(x)
    d_out, d_lse, arrays = cotangents(case, x, rng)
    i = ("out", "lse").index(used)
    f = function(case, x, named)
    grads = mx.grad(lambda *a: (f(*a)[i] * arrays[i]).sum(), argnums=list(range(4)))(
        *named.values()
    )
    want = reference_gradients(case, x, d_out * (i == 0), d_lse * (i == 1))
    for name, grad in zip(named, grads):
        check_grad(to_numpy(grad), want[name], case.tolerance, name)


def test_grad_of_self_attention(rng):
    """One array as q, k and v: the three gradients add up."""
    case = replace(BASE, Hq=2, Hkv=2, Lq=9, Lk=9, Dv=12, lse=False)
    x = make(case, rng)
    d_out, d_lse, (d_array,) = cotangents(case, x, rng)
    x.k = x.v = x.q
    a = x.arrays[0]
    grad = mx.grad(lambda a: (call(case, a, a, a, None, None)[0] * d_array).sum())(a)
    want = reference_gradients(case, x, d_out, d_lse)
    check_grad(to_numpy(grad), want["q"] + want["k"] + want["v"], case.tolerance, "x")


@pytest.mark.parametrize("wrap", ("checkpoint", "compile", "compile(grad)", "grad(compile)"))
@pytest.mark.parametrize("kind", ("causal", "softcap"))
def test_wrapped_gradients(kind, wrap, rng):
    case = replace(BASE, **KINDS[kind])
    x = make(case, rng)
    named = primals(x)
    d_out, d_lse, arrays = cotangents(case, x, rng)
    f = function(case, x, named)
    if wrap == "checkpoint":
        f = mx.checkpoint(f)
    elif wrap in ("compile", "grad(compile)"):
        f = mx.compile(f)

    def loss(*a):
        out, lse = f(*a)
        seen = lse > -np.inf
        return (out * arrays[0]).sum() + mx.where(seen, lse * arrays[1], 0).sum()

    grad = mx.grad(loss, argnums=list(range(len(named))))
    grads = (mx.compile(grad) if wrap == "compile(grad)" else grad)(*named.values())
    want = reference_gradients(case, x, d_out, d_lse)
    for name, g in zip(named, grads):
        check_grad(to_numpy(g), want[name], case.tolerance, name)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ("none", "causal", "window", "bool", "softcap"))
def test_second_order(kind, path, rng):
    """The derivative of the gradient of q along a direction, against differences in float64."""
    case = replace(BASE, lse=False, **KINDS[kind] | PATHS[path])
    x = make(case, rng)
    d_out, d_lse, (d_array,) = cotangents(case, x, rng)
    step = rng.standard_normal(x.q.shape)
    f = function(case, x, ["q"])
    first = mx.grad(lambda q: (f(q)[0] * d_array).sum())
    second = mx.grad(lambda q: (first(q) * mx.array(step, mx.float32)).sum())(x.arrays[0])
    h, q = 1e-5, x.q
    around = []
    for sign in (1, -1):
        x.q = q + sign * h * step
        around.append(reference_gradients(case, x, d_out, d_lse)["q"])
    check_grad(to_numpy(second), (around[0] - around[1]) / (2 * h), case.tolerance, "second order")


@pytest.mark.parametrize("path", ("auto", "fused", "unfused", "chunked", "stock"))
def test_grad_through_the_public_function(path, rng):
    case = replace(BASE, mask="causal", lse=False)
    x = make(case, rng)
    d_out, d_lse, arrays = cotangents(case, x, rng)

    def f(q, k, v):
        return attention.scaled_dot_product_attention(
            q, k, v, scale=case.scale, mask="causal", path=path
        )

    outs, grads = mx.vjp(f, list(x.arrays), arrays)
    want = reference_gradients(case, x, d_out, d_lse)
    for name, grad in zip("qkv", grads):
        check_grad(to_numpy(grad), want[name], case.tolerance, name)
    out, _ = reference.attention(x.q, x.k, x.v, mask="causal", **options(case))
    check(to_numpy(outs[0]), out, case.tolerance)


def test_no_gradient_for_a_bool_mask_is_asked(rng):
    """grad of q with a bool mask that depends on q: the mask is a constant, as in stock."""
    case = replace(BASE, lse=False)
    x = make(case, rng)
    q, k, v = x.arrays

    def f(q):
        mask = (q[..., :1] > -np.inf) & mx.array(True)
        return call(case, q, k, v, mx.broadcast_to(mask, (2, 4, 7, 19)), None)[0].sum()

    want = mx.grad(lambda q: call(case, q, k, v, None, None)[0].sum())(q)
    check_grad(to_numpy(mx.grad(f)(q)), to_numpy(want), case.tolerance, "q")
