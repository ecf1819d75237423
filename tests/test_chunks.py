"""Keys in chunks: streamed with a carried (O, lse), from one call or from many."""

from __future__ import annotations

from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
import reference
from cases import DTYPES, Case, call, expected, make, options, replace, to_numpy, verify
from mlx_sdpa_ext import _ext, attention, limits
from tolerances import TOLERANCES, check, check_grad, check_lse

LENGTHS = {"prefill": (40, 150), "decode": (1, 150), "tall": (200, 150)}


@pytest.mark.parametrize("chunk_size", (1, 2, 31, 64, 127, 128, 149, 150, 151, 10**6))
@pytest.mark.parametrize("lengths", LENGTHS)
def test_chunk_sizes(lengths, chunk_size, rng):
    """One key a chunk, one chunk, a last chunk of one key, a chunk longer than the keys."""
    Lq, Lk = LENGTHS[lengths]
    verify(
        Case(
            Hq=4,
            Lq=Lq,
            Lk=Lk,
            D=24,
            mask="causal",
            sinks=True,
            path="chunked",
            chunk_size=chunk_size,
        ),
        rng,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lse", (True, False), ids=("lse", ""))
@pytest.mark.parametrize("chunk_size", (16, 50, 513, 1101))
def test_chunks_in_every_dtype(chunk_size, lse, dtype, rng):
    """The carried output stays in float32: no error grows with the number of chunks."""
    verify(
        Case(
            Hq=4, Lq=5, Lk=2000, D=64, dtype=dtype, lse=lse, path="chunked", chunk_size=chunk_size
        ),
        rng,
    )


HIDDEN = {
    "future": {"mask": "causal", "Lq": 150},  # chunks after the rows' own position
    "window": {"mask": "causal", "window": 10},  # chunks before the window
    "bool": {"mask": "bool", "mask_shape": "11QK"},
    "additive": {"mask": "additive", "mask_shape": "11QK"},
}


@pytest.mark.parametrize("sinks", (False, True), ids=("", "sinks"))
@pytest.mark.parametrize("chunk_size", (4, 30, 75))
@pytest.mark.parametrize("hidden", HIDDEN)
def test_chunks_that_nobody_sees(hidden, chunk_size, sinks, rng):
    problem = {"Hq": 4, "Lq": 20, "Lk": 150, "D": 24} | HIDDEN[hidden]
    verify(Case(path="chunked", chunk_size=chunk_size, sinks=sinks, **problem), rng)


def pieces(Lk: int, cuts: list[int]):
    return list(pairwise([0, *cuts, Lk]))


CUTS = ([60], [1, 2, 149], [50, 50, 100], [0, 150])
CARRIED = {
    "prefill": Case(Hq=4, Lq=20, Lk=150, D=24),
    "causal": Case(Hq=4, Lq=20, Lk=150, D=24, mask="causal"),
    "window": Case(Hq=4, Lq=20, Lk=150, D=24, mask="causal", window=30),
    "causal square": Case(Hq=4, Lq=150, Lk=150, D=24, mask="causal"),
    "softcap": Case(Hq=4, Lq=20, Lk=150, D=24, softcap=2.0, sinks=True),
    "bool": Case(Hq=4, Lq=20, Lk=150, D=24, mask="bool", mask_shape="11QK"),
    "additive": Case(Hq=4, Lq=20, Lk=150, D=24, mask="additive", mask_shape="1H1K"),
    "decode": Case(Hq=4, Lq=1, Lk=150, D=24, mask="causal", sinks=True),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("kind", CARRIED)
def test_a_carry_continues_an_earlier_call(kind, cuts, dtype, rng):
    """Keys handed over piece by piece, as from a quantized cache, equal all keys at once.

    q_offset places the queries relative to the first key of the piece; sinks go with the first.
    """
    case = replace(CARRIED[kind], dtype=dtype)
    x = make(case, rng)
    q, k, v = x.arrays
    carry = None
    parts = pieces(case.Lk, cuts)
    for i, (begin, end) in enumerate(parts):
        mask = x.mask_arg[..., begin:end] if isinstance(x.mask_arg, mx.array) else x.mask_arg
        sinks = x.sinks_arg if i == 0 else None
        last = i == len(parts) - 1
        how = {"q_offset": case.Lk - case.Lq - begin, "carry": carry, "float32_out": not last}
        carry = call(case, q, k[:, :, begin:end], v[:, :, begin:end], mask, sinks, **how)
        assert carry[0].dtype == (getattr(mx, dtype) if last else mx.float32)
    out, lse = expected(case, x)
    check(to_numpy(carry[0]), out, TOLERANCES[dtype])
    check_lse(to_numpy(carry[1]), lse, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_float32_out(dtype, rng):
    """The result before its last rounding: closer to float64 than the dtype could hold."""
    case = Case(Hq=4, Lq=20, Lk=150, D=24, dtype=dtype)
    x = make(case, rng)
    (wide,) = _ext.sdpa(*x.arrays, scale=case.scale, float32_out=True)
    (narrow,) = _ext.sdpa(*x.arrays, scale=case.scale)
    assert wide.dtype == mx.float32 and narrow.dtype == getattr(mx, dtype)
    np.testing.assert_array_equal(to_numpy(wide.astype(narrow.dtype)), to_numpy(narrow))
    check(to_numpy(wide), expected(case, x)[0], TOLERANCES[dtype])


def test_a_carry_from_chunks_into_chunks(rng):
    case = Case(Hq=4, Lq=20, Lk=150, D=24, mask="causal", path="chunked", chunk_size=16)
    x = make(case, rng)
    q, k, v = x.arrays
    first = call(
        case, q, k[:, :, :70], v[:, :, :70], "causal", None, q_offset=130, float32_out=True
    )
    both = call(case, q, k[:, :, 70:], v[:, :, 70:], "causal", None, q_offset=60, carry=first)
    out, lse = expected(case, x)
    check(to_numpy(both[0]), out, case.tolerance)
    check_lse(to_numpy(both[1]), lse, case.tolerance)


def test_a_carry_stays_as_it_is(rng):
    """The earlier result may be used again: it is an input, not scratch."""
    case = Case(Hq=4, Lq=20, Lk=150, D=24)
    x = make(case, rng)
    q, k, v = x.arrays
    first = call(case, q, k[:, :, :70], v[:, :, :70], None, None, float32_out=True)
    mx.eval(first)
    before = [to_numpy(a) for a in first]
    again = [call(case, q, k[:, :, 70:], v[:, :, 70:], None, None, carry=first) for _ in range(2)]
    mx.eval(again)
    for a, b in zip(first, before):
        np.testing.assert_array_equal(to_numpy(a), b)
    np.testing.assert_array_equal(to_numpy(again[0][0]), to_numpy(again[1][0]))


def test_a_carry_in_any_memory(rng):
    """Views of the carried out and lse are read through their strides."""
    case = Case(Hq=4, Lq=20, Lk=150, D=24)
    x = make(case, rng)
    q, k, v = x.arrays
    out, lse = call(case, q, k[:, :, :70], v[:, :, :70], None, None, float32_out=True)
    out = mx.contiguous(out.swapaxes(1, 2)).swapaxes(1, 2)
    lse = mx.contiguous(lse[..., ::-1])[..., ::-1]
    both = call(case, q, k[:, :, 70:], v[:, :, 70:], None, None, carry=(out, lse))
    want_out, want_lse = expected(case, x)
    check(to_numpy(both[0]), want_out, case.tolerance)
    check_lse(to_numpy(both[1]), want_lse, case.tolerance)


def test_gradients_through_a_carry(rng):
    """As if the keys had never been split."""
    case = Case(Hq=4, Lq=6, Lk=30, D=12, mask="causal", sinks=True)
    x = make(case, rng)
    d_out, d_lse = rng.standard_normal((1, 4, 6, 12)), rng.standard_normal((1, 4, 6))

    def split(q, k, v, sinks):
        first = call(
            case, q, k[:, :, :20], v[:, :, :20], "causal", sinks, q_offset=24, float32_out=True
        )
        return call(case, q, k[:, :, 20:], v[:, :, 20:], "causal", None, q_offset=4, carry=first)

    _, grads = mx.vjp(split, [*x.arrays, x.sinks_arg], [mx.array(d_out), mx.array(d_lse)])
    want = reference.gradients(
        x.q, x.k, x.v, d_out, d_lse, mask="causal", sinks=x.sinks, **options(case)
    )
    for name, grad in zip(("q", "k", "v", "sinks"), grads):
        check_grad(to_numpy(grad), getattr(want, name), case.tolerance, name)


def test_vmap_of_a_carry(rng):
    case = Case(Hq=4, Lq=6, Lk=30, D=12)
    draws = [make(case, rng) for _ in range(3)]
    q, k, v = (mx.stack([x.arrays[i] for x in draws]) for i in range(3))

    def split(q, k, v):
        first = call(case, q, k[:, :, :20], v[:, :, :20], None, None, float32_out=True)
        return call(case, q, k[:, :, 20:], v[:, :, 20:], None, None, carry=first)

    out, lse = mx.vmap(split)(q, k, v)
    for i, x in enumerate(draws):
        want_out, want_lse = expected(case, x)
        check(to_numpy(out[i]), want_out, case.tolerance)
        check_lse(to_numpy(lse[i]), want_lse, case.tolerance)


@pytest.mark.parametrize("chunk_size", (50, 64, 1000))
def test_the_public_path_takes_its_chunk_size_from_the_environment(chunk_size, monkeypatch, rng):
    monkeypatch.setenv("MLX_SDPA_CHUNK_SIZE", str(chunk_size))
    limits.refresh()
    try:
        case = Case(Hq=4, Lq=20, Lk=150, D=24, mask="causal", sinks=True)
        x = make(case, rng)
        how = {"scale": case.scale, "mask": "causal", "sinks": x.sinks_arg, "path": "chunked"}
        assert attention.explain(*x.arrays, **how).chunks == -(-150 // chunk_size)
        out, lse = attention.scaled_dot_product_attention(*x.arrays, return_lse=True, **how)
        want_out, want_lse = expected(case, x)
        check(to_numpy(out), want_out, case.tolerance)
        check_lse(to_numpy(lse), want_lse, case.tolerance)
    finally:
        monkeypatch.undo()
        limits.refresh()
