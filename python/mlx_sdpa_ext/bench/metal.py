"""Speed on a Mac's GPU, beside stock: each kernel of ours, whether or not the router chooses it.

Written without a Mac: its sizes are guesses at what takes a few minutes on an M1.
"""

from collections.abc import Iterator

from .beside import beside_stock, operands

# D, Dv: where stock fuses, and where it does not.
HEAD_DIMS = [(64, 64), (128, 128), (192, 128), (192, 192), (256, 256), (512, 512)]


def speed(quick: bool) -> Iterator[dict]:
    """Prefill steps, few rows and decode against a cache, heads 16 on 2, float16."""
    rows, caches = (256, (2048,)) if quick else (2048, (8192, 32768))
    repeats = 3 if quick else 9
    for D, Dv in HEAD_DIMS:
        for keys in caches:
            for name, Lq in (("prefill", rows), ("24 rows", 24), ("decode", 1)):
                arrays = operands(16, 2, Lq, keys, D, Dv, "float16")
                yield beside_stock(name, arrays, "causal", repeats, repeats, "fused", warm_up=1)
