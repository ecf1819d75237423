"""Bad arguments: stock's exception types for the same calls, and messages that name what is wrong.

Every call of the first tables is made on stock too: we accept and refuse what it does.
"""

from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest
from cases import to_numpy
from mlx_sdpa_ext import _ext, attention
from tolerances import STOCK_TOLERANCES, check

FUNCTIONS = {
    "auto": attention.scaled_dot_product_attention,
    "fused": lambda *a, **k: attention.scaled_dot_product_attention(*a, path="fused", **k),
    "unfused": lambda *a, **k: attention.scaled_dot_product_attention(*a, path="unfused", **k),
    "chunked": lambda *a, **k: attention.scaled_dot_product_attention(*a, path="chunked", **k),
    "ext.sdpa": lambda *a, **k: _ext.sdpa(*a, **k)[0],
    "ext.unfused": lambda *a, **k: _ext.unfused(*a, **k)[0],
}


def arr(*shape, dtype=mx.float32):
    return mx.ones(shape, dtype)


Q, K, V = arr(2, 4, 3, 8), arr(2, 2, 5, 8), arr(2, 2, 5, 6)
F16 = tuple(a.astype(mx.float16) for a in (Q, K, V))

# name: (args, keywords, words that our message has)
REFUSED = {
    "q of rank 3": ((Q[0], K, V), {}, "rank|4"),
    "k of rank 5": ((Q, K[None], V), {}, "rank|4"),
    "v of rank 2": ((Q, K, V[0, 0]), {}, "rank|4"),
    "scalar q": ((mx.array(1.0), K, V), {}, "rank|4"),
    "k of another batch": ((Q, arr(3, 2, 5, 8), V), {}, "batch"),
    "v of another batch": ((Q, K, arr(1, 2, 5, 6)), {}, "batch"),
    "k of another head_dim": ((Q, arr(2, 2, 5, 9), V), {}, "9"),
    "v of other heads": ((Q, K, arr(2, 4, 5, 6)), {}, "heads"),
    "q heads no multiple": ((arr(2, 3, 3, 8), K, V), {}, "multiple"),
    "fewer q heads than k heads": ((arr(2, 1, 3, 8), K, V), {}, "multiple"),
    "integers": (tuple(a.astype(mx.int32) for a in (Q, K, V)), {}, "int32"),
    "bools": (tuple(a.astype(mx.bool_) for a in (Q, K, V)), {}, "bool"),
    "complex": (tuple(a.astype(mx.complex64) for a in (Q, K, V)), {}, "complex64"),
    "mask word": ((Q, K, V), {"mask": "foo"}, "foo"),
    "mask 'array'": ((Q, K, V), {"mask": "array"}, "array"),
    "mask ''": ((Q, K, V), {"mask": ""}, "mask"),
    "mask of rank 5": ((Q, K, V), {"mask": arr(1, 2, 4, 3, 5)}, "mask"),
    "mask of other keys": ((Q, K, V), {"mask": arr(3, 6)}, "6"),
    "mask of other queries": ((Q, K, V), {"mask": arr(4, 5)}, "4"),
    "mask of other heads": ((Q, K, V), {"mask": arr(2, 3, 5)}, "2"),
    "mask of other batch": ((Q, K, V), {"mask": arr(3, 1, 1, 5)}, "3"),
    "mask per kv head": ((Q, K, V), {"mask": arr(2, 2, 3, 5)}, "2"),
    "empty mask": ((Q, K, V), {"mask": arr(3, 0)}, "0"),
    "wide mask for float16": (F16, {"mask": arr(3, 5)}, "mask|Mask"),
    "bfloat16 mask for float16": (F16, {"mask": arr(3, 5, dtype=mx.bfloat16)}, "mask|Mask"),
    "complex mask": ((Q, K, V), {"mask": arr(3, 5, dtype=mx.complex64)}, "mask|Mask"),
    "sinks of other length": ((Q, K, V), {"sinks": arr(5)}, "sinks"),
    "sinks of rank 0": ((Q, K, V), {"sinks": mx.array(1.0)}, "sinks"),
    "sinks of rank 2": ((Q, K, V), {"sinks": arr(1, 4)}, "sinks"),
    "sinks per kv head": ((Q, K, V), {"sinks": arr(2)}, "sinks"),
    "wide sinks for float16": (F16, {"sinks": arr(4)}, "sinks"),
    "scale missing": ((Q, K, V), {"scale": None}, "scale|incompatible function arguments"),
    "scale a word": ((Q, K, V), {"scale": "one"}, "scale|incompatible function arguments"),
    "q a list": (([1.0], K, V), {}, "q|incompatible function arguments"),
    "q None": ((None, K, V), {}, "q|incompatible function arguments"),
    "q numpy": ((np.ones((2, 4, 3, 8), np.float32), K, V), {}, "q|incompatible function arguments"),
    "mask a list": ((Q, K, V), {"mask": [[1.0]]}, "mask|incompatible function arguments"),
    "mask a number": ((Q, K, V), {"mask": 1.0}, "mask|incompatible function arguments"),
    "sinks a list": ((Q, K, V), {"sinks": [1.0]}, "sinks|incompatible function arguments"),
    "stream a word": ((Q, K, V), {"stream": "cpu"}, "stream|incompatible function arguments"),
    "unknown keyword": ((Q, K, V), {"dropout": 0.1}, "dropout|incompatible function arguments"),
    "four positional": ((Q, K, V, 1.0), {}, "positional|incompatible function arguments"),
    "two positional": ((Q, K), {}, "v|incompatible function arguments"),
}


