"""A call of ours beside the same call of stock, in one run."""

from functools import partial

import mlx.core as mx

from .. import attention
from .measure import seconds
from .side_by_side import Q_SCALE, answered, side_by_side, v_scale

DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16, "float16": mx.float16}
stock = mx.fast.scaled_dot_product_attention


def operands(Hq, Hkv, Lq, Lk, D, Dv, dtype):
    """Random q [1, Hq, Lq, D], k [1, Hkv, Lk, D] and v [1, Hkv, Lk, Dv], evaluated."""
    shapes = [(1, Hq, Lq, D), (1, Hkv, Lk, D), (1, Hkv, Lk, Dv)]
    arrays = [mx.random.normal(s).astype(DTYPES[dtype]) for s in shapes]
    mx.eval(*arrays)
    return arrays


def chained_operands(Hq, Hkv, Lq, Lk, D, Dv, dtype):
    """Operands whose outputs are as large as the queries, for chains of calls: side_by_side.py."""
    q, k, v = operands(Hq, Hkv, Lq, Lk, D, Dv, dtype)
    q, v = q * Q_SCALE, v * v_scale(Lk)
    mx.eval(q, v)
    return [q, k, v]


def timed(calls, inputs, few_rows, repeats) -> dict[str, dict]:
    """side_by_side, where a call that fails is an error: RuntimeError."""
    sides = side_by_side(calls, inputs, few_rows, repeats)
    for side in sides.values():
        answered(side)
    return sides


def beside_stock(
    name, arrays, mask, stock_repeats, ours_repeats, path="auto", warm_up=0, taken=None
) -> dict:
    """One case on both; FLOPs count the visible scores only.

    taken: the result of a BetweenReads, for a case of which ours was measured already
    """
    q, k, v = arrays
    call = {"scale": q.shape[-1] ** -0.5, "mask": mask}
    route = attention.explain(q, k, v, path=path, **call)
    run = partial(attention.scaled_dot_product_attention, path=path, **call)
    taken = taken or {"ours": seconds(partial(run, q, k, v), ours_repeats)}
    ours = taken["ours"]
    theirs = seconds(partial(stock, q, k, v, **call), stock_repeats, warm_up=warm_up)
    return {
        "case": name,
        "dtype": str(q.dtype).removeprefix("mlx.core."),
        "q": q.shape,
        "k": k.shape,
        "v": v.shape,
        "mask": mask,
        "path": route.path,
        "kernel": route.kernel,
        "flops": route.flops,
        **taken,
        "stock": theirs,
        "ours_gflops": route.flops / ours["median_s"] / 1e9,
        "stock_gflops": route.flops / theirs["median_s"] / 1e9,
        "kv_gb_per_s": (k.nbytes + v.nbytes) / ours["median_s"] / 1e9,
        "speedup": theirs["median_s"] / ours["median_s"],
    }
