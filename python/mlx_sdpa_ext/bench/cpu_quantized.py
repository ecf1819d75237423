"""Attention over quantized caches on the CPU, beside ours over float16 and beside mlx-lm's own."""

from collections.abc import Iterator
from functools import partial

import mlx.core as mx

from .. import attention, lm
from .beside import chained_operands, operands
from .measure import added_memory, seconds
from .side_by_side import Inputs, Side, take_turns

BITS, GROUP_SIZE = (8, 4), 64
SETS = 4  # of keys and values that take turns, so that few are found in a cache
LENGTHS = {"decode": (1, 32768), "prefill": (128, 4096)}  # rows and keys


def beside_float16(quick: bool) -> Iterator[dict]:
    """H8/1 over keys of 16, 8 and 4 bits; a prefill of mlx-lm's takes half a minute."""
    from mlx_lm.models.base import quantized_scaled_dot_product_attention as found

    for kind, (rows, keys) in LENGTHS.items():
        for D in (128, 256) if kind == "decode" else (128,):
            length = keys // 16 if quick else keys
            make = partial(chained_operands, 8, 1, length, D, "float16")
            if rows > 1:
                make = partial(operands, 8, 1, rows, length, D, D, "float16")
            inputs = [make() for _ in range(SETS)]
            yield from _case(kind, inputs, found, 5 if quick or rows > 1 else 25)


def _case(kind: str, inputs: list, found, repeats: int) -> Iterator[dict]:
    q, k, v = inputs[0]
    call = {"scale": q.shape[-1] ** -0.5, "mask": "causal" if q.shape[2] > 1 else None}
    pack = partial(mx.quantize, group_size=GROUP_SIZE)
    packed = {
        bits: [Inputs(q, (pack(k, bits=bits), pack(v, bits=bits))) for q, k, v in inputs]
        for bits in BITS
    }
    mx.eval(packed)
    packed[16] = [Inputs(q, (k, v)) for q, k, v in inputs]
    runs = {16: partial(attention.scaled_dot_product_attention, **call)}
    for bits in BITS:
        of_bits = {"group_size": GROUP_SIZE, "bits": bits}
        runs[bits] = partial(lm.quantized_attention(found), **call, **of_bits)
    taken = _in_turns(runs, packed, q.shape[2] == 1, repeats)
    added = {
        bits: added_memory(partial(run, q, *packed[bits][0].rest), [q])[0]
        for bits, run in runs.items()
    }
    for bits in BITS:
        copies = [mx.array(q), *packed[bits][0].rest]  # mlx-lm's scales its queries in place
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
            "added_bytes": added[bits],
            "float16_added_bytes": added[16],
        }


def _in_turns(runs: dict, inputs: dict, few_rows: bool, repeats: int) -> dict:
    """Seconds of each of the runs, each on inputs of its own."""
    sides = {name: Side(call, inputs[name], few_rows, repeats) for name, call in runs.items()}
    for side in sides.values():
        side.prepare()
    take_turns(sides.values())
    return {name: side.result() for name, side in sides.items()}


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
