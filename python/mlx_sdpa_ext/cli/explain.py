"""`explain`: the route of a call of given shapes, here or on a machine that is only named."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from .console import bytes_text, fail, out, print_json

MASKS = ("none", "causal", "bool", "additive")
DTYPES = ("float32", "float16", "bfloat16", "float64")
# Of the estimate, which is a slow kernel's on the slowest GPU of the class. The watchdog ends a
# command buffer after 1 to 2 s while the display is active, after about 5 s else.
WATCHDOG_MS = 2000
ARCHITECTURES = {"metal": "applegpu_g16s", "cuda": "sm_90", "cpu": "avx512"}  # an example each


@dataclass(frozen=True)
class Call:
    """The call asked about, as it was typed."""

    q: str
    k: str
    v: str | None
    mask: str
    dtype: str
    window: int | None
    softcap: float | None
    sinks: bool
    lse: bool
    path: str


@dataclass(frozen=True)
class Where:
    """The machine asked about, as it was typed; None: this one's."""

    backend: str | None
    arch: str | None
    mlx: str | None
    memory: str | None
    neural_accelerators: bool | None


def explain(call: Call, where: Where, as_json: bool) -> None:
    """Prints the route; ends with one message and exit code 2 when it is asked wrongly."""
    from .. import attention, plans, router
    from . import machine

    try:
        problem = _problem(call)
        device = _device(where)
        bounds, limited = machine.bounds(device)
        route = router.route(problem, device, bounds, call.path)
        route = plans.planned(route, problem, device, bounds)
        profile = attention.profile_of(device) if bounds.calibrated else None
    except (ValueError, TypeError) as error:
        # what a Python caller knows as an argument is an option here
        fail("explain: " + re.sub(r"^(arch|mlx|path)(?=[:=])", r"--\1", str(error)))
    if as_json:
        print_json(
            {
                "problem": problem._asdict(),
                "device": {**device._asdict(), "tiles": len(device.tiles)},
                "limits": bounds._asdict(),
                "route": route._asdict(),
                "profile": str(profile.file) if profile else None,
            }
        )
    else:
        _print(problem, device, bounds, limited, route, profile)


def _problem(call: Call) -> Any:
    """The Problem of the call, after the checks that the attention itself makes.

    Raises ValueError or TypeError with its message. The arrays are lazy and never evaluated.
    """
    import mlx.core as mx

    from .. import _ext
    from ..words import Problem

    shapes = {"--q": call.q, "--k": call.k, "--v": call.k if call.v is None else call.v}
    q, k, v = (_shape(name, text) for name, text in shapes.items())
    _one_of("--dtype", call.dtype, DTYPES)
    _one_of("--mask", call.mask, MASKS)
    dtype = getattr(mx, call.dtype)
    mask: Any = {"none": None, "causal": "causal"}.get(call.mask)
    if mask is None and call.mask != "none":
        mask = mx.zeros((1, 1, q[2], k[2]), mx.bool_ if call.mask == "bool" else dtype)
    checked = _ext.problem(
        *(mx.zeros(shape, dtype) for shape in (q, k, v)),
        mask=mask,
        sinks=mx.zeros((q[1],), dtype) if call.sinks else None,
        window=call.window,
        softcap=call.softcap,
    )
    return Problem(
        *checked, window=call.window, softcap=call.softcap, sinks=call.sinks, want_lse=call.lse
    )


def _shape(name: str, text: str) -> tuple[int, ...]:
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if len(shape) != 4 or min(shape) < 0:
        raise ValueError(f"{name} {text}: expected four lengths such as 1,16,2048,256")
    if max(shape) > 2**31 - 1:
        raise ValueError(f"{name} {text}: a length is at most 2147483647")
    return shape


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} {value}: expected {', '.join(allowed[:-1])} or {allowed[-1]}")


def _device(where: Where) -> Any:
    from .. import device as devices
    from .. import stock
    from ..limits import parse_bytes
    from ..words import Device

    try:
        memory = parse_bytes(where.memory) if where.memory else None
    except ValueError as allowed:
        raise ValueError(f"--memory {where.memory}: expected {allowed}") from None
    if where.mlx:
        stock.version(where.mlx)
    here = devices.current()
    if where.backend is not None:
        _one_of("--backend", where.backend, tuple(ARCHITECTURES))
    if where.arch is None:
        if where.backend == "cpu":
            here = devices.cpu()
        if where.backend not in (None, here.backend):
            asked = where.backend
            raise ValueError(f"--backend {asked}: name its --arch too, as {ARCHITECTURES[asked]}")
        device = here
    else:
        device = Device.named(where.arch, mlx=here.mlx, tiles=devices.tiles())
        if where.backend not in (None, device.backend):
            raise ValueError(f"--arch {where.arch} is {device.backend}, not {where.backend}")
    changed = {
        "mlx": where.mlx,
        "memory": memory,
        "neural_accelerators": where.neural_accelerators,
    }
    return device._replace(**{name: value for name, value in changed.items() if value is not None})


