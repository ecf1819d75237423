"""Which path an attention call takes, by whom, and why. Pure: no arrays, no device, no MLX.

The questions, in this order:
1. Is a path, or the `chunked` path by MLX_SDPA_CHUNK_THRESHOLD, asked for?
2. Would stock MLX run the call fused by itself? Then it does (stock.py), unless our kernel was
   measured to be faster (Limits.decode_over_stock, prefill_over_stock).
3. Is there a fused kernel of ours, and is it the fastest path for so few query rows
   (Limits.middle_rows) or at this head dim (Limits.fused_dim)?
4. Do the temporaries of the unfused path fit the memory limit, and are the keys few enough
   (Limits.fused_min_keys)?
5. Would one dispatch run so long that the GPU watchdog ends it? Kernels of ours cut their grid into
   dispatches of bounded work (src/plan.cpp), and split the keys themselves where rows and heads
   are too few to fill the GPU. Stock's are not forced for more than Limits.dispatch_flops.
"""

from __future__ import annotations

from .stock import VECTOR_ROWS, Stock, inexpressible, stock_route
from .words import ITEMSIZE, PATHS, Device, Limits, Problem, Route, Support, Tile

# Arrays of scores that the unfused path has alive at once: before and after the softmax.
SCORE_COPIES = 2
# With lse, sinks, or a softcap in 16 bits, it computes in float32: 12 to 16 bytes a score were
# measured on the CPU, and keys of 16 bits are widened.
EXACT_SCORE_BYTES = 16
# An additive mask as large as the scores costs one more array; its size is not known here. Nor are
# strides: stock's matmul on the CPU copies keys and values whose rows are not contiguous.
# A causal or windowed call of more rows is blocked even where its scores fit: a block skips the
# keys that all of its rows see hidden. On an H200 (MLX 0.32.4, D 256, bfloat16, 2026-11-21) blocks
# of 1024 rows took 0.9 of the time of one block at 8192 x 8192, and 1.2 to 2.1 at 2048 rows.
SKIPPING_ROWS = 4096
# Of stock's matmul and the fused kernel that Limits.dispatch_flops was measured with: 64 heads,
# 2048 x 16384, head dim 256 took 124 and 249 ms (M2 Ultra, ml-explore/mlx PR #3293).
MATMUL_SPEED = 2
FEW_ROWS = VECTOR_ROWS  # query rows of a decode step, speculative ones included

Reason = str


def route(
    problem: Problem,
    device: Device,
    limits: Limits,
    path: str = "auto",
    force_fused: bool = False,
    failed: str | None = None,
) -> Route:
    """The route of one call.

    Args:
        problem: the call.
        device: where it runs.
        limits: what bounds the choice there (`limits.of`).
        path: "auto", or the path to take: "fused", "unfused", "chunked" or "stock".
        force_fused: the same as path="fused".
        failed: the kernel of ours for this call, where it has failed on the device: the route is
            one without it.

    Raises:
        ValueError: `path` is unknown or contradicts `force_fused`, or the path asked for cannot
            serve the call; the message says why, and what can.
    """
    if path != "auto" or force_fused:
        return _forced(problem, device, limits, _asked(path, force_fused), failed)
    tile = None if failed else _tile(problem, device)
    if limits.chunk_asked and tile and problem.Lk >= limits.chunk_threshold:
        route = _chunked(problem, tile, limits, "asked for by MLX_SDPA_CHUNK_THRESHOLD")
        if route.transient_bytes <= limits.memory_limit:
            return route
        return _fused(problem, tile, f"{route.reason}; {CARRY_EXCEEDS}")
    cannot = inexpressible(problem)
    stock = None if cannot else stock_route(problem, device)
    if stock and stock.bounded and not (tile and _beats_stock(problem, limits)):
        flag = _over_stock(problem)
        return _stock(problem, stock, _by(limits, flag, stock.reason) if tile else None)
    reason = stock.reason if stock else f"{cannot}"  # why stock does not do it by itself ...
    if failed:
        reason = f"{reason}; {_no_tile(problem, device, failed)}"
    if tile and stock and stock.bounded:
        return _fused(problem, tile, f"{reason}; {_by(limits, _over_stock(problem), BEATS_STOCK)}")
    if tile:
        fused, why = _weigh(problem, limits)
        reason = f"{reason}; {why}"  # ... and why this path does
        if fused:
            return _fused(problem, tile, reason)
    elif stock and stock.force_fused:
        fused, why = _weigh_stock(problem, limits)
        reason = f"{reason}; {why}"
        if fused:
            return _fused_by_stock(problem, stock, reason)
    elif not failed:
        reason = f"{reason}; {_no_tile(problem, device)}"
    if stock and problem.Lq <= FEW_ROWS and unfused_bytes(problem) <= limits.memory_limit:
        return _stock(problem, stock, f"{reason}; the scores of few query rows are small")
    return _unfused(problem, limits, reason)


