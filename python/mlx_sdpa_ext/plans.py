"""What src/plan.cpp says of a call of ours: the kernel, its tile, how the work is cut. Pure."""

from __future__ import annotations

from typing import Any

from . import _ext
from .router import MATMUL_SPEED, matmul_flops
from .words import Device, Limits, Problem, Route


def plan(problem: Problem, device: Device, limits: Limits, chunk_size: int = 0) -> dict[str, Any]:
    """The plan of a fused call, for a device whether or not it is this machine's.

    Raises:
        ValueError: no kernel of ours serves the call; says why.
    """
    sizes = problem[: Problem._fields.index("dtype") + 1]
    gpu = {}
    if device.backend != "cpu":
        gpu = {
            "dispatch_flops": limits.dispatch_flops,
            "fill": limits.fill_blocks,
            "memory": limits.memory_limit,
        }
    return _ext.plan(
        *sizes,
        mask=problem.mask,
        window=problem.window or 0,
        softcap=problem.softcap is not None,
        sinks=problem.sinks,
        want_lse=problem.want_lse,
        chunk_size=chunk_size,
        backend=device.backend,
        arch=device.arch,
        **gpu,
    )


def planned(route: Route, problem: Problem, device: Device, limits: Limits) -> Route:
    """`route` with what the plan of our kernels says.

    That is the kernel's name and its scratch memory, and on Metal how it is launched; there also
    the matmuls of the unfused path.
    """
    if route.path == "unfused" and device.backend == "metal":
        return _in_matmuls(route, problem, limits)
    if route.provider != "ext" or route.path not in ("fused", "chunked"):
        return route
    found = plan(problem, device, limits, route.chunk_size)
    route = route._replace(
        kernel=found["kernel"],
        transient_bytes=found["tile_bytes"] + found["scratch_bytes"],
        splits=found["splits"],
    )
    if device.backend == "cpu":
        return route
    longest = found["longest_flops"]
    return route._replace(
        threads=found["threads"],
        threadgroup_bytes=found["threadgroup_bytes"],
        dispatches=found["dispatches"],
        dispatch_flops=int(longest),
        dispatch_ms=estimated_ms(longest, limits),
    )


def _in_matmuls(route: Route, problem: Problem, limits: Limits) -> Route:
    rows = route.block_rows or problem.Lq
    blocks = -(-problem.Lq // rows) if rows else 0
    longest = matmul_flops(problem, rows)
    ms = estimated_ms(longest, limits) / MATMUL_SPEED
    return route._replace(dispatches=2 * blocks, dispatch_flops=longest, dispatch_ms=ms)


def estimated_ms(flops: float, limits: Limits) -> float:
    """What one dispatch of so much work takes at most, by the profile of the device's class."""
    return flops / limits.dispatch_flops * limits.dispatch_ms if limits.dispatch_flops else 0.0