def refusal(function, args, keywords):
    keywords = {"scale": 1.0, **keywords}
    if "scale" in keywords and keywords["scale"] is None:
        del keywords["scale"]
    try:
        mx.eval(function(*args, **keywords))
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_stock_refuses_we_refuse(name, function):
    args, keywords, words = REFUSED[name]
    stock = refusal(mx.fast.scaled_dot_product_attention, args, keywords)
    assert stock is not None, "stock takes this call: it belongs in the table of accepted ones"
    ours = refusal(FUNCTIONS[function], args, keywords)
    assert type(ours) is type(stock), f"ours: {ours!r}, stock: {stock!r}"
    assert any(word in str(ours) for word in words.split("|")), str(ours)


ACCEPTED = {
    "keywords": ((), {"q": Q, "k": K, "v": V}),
    "keywords in another order": ((Q,), {"v": V, "k": K}),
    "an int scale": ((Q, K, V), {"scale": 1}),
    "a numpy scale": ((Q, K, V), {"scale": np.float32(0.5)}),
    "an array scale": ((Q, K, V), {"scale": mx.array(0.5)}),
    "a scale of zero": ((Q, K, V), {"scale": 0.0}),
    "a negative scale": ((Q, K, V), {"scale": -1.5}),
    "mask None": ((Q, K, V), {"mask": None, "sinks": None, "stream": None}),
    "a scalar mask": ((Q, K, V), {"mask": mx.array(1.0)}),
    "a True mask": ((Q, K, V), {"mask": mx.array(True)}),
    "an integer mask": ((Q, K, V), {"mask": mx.arange(5)}),
    "a float16 mask": ((Q, K, V), {"mask": mx.arange(5).astype(mx.float16)}),
    "a bfloat16 mask": ((Q, K, V), {"mask": mx.arange(5).astype(mx.bfloat16)}),
    "integer sinks": ((Q, K, V), {"sinks": mx.arange(4)}),
    "float16 sinks": ((Q, K, V), {"sinks": mx.arange(4).astype(mx.float16)}),
    "force_fused False": ((Q, K, V), {"force_fused": False}),
    "float16 and float32": ((F16[0], K, V), {}),
    "bfloat16 and float16": ((F16[0], F16[1], V.astype(mx.bfloat16)), {}),
    "int and float16": ((Q.astype(mx.int32), F16[1], F16[2]), {}),
    "int8 and bfloat16": ((Q.astype(mx.int8), K.astype(mx.bfloat16), V.astype(mx.bfloat16)), {}),
    "float64": (tuple(a.astype(mx.float64) for a in (Q, K, V)), {"stream": mx.cpu}),
    "float64 with sinks": (
        tuple(a.astype(mx.float64) for a in (Q, K, V)),
        {"stream": mx.cpu, "sinks": mx.arange(4)},
    ),
    "float64 and float32": ((Q.astype(mx.float64), K, V), {"stream": mx.cpu}),
    "one head": ((arr(2, 1, 3, 8), K[:, :1], V[:, :1]), {}),
}


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", ACCEPTED)
def test_what_stock_accepts_we_accept(name, function, rng):
    if function in ("fused", "chunked", "ext.sdpa") and "float64" in name:
        with pytest.raises(ValueError, match="float64"):
            FUNCTIONS[function](*ACCEPTED[name][0], scale=1.0, stream=mx.cpu)
        return
    args, keywords = ACCEPTED[name]
    if function.startswith("ext"):
        keywords = {k: v for k, v in keywords.items() if k != "force_fused"}

    def fresh(a):  # random values of the same shape and dtype
        if not isinstance(a, mx.array) or a.ndim < 4:
            return a
        return mx.array(rng.integers(-2, 3, a.shape)).astype(a.dtype)

    args = tuple(map(fresh, args))
    keywords = {"scale": 0.3, **{k: fresh(v) for k, v in keywords.items()}}
    stock = mx.fast.scaled_dot_product_attention(*args, **keywords)
    ours = FUNCTIONS[function](*args, **keywords)
    assert ours.shape == stock.shape and ours.dtype == stock.dtype
    dtype = str(stock.dtype).removeprefix("mlx.core.")
    check(to_numpy(ours), to_numpy(stock), STOCK_TOLERANCES[dtype])


