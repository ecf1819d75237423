"""The vocabulary of the router: Problem, Tile, Device, Limits, Route, Support. Plain data, no MLX.

Shapes: q [B, Hq, Lq, D], k [B, Hkv, Lk, D], v [B, Hkv, Lk, Dv], out [B, Hq, Lq, Dv]. NamedTuples,
because one Problem is built on every attention call (0.3 us; a frozen dataclass takes 3 us).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

# Kernels whose tiles the rows of a GQA group need not fit.
ANY_ROWS = ("prefill", "narrow", "wide")
# Kernels that read a quantized cache, by backend, and the one of them that reads no other.
READ_PACKED = {"cpu": ("packed", "prefill"), "cuda": ("packed", "decode"), "metal": ()}
ONLY_PACKED = "packed"
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}  # bytes
PATHS = ("fused", "unfused", "chunked", "stock")


class Problem(NamedTuple):
    """One attention call, as far as the choice of a path depends on it."""

    B: int
    Hq: int
    Hkv: int
    Lq: int
    Lk: int
    D: int
    Dv: int
    dtype: str  # of the output: a key of ITEMSIZE
    mask: str = "none"  # "none", "causal", "bool" or "additive"
    window: int | None = None  # a query sees its own key and the window - 1 before it; needs causal
    softcap: float | None = None
    sinks: bool = False
    want_lse: bool = False

    @property
    def gqa(self) -> int:
        """Query heads that share one KV head."""
        return self.Hq // max(self.Hkv, 1)

    @property
    def array_mask(self) -> bool:
        return self.mask == "bool" or self.mask == "additive"


class Tile(NamedTuple):
    """One row of kernels/tiles.def: a compiled kernel of ours and the problems it serves."""

    backend: str
    kernel: str  # "prefill", "middle" (prefill with a small tile), "decode"; CUDA: "narrow" ...
    d_min: int
    d_max: int
    dv_min: int
    dv_max: int
    dtypes: tuple[str, ...]
    bq: int  # query rows of the tile; the rows of the heads of one GQA group count together
    bk: int  # keys of the tile
    wm: int = 1  # Metal: simdgroups over the rows (prefill, middle) or over the keys (decode)
    wd: int = 1  # Metal: simdgroups over the head dim

    @classmethod
    def of(cls, row: Tile | Mapping[str, Any]) -> Tile:
        """A Tile from a row of `_ext.tiles()`."""
        if isinstance(row, Tile):
            return row
        fields = {name: row[name] for name in cls._fields if name in row}
        return cls(**{**fields, "dtypes": tuple(row["dtypes"])})

    @property
    def threads(self) -> int:
        """Of one threadgroup (Metal): 32 in each simdgroup."""
        return 32 * self.wm * self.wd

    def serves(self, problem: Problem, *, packed: bool = False) -> bool:
        """As src/plan.cpp asks: decode and middle tiles hold all the rows of one GQA group.

        packed: keys and values are those of a quantized cache, as they are.
        """
        return (
            (self.kernel in READ_PACKED[self.backend] if packed else self.kernel != ONLY_PACKED)
            and self.d_min <= problem.D <= self.d_max
            and self.dv_min <= problem.Dv <= self.dv_max
            and problem.dtype in self.dtypes
            and (self.kernel in ANY_ROWS or problem.Lq * problem.gqa <= self.bq)
        )


class Device(NamedTuple):
    """Where a call runs: everything about a machine and its MLX that the choice depends on."""

    backend: str  # "cpu", "metal" or "cuda"
    arch: str  # "avx512", "applegpu_g15s", "sm_90", ...
    mlx: str  # version of MLX
    memory: int  # bytes this process may use there
    neural_accelerators: bool = False  # Metal: MLX may use the M5 generation's matrix units
    tiles: tuple[Tile, ...] = ()  # kernels of ours that exist on this backend
    tf32: bool = True  # MLX_ENABLE_TF32: float32 may use the neural accelerators
    d512_min_keys: int = 1024  # MLX_SDPA_D512_MIN_KL, from MLX 0.32.4 on
    software: bool = False  # a stand-in: Metal kernels run on this machine's CPU, for tests

    @classmethod
    def named(
        cls,
        arch: str,
        *,
        mlx: str = "0.32.4",
        memory: int | None = None,
        tiles: Iterable[Tile | Mapping[str, Any]] = (),
        neural_accelerators: bool | None = None,
    ) -> Device:
        """A machine by the name of its architecture, whether or not it is this one.

        Args:
            arch: `applegpu_g<generation><class>` (g13 M1 ... g17 M5; class g base or Pro, s Max,
                d Ultra, p phone), `sm_<capability>`, or a CPU instruction set (`avx2`, `neon`).
            mlx: MLX version.
            memory: bytes; by default 32 GiB (CPU and Metal) or 80 GiB (CUDA).
            tiles: rows of `_ext.tiles()`; those of other backends are left out.
            neural_accelerators: by default what MLX itself checks: generation 17 on, 18 on phones.

        Raises:
            ValueError: `arch` is none of these.
        """
        apple = re.fullmatch(r"applegpu_g(\d+)([gsdpc])", arch)
        if apple:
            backend, default_memory = "metal", 32 << 30
        elif re.fullmatch(r"sm_\d+[a-z]?", arch):
            backend, default_memory = "cuda", 80 << 30
        elif arch in CPU_ARCHS:
            backend, default_memory = "cpu", 32 << 30
        else:
            raise ValueError(
                f"arch: got {arch!r}; allowed are applegpu_g13g ... applegpu_g17d (Apple), "
                f"sm_80, sm_90, ... (NVIDIA) and {', '.join(CPU_ARCHS)} (CPU)"
            )
        if neural_accelerators is None:
            neural_accelerators = apple is not None and has_neural_accelerators(arch)
        rows = tuple(tile for tile in map(Tile.of, tiles) if tile.backend == backend)
        return cls(backend, arch, mlx, memory or default_memory, neural_accelerators, rows)


# Instruction sets that src/backends/cpu_isa.cpp is compiled for, and what MLX calls the machines.
CPU_ARCHS = ("baseline", "avx2", "avx512", "avx512bf16", "amx", "neon", "x86_64", "arm64")


def has_neural_accelerators(arch: str) -> bool:
    """Whether an Apple GPU of this architecture has them (MLX also needs macOS 26.2)."""
    apple = re.fullmatch(r"applegpu_g(\d+)([a-z])", arch)
    return apple is not None and int(apple[1]) >= (18 if apple[2] == "p" else 17)


class Limits(NamedTuple):
    """What bounds the choice on one device: its profile with the user's environment on top."""

    memory_limit: int  # bytes that the temporaries of one call may take
    memory_margin: int = 0  # bytes that they leave free; attention.py sets memory_limit by it
    block_bytes: int = 0  # of memory_limit, for a block of the unfused path; 0 = all of it
    chunk_threshold: int = 65536  # keys from which `chunked` is considered
    chunk_size: int = 32768  # keys of one chunk
    fused_min_keys: int = 16384  # see `unfused_dim`
    chunk_asked: bool = False  # the user set the threshold: `chunked` from there on
    # Up to fused_dim a fused kernel is the fastest path at any length; up to unfused_dim it is
    # slower than the unfused path, and taken beyond fused_min_keys for its memory; above
    # unfused_dim it is taken only where the unfused path cannot stay within memory_limit.
    fused_dim: int = 128
    unfused_dim: int = 256
    middle_rows: int = 0  # query rows up to which a fused kernel is taken at any head dim
    dispatch_flops: int = 0  # work of the longest dispatch of ours; 0 = no bound
    dispatch_ms: float = 0.0  # what that takes, estimated
    fill_blocks: int = 0  # threadgroups that keep the GPU busy; 0 = nothing to fill
    # Whether our fused kernel is faster than one of stock's that serves the call too.
    decode_over_stock: bool = False
    prefill_over_stock: bool = False
    calibrated: tuple[str, ...] = ()  # which of these are of the user's own profile

    @property
    def block_limit(self) -> int:
        """Bytes of one block of the unfused path, where its scores do not fit the limit at once."""
        return min(self.memory_limit, self.block_bytes or self.memory_limit)


