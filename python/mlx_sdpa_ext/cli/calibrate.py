"""`calibrate`: measure which path is the fastest on this machine, for the router to follow."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from .. import attention, device, folders, limits
from ..calibration import grid, measure, profile
from ..calibration.fit import Fit, fit
from ..calibration.raw import Raw
from ..profiles import user
from .console import FAILED, INTERRUPTED, OK, err, fail, make_folder, out, print_json, seconds_text

NOISE_CALLS = 5  # measured twice, to see how far that differs


def calibrate(
    quick: bool, budget: float | None, restart: bool, folder: Path | None, as_json: bool
) -> int:
    """Measures what is not measured yet, fits, and writes the profile; returns the exit code."""
    if budget is not None and not budget > 0:
        fail(f"calibrate: --budget is {budget:g}; it must be a number of minutes above 0")
    place = attention.place_of(None)
    if place.device.software:
        fail("calibrate: there is no GPU at work here, and its times mean nothing", FAILED)
    raw = _raw(place.device, folder, restart)
    calls = grid.calls(place.device.backend, quick)
    until = time.perf_counter() + budget * 60 if budget else float("inf")
    try:
        with device.default(), measure.our_kernels_first(place):
            _measure(raw, calls, place, until)
    except KeyboardInterrupt:
        kept = len(calls) - len(raw.left(calls))
        _say(f"interrupted: {kept} of {len(calls)} calls are kept; run it again to go on")
        return INTERRUPTED
    return _conclude(raw, len(raw.left(calls)), place.device, folder, as_json)


def _raw(here: Any, folder: Path | None, restart: bool) -> Raw:
    try:
        where = folder or folders.config()
    except RuntimeError:
        fail("calibrate: there is no home folder; name one with --out", FAILED)
    settings = "the folder of settings (--out names another)"
    make_folder("calibrate", where, "--out" if folder else settings)
    identity = user.identity(here, device.name(here.backend))
    raw = Raw(where / f"calibration-{here.backend}.jsonl", identity)
    try:
        raw.open(restart)
    except OSError as error:
        fail(f"calibrate: {raw.file}: {error.strerror}", FAILED)
    if raw.other:
        _say(f"{raw.file} was measured with {raw.other}: starting anew")
    elif raw.points:
        _say(f"going on with {raw.file}: {len(raw.points)} calls are there (--restart: anew)")
    return raw


def _measure(raw: Raw, calls: list[grid.Call], place: Any, until: float) -> None:
    left = raw.left(calls)
    console = err()
    if raw.noise is None:
        raw.add_noise(measure.noise(_spread(calls), place.device, place.limits))
    _say(f"two measurements of one call differ by {raw.noise:.1%} here")
    progress = Progress(
        TextColumn("{task.fields[call]:<34}"),
        BarColumn(20),
        TextColumn("{task.completed}/{task.total} calls"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        console=console,
    )
    done = len(calls) - len(left)
    with progress:
        task = progress.add_task("", total=len(calls), completed=done, call="", left="")
        for i, call in enumerate(left):
            needs = [measure.expected_seconds(c, raw.points) for c in left[i:]]
            if time.perf_counter() + (needs[0] or 0.0) > until:
                break
            about = "" if None in needs else f"about {seconds_text(sum(filter(None, needs)))} left"
            progress.update(task, call=_name(call), left=about)
            raw.add(measure.point(call, place.device, place.limits, raw.points))
            progress.advance(task)
            if not console.is_terminal and (done + i + 1) % 10 == 0:
                _say(f"{done + i + 1} of {len(calls)} calls, {about}")


def _spread(calls: list[grid.Call]) -> list[grid.Call]:
    """A few of them, from little work to much less than the most."""
    half = calls[: max(1, len(calls) // 2)]
    return [half[i * (len(half) - 1) // max(1, NOISE_CALLS - 1)] for i in range(NOISE_CALLS)]


def _name(call: grid.Call) -> str:
    dims = f"{call.D}" if call.Dv == call.D else f"({call.D}, {call.Dv})"
    return f"{call.Lq} x {call.Lk}, D {dims}, H {call.Hq}/{call.Hkv}, {call.dtype}"


def _conclude(raw: Raw, left: int, here: Any, folder: Path | None, as_json: bool) -> int:
    measured = profile.measured(raw.points)
    if not measured:
        _say("nothing was measured: no profile is written")
        return FAILED
    found = fit(measured, here, limits.of(here), raw.noise or 0.0)
    made = profile.content(found, raw.identity, raw.noise or 0.0, len(measured), raw.file.name)
    file = raw.file.with_name(user.file_name(here.backend))
    profile.write(made, file)
    if as_json:
        print_json(made | {"file": str(file), "calls_left": left})
    else:
        _print(found)
    if left:
        _say(f"{left} calls are left: run it again to go on")
    _say(f"written to {file}, and what was measured to {raw.file}")
    if folder is None:
        _say(f"attention follows it from now on ({limits.PROFILE}=none: it does not)")
    else:
        _say(f"attention follows it where {limits.PROFILE}={file} is set")
    return OK


def _print(found: Fit) -> None:
    table = Table("threshold", "shipped", "here", "calls that depend on it")
    for name, value in found.values.items():
        table.add_row(name, str(value.shipped), str(value.value), str(value.calls))
    for name in found.undecided:
        table.add_row(name, "", "as shipped", "none")
    console = out()
    console.print(table)
    console.print(
        f"The path taken is slower than the fastest one measured by {_percent(found.cost)} on "
        f"average; with the shipped thresholds by {_percent(found.shipped_cost)}.",
        soft_wrap=True,
    )


def _percent(log_ratio: float) -> str:
    return f"{math.expm1(log_ratio):.1%}"


def _say(text: str) -> None:
    err().print(text, markup=False, soft_wrap=True)
