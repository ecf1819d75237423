"""The least that a build must do: test_mlx_versions.py runs it in environments of its own.

Needs mlx, numpy and mlx_sdpa_ext; prints the MLX version when all of it holds.
"""

import itertools

import mlx.core as mx
import mlx_sdpa_ext
import numpy as np
import reference
from mlx_sdpa_ext import _build_info, attention
from tolerances import STOCK_TOLERANCES, TOLERANCES, check, check_grad

B, HQ, HKV, LQ, LK = 1, 4, 2, 65, 127


def operands(D, dtype=mx.float32):
    """q [B, HQ, LQ, D], k and v [B, HKV, LK, D], and the float64 values they hold."""
    rng = np.random.default_rng(D)
    shapes = [(B, HQ, LQ, D), (B, HKV, LK, D), (B, HKV, LK, D)]
    arrays = [mx.array(rng.standard_normal(shape), dtype=dtype) for shape in shapes]
    return arrays, [float64(x) for x in arrays]


def float64(x):
    return np.array(x.astype(mx.float32), dtype=np.float64)


def forward():
    dtypes = {"float32": mx.float32, "bfloat16": mx.bfloat16}
    for D, dtype, mask in itertools.product((64, 256), dtypes, (None, "causal")):
        arrays, values = operands(D, dtypes[dtype])
        how = {"scale": D**-0.5, "mask": mask}
        expected, _ = reference.attention(*values, **how)
        for path in ("fused", "chunked", "unfused", "auto"):
            out = attention.scaled_dot_product_attention(*arrays, **how, path=path)
            ours = path in ("fused", "chunked")
            tolerance = TOLERANCES[dtype] if ours else STOCK_TOLERANCES[dtype]
            check(float64(out), expected, tolerance, f"{path} D={D} {dtype} mask={mask}")


def gradient():
    arrays, values = operands(256)
    how = {"scale": 1 / 16, "mask": "causal"}

    def total(q, k, v):
        return attention.scaled_dot_product_attention(q, k, v, **how, path="fused").sum()

    found = mx.grad(total, argnums=(0, 1, 2))(*arrays)
    expected = reference.gradients(*values, np.ones((B, HQ, LQ, 256)), **how)
    for name, x in zip("qkv", found, strict=True):
        check_grad(float64(x), getattr(expected, name), STOCK_TOLERANCES["float32"], f"d{name}")


def patching():
    stock = mx.fast.scaled_dot_product_attention
    arrays, values = operands(256)
    how = {"scale": 1 / 16, "mask": "causal"}
    mlx_sdpa_ext.patch()
    assert mx.fast.scaled_dot_product_attention is not stock
    out = mx.fast.scaled_dot_product_attention(*arrays, **how)
    expected, _ = reference.attention(*values, **how)
    check(float64(out), expected, STOCK_TOLERANCES["float32"], "patched")
    mlx_sdpa_ext.unpatch()
    assert mx.fast.scaled_dot_product_attention is stock


if __name__ == "__main__":
    mx.set_default_device(mx.cpu)
    assert mx.__version__ == _build_info.MLX_VERSION
    forward()
    gradient()
    patching()
    print(f"works on MLX {mx.__version__}")