BEATS_STOCK = "the fused kernel of this package is the faster one here"
EXCEEDED = "the unfused scores exceed the memory limit"
CARRY_EXCEEDS = "what chunks carry on exceeds the memory limit, and one pass over the keys does not"
SHARED = "with few query rows, a fused kernel shares each key among the heads of a GQA group"
FUSED_FASTEST = "a fused kernel is the fastest path at this head dim"
BEYOND_MIN_KEYS = "beyond fused_min_keys a fused kernel bounds the memory"
UNFUSED_FASTER = "the unfused path is faster at this head dim"
SHORT = "each matmul short for the GPU watchdog"


def _weigh(p: Problem, limits: Limits) -> tuple[bool, Reason]:
    """Whether our fused kernel is the path to take rather than the unfused path, and why."""
    dim = max(p.D, p.Dv)
    if p.Lq <= FEW_ROWS:
        return True, "a fused kernel reads each key and value once"
    if p.Lq <= limits.middle_rows:
        return True, _by(limits, "middle_rows", SHARED)
    if dim <= limits.fused_dim:
        return True, _by(limits, "fused_dim", FUSED_FASTEST)
    if dim > limits.unfused_dim:
        if unfused_bytes(p, rows=1) > limits.memory_limit:
            return True, EXCEEDED
        return False, _by(limits, "unfused_dim", UNFUSED_FASTER)
    if unfused_bytes(p) > limits.memory_limit:
        return True, EXCEEDED
    if p.Lk > limits.fused_min_keys:
        return True, _by(limits, "fused_min_keys", BEYOND_MIN_KEYS)
    return False, _by(limits, "fused_min_keys", UNFUSED_FASTER)


def _by(limits: Limits, threshold: str, reason: Reason) -> Reason:
    """`reason`, which follows from a threshold; it says so where that is of the user's profile."""
    return f"{reason}, by your profile" if threshold in limits.calibrated else reason


def _over_stock(p: Problem) -> str:
    return "decode_over_stock" if p.Lq <= FEW_ROWS else "prefill_over_stock"


def _beats_stock(p: Problem, limits: Limits) -> bool:
    """Whether our fused kernel is faster than stock's, where both serve the call."""
    return getattr(limits, _over_stock(p))


def _weigh_stock(p: Problem, limits: Limits) -> tuple[bool, Reason]:
    """The same of a fused kernel that stock MLX has, but prefers not to use. It is one dispatch."""
    small = p.Lq <= FEW_ROWS or p.Lk <= limits.fused_min_keys
    if max(p.D, p.Dv) > limits.unfused_dim:
        small, unfused = True, unfused_bytes(p, rows=1)  # in blocks of rows it is the faster path
    else:
        unfused = unfused_bytes(p)
    if small and unfused <= limits.memory_limit:
        threshold = "fused_min_keys" if max(p.D, p.Dv) <= limits.unfused_dim else "unfused_dim"
        return False, _by(limits, threshold, UNFUSED_FASTER)
    if limits.dispatch_flops and flops(p) > limits.dispatch_flops:
        return False, "its fused kernel might run into the GPU watchdog"
    return True, EXCEEDED if small else _by(limits, "fused_min_keys", BEYOND_MIN_KEYS)


def _asked(path: str, force_fused: bool) -> str:
    if path != "auto" and path not in PATHS:
        raise ValueError(f"path: got {path!r}; allowed are 'auto', {', '.join(map(repr, PATHS))}")
    if force_fused and path not in ("auto", "fused"):
        raise ValueError(f"force_fused=True and path={path!r} contradict each other: give one")
    return "fused" if force_fused else path


def _forced(
    p: Problem, device: Device, limits: Limits, path: str, failed: str | None = None
) -> Route:
    reason = f"path={path!r} was asked for"
    tile = None if failed else _tile(p, device)
    cannot = inexpressible(p)
    stock = None if cannot else stock_route(p, device)
    if failed:
        reason = f"{reason}; {_no_tile(p, device, failed)}"
    if path == "unfused":
        return _unfused(p, limits, reason)
    if path == "stock" and stock:
        return _stock(p, stock, f"{reason}; {stock.reason}")
    if path == "chunked" and tile:
        return _chunked(p, tile, limits, reason)
    if path == "fused" and _fused_here(p, stock, tile, limits) == "stock":
        return _fused_by_stock(p, stock, reason)
    if path == "fused" and tile:
        return _fused(p, tile, reason)
    can = {
        "fused": _fused_here(p, stock, tile, limits),
        "unfused": True,
        "chunked": tile,
        "stock": stock,
    }
    others = ", ".join(repr(name) for name in PATHS if can[name])
    why = cannot if path == "stock" else _why_not_fused(p, device, failed)
    raise ValueError(
        f"path={path!r} cannot serve this call: {why}. Supported for it are 'auto', {others}."
    )


