"""vmap over every input and axis equals a Python loop over that axis."""

from __future__ import annotations

import itertools

import mlx.core as mx
import numpy as np
import pytest
from cases import Case, call, make, replace, to_numpy
from mlx_sdpa_ext import _ext, attention
from tolerances import TOLERANCES, check, check_grad, check_lse

BASE = Case(B=2, Hq=4, Hkv=2, Lq=7, Lk=19, D=12, Dv=10)
N = 3  # length of the mapped axis
PATHS = {
    "fused": {"path": "fused"},
    "decode": {"path": "fused", "Lq": 1},
    "chunked": {"path": "chunked", "chunk_size": 8},
    "unfused": {"path": "unfused", "block_rows": 3},
}
KINDS = {
    "none": {},
    "causal": {"mask": "causal", "window": 4},
    "bool": {"mask": "bool", "mask_shape": "QK"},
    "additive": {"mask": "additive", "mask_shape": "B1QK", "sinks": True},
    "additive heads": {"mask": "additive", "mask_shape": "H1K"},
    "additive scalar": {"mask": "additive", "mask_shape": ""},
    "softcap": {"softcap": 2.0, "sinks": True},
}


def inputs(case, rng) -> dict[str, mx.array]:
    x = make(case, rng)
    named = dict(zip("qkv", x.arrays))
    if isinstance(x.mask_arg, mx.array):
        named["mask"] = x.mask_arg
    if x.sinks_arg is not None:
        named["sinks"] = x.sinks_arg
    return named


def stacked(case, rng, axes: dict[str, int | None]) -> dict[str, mx.array]:
    """Inputs with a mapped axis of length N where axes says one is."""
    draws = [inputs(case, rng) for _ in range(N)]
    return {
        name: draws[0][name] if axis is None else mx.stack([draw[name] for draw in draws], axis)
        for name, axis in axes.items()
    }


def function(case, names):
    defaults = {"mask": "causal" if case.mask == "causal" else None, "sinks": None}

    def f(*arrays):
        return call(case, **{**defaults, **dict(zip(names, arrays))})

    return f


def loop(f, arrays, axes):
    """f at each place along the mapped axes, stacked."""
    runs = []
    for i in range(N):
        runs.append(
            f(*(a if axis is None else mx.take(a, i, axis) for a, axis in zip(arrays, axes)))
        )
    return [mx.stack(outs) for outs in zip(*runs)]


def same(case, mapped, looped):
    check(to_numpy(mapped[0]), to_numpy(looped[0]), case.tolerance)
    if len(mapped) == 2:
        check_lse(to_numpy(mapped[1]), to_numpy(looped[1]), case.tolerance)


def check_vmap(case, axes, rng):
    arrays = stacked(case, rng, axes)
    f = function(case, list(axes))
    in_axes = tuple(axes.values())
    mapped = mx.vmap(f, in_axes=in_axes)(*arrays.values())
    same(case, mapped, loop(f, list(arrays.values()), in_axes))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "mapped", [m for m in itertools.product((0, 1), repeat=3) if any(m)], ids=str
)
@pytest.mark.parametrize("kind", KINDS)
def test_which_inputs_are_mapped(kind, mapped, path, rng):
    """q, k and v mapped or not; masks and sinks not."""
    case = replace(BASE, **KINDS[kind] | PATHS[path])
    axes = {name: 0 if m else None for name, m in zip("qkv", mapped)}
    axes |= {name: None for name in inputs(case, rng) if name not in "qkv"}
    check_vmap(case, axes, rng)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("others", (None, 0), ids=("alone", "with qkv"))
@pytest.mark.parametrize(
    "kind", ("bool", "additive", "additive heads", "additive scalar", "softcap")
)
def test_mapped_masks_and_sinks(kind, others, path, rng):
    case = replace(BASE, **KINDS[kind] | PATHS[path])
    for name in set(inputs(case, rng)) - set("qkv"):
        axes = dict.fromkeys(inputs(case, rng), others)
        check_vmap(case, axes | {name: 0}, rng)


@pytest.mark.parametrize("axes", [(1, 2, 3), (4, -1, 0), (None, 4, 1), (-2, None, -5)], ids=str)
def test_axes(axes, rng):
    check_vmap(BASE, dict(zip("qkv", axes)), rng)


@pytest.mark.parametrize("axis", (0, 1, 2, 4, -1))
def test_mask_axes(axis, rng):
    case = replace(BASE, mask="additive", mask_shape="BHQK")
    check_vmap(case, {"q": 0, "k": None, "v": 1, "mask": axis}, rng)


def test_out_axes(rng):
    arrays = stacked(BASE, rng, {"q": 0, "k": 0, "v": 0})
    f = function(BASE, "qkv")
    mapped = mx.vmap(f, out_axes=[2, 1])(*arrays.values())
    looped = loop(f, list(arrays.values()), (0, 0, 0))
    same(BASE, [mx.moveaxis(mapped[0], 2, 0), mx.moveaxis(mapped[1], 1, 0)], looped)


