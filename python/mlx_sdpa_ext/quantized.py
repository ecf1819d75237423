"""Attention over a quantized KV cache.

A kernel that reads packed rows does it in one pass (CPU, and few rows on CUDA). Else the cache is
dequantized a block of keys at a time:

    for block j of the keys:
        K_j, V_j = dequantize(...)                    # [B, Hkv, n, D], [B, Hkv, n, Dv]
        O, lse = attention(Q, K_j, V_j, carry=(O, lse))

(O, lse) is carried in float32. Block j + 1 waits for the lse of block j (src/barrier.h): MLX would
otherwise dequantize every block before it attends to the first. The number of blocks is fixed when
the call is traced: under `mx.compile(shapeless=True)` it does not follow the length of the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import mlx.core as mx

from . import _ext
from .router import FEW_ROWS, MATMUL_SPEED, block_rows, flops, matmul_flops, unfused_bytes
from .words import ITEMSIZE, Device, Limits, Problem, Route

# Elements of K and V in one block. Large enough that carrying (O, lse) costs little beside the
# attention; `mx.dequantize` takes up to 18 bytes for each, 36 MiB together (bfloat16, 8 bits, CPU).
BLOCK_ELEMENTS = 2 << 20
DEQUANTIZE_BYTES = 18
MIN_BLOCK_KEYS = 256

Mask = mx.array | str | None
Partial = tuple[mx.array, mx.array]  # O [B, Hq, Lq, Dv] and lse [B, Hq, Lq], both float32


class Quantized(NamedTuple):
    """Keys or values [B, Hkv, Lk, D] as `mx.quantize` leaves them."""

    arrays: Sequence[mx.array]  # packed, scales and, in affine mode, biases
    group_size: int
    bits: int
    mode: str = "affine"

    @property
    def shape(self) -> tuple[int, int, int, int]:
        *rest, columns = self.arrays[0].shape
        return (*rest, columns * 32 // self.bits)

    @property
    def dtype(self) -> mx.Dtype:
        """Of the dequantized array."""
        scales = self.arrays[1].dtype
        return scales if mx.issubdtype(scales, mx.floating) else mx.bfloat16

    def dequantize(self, arrays: Sequence[mx.array]) -> mx.array:
        return mx.dequantize(
            *arrays, group_size=self.group_size, bits=self.bits, **self._mode_argument()
        )

    def _mode_argument(self) -> dict[str, str]:
        return {} if self.mode == "affine" else {"mode": self.mode}


PACKED_BITS = (4, 8)
PACKED_GROUPS = (32, 64, 128)


def packed_kernel(
    problem: Problem, device: Device, keys: Quantized, values: Quantized
) -> str | None:
    """The kernel of ours that reads these packed rows, or None. Pure."""
    same = (keys.mode, keys.bits, keys.group_size) == (values.mode, values.bits, values.group_size)
    readable = (
        same
        and keys.mode == "affine"
        and keys.bits in PACKED_BITS
        and keys.group_size in PACKED_GROUPS
        and not (problem.array_mask and device.backend == "cuda")
    )
    if not readable:
        return None
    for tile in device.tiles:
        if tile.serves(problem, packed=True):
            return tile.kernel
    return None


def packed_route(problem: Problem, kernel: str, keys: Quantized) -> Route:
    """The route of a call that `packed_kernel` serves."""
    return Route(
        path="fused",
        provider="ext",
        kernel=f"{kernel}, {keys.bits} bits",
        reason="a fused kernel reads the packed keys and values",
        flops=flops(problem),
    )


def route(problem: Problem, device: Device, limits: Limits, failed: str | None = None) -> Route:
    """Which path attention over a quantized cache takes. Pure.

    mlx-lm's own function multiplies by the quantized cache without dequantizing it, but holds all
    the scores. `failed`: the kernel of ours for a block, where it has failed on the device.
    """
    fused = not failed and any(tile.serves(problem) for tile in device.tiles)
    block = block_keys(problem)
    chunks = max(1, -(-problem.Lk // block))
    rows = problem.B * problem.Hq * problem.Lq
    block_bytes = DEQUANTIZE_BYTES * _key_elements(problem) * min(block, problem.Lk)
    carry_bytes = 2 * 4 * rows * (problem.Dv + 1)  # the old and the new (O, lse)
    answer = Route(
        path="chunked",
        provider="ext",
        kernel="dequantize, fused" if fused else "dequantize, unfused",
        reason="quantized keys and values are dequantized a block at a time",
        transient_bytes=block_bytes + carry_bytes,
        flops=flops(problem),
        chunks=chunks,
        chunk_size=block,
    )
    why = f"{failed} of this package failed here; " if failed else ""
    scores = 2 * rows * problem.Lk * ITEMSIZE[problem.dtype]  # before and after the softmax
    # Each of mlx-lm's matmuls is one dispatch, however long.
    most_flops = MATMUL_SPEED * limits.dispatch_flops
    short = not most_flops or matmul_flops(problem, problem.Lq) <= most_flops
    fits = scores <= limits.memory_limit and short and problem.softcap is None
    if fits and (not fused or _packed_is_faster(problem, device, limits)):
        return answer._replace(
            path="stock",
            provider="stock",
            kernel="quantized matmul, softmax, quantized matmul",
            reason=f"{why}the scores of mlx-lm's quantized attention fit the memory limit",
            transient_bytes=scores,
            chunks=1,
            chunk_size=0,
        )
    if fused:
        return answer
    fixed = block_bytes + 2 * carry_bytes  # the merge has both parts and their sum
    one_block = problem._replace(Lk=block, want_lse=True)
    rows_at_once = block_rows(one_block, limits.block_limit - fixed)
    why = why or "no fused kernel for it here; "
    return answer._replace(
        reason=f"{why}stock operations on a block at a time",
        transient_bytes=fixed + unfused_bytes(one_block, rows_at_once),
        block_rows=rows_at_once,
    )


def _packed_is_faster(problem: Problem, device: Device, limits: Limits) -> bool:
    """Whether mlx-lm's function is the faster one.

    On Metal it reads the packed cache, a quarter or half of the bytes, and its matmuls go at the
    speed of the unfused path.
    """
    few = problem.Lq <= FEW_ROWS or problem.Lk <= limits.fused_min_keys
    return device.backend == "metal" and few


def block_keys(problem: Problem) -> int:
    """Keys of one block: a multiple of 64, of BLOCK_ELEMENTS unless these are too few keys."""
    return max(MIN_BLOCK_KEYS, BLOCK_ELEMENTS // max(1, _key_elements(problem)) // 64 * 64)


def _key_elements(problem: Problem) -> int:
    return problem.B * problem.Hkv * (problem.D + problem.Dv)


def problem_of(
    q: mx.array, keys: Quantized, values: Quantized, mask: Mask, softcap: float | None = None
) -> Problem:
    """The call in the router's words. Checks nothing: the first block's attention does."""
    B, Hq, Lq, D = q.shape
    Hkv, Lk = keys.shape[1], keys.shape[2]
    dtype = str(result_dtype(q, keys, values, mask)).removeprefix("mlx.core.")
    if mask is None or isinstance(mask, str):
        kind = mask or "none"
    else:
        kind = "bool" if mask.dtype == mx.bool_ else "additive"
    return Problem(B, Hq, Hkv, Lq, Lk, D, values.shape[3], dtype, kind, softcap=softcap)


def result_dtype(q: mx.array, keys: Quantized, values: Quantized, mask: Mask) -> mx.Dtype:
    """What `scores + mask` and the product with the values come out as."""
    arrays = [q, mx.zeros((), keys.dtype), mx.zeros((), values.dtype)]
    if isinstance(mask, mx.array) and mask.dtype != mx.bool_:
        arrays.append(mask)
    return mx.result_type(*arrays)


def attention(
    q: mx.array,
    keys: Quantized,
    values: Quantized,
    *,
    scale: float,
    mask: Mask = None,
    softcap: float | None = None,
    route: Route,
) -> mx.array:
    """Attention over a quantized cache, packed or by blocks of `route.chunk_size` keys.

    Args:
        q: queries [B, Hq, Lq, D].
        keys: [B, Hkv, Lk, D], Hq a multiple of Hkv.
        values: [B, Hkv, Lk, Dv].
        scale: of the scores.
        mask: None, "causal" (the last query sees the last key), or a bool or additive array that
            broadcasts to [B, Hq, Lq, Lk]; its slices are views.
        softcap: s -> softcap * tanh(s / softcap) on the scaled scores, before the mask.
        route: what `route()` or `packed_route()` answered for the call.

    Returns:
        [B, Hq, Lq, Dv], in the dtype that stock operations would give.

    Raises:
        ValueError: shapes, dtypes or the mask do not fit each other.
    """
    Lq, Lk = q.shape[2], keys.shape[2]
    _check(keys, values, mask)
    dtype = result_dtype(q, keys, values, mask)
    if isinstance(mask, mx.array):
        q = q.astype(dtype)  # an additive mask may be of a wider dtype, as in mlx-lm's function
    if route.path == "fused":
        return _ext.quantized_sdpa(
            q.astype(dtype),
            *(*keys.arrays, *values.arrays),
            scale=scale,
            group_size=keys.group_size,
            bits=keys.bits,
            mask=mask,
            softcap=softcap,
        )[0]
    attend: Callable[..., Partial] = _unfused if route.block_rows else _fused
    packed, n = (*keys.arrays, *values.arrays), len(keys.arrays)
    partial: Partial | None = None
    for start in range(0, max(Lk, 1), route.chunk_size):
        stop = min(start + route.chunk_size, Lk)
        block = [array[..., start:stop, :] for array in packed]
        if partial is not None:
            block = _ext.after(block, partial[1])
        partial = attend(
            q,
            keys.dequantize(block[:n]),
            values.dequantize(block[n:]),
            scale=scale,
            mask=_block_mask(mask, start, stop, Lk),
            softcap=softcap,
            q_offset=Lk - Lq - start,
            block_rows=route.block_rows,
            carry=partial,
        )
    assert partial is not None
    return partial[0].astype(dtype)


def _check(keys: Quantized, values: Quantized, mask: Mask) -> None:
    """What the attention of one block cannot see."""
    if keys.shape[:3] != values.shape[:3]:
        raise ValueError(f"values: got {values.shape}, which does not fit the keys {keys.shape}")
    if isinstance(mask, mx.array) and mask.ndim and mask.shape[-1] not in (1, keys.shape[2]):
        raise ValueError(f"mask: got {mask.shape}; the last dimension may be {keys.shape[2]} or 1")


def _block_mask(mask: Mask, start: int, stop: int, Lk: int) -> Mask:
    if isinstance(mask, mx.array) and mask.ndim and mask.shape[-1] == Lk:
        return mask[..., start:stop]
    return mask  # none, "causal", or one that broadcasts over the keys


def _fused(q, k, v, *, scale, mask, softcap, q_offset, block_rows, carry) -> Partial:
    out, lse = _ext.sdpa(
        q,
        k,
        v,
        scale=scale,
        mask=mask,
        softcap=softcap,
        q_offset=q_offset,
        carry=carry,
        float32_out=True,
        return_lse=True,
    )
    return out, lse


def _unfused(q, k, v, *, scale, mask, softcap, q_offset, block_rows, carry) -> Partial:
    if isinstance(mask, str):
        Lq, Lk = q.shape[2], k.shape[2]
        hidden = q_offset < Lk - 1  # from the first query
        mask = mx.arange(q_offset, q_offset + Lq)[:, None] >= mx.arange(Lk) if hidden else None
    out, lse = _ext.unfused(
        q, k, v, scale=scale, mask=mask, softcap=softcap, block_rows=block_rows, return_lse=True
    )
    out = out.astype(mx.float32)
    return _ext.merge([carry[0], out], [carry[1], lse]) if carry else (out, lse)
