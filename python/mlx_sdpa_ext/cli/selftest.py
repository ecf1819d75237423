"""`doctor --selftest`: every kernel of ours on this device beside stock operations, in a table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.progress import Progress, TextColumn
from rich.table import Table

from .console import bytes_text, err, seconds_text

# The features that kernels are specialised for, several at once: a column each.
FEATURES: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"mask": "causal", "want_lse": True},
    "window": {"mask": "causal", "window": 21, "softcap": 5.0, "sinks": True},
    "bool": {"mask": "bool"},
    "additive": {"mask": "additive", "want_lse": True},
    "chunks": {"mask": "causal", "sinks": True, "chunks": 3},
    "splits": {"mask": "causal", "want_lse": True, "Lk": 520},  # 256 keys a split, and a merge
}
TITLE = (
    "self-test: the largest difference from stock (window: with softcap and sinks; causal, "
    "additive and splits: with lse)"
)
RESERVE = "in reserve: another row comes first on this device"


def selftest(device: Any, limits: Any, only: str) -> Iterator[dict[str, Any]]:
    """A row for each kernel whose name contains `only`: what it is, and what each feature gave.

    `features` maps each of FEATURES to {"difference", "allowed", "error"}; a row that no call on
    this device would take has none, and says so in `note`. The verdicts are kept at the end, those
    before an interruption too.
    """
    from .. import first_use, verdicts

    jobs = [job for job in _jobs(device, limits) if only in job["kernel"]]
    keeps = device.backend == "metal" and not device.software
    found: dict[str, str] = {}
    try:
        with Progress(TextColumn("{task.description}"), console=err(), transient=True) as progress:
            task = progress.add_task("")
            for n, job in enumerate(jobs, start=1):
                progress.update(task, description=f"kernel {n} of {len(jobs)}: {job['kernel']}")
                begin = time.perf_counter()
                for name, check in job.pop("checks").items():
                    result = first_use.run(check, device)
                    job["features"][name] = result._asdict()
                    if result.is_verdict:
                        found[str(check)] = result.error
                job["seconds"] = time.perf_counter() - begin
                yield job
        if keeps and not only:
            verdicts.forget(device)
    finally:
        if keeps:
            verdicts.keep(device, found)


def _jobs(device: Any, limits: Any) -> Iterator[dict[str, Any]]:
    from .. import plans
    from ..selfcheck import Check

    for tile in device.tiles:
        for dtype in tile.dtypes:
            problem = _problem(tile, dtype)
            first = plans.plan(problem, device, limits)
            reached = first["kernel"].startswith(_stem(tile, dtype))
            checks = {}
            for name, more in FEATURES.items() if reached else ():
                asked = dict(more)
                chunks = asked.pop("chunks", 1)
                small = problem._replace(**asked)
                chunk_size = -(-small.Lk // chunks) if chunks > 1 else 0
                found = plans.plan(small, device, limits, chunk_size)
                checks[name] = Check(found["kernel"], small, chunk_size, found["splits"])
            yield {
                "kernel": first["kernel"] if reached else _stem(tile, dtype),
                "threads": first.get("threads", 0) if reached else tile.threads,
                "threadgroup_bytes": first.get("threadgroup_bytes", 0) if reached else 0,
                "features": {},
                "checks": checks,
                "note": "" if reached else RESERVE,
            }


def _problem(tile: Any, dtype: str) -> Any:
    """A small call at the row's largest head dims, of lengths that are no multiples of its tile."""
    from ..words import Problem

    if tile.kernel == "prefill":
        group, Lq = 2, tile.bq + 3
    else:  # all the rows of a GQA group in one tile
        group = 4
        Lq = tile.bq // group
    Lk = Lq + 3 * tile.bk + 5
    return Problem(1, 2 * group, 2, Lq, Lk, tile.d_max, tile.dv_max, dtype)


def _stem(tile: Any, dtype: str) -> str:
    """What the kernel's name begins with, as src/plan.cpp spells it."""
    return f"sdpa_{tile.kernel}_{dtype}_d{tile.d_max}_v{tile.dv_max}_bq{tile.bq}_bk{tile.bk}"


def table(rows: list[dict[str, Any]]) -> Table:
    """The rows for people: the largest difference from stock of each feature, or what failed."""
    out = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=TITLE, title_justify="left")
    for title in ("kernel", "threads", "threadgroup", *FEATURES, "took"):
        out.add_column(title, justify="left" if title == "kernel" else "right", no_wrap=True)
    for row in rows:
        cells = [_cell(row["features"].get(name)) for name in FEATURES]
        out.add_row(
            row["kernel"],
            str(row["threads"]) if row["threadgroup_bytes"] else "",
            bytes_text(row["threadgroup_bytes"]) if row["threadgroup_bytes"] else "",
            *cells,
            seconds_text(row["seconds"]) if row["features"] else "in reserve",
        )
    return out


def _cell(result: dict[str, Any] | None) -> str:
    if result is None:
        return "-"
    return "FAILED" if result["error"] else f"{result['difference']:.0e}"