@pytest.mark.parametrize("scale", (math.nan, math.inf))
def test_a_scale_that_is_not_finite_gives_what_stock_gives(scale):
    stock = mx.fast.scaled_dot_product_attention(Q, K, V, scale=scale)
    ours = attention.scaled_dot_product_attention(Q, K, V, scale=scale)
    assert mx.isnan(stock).all() and mx.isnan(ours).all()


# Arguments that stock does not have, and what the message must say.
OWN = {
    "window without causal": ({"window": 2}, "window.*causal"),
    "window with an array mask": ({"window": 2, "mask": arr(3, 5)}, "window.*causal"),
    "window of zero": ({"window": 0, "mask": "causal"}, "window.*0"),
    "negative window": ({"window": -3, "mask": "causal"}, "window.*-3"),
    "softcap of zero": ({"softcap": 0.0}, "softcap.*0"),
    "negative softcap": ({"softcap": -1.0}, "softcap.*-1"),
    "softcap NaN": ({"softcap": math.nan}, "softcap.*nan"),
    "softcap infinite": ({"softcap": math.inf}, "softcap.*inf"),
}


@pytest.mark.parametrize("function", [name for name in FUNCTIONS if name != "chunked"])
@pytest.mark.parametrize("name", OWN)
def test_own_arguments(name, function):
    keywords, message = OWN[name]
    with pytest.raises(ValueError, match=message):
        FUNCTIONS[function](Q, K, V, scale=1.0, **keywords)


WRONG_TYPES = {
    "q a list": ({"q": [1.0]}, "q: got list; allowed is an mx.array"),
    "v numpy": ({"v": np.ones((2, 2, 5, 6))}, "v: got ndarray; allowed is an mx.array"),
    "mask a number": ({"mask": 1.0}, "mask: got float; allowed are None, 'causal' and an mx.array"),
    "sinks a list": ({"sinks": [1.0]}, "sinks: got list; allowed are None and an mx.array"),
    "window a float": (
        {"window": 2.5, "mask": "causal"},
        "window: got float; allowed are None and a whole number",
    ),
    "window a word": ({"window": "2", "mask": "causal"}, "window: got str; allowed are None and"),
    "softcap a word": ({"softcap": "high"}, "softcap: got str; allowed are None and a number"),
    "softcap an array of two": ({"softcap": mx.array([1.0, 2.0])}, "softcap"),
    "scale a word": ({"scale": "one"}, "scale: got str; allowed is a number"),
    "stream a word": ({"stream": "cpu"}, "stream: got str; allowed are"),
}


@pytest.mark.parametrize("name", WRONG_TYPES)
def test_arguments_of_the_wrong_type(name):
    keywords, message = WRONG_TYPES[name]
    keywords = {"q": Q, "k": K, "v": V, "scale": 1.0, **keywords}
    with pytest.raises(TypeError, match=message):
        attention.scaled_dot_product_attention(**keywords)


@pytest.mark.parametrize("path", ("Fused", "", "flash", None, 1))
def test_an_unknown_path(path):
    with pytest.raises(ValueError, match=r"path.*fused.*unfused.*chunked.*stock"):
        attention.scaled_dot_product_attention(Q, K, V, scale=1.0, path=path)


def test_force_fused_where_no_kernel_is():
    """Ours exist: force_fused is a promise that ours keeps on the CPU, where stock has none."""
    out = attention.scaled_dot_product_attention(Q, K, V, scale=1.0, force_fused=True)
    plain = attention.scaled_dot_product_attention(Q, K, V, scale=1.0, path="fused")
    np.testing.assert_array_equal(to_numpy(out), to_numpy(plain))


def test_fused_refuses_what_it_cannot_compute():
    wide = arr(1, 1, 2, 1025)
    for q, k, v in (
        (wide, wide, wide),
        (wide, wide, arr(1, 1, 2, 8)),
        (Q[:1], K[:1], arr(1, 2, 5, 2000)),
    ):
        with pytest.raises(ValueError, match=r"102[45]|2000"):
            attention.scaled_dot_product_attention(q, k, v, scale=1.0, path="fused")
        out = attention.scaled_dot_product_attention(q, k, v, scale=1.0)
        assert out.shape == (*q.shape[:3], v.shape[-1])


def test_stock_has_no_lse_window_or_softcap():
    for keywords, word in (
        ({"return_lse": True}, "logsumexp"),
        ({"softcap": 2.0}, "softcap"),
        ({"window": 2, "mask": "causal"}, "window"),
    ):
        with pytest.raises(ValueError, match=rf"stock.*{word}"):
            attention.scaled_dot_product_attention(Q, K, V, scale=1.0, path="stock", **keywords)