def _fused_here(p: Problem, stock: Stock | None, tile: Tile | None, limits: Limits) -> str | None:
    """Whose fused kernel serves a call: stock's where it takes it and is not slower, else ours."""
    if tile and _beats_stock(p, limits):
        return "ext"
    if stock and (stock.how == "fused" or (stock.force_fused and not tile)):
        return "stock"
    return "ext" if tile else None


def _why_not_fused(p: Problem, device: Device, failed: str | None = None) -> str:
    """Why nobody has a fused kernel for the call, with the head dims and dtypes there are."""
    stock = inexpressible(p) or stock_route(p, device).reason
    if failed:
        return f"{stock}; {_no_tile(p, device, failed)}"
    rows = [tile for tile in device.tiles if tile.kernel == "prefill"]
    rows = [row for row in rows if not any(_covers(other, row) for other in rows)]
    if not rows:
        return f"{stock}; {_no_tile(p, device)}"
    spans = (f"{_span(t.d_min, t.d_max)} (v {_span(t.dv_min, t.dv_max)})" for t in rows)
    dims = ", ".join(dict.fromkeys(spans))  # rows of 16 and of 32 bits have the same
    dtypes = ", ".join(sorted({dtype for tile in rows for dtype in tile.dtypes}))
    return (
        f"{stock}; {_no_tile(p, device)} (got head dim {p.D}, v {p.Dv}, {p.dtype}; there are "
        f"head dims {dims} in {dtypes})"
    )


def _no_tile(p: Problem, device: Device, failed: str | None = None) -> Reason:
    """Why no kernel of ours serves the call."""
    if failed:
        return f"{failed} of this package failed here"
    if not device.tiles:
        return f"this package has no {device.backend} kernels"
    if not any(p.dtype in tile.dtypes for tile in device.tiles):
        return f"this package has no {device.backend} kernels for {p.dtype}"
    return f"this package has no {device.backend} kernel for these head dims"


def _covers(wide: Tile, row: Tile) -> bool:
    """Whether another tile serves all head dims of `row`, which then need not be listed."""
    return wide[2:6] != row[2:6] and (
        wide.d_min <= row.d_min
        and wide.d_max >= row.d_max
        and wide.dv_min <= row.dv_min
        and wide.dv_max >= row.dv_max
        and set(wide.dtypes) >= set(row.dtypes)
    )


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}-{high}"


def _tile(p: Problem, device: Device) -> Tile | None:
    for tile in device.tiles:
        if tile.serves(p):
            return tile
    return None


def _stock(p: Problem, stock: Stock, reason: Reason | None = None) -> Route:
    scores = 0 if stock.bounded else unfused_bytes(p)
    return Route("stock", "stock", stock.kernel, reason or stock.reason, scores, flops(p))


def _fused_by_stock(p: Problem, stock: Stock, reason: Reason) -> Route:
    forced = stock.how != "fused"
    kernel = ("vector" if p.Lq <= FEW_ROWS else "full") if forced else stock.kernel
    return Route("fused", "stock", kernel, reason, 0, flops(p), forces_stock=forced)


def _fused(p: Problem, tile: Tile, reason: Reason) -> Route:
    return Route("fused", "ext", tile.kernel, reason, 0, flops(p))


