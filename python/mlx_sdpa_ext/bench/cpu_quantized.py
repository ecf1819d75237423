"""Attention over quantized caches on the CPU, beside ours over float16 and beside mlx-lm's own."""

from collections.abc import Iterator
from functools import partial

import mlx.core as mx

from .. import attention, lm
from .beside import chained_operands, operands, timed
from .measure import seconds
from .side_by_side import Inputs

BITS, GROUP_SIZE = (8, 4), 64
SETS = 4  # of keys and values that take turns, so that few are found in a cache
LENGTHS = {"decode": (1, 32768), "prefill": (128, 4096)}  # rows and keys


def beside_float16(quick: bool) -> Iterator[dict]:
    """H8/1 over keys of 16, 8 and 4 bits; a prefill of mlx-lm's takes half a minute."""
    from mlx_lm.models.base import quantized_scaled_dot_product_attention as found

    for kind, (rows, keys) in LENGTHS.items():
        for D in (128, 256) if kind == "decode" else (128,):
            length = keys // 16 if quick else keys
            make = chained_operands if rows == 1 else operands
            inputs = [make(8, 1, rows, length, D, D, "float16") for _ in range(SETS)]
            yield from _case(kind, inputs, found, 5 if quick or rows > 1 else 25)


def _case(kind: str, inputs: list, found, repeats: int) -> Iterator[dict]:
    q, k, v = inputs[0]
    call = {"scale": q.shape[-1] ** -0.5, "mask": "causal" if q.shape[2] > 1 else None}
    pack = partial(mx.quantize, group_size=GROUP_SIZE)
    caches = [
        {16: (k, v)} | {bits: (pack(k, bits=bits), pack(v, bits=bits)) for bits in BITS}
        for _, k, v in inputs
    ]
    mx.eval(caches)
    calls = {16: partial(attention.scaled_dot_product_attention, **call)}
    for bits in BITS:
        of_bits = {"group_size": GROUP_SIZE, "bits": bits}
        calls[bits] = partial(lm.quantized_attention(found), **call, **of_bits)

    def over(bits):
        return lambda q, cache: calls[bits](q, *cache[bits])

    each = [Inputs(q, (cache,)) for (q, _, _), cache in zip(inputs, caches)]
    taken = timed({bits: over(bits) for bits in calls}, each, q.shape[2] == 1, repeats)
    for bits in BITS:
        copies = [mx.array(q), *caches[0][bits]]  # mlx-lm's scales its queries in place
        theirs = partial(found, *copies, **call, group_size=GROUP_SIZE, bits=bits)
        stock = seconds(theirs, 1, warm_up=0)
        yield {
            "case": f"quantized {kind}",
            "dtype": "float16",
            "bits": bits,
            "q": q.shape,
            "k": k.shape,
            "v": v.shape,
            "mask": call["mask"],
            "ours": taken[bits],
            "float16": taken[16],
            "stock": stock,
            "elements_per_s": (k.size + v.size) / taken[bits]["median_s"],
            "over_float16": taken[16]["median_s"] / taken[bits]["median_s"],
            "speedup": stock["median_s"] / taken[bits]["median_s"],
            "added_bytes": taken[bits]["added_bytes"],
            "float16_added_bytes": taken[16]["added_bytes"],
        }


def row(result: dict, shape: str) -> list[str]:
    """The columns of one result."""
    added = f"adds {result['added_bytes'] >> 10} KiB, float16 {result['float16_added_bytes'] >> 10}"
    return [
        f"{result['case']} {result['bits']} bits",
        shape,
        f"{result['ours']['median_s'] * 1e3:.2f} ms, {added}",
        f"{result['stock']['median_s'] * 1e3:.0f} ms",
        f"{result['speedup']:.0f}x, {result['over_float16']:.2f}x float16",
    ]
