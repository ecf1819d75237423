"""What `mx.fast.scaled_dot_product_attention` does by itself, per MLX version and device. Pure.

The Metal tables say what the function that MLX ships to make this choice answers: they were
compared with it for 0.31.2, 0.32.2 and 0.32.4 (docs/router.md). Two things are out of sight here:
under gradient tracing MLX up to 0.32.3 does not fuse on Metal, and on CUDA one query row is fused
at head dims other than 64, 96, 128 if keys and values are slices of a cache of fixed size.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from .words import Device, Problem

VECTOR_ROWS = 8  # query rows up to which Metal uses the vector kernel, beyond it the full kernel
VECTOR_GROUP_ROWS = 32  # rows * GQA factor that the vector kernel takes at most
CUDA_VECTOR_ROWS = 3
CUDNN_MAX_DIM = 128

Dims = frozenset[tuple[int, int]]  # of (D, Dv)


class Stock(NamedTuple):
    """What stock MLX does with a problem."""

    how: str  # by itself: "fused", "blocked" (matmuls over blocks of rows) or "unfused"
    kernel: str
    reason: str
    force_fused: bool  # force_fused=True reaches a fused kernel

    @property
    def bounded(self) -> bool:
        """No [B, Hq, Lq, Lk] array of scores."""
        return self.how != "unfused"


class MetalRules(NamedTuple):
    """The kernels of one MLX version; its own routing is in `_metal`."""

    vector: Dims
    full: Dims
    slow: Dims  # of those, used with force_fused=True only, or where `_metal` says otherwise
    nax_256: bool  # D 256 split over simdgroups on the neural accelerators
    nax_256_array_mask: bool
    equal_256: bool  # D 256 causal with as many keys as queries
    d512: bool  # D 512: the vector kernel, the neural accelerators, query-blocked GEMMs


def _square(*dims: int) -> Dims:
    return frozenset((d, d) for d in dims)


CUDA_VECTOR = _square(64, 96, 128)

# First version -> rules; a version between two rows follows the older one.
METAL = {
    (0, 31, 0): MetalRules(
        vector=_square(64, 96, 128, 256),
        full=_square(64, 80, 128),
        slow=frozenset(),
        nax_256=False,
        nax_256_array_mask=False,
        equal_256=False,
        d512=False,
    ),
    (0, 32, 2): MetalRules(
        vector=_square(64, 96, 128, 192, 256) | {(192, 128)},
        full=_square(64, 72, 80, 96, 128, 192, 256),
        slow=_square(192, 256),
        nax_256=True,
        nax_256_array_mask=False,
        equal_256=False,
        d512=False,
    ),
    (0, 32, 4): MetalRules(
        vector=_square(64, 96, 128, 192, 256, 512) | {(192, 128), (96, 64)},
        full=_square(64, 72, 80, 96, 128, 192, 256) | {(96, 64)},
        slow=_square(192, 256),
        nax_256=True,
        nax_256_array_mask=True,
        equal_256=True,
        d512=True,
    ),
}
FORCE_FUSED_SINCE = (0, 32, 2)


@lru_cache(maxsize=32)
def version(text: str) -> tuple[int, int, int]:
    """`0.32.4` or `0.32.4.dev20260101` as numbers.

    Raises:
        ValueError: `text` does not start with three numbers.
    """
    try:
        major, minor, patch = (int(part) for part in text.split(".")[:3])
    except ValueError:
        raise ValueError(f"mlx: got {text!r}, expected a version such as 0.32.4") from None
    return major, minor, patch


@lru_cache(maxsize=32)
def _metal_rules(mlx: str) -> MetalRules:
    known = [first for first in METAL if first <= version(mlx)]
    return METAL[max(known, default=min(METAL))]


def has_force_fused(mlx: str) -> bool:
    """Whether this MLX's function has the argument `force_fused`."""
    return version(mlx) >= FORCE_FUSED_SINCE


def inexpressible(problem: Problem) -> str | None:
    """What stock MLX cannot do in this call, or None."""
    if problem.window is not None:
        return "stock MLX has no window"
    if problem.softcap is not None:
        return "stock MLX has no softcap"
    if problem.want_lse:
        return "stock MLX does not return the logsumexp"
    return None


def stock_route(problem: Problem, device: Device) -> Stock:
    """What stock MLX does with `problem` (without window, softcap, lse) on `device`."""
    if device.backend == "cpu":
        return NEVER_ON_CPU
    if problem.dtype == "float64":
        return NO_FLOAT64
    if device.backend == "metal":
        return _metal(problem, device, _metal_rules(device.mlx))
    return _cuda(problem, device)