class Route(NamedTuple):
    """The answer: which path, by whom, why, and what it costs.

    `reason` is one of a bounded set of sentences (no lengths in it), so that calls can be counted
    by it; what varies from call to call is in the other fields.
    """

    path: str  # one of PATHS
    provider: str  # "ext" (this package) or "stock" (MLX)
    kernel: str  # what runs
    reason: str
    transient_bytes: int = 0  # scores, or a carried output, above inputs and output; at most
    flops: int = 0  # multiplications and additions of both products, hidden keys left out
    chunks: int = 1  # parts that the keys are split into
    chunk_size: int = 0  # keys of one part; 0 = not split
    block_rows: int = 0  # `unfused`: query rows of one block; 0 = all at once
    forces_stock: bool = False  # stock MLX is told force_fused=True
    # On Metal, where `explain` is asked; of the unfused path the last three, of its matmuls:
    threads: int = 0  # of one threadgroup
    threadgroup_bytes: int = 0  # of its memory
    splits: int = 1  # parts of the keys that are attended at once and merged
    dispatches: int = 0  # kernel launches, merges included; matmuls of the unfused path
    dispatch_flops: int = 0  # work of the longest of them
    dispatch_ms: float = 0.0  # what it takes, estimated by the device's class


class Support(NamedTuple):
    """Whether fused kernels serve a pair of head dims; truthy if they do."""

    ok: bool
    reason: str
    prefill: str | None = None  # provider of the fused kernel for many query rows
    decode: str | None = None  # the same for one query row

    def __bool__(self) -> bool:
        return self.ok