def test_k_and_v_of_different_lengths():
    """Stock finds this out in its matmul; in every path it is a ValueError before evaluation."""
    for function in FUNCTIONS.values():
        with pytest.raises(ValueError, match=r"[56]"):
            function(Q, K, arr(2, 2, 6, 6), scale=1.0)


def test_no_heads():
    """Stock dies of a division by zero where k has no heads."""
    for function in FUNCTIONS.values():
        with pytest.raises(ValueError, match="heads"):
            function(Q, arr(2, 0, 5, 8), arr(2, 0, 5, 6), scale=1.0)


O, L = arr(2, 4, 3, 6), arr(2, 4, 3)
BAD_MERGES = {
    "empty lists": ([], [], "at least one|empty|no "),
    "more outputs": ([O, O], [L], "2.*1"),
    "more lses": ([O], [L, L], "1.*2"),
    "outputs differ": ([O, arr(2, 4, 3, 7)], [L, L], "7"),
    "lses differ": ([O, O], [L, arr(2, 4, 4)], "lse.*4"),
    "lse with a last dim": ([O], [L[..., None]], "lse"),
    "output of rank 3": ([O[0]], [L[0]], "rank|4"),
    "integer outputs": ([O.astype(mx.int32)], [L], "int32"),
    "integer lse": ([O], [L.astype(mx.int32)], "int32"),
    "half lse": ([O], [L.astype(mx.float16)], "float16"),
}


@pytest.mark.parametrize("merge", (attention.merge, _ext.merge), ids=("public", "ext"))
@pytest.mark.parametrize("name", BAD_MERGES)
def test_bad_merges(name, merge):
    outputs, lses, message = BAD_MERGES[name]
    with pytest.raises(ValueError, match=message):
        merge(outputs, lses)


@pytest.mark.parametrize("merge", (attention.merge, _ext.merge), ids=("public", "ext"))
def test_merge_of_no_arrays(merge):
    for outputs, lses in ((None, [L]), ([O], None), ([1.0], [2.0]), ([O], [None])):
        with pytest.raises(TypeError):
            merge(outputs, lses)


@pytest.mark.parametrize("merge", (attention.merge, _ext.merge), ids=("public", "ext"))
def test_merge_promotes_outputs_of_different_dtypes(merge):
    out, lse = merge([O, 3 * O.astype(mx.float16)], [L, L])
    assert out.dtype == lse.dtype == mx.float32
    np.testing.assert_allclose(to_numpy(out), 2)


BAD_CARRIES = {
    "out in another dtype": (arr(2, 4, 3, 6, dtype=mx.float16), L, "carry.*float"),
    "out of another shape": (arr(2, 4, 3, 7), L, "carry.*7"),
    "lse of another shape": (O, arr(2, 4, 5), "carry.*5"),
    "lse in another dtype": (O, arr(2, 4, 3, dtype=mx.float16), "carry.*float"),
}


@pytest.mark.parametrize("name", BAD_CARRIES)
def test_bad_carries(name):
    out, lse, message = BAD_CARRIES[name]
    with pytest.raises(ValueError, match=message):
        _ext.sdpa(Q, K, V, scale=1.0, carry=(out, lse))


def test_sinks_with_a_carry():
    """They were counted with the first keys, or they were forgotten there: either way a mistake."""
    with pytest.raises(ValueError, match="sinks"):
        _ext.sdpa(Q, K, V, scale=1.0, carry=(O, L), sinks=arr(4))


@pytest.mark.parametrize("keyword", ("chunk_size", "block_rows"))
def test_negative_sizes(keyword):
    function = _ext.sdpa if keyword == "chunk_size" else _ext.unfused
    with pytest.raises(ValueError, match=f"{keyword}.*-1"):
        function(Q, K, V, scale=1.0, **{keyword: -1})


@pytest.mark.parametrize(
    ("arrays", "mask", "want"),
    [
        ((Q, K, V), None, (2, 4, 2, 3, 5, 8, 6, "float32", "none")),
        ((Q, K, V), "causal", (2, 4, 2, 3, 5, 8, 6, "float32", "causal")),
        (F16, mx.array(True), (2, 4, 2, 3, 5, 8, 6, "float16", "bool")),
        (F16, mx.arange(5), (2, 4, 2, 3, 5, 8, 6, "float16", "additive")),
        ((F16[0], F16[1], V), None, (2, 4, 2, 3, 5, 8, 6, "float32", "none")),
    ],
    ids=("none", "causal", "bool", "additive", "mixed"),
)
def test_problem(arrays, mask, want):
    """What the router asks: sizes, the promoted dtype, the kind of mask."""
    assert _ext.problem(*arrays, mask=mask) == want