@pytest.mark.parametrize("path", PATHS)
def test_nested(path, rng):
    """An outer map over q and an inner map over k and v: every pair."""
    case = replace(BASE, mask="causal", sinks=True, **PATHS[path])
    named = stacked(case, rng, {"q": 0, "k": 0, "v": 0, "sinks": None})
    q, k, v, sinks = named.values()
    f = function(case, list(named))
    pairs = mx.vmap(mx.vmap(f, in_axes=(None, 0, 0, None)), in_axes=(0, None, None, None))(
        q, k, v, sinks
    )
    assert pairs[0].shape[:2] == (N, N)
    for i in range(N):
        for j in range(N):
            same(case, [r[i, j] for r in pairs], f(q[i], k[j], v[j], sinks))


@pytest.mark.parametrize("kind", ("causal", "additive", "softcap"))
@pytest.mark.parametrize("path", PATHS)
def test_vmap_of_grad(path, kind, rng):
    case = replace(BASE, lse=False, **KINDS[kind] | PATHS[path])
    names = list(inputs(case, rng))
    arrays = stacked(case, rng, dict.fromkeys(names, 0))
    f = function(case, names)
    grad = mx.grad(lambda *a: f(*a)[0].square().sum(), argnums=list(range(len(names))))
    mapped = mx.vmap(grad)(*arrays.values())
    looped = loop(grad, list(arrays.values()), [0] * len(names))
    for name, a, b in zip(names, mapped, looped):
        check_grad(to_numpy(a), to_numpy(b), TOLERANCES["float32"], name)


@pytest.mark.parametrize("kind", ("causal", "additive", "softcap"))
def test_grad_of_vmap(kind, rng):
    case = replace(BASE, lse=False, **KINDS[kind])
    names = list(inputs(case, rng))
    axes = (0, None, 1, *[None] * (len(names) - 3))
    arrays = list(stacked(case, rng, dict(zip(names, axes))).values())
    f = function(case, names)
    argnums = list(range(len(names)))
    mapped = mx.grad(lambda *a: mx.vmap(f, in_axes=axes)(*a)[0].square().sum(), argnums)(*arrays)
    looped = mx.grad(lambda *a: loop(f, a, axes)[0].square().sum(), argnums)(*arrays)
    for name, a, b in zip(names, mapped, looped):
        check_grad(to_numpy(a), to_numpy(b), TOLERANCES["float32"], name)


def test_jvp_of_vmap(rng):
    arrays = list(stacked(BASE, rng, {"q": 0, "k": 0, "v": 0}).values())
    tangents = [mx.random.normal(a.shape) for a in arrays]
    f = function(BASE, "qkv")
    _, mapped = mx.jvp(mx.vmap(f), arrays, tangents)
    _, looped = mx.jvp(lambda *a: loop(f, a, (0, 0, 0)), arrays, tangents)
    for a, b in zip(mapped, looped):
        check_grad(to_numpy(a), to_numpy(b), TOLERANCES["float32"], "tangent")


def test_compiled_vmap(rng):
    arrays = list(stacked(BASE, rng, {"q": 0, "k": None, "v": 0}).values())
    f = function(BASE, "qkv")
    mapped = mx.compile(mx.vmap(f, in_axes=(0, None, 0)))(*arrays)
    same(BASE, mapped, loop(f, arrays, (0, None, 0)))


@pytest.mark.parametrize("path", ("auto", "fused", "unfused", "chunked", "stock"))
def test_the_public_function(path, rng):
    arrays = list(stacked(BASE, rng, {"q": 0, "k": 0, "v": 0}).values())

    def f(q, k, v):
        return [attention.scaled_dot_product_attention(q, k, v, scale=BASE.scale, path=path)]

    same(BASE, mx.vmap(f)(*arrays), loop(f, arrays, (0, 0, 0)))


def test_lse_equals_a_loop_in_every_path(rng):
    """lse [N, B, Hq, Lq] has the mapped axis in front, whatever the inputs' axes were."""
    arrays = stacked(BASE, rng, {"q": 2, "k": None, "v": None})
    for path in PATHS.values():
        case = replace(BASE, **{k: v for k, v in path.items() if k != "Lq"})
        lse = mx.vmap(function(case, "qkv"), in_axes=(2, None, None))(*arrays.values())[1]
        assert lse.shape == (N, 2, 4, 7)
        assert np.isfinite(to_numpy(lse)).all()


@pytest.mark.parametrize("carry_axis", (0, 3, None))
def test_a_carry(carry_axis, rng):
    """The kernels read it densely, however the mapping lays it out."""
    q, k, v = stacked(BASE, rng, dict.fromkeys("qkv", 0)).values()
    out = mx.random.normal((N, 2, 4, 7, 10))
    lse = mx.random.normal((N, 2, 4, 7))
    if carry_axis is None:
        out, lse = out[0], lse[0]
    else:
        out, lse = (
            mx.contiguous(mx.moveaxis(a, 0, min(carry_axis, a.ndim - 1))) for a in (out, lse)
        )

    def f(q, k, v, out, lse):
        return tuple(_ext.sdpa(q, k, v, scale=0.3, carry=(out, lse), return_lse=True))

    lse_axis = carry_axis if carry_axis is None else min(carry_axis, lse.ndim - 1)
    axes = (0, 0, 0, carry_axis, lse_axis)
    arrays = (q, k, v, out, lse)
    mapped = mx.vmap(f, in_axes=axes)(*arrays)
    same(BASE, mapped, loop(f, arrays, axes))
