"""Training on the CPU: time and memory of a forward and backward pass, beside stock, by length."""

from collections.abc import Callable, Iterator

import mlx.core as mx

from .. import attention
from .beside import operands, stock
from .measure import added_memory, seconds

HEADS, D = 2, 64


def gradients(quick: bool) -> Iterator[dict]:
    """float32 causal, H2/2, D 64: from 1024 to 8192 rows and keys."""
    for length in (256, 512) if quick else (1024, 2048, 4096, 8192):
        arrays = operands(HEADS, HEADS, length, length, D, D, "float32")
        d_out = mx.random.normal(arrays[0].shape)
        mx.eval(d_out)
        ours = passes(attention.scaled_dot_product_attention, arrays, d_out, repeats=5)
        theirs = passes(stock, arrays, d_out, repeats=1)
        yield {
            "case": "gradients",
            "dtype": "float32",
            "q": arrays[0].shape,
            "k": arrays[1].shape,
            "v": arrays[2].shape,
            "mask": "causal",
            "ours": ours,
            "stock": theirs,
        }


def passes(function: Callable, arrays: list[mx.array], d_out: mx.array, repeats: int) -> dict:
    """Median seconds forward and of both passes, and the peak above inputs and results."""

    def forward():
        return [function(*arrays, scale=D**-0.5, mask="causal")]

    def both():
        outputs, grads = mx.vjp(
            lambda *x: function(*x, scale=D**-0.5, mask="causal"), arrays, [d_out]
        )
        return [*outputs, *grads]

    added, _ = added_memory(both, [*arrays, d_out])  # also the warm-up
    forward_s, both_s = (seconds(run, repeats, warm_up=0)["median_s"] for run in (forward, both))
    return {
        "forward_s": forward_s,
        "both_s": both_s,
        "backward_s": both_s - forward_s,
        "added_bytes": added,
        "repeats": repeats,
    }


TITLES = ("case", "shape", "ours backward, adds", "stock backward, adds", "")


def row(result: dict) -> list[str]:
    _, heads, length, dim = result["q"]

    def side(who: str) -> str:
        found = result[who]
        return f"{found['backward_s'] * 1e3:.1f} ms  {found['added_bytes'] / 2**20:.1f} MiB"

    return [
        f"{result['case']} {result['dtype']}",
        f"{heads} {length}x{length} D{dim}",
        side("ours"),
        side("stock"),
        f"{result['stock']['backward_s'] / result['ours']['backward_s']:.0f}x",
    ]