def _print(problem: Any, device: Any, bounds: Any, limited: str, route: Any, profile: Any) -> None:
    from ..router import unfused_bytes

    p = problem
    console = out()
    extras = [
        p.dtype,
        f"{p.mask} mask" if p.mask in ("bool", "additive") else p.mask,
        f"window {p.window}" if p.window is not None else "",
        f"softcap {p.softcap:g}" if p.softcap is not None else "",
        "sinks" if p.sinks else "",
        "with lse" if p.want_lse else "",
    ]
    console.print(
        f"q [{p.B}, {p.Hq}, {p.Lq}, {p.D}]  k [{p.B}, {p.Hkv}, {p.Lk}, {p.D}]  "
        f"v [{p.B}, {p.Hkv}, {p.Lk}, {p.Dv}]  {', '.join(e for e in extras if e and e != 'none')}",
        markup=False,
    )
    extra = ", neural accelerators" if device.neural_accelerators else ""
    extra += ", played by this CPU in software" if device.software else ""
    console.print(
        f"on {device.backend} {device.arch}{extra}, {bytes_text(device.memory)}, "
        f"MLX {device.mlx}\n",
        markup=False,
    )
    table = Table.grid(padding=(0, 2))
    rows = {
        "path": route.path,
        "by": "mlx-sdpa-ext" if route.provider == "ext" else "stock MLX",
        "kernel": route.kernel,
        **_launch(problem, route, device, bounds),
        "reason": route.reason,
        "memory": f"{_transient(route)} above inputs and output "
        f"(all scores at once: {bytes_text(unfused_bytes(p))}; "
        f"limit: {bytes_text(bounds.memory_limit)}, {limited})",
        "work": f"{route.flops / 1e9:,.4g} GFLOP",
    }
    if profile:
        rows["profile"] = f"{profile.file}, measured {profile.measured}"
    if route.chunk_size:
        rows["chunks"] = f"{route.chunks} of {route.chunk_size:,} keys"
    if route.block_rows:
        rows["blocks"] = f"of {route.block_rows:,} query rows"
    for name, text in rows.items():
        table.add_row(name, text)
    console.print(table, markup=False)


def _transient(route: Any) -> str:
    from ..stock import BLOCKED_512

    if route.kernel == BLOCKED_512.kernel:
        return "a block of the scores, which MLX bounds and this does not count,"
    return bytes_text(route.transient_bytes)


def _launch(problem: Any, route: Any, device: Any, bounds: Any) -> dict[str, str]:
    """On Metal: what is launched, and how long the longest dispatch may be."""
    from ..plans import estimated_ms

    if device.backend != "metal":
        return {}
    if route.dispatches:
        rows = {}
        if route.threads:
            rows["threadgroup"] = (
                f"{route.threads} threads, {bytes_text(route.threadgroup_bytes)} of its memory"
            )
        if route.splits > 1:
            rows["splits"] = f"{route.splits} parts of the keys at once, then merged"
        of = "1" if route.dispatches == 1 else f"{route.dispatches:,}, the longest"
        of = of if route.threads else f"{route.dispatches:,} matmuls, the longest"
        rows["dispatches"] = (
            f"{of} of {route.dispatch_flops / 1e9:,.4g} GFLOP, about {route.dispatch_ms:,.3g} ms "
            f"(at most {bounds.dispatch_ms:g} ms, by estimate)"
        )
        return rows
    ours = any(tile.serves(problem) for tile in device.tiles)
    asked = route.reason.startswith("path=")
    if ours and not asked and route.provider == "stock" and route.kernel == "full":
        ms = estimated_ms(route.flops, bounds)
        if ms > WATCHDOG_MS:
            return {
                "watchdog": f"one dispatch of up to {ms / 1e3:,.2g} s: should the GPU watchdog end "
                f"it, set MLX_SDPA_CHUNK_THRESHOLD={problem.Lk} or less, and it takes dispatches "
                f"of at most {bounds.dispatch_ms:g} ms"
            }
    return {}