def _chunked(p: Problem, tile: Tile, limits: Limits, reason: Reason) -> Route:
    chunks = max(1, -(-p.Lk // limits.chunk_size))
    carried = p.B * p.Hq * p.Lq * (p.Dv + 1) * 4  # O and lse of the chunks before, float32
    return Route(
        "chunked", "ext", tile.kernel, reason, carried, flops(p), chunks, limits.chunk_size
    )


def _unfused(p: Problem, limits: Limits, reason: Reason) -> Route:
    fits = unfused_bytes(p) <= limits.memory_limit
    room = limits.memory_limit if fits else limits.block_limit
    rows = block_rows(p, room, limits.dispatch_flops)
    scores = unfused_bytes(p, rows)
    shorter = rows < block_rows(p, room)
    if fits:
        fit = "the unfused scores fit the memory limit"
        fit += f", in blocks of query rows that keep {SHORT}" if shorter else ""
    elif scores <= limits.memory_limit:
        fit = "blocks of query rows keep the unfused scores within the memory limit"
        fit += f", and {SHORT}" if shorter else ""
    else:
        fit = "the unfused path goes row by row, and even one row exceeds the memory limit"
    return Route(
        "unfused",
        "ext",
        "matmul, softmax, matmul",
        f"{reason}; {fit}",
        scores,
        flops(p),
        block_rows=rows if rows < p.Lq else 0,
    )


def unfused_bytes(p: Problem, rows: int | None = None) -> int:
    """Bytes that the unfused path has alive for a block of `rows` query rows, at most.

    Its scores and widened keys; not the copies that stock's matmul makes of strided operands.
    """
    rows = p.Lq if rows is None else rows
    keys = p.Lk if p.window is None else min(p.Lk, rows + p.window - 1)
    return p.B * p.Hq * rows * keys * _score_bytes(p) + _widened_bytes(p)


def _exact(p: Problem) -> bool:
    return p.want_lse or p.sinks or (p.softcap is not None and ITEMSIZE[p.dtype] == 2)


def _score_bytes(p: Problem) -> int:
    additive = p.mask == "additive"
    if _exact(p):
        scale = max(ITEMSIZE[p.dtype], 4) // 4  # 2 in float64
        return (EXACT_SCORE_BYTES + 4 * additive) * scale
    return (SCORE_COPIES + additive) * ITEMSIZE[p.dtype]


def _widened_bytes(p: Problem) -> int:
    """Of the keys in float32."""
    widens = (p.want_lse or p.sinks) and ITEMSIZE[p.dtype] == 2
    return 4 * p.B * p.Hkv * p.Lk * p.D if widens else 0


def block_rows(p: Problem, memory_limit: int, dispatch_flops: int = 0) -> int:
    """Query rows of one block of the unfused path: at least 1, at most Lq.

    Its scores fit `memory_limit`; each of its matmuls is one dispatch, whose work is bounded too.
    """
    skips = p.mask == "causal" or p.window is not None
    most = min(p.Lq, SKIPPING_ROWS) if skips else p.Lq
    fixed = _widened_bytes(p)
    one_row = (unfused_bytes(p, most) - fixed) // max(most, 1)
    rows = max(1, min(most, (memory_limit - fixed) // max(one_row, 1)))
    if dispatch_flops:
        one_row = max(matmul_flops(p, 1), 1)
        rows = max(1, min(rows, MATMUL_SPEED * dispatch_flops // one_row))
    blocks = -(-p.Lq // rows)
    return -(-p.Lq // blocks) if blocks else 1  # blocks of equal size


def matmul_flops(p: Problem, rows: int) -> int:
    """Operations of the larger matmul of a block of `rows` of the unfused path: one dispatch."""
    return 2 * p.B * p.Hq * rows * p.Lk * max(p.D, p.Dv)


def flops(p: Problem) -> int:
    """Operations of Q K^T and P V (a multiplication and an addition each) on the keys seen."""
    return 2 * p.B * p.Hq * seen(p) * (p.D + p.Dv)


def seen(p: Problem) -> int:
    """(query, key) pairs of one head that causality and the window leave; array masks hide none."""
    if p.mask != "causal":
        return p.Lq * p.Lk
    first, last = max(p.Lk - p.Lq, 0), p.Lk - 1  # positions of the queries that see a key
    window = p.Lk if p.window is None else min(p.window, p.Lk)
    # a query at position i sees min(i + 1, window) keys
    growing = max(0, min(last, window - 1) - first + 1)  # of them: those that see i + 1
    ramp = growing * (2 * first + growing + 1) // 2
    return ramp + (last - first + 1 - growing) * window


def supports(D: int, Dv: int, dtype: str, device: Device, limits: Limits) -> Support:
    """Whether fused kernels, ours or stock's, serve these head dims in prefill and in decode."""
    prefill = Problem(1, 8, 1, 2048, 4096, D, Dv, dtype, "causal")
    providers, reasons = [], []
    for name, problem in {"prefill": prefill, "decode": prefill._replace(Lq=1)}.items():
        stock, tile = stock_route(problem, device), _tile(problem, device)
        provider = _fused_here(problem, stock, tile, limits)
        providers.append(provider)
        reasons.append(f"{name}: {FUSED_BY[provider] or _why_not_fused(problem, device)}")
    return Support(None not in providers, "; ".join(reasons), *providers)


FUSED_BY = {"ext": "fused by this package", "stock": "fused by stock MLX", None: ""}