def _fused(kernel: str, device: Device) -> Stock:
    return Stock(
        "fused", kernel, f"stock MLX fuses it ({kernel} kernel)", has_force_fused(device.mlx)
    )


def _unfused(reason: str, force_fused: bool = False) -> Stock:
    return Stock("unfused", "matmul, softmax, matmul", f"stock MLX {reason}", force_fused)


NEVER_ON_CPU = _unfused("has no fused kernel on the CPU")
NO_FLOAT64 = _unfused("computes float64 on the CPU only")
BLOCKED_512 = Stock(
    "blocked",
    "query-blocked matmuls",
    "stock MLX runs it as query-blocked matmuls of bounded memory",
    force_fused=False,
)


def _metal(p: Problem, device: Device, rules: MetalRules) -> Stock:
    if p.Lq <= VECTOR_ROWS:
        return _metal_vector(p, device, rules)
    return _metal_full(p, device, rules)


def _metal_vector(p: Problem, device: Device, rules: MetalRules) -> Stock:
    dims = (p.D, p.Dv)
    if dims not in rules.vector:
        return _unfused("has no vector kernel for these head dims")
    if p.Lq > p.Lk:
        return _unfused("has a vector kernel for no more queries than keys")
    if p.Lq * p.gqa > VECTOR_GROUP_ROWS:
        return _unfused("has a vector kernel for 32 query rows of a GQA group at most")
    if dims == (512, 512) and device.d512_min_keys:
        if p.Lq != 1 or p.gqa != 8 or p.array_mask or p.Lk < device.d512_min_keys:
            return _unfused(
                "has a vector kernel for head dim 512 for one query row, GQA factor 8, "
                "no array mask and 1024 keys or more"
            )
        return _fused("vector", device)
    if dims == (192, 192):
        return _unfused("runs its vector kernel for head dim 192 on request only", force_fused=True)
    return _fused("vector", device)


def _metal_full(p: Problem, device: Device, rules: MetalRules) -> Stock:
    dims = (p.D, p.Dv)
    causal = p.mask == "causal"
    accelerated = device.neural_accelerators and (device.tf32 or p.dtype != "float32")
    if rules.d512 and dims == (512, 512):
        return _metal_512(p, device, accelerated)
    if dims not in rules.full:
        return _unfused("has no full kernel for these head dims")
    if causal and p.Lq > p.Lk:
        return _unfused("has a full kernel for no more causal queries than keys")
    if dims not in rules.slow:
        return _fused("full", device)
    if dims == (256, 256):
        masked = causal or (p.array_mask and rules.nax_256_array_mask)
        if rules.nax_256 and accelerated and masked and p.Lq >= 1024:
            return _fused("full", device)
        equal = causal and p.dtype != "float32" and p.Lq >= 2048 and p.Lq == p.Lk
        if rules.equal_256 and not device.neural_accelerators and equal:
            return _fused("full", device)
    return _unfused("prefers its unfused path at head dims 192 and 256", force_fused=True)


def _metal_512(p: Problem, device: Device, accelerated: bool) -> Stock:
    causal = p.mask == "causal"
    if accelerated and not (causal and p.Lq > p.Lk):
        row_blocks = p.B * p.Hq * -(-p.Lq // 32)
        if causal and p.Lq >= 1024 and row_blocks >= 1024:
            return _fused("full", device)
        return _unfused(
            "prefers its unfused path at head dim 512 but for large causal calls", force_fused=True
        )
    half = p.dtype != "float32"
    if causal and half and 1024 <= p.Lq <= p.Lk and not p.sinks:
        return BLOCKED_512
    return _unfused("has no full kernel for head dim 512 here")


def _cuda(p: Problem, device: Device) -> Stock:
    # capability digits: sm_90 -> 9, sm_100 -> 10
    capability = int("".join(filter(str.isdigit, device.arch))[:-1] or 0)
    cudnn = (
        capability >= 8
        and p.dtype in ("float16", "bfloat16")
        and p.Lq != 1
        and max(p.D, p.Dv) <= CUDNN_MAX_DIM
        and p.D % 8 == 0
        and p.Dv % 8 == 0
        and not (p.mask == "causal" and p.Lq > p.Lk)
    )
    if cudnn:
        return _fused("cuDNN", device)
    if p.Lq <= CUDA_VECTOR_ROWS and (p.D, p.Dv) in CUDA_VECTOR and not p.array_mask:
        return _fused("vector", device)
    if max(p.D, p.Dv) > CUDNN_MAX_DIM:
        return _unfused("has CUDA kernels up to head dim 128")
    return _unfused("has no cuDNN or vector kernel for this call")
