"""Attention at any head dimension and key length, on the path that fits the call.

Shapes: q [B, Hq, Lq, D], k [B, Hkv, Lk, D], v [B, Hkv, Lk, Dv], out [B, Hq, Lq, Dv],
lse [B, Hq, Lq] (float32, natural logarithm, of the scaled scores).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import mlx.core as mx

from . import _ext, plans, router, software
from . import device as devices
from . import limits as settings
from .first_use import Gate
from .memory import Headroom
from .profiles import Value, user
from .stats import record
from .words import Device, Problem, Route, Support

__all__ = ["explain", "merge", "scaled_dot_product_attention", "supports"]

logger = logging.getLogger("mlx_sdpa_ext")

# MLX's function as this module found it, so that the stock path does not come back here while the
# patch is on. A reload of the module while it is on keeps it: there it would find ours.
stock_attention = globals().get("stock_attention", mx.fast.scaled_dot_product_attention)


def scaled_dot_product_attention(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float,
    mask: str | mx.array | None = None,
    sinks: mx.array | None = None,
    force_fused: bool = False,
    stream: Any = None,
    window: int | None = None,
    softcap: float | None = None,
    path: str = "auto",
    return_lse: bool = False,
) -> mx.array | tuple[mx.array, mx.array]:
    """`softmax(scale * q @ k^T) @ v`; takes what `mx.fast.scaled_dot_product_attention` takes.

    The result has the dtype that q, k and v promote to; sums are in float32. A query that sees no
    key gets 0, with lse -inf. Gradients, vmap and compile work as with any MLX function. Fused
    calls on the CPU have gradients in memory that is linear in the length; those on GPUs, of an
    additive mask and of second order run through stock operations with all scores. As with stock's
    causal attention, under `mx.compile(shapeless=True)` these and the unfused path keep the lengths
    that they were traced with.

    Args:
        q: queries [B, Hq, Lq, D], of a floating dtype.
        k: keys [B, Hkv, Lk, D]; Hq is a multiple of Hkv. Not repeated for grouped queries.
        v: values [B, Hkv, Lk, Dv].
        scale: of the scores, usually D ** -0.5.
        mask: None; "causal" (the last query sees the last key); or an array that broadcasts to
            [B, Hq, Lq, Lk], bool (True = visible) or additive. It is never expanded.
        sinks: [Hq], one more logit per head, in the denominator only.
        force_fused: the same as path="fused".
        stream: None, or the stream or device to run on.
        window: keys that a query sees, its own and those before it; needs mask="causal".
        softcap: c of s -> c * tanh(s / c), on the scaled scores before the mask.
        path: "auto", or one of "fused" (one pass over the keys), "unfused" (matmul, softmax, matmul
            on blocks of query rows within the memory limit), "chunked" (fused, over chunks of the
            keys) and "stock" (MLX's own function).
        return_lse: also return the logsumexp of each query's scores, sinks included.

    Returns:
        out [B, Hq, Lq, Dv], or (out, lse) with lse [B, Hq, Lq] in float32.

    Raises:
        ValueError: shapes, dtypes, the mask, sinks, window or softcap do not fit; `path` is unknown
            or cannot serve the call, and then the message says what can.
        TypeError: an argument is of the wrong type.
    """
    problem = _problem(q, k, v, mask, sinks, window, softcap, return_lse)
    stream = devices.stream_of(stream)
    place = place_of(stream)
    call = (q, k, v, mask, sinks)
    route = place.route(problem, path, force_fused, call)
    arguments = {"scale": scale, "mask": mask, "sinks": sinks, "stream": stream}
    try:
        result = _run(route, problem, q, k, v, arguments)
    except TypeError as error:
        raise _in_our_words(error, scale=scale) from None
    except ValueError:
        if not route.forces_stock or path != "auto" or force_fused:
            raise
        # Asked for a kernel that it would not have chosen, stock MLX refuses some calls that it
        # else takes: with an array mask while a gradient is traced, which cannot be seen from here.
        route = place.route(problem, "unfused", False, call)._replace(reason=REFUSED_BY_STOCK)
        result = _run(route, problem, q, k, v, arguments)
    record(route)
    return result


def _problem(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    mask: str | mx.array | None,
    sinks: mx.array | None,
    window: int | None,
    softcap: float | None,
    return_lse: bool,
) -> Problem:
    """The call, checked as stock MLX checks it."""
    options = {"mask": mask, "sinks": sinks, "window": window, "softcap": softcap}
    try:
        checked = _ext.problem(q, k, v, **options)
    except TypeError as error:
        raise _in_our_words(error, q=q, k=k, v=v, **options) from None
    return Problem(*checked, window, softcap, sinks is not None, return_lse)


def _in_our_words(error: TypeError, **arguments: Any) -> TypeError:
    """`error` of a compiled function, which shows its signature; ours names the argument."""
    for name, value in arguments.items():
        words, allowed = TYPES[name]
        if not allowed(value):
            return TypeError(f"{name}: got {type(value).__name__}; allowed {words}")
    return error


def _is_array(x: Any) -> bool:
    return isinstance(x, mx.array)


# Of the arguments: what is allowed, and whether a value is of such a type.
TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    **dict.fromkeys("qkv", ("is an mx.array", _is_array)),
    "mask": (
        "are None, 'causal' and an mx.array",
        lambda x: x is None or isinstance(x, str) or _is_array(x),
    ),
    "sinks": ("are None and an mx.array", lambda x: x is None or _is_array(x)),
    "window": ("are None and a whole number", lambda x: x is None or hasattr(x, "__index__")),
    "softcap": ("are None and a number", lambda x: x is None or hasattr(x, "__float__")),
    "scale": ("is a number", lambda x: hasattr(x, "__float__")),
}


REFUSED_BY_STOCK = "stock MLX refused its fused kernel; the unfused path instead"


def _run(
    route: Route, problem: Problem, q: mx.array, k: mx.array, v: mx.array, arguments: dict[str, Any]
) -> mx.array | tuple[mx.array, mx.array]:
    if route.provider == "stock":
        if route.forces_stock:  # only then: MLX 0.31.2 has no such argument
            arguments = {**arguments, "force_fused": True}
        return stock_attention(q, k, v, **arguments)
    ours = {"window": problem.window, "softcap": problem.softcap, "return_lse": problem.want_lse}
    if route.path == "unfused":
        arrays = _ext.unfused(q, k, v, **arguments, **ours, block_rows=route.block_rows)
    else:
        arrays = _ext.sdpa(q, k, v, **arguments, **ours, chunk_size=route.chunk_size)
    return (arrays[0], arrays[1]) if problem.want_lse else arrays[0]


def merge(
    outputs: Sequence[mx.array], lses: Sequence[mx.array], *, stream: Any = None
) -> tuple[mx.array, mx.array]:
    """Combines attentions of the same queries over disjoint sets of keys, exactly.

    With w_i = exp(lse_i - lse): out = sum_i w_i * out_i, lse = log(sum_i exp(lse_i)). Parts without
    a visible key (lse -inf) contribute nothing. If there are sinks, give them to one part only.

    Args:
        outputs: one or more arrays [B, Hq, Lq, Dv] of one dtype.
        lses: as many arrays [B, Hq, Lq] in float32, as `return_lse=True` returns them.
        stream: None, or the stream or device to run on.

    Returns:
        (out [B, Hq, Lq, Dv] in the dtype of the outputs, lse [B, Hq, Lq] in float32).

    Raises:
        ValueError: there are none, their numbers differ, or shapes or dtypes do not fit.
    """
    where = devices.stream_of(stream)
    gate = place_of(where).gate
    if gate:
        gate.open()
    return _ext.merge(list(outputs), list(lses), stream=where)


def explain(
    q: mx.array,
    k: mx.array,
    v: mx.array,
    *,
    scale: float = 1.0,
    mask: str | mx.array | None = None,
    sinks: mx.array | None = None,
    force_fused: bool = False,
    stream: Any = None,
    window: int | None = None,
    softcap: float | None = None,
    path: str = "auto",
    return_lse: bool = False,
) -> Route:
    """What `scaled_dot_product_attention` with these arguments would do, and why.

    Nothing is computed: shapes and dtypes are looked at only. `scale` plays no part. Of a call of
    ours, `kernel` is the name of the kernel, `transient_bytes` includes its scratch memory. On
    Metal the kernels of ours are taken to work; those that failed in this process are in `stats()`.

    Returns:
        A Route: path, provider ("ext", this package, or "stock"), kernel, reason, transient_bytes,
        flops, chunks, chunk_size, block_rows; of Metal kernels of ours also threads,
        threadgroup_bytes, splits, dispatches, dispatch_flops and dispatch_ms (of the longest);
        of the matmuls of the unfused path there the last three.

    Raises:
        ValueError: as `scaled_dot_product_attention`.
        TypeError: likewise.
    """
    problem = _problem(q, k, v, mask, sinks, window, softcap, return_lse)
    place = place_of(stream)
    route = router.route(problem, place.device, place.limits, path, force_fused)
    return plans.planned(route, problem, place.device, place.limits)


def supports(
    head_dim: int,
    v_head_dim: int | None = None,
    dtype: mx.Dtype = mx.float16,
    backend: str | None = None,
) -> Support:
    """Whether fused kernels, ours or MLX's, serve a head dim: in prefill and in decode.

    Every head dim works; where this is false, calls take the unfused path within the memory limit.

    Args:
        head_dim: D of queries and keys.
        v_head_dim: Dv of the values; head_dim if None.
        dtype: of the call: mx.float32, mx.float16, mx.bfloat16 or mx.float64.
        backend: "cpu", "metal" or "cuda"; None is the default device. A backend other than that of
            this machine is taken as its first generation that MLX fuses on (M1, compute capability
            9.0).

    Returns:
        A Support: truthy if both are fused; .reason says by whom, or why not.

    Raises:
        ValueError: an argument is none of these.
    """
    Dv = head_dim if v_head_dim is None else v_head_dim
    for name, dim in {"head_dim": head_dim, "v_head_dim": Dv}.items():
        if not isinstance(dim, int) or dim < 1:
            raise ValueError(f"{name}: got {dim!r}; allowed are whole numbers from 1 on")
    if not (isinstance(dtype, mx.Dtype) and mx.issubdtype(dtype, mx.floating)):
        raise ValueError(f"dtype: got {dtype!r}; allowed are the floating dtypes of MLX")
    where = _of_backend(backend)
    name = str(dtype).removeprefix("mlx.core.")
    here = where in (devices.current(), devices.cpu())
    bounds = settings.of(where, measured=measured(where) if here else settings.NOTHING_MEASURED)
    return router.supports(head_dim, Dv, name, where, bounds)


def _of_backend(backend: str | None) -> Device:
    if backend not in (None, *STAND_INS):
        raise ValueError(f"backend: got {backend!r}; allowed are {', '.join(STAND_INS)} or None")
    here = devices.current()
    if backend in (None, here.backend):
        return here
    if backend == "cpu":
        return devices.cpu()
    return Device.named(STAND_INS[backend], mlx=mx.__version__, tiles=devices.tiles())


STAND_INS = {"cpu": "baseline", "metal": "applegpu_g13g", "cuda": "sm_90"}


def profile_of(device: Device) -> user.Found:
    """The user's own profile of a device of this machine."""
    return user.find(device, partial(devices.name, device.backend), settings.settings().profile)


def measured(device: Device) -> dict[str, Value]:
    """The thresholds of that profile; one that does not count is warned of."""
    found = profile_of(device)
    user.warn(found)
    return found.values


Call = tuple[mx.array, mx.array, mx.array, Any, Any]  # q, k, v, mask, sinks


class _Place:
    """A device with its limits, and the routes already asked for there."""

    def __init__(self, device: Device, chosen: settings.Settings) -> None:
        self.device = device
        self._chosen = chosen
        self._headroom = None if chosen.memory_limit else Headroom(device)
        self._free = 0  # as it was when the limit was last asked for
        self.limits = settings.of(device, chosen, measured(device))
        self.gate = Gate(device, self.limits) if device.backend != "cpu" and device.tiles else None
        self.routes: dict[tuple[Any, ...], Route] = {}

    def follow(self) -> None:
        """Takes note of the memory that there is now, unless the user has set the limit."""
        if self._headroom is None:
            return
        free = self._headroom.now()
        if abs(free - self._free) * FINER < self.limits.memory_limit:
            return
        self._free = free
        room = settings.less_margin(free, self.limits.memory_margin)
        if room != self.limits.memory_limit:
            self.limits = self.limits._replace(memory_limit=room)
            if self.gate:
                self.gate.follow(self.limits)

    def route(self, problem: Problem, path: str, force_fused: bool, call: Call) -> Route:
        """`router.route`, remembered: the layers of a model ask the same at each step.

        On a GPU it is one whose kernel works there (first_use.py).
        """
        limits = self.limits
        key: tuple[Any, ...] = (problem, path, force_fused, limits.memory_limit)
        if self.gate and problem.mask == "additive":
            key = (*key, call[3].dtype)  # kernels are specialised for it
        route = self.routes.get(key)
        if route is None:
            route = router.route(problem, self.device, limits, path, force_fused)
            if self.gate and route.provider == "ext" and route.path in ("fused", "chunked"):
                route = self._that_works(route, problem, path, force_fused, call)
            if self.device.software:  # where stock MLX has no kernel that it could be told to use
                route = route._replace(forces_stock=False)
            if len(self.routes) >= ROUTES_KEPT:
                self.routes.clear()
            self.routes[key] = route
            self.announce(route, problem)
        return route

    def _that_works(
        self, route: Route, problem: Problem, path: str, force_fused: bool, call: Call
    ) -> Route:
        q, k, v, mask, sinks = call
        failure = self.gate.failure(
            problem, q, k, v, mask=mask, sinks=sinks, chunk_size=route.chunk_size
        )
        if failure is None:
            return route
        return router.route(
            problem, self.device, self.limits, path, force_fused, failed=failure.kernel
        )

    def announce(self, route: Route, problem: Problem) -> None:
        if not self._chosen.log:
            return
        heads = f"D {problem.D}, Dv {problem.Dv}, {problem.dtype}"
        line = f"{route.path} by {route.provider} ({route.kernel}; {heads}): {route.reason}"
        if line not in _announced:
            _announced.add(line)
            logger.info(line)


ROUTES_KEPT = 256
FINER = 64  # changes of what is free below this part of the limit are not looked at
_announced: set[str] = set()


class _InForce(NamedTuple):
    settings: settings.Settings
    places: dict[int, _Place]  # by the identity of the Device, which devices.current keeps


_in_force: _InForce | None = None


def place_of(stream: Any) -> _Place:
    """Where a call on `stream` runs, with the settings in force."""
    global _in_force
    chosen = settings.settings()
    in_force = _in_force
    if in_force is None or in_force.settings is not chosen:
        _ext.set_cpu_threads(chosen.cpu_threads or 0)
        devices.use_instruction_set(chosen.cpu_isa)
        if chosen.software_arch is None:
            software.use(None)
        if chosen.log:
            _log_to_stderr()
        in_force = _in_force = _InForce(chosen, {})
    device = devices.current(stream)
    place = in_force.places.get(id(device))
    if place is None:
        place = in_force.places[id(device)] = _Place(device, chosen)
    place.follow()
    return place


def _log_to_stderr() -> None:
    """MLX_SDPA_EXT_LOG=1: the logger writes; a handler that the program set up is used instead."""
    logger.setLevel(logging.INFO)
    if not logger.hasHandlers():
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        logger.addHandler(handler)
