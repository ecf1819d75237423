"""Writes the table of docs/models.md: every model of mlx-lm with the patch and without.

    python tools/model_table.py            # rewrite docs/models.md between its markers
    python tools/model_table.py --check    # exit code 1, with the difference, if out of date

Runs about 120 small models on the CPU, which takes ten seconds.
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import mlx.core as mx
import readme_tables

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))

from lm_modules import NOT_MADE, modules  # noqa: E402
from model_runs import Run, run  # noqa: E402

PAGE = ROOT / "docs" / "models.md"
# Why a model has attention that does not come here; a model that is not named has none such.
LEFT_ALONE = {
    "olmo": "fails in mlx-lm itself, patched or not: it adds the text `causal` to its own scores",
    "phi3small": "in its dense layers; its block-sparse ones add a boolean mask to scores of their "
    "own, and are left alone",
}
RECURRENT = "no attention: recurrent"


def result(name: str, found: Run) -> str:
    """What the last column says of a run.

    Raises:
        ValueError: it is nothing that the table expects.
    """
    if name in LEFT_ALONE and found.error and found.error == found.stock_error:
        return LEFT_ALONE[name]
    if not (found.prefill_calls or found.own or found.error):
        return RECURRENT
    if found.equal and not found.error and bool(found.own) == (name in LEFT_ALONE):
        return f"equal, {LEFT_ALONE[name]}" if found.own else "equal"
    raise ValueError(f"{name}: {found}")


def row(name: str) -> str:
    if name in NOT_MADE:
        return f"| `{name}` |  |  |  |  | not run here: {NOT_MADE[name]} |"
    found = run(name)
    cells = [f"`{name}`", dims(found), features(found), calls(found), ", ".join(found.paths)]
    return f"| {' | '.join(cells)} | {result(name, found)} |"


def dims(found: Run) -> str:
    """`128`, `(192, 128)`: of the calls, in the order in which they came."""
    pairs = dict.fromkeys((p.D, p.Dv) for p in found.problems)
    return ", ".join(str(D) if Dv == D else f"({D}, {Dv})" for D, Dv in pairs)


def features(found: Run) -> str:
    """Masks, softcaps and sinks of the calls."""
    masks = {p.mask for p in found.problems if p.mask != "none"}
    more = ["softcap"] if any(p.softcap for p in found.problems) else []
    more += ["sinks"] if any(p.sinks for p in found.problems) else []
    return ", ".join([*sorted(masks, reverse=True), *more])


def calls(found: Run) -> str:
    """In one prefill step and one decode step."""
    if not found.prefill_calls:
        return ""
    return f"{found.prefill_calls}, {found.decode_calls}"


def table() -> str:
    rows = [
        "| module | D, or (D, Dv) | masks and more | calls: prefill, decode | path | result |",
        "|---|---|---|---|---|---|",
        *map(row, modules()),
    ]
    return "\n".join([*rows, "", f"mlx-lm {metadata.version('mlx-lm')}."])


def main(arguments: list[str] | None = None) -> int:
    """Rewrites or checks the page."""
    mx.set_default_device(mx.cpu)
    return readme_tables.main(arguments, PAGE, {"models": table})


if __name__ == "__main__":
    sys.exit(main())
