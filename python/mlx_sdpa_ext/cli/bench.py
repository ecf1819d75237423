"""`bench`: measure this package beside stock MLX on this machine, and compare two records."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mlx.core as mx
from rich.table import Table

from .. import folders
from ..bench import compare as comparison
from ..bench.measure import environment
from ..bench.suites import SUITES, Options, Suite, missing_device, mlx_device, record_name
from .console import FAILED, INTERRUPTED, OK, err, fail, make_folder, out, print_json

FAILURES = (RuntimeError, ValueError, TypeError, MemoryError)


@dataclass(frozen=True)
class Call:
    """What was asked for, as it was typed."""

    suite: str
    quick: bool
    only: str | None
    torch: str | None
    limit: float
    commit: str | None
    out: Path
    as_json: bool


def bench(call: Call) -> int:
    """Runs one suite; what is finished is in the file at any time, also when interrupted."""
    suite = _suite(call)
    make_folder("bench", call.out)
    mx.set_default_device(mlx_device(suite))
    where = environment()
    where["commit"] = call.commit or where["commit"]
    path = call.out / f"{record_name(call.suite, where['gpu'])}.json"
    record = {"suite": call.suite, "quick": call.quick, "environment": where}
    record |= {"only": call.only} if call.only else {}
    record |= {"interrupted": True, "results": []}
    options = Options(call.quick, call.only, call.torch, call.limit)
    code = _measure(call.suite, suite, options, record, path)
    if call.as_json:
        print_json(record)
    else:
        _print(suite, record)
    if suite.plot and record["results"]:
        suite.plot(record, path.with_suffix(".png"))
        err().print(f"wrote {path.with_suffix('.png')}", markup=False, soft_wrap=True)
    err().print(f"wrote {path}", markup=False, soft_wrap=True)
    return code


def list_suites() -> int:
    """Prints what can be measured."""
    table = Table.grid(padding=(0, 2))
    for name, suite in SUITES.items():
        table.add_row(name, suite.what)
    out().print(table, markup=False)
    return OK


def _suite(call: Call) -> Suite:
    """Ends the command with one message where it is asked wrongly, or cannot run here."""
    if call.suite not in SUITES:
        fail(f"bench: {call.suite!r} is none of the suites {', '.join(SUITES)}")
    suite = SUITES[call.suite]
    for name in ("only", "torch"):
        if getattr(call, name) is not None and name not in suite.options:
            fail(f"bench: --{name} means nothing to the suite {call.suite}")
    if call.only is not None:
        try:
            re.compile(call.only)
        except re.error as error:
            fail(f"bench: --only {call.only!r} is not a regular expression: {error}")
    if not call.limit > 0:
        fail(f"bench: --limit is {call.limit:g}; it must be a number of seconds above 0")
    if any(find_spec(module) is None for module in suite.needs):
        needs = "the suite needs mlx-lm; install with: pip install 'mlx-sdpa-ext[bench]'"
        fail(f"bench {call.suite}: {needs}", FAILED)
    if reason := missing_device(suite):
        fail(f"bench {call.suite}: {reason}")
    return suite


def _measure(name: str, suite: Suite, options: Options, record: dict, path: Path) -> int:
    console = err()
    try:
        with console.status(name) as status:
            for result in suite.run(options):
                record["results"].append(result)
                write(record, path)
                row = "  ".join(filter(None, suite.row(result)))
                console.print(row, markup=False, soft_wrap=True)
                status.update(f"{name}: {len(record['results'])} done")
        record["interrupted"] = False
        code = OK
    except KeyboardInterrupt:
        console.print("interrupted: what was finished by then is kept")
        code = INTERRUPTED
    except FAILURES as error:
        console.print(f"mlx-sdpa-ext: bench {name}: {error}", markup=False, soft_wrap=True)
        code = FAILED
    write(record, path)
    return code


def write(record: dict, path: Path) -> None:
    folders.write(path, json.dumps(record, indent=1) + "\n")


def _print(suite: Suite, record: dict) -> None:
    table = Table(*suite.titles)
    for result in record["results"]:
        table.add_row(*map(str, suite.row(result)))
    out().print(table, markup=False)


def compare(before: Path, after: Path, as_json: bool) -> int:
    """Prints what became faster from one record of a suite to another, and what is noise."""
    old, new = (_read(path) for path in (before, after))
    if old["suite"] != new["suite"]:
        fail(f"bench --compare: {old['suite']} and {new['suite']} are different suites")
    rows = comparison.ratios(old, new)
    if not rows:
        fail("bench --compare: no timed case is in both records")
    if as_json:
        print_json([dict(zip(("case", "speedup", "noise"), row, strict=True)) for row in rows])
        return OK
    table = Table("case", "speedup", "")
    for name, ratio, noise in rows:
        table.add_row(name, f"{ratio:.2f}x", "noise" if noise else "")
    out().print(table, markup=False)
    return OK


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        fail(f"bench --compare: {path}: {error.strerror}")
    except ValueError:
        fail(f"bench --compare: {path} is not a JSON file")
    if not isinstance(record, dict) or not {"suite", "results"} <= record.keys():
        fail(f"bench --compare: {path} is not a record of `mlx-sdpa-ext bench`")
    return record
