"""A call of ours beside the same call of stock, in one run."""

import statistics
from functools import partial

import mlx.core as mx

from .. import attention
from .measure import seconds
from .side_by_side import Q_SCALE, Inputs, side_by_side, v_scale

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
        if "error" in side:
            raise RuntimeError(side["error"])
    return sides


def beside_stock(
    name, arrays, mask, stock_repeats, ours_repeats, path="auto", warm_up=0, sets=1, read_rate=None
) -> dict:
    """One case on both; FLOPs count the visible scores only.

    sets:      of K and V that take turns for ours, so that none is found in a cache. Beyond 1, q is
               of chained_operands, and calls of ours follow each other in one graph
    read_rate: what the device reads in GB/s; asked before and after ours, as memory can have better
               and worse minutes
    """
    q, k, v = arrays
    call = {"scale": q.shape[-1] ** -0.5, "mask": mask}
    route = attention.explain(q, k, v, path=path, **call)
    run = partial(attention.scaled_dot_product_attention, path=path, **call)
    reads = [read_rate()] if read_rate else []
    if sets > 1:
        copies = [(k, v), *((mx.array(k), mx.array(v)) for _ in range(sets - 1))]
        mx.eval(copies)
        inputs = [Inputs(q, pair) for pair in copies]
        ours = timed({"ours": run}, inputs, True, ours_repeats)["ours"]
    else:
        ours = seconds(partial(run, q, k, v), ours_repeats)
    reads += [read_rate()] if read_rate else []
    kv_rate = (k.nbytes + v.nbytes) / ours["median_s"] / 1e9
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
        "ours": ours,
        "stock": theirs,
        "ours_gflops": route.flops / ours["median_s"] / 1e9,
        "stock_gflops": route.flops / theirs["median_s"] / 1e9,
        "kv_gb_per_s": kv_rate,
        "speedup": theirs["median_s"] / ours["median_s"],
    } | ({"read_gb_per_s": reads, "of_read": kv_rate / statistics.mean(reads)} if reads else {})
