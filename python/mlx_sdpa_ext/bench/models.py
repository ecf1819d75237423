"""mlx-lm from prefill to decode, with the patch and without: the same tokens, how fast, how large.

Both sides have the same random weights and prompt. Ours decodes greedily; stock is given the tokens
that ours chose, so that one choice that differs does not hide the rest, and its own greedy choices
are compared with ours position by position. Stock in float32, as far as the first context, says
how far either is from the exact logits. Each side is a process of its own: what it leaves in
memory, and running out of it, are its own.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np

from .model_configs import MODELS

WORKER = (sys.executable, "-m", "mlx_sdpa_ext.bench.model_worker")
CONTEXTS, STEP, DECODE = (8192, 32768, 131072), 2048, 64
QUICK_CONTEXTS = (8192, 32768)
GRACE = 60  # seconds beyond its limit in which a process that is told to stop by itself has to end
SIDES = ("ours", "stock")


def suite(
    quick: bool,
    only: str | None = None,
    limit: float = 120,
    contexts: tuple[int, ...] = (),
    step: int = STEP,
    decode: int = DECODE,
    small: bool = False,
) -> Iterator[dict]:
    """A result for each model.

    only:     a regular expression that the model's name must contain; None takes all
    limit:    seconds for one model on one side; a prefill ends at the last context that its steps
              so far say can be reached
    contexts: where memory and logits are read; decode follows the last
    small:    little around the attention, for tests
    """
    contexts = contexts or (QUICK_CONTEXTS if quick else CONTEXTS)
    task = {"contexts": contexts, "step": step, "decode": decode, "limit": limit, "small": small}
    task["device"] = "gpu" if mx.default_device().type == mx.gpu else "cpu"
    for name in MODELS:
        if only is None or re.search(only, name):
            yield compared(name, task)


def compared(name: str, task: dict) -> dict:
    """One model on both sides."""
    model = MODELS[name]
    found = {"case": "model", "name": name, "family": model.family, "attention": model.attention}
    found |= {"dtype": "bfloat16", "step": task["step"], "limit_s": task["limit"]}
    task = task | {"dtype": "bfloat16"}
    arrays, tokens = {}, None
    with tempfile.TemporaryDirectory() as folder:
        for side in SIDES:
            out = Path(folder) / f"{side}.json"
            this = task | {"model": name, "side": side, "tokens": tokens, "out": str(out)}
            found[side], arrays[side] = run(this)
            if "decode" in arrays[side]:
                tokens = arrays[side]["fed"].tolist()
        exact = task | {"dtype": "float32", "contexts": task["contexts"][:1], "decode": 0}
        exact |= {
            "model": name,
            "side": "stock",
            "tokens": None,
            "out": str(Path(folder) / "exact"),
        }
        found["exact"], arrays["exact"] = run(exact)
    found["agreement"] = agreement(*(arrays[side] for side in SIDES))
    found["errors"] = errors(arrays)
    found["speedup"] = speedup(found["ours"], found["stock"])
    return found


def run(task: dict) -> tuple[dict, dict[str, np.ndarray]]:
    """What the process of one side found before it ended, or was ended."""
    out, limit = Path(task["out"]), task["limit"] + GRACE
    error = None
    try:
        done = subprocess.run(
            [*WORKER, json.dumps(task)],
            capture_output=True,
            text=True,
            timeout=limit,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines()
            error = f"ended with {done.returncode}" + (f": {said[-1]}" if said else "")
    except subprocess.TimeoutExpired:
        error = f"ended after {limit:g} s"
    data, arrays = {"points": [], "step_seconds": [], "decode": None}, {}
    if out.exists():
        data = json.loads(out.read_text())
        with np.load(out.with_suffix(".npz")) as file:
            arrays = dict(file)
    return data | ({"error": error} if error else {}), arrays


def agreement(ours: dict[str, np.ndarray], stock: dict[str, np.ndarray]) -> dict:
    """Differences of the logits after each context that both reached, and of each decoded token."""
    contexts = [
        {"context": int(name.removeprefix("logits_"))} | differ(ours[name], stock[name])
        for name in ours
        if name.startswith("logits_") and name in stock
    ]
    decoded = None
    if "decode" in ours and "decode" in stock:
        decoded = differ(ours["decode"], stock["decode"])
    return {"contexts": contexts, "decode": decoded}


def errors(arrays: dict[str, dict[str, np.ndarray]]) -> dict | None:
    """Root mean square of what the logits of each side are from the exact ones, and of these."""
    for name, exact in arrays["exact"].items():
        if all(name in arrays[side] for side in SIDES):
            rms = {side: _rms(arrays[side][name] - exact) for side in SIDES}
            return {"context": int(name.removeprefix("logits_"))} | rms | {"exact": _rms(exact)}
    return None


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2)))


def differ(ours: np.ndarray, stock: np.ndarray) -> dict:
    """Of logits [V] or [T, V]: how many greedy choices are equal, and how far the others were.

    margin: of a choice that differs, how far stock's is above ours by stock's logits; a rounding
    can turn it around where it is at most twice the difference of the logits.
    """
    ours, stock = np.atleast_2d(ours), np.atleast_2d(stock)
    mine, its = ours.argmax(-1), stock.argmax(-1)
    rows = np.flatnonzero(mine != its)
    margins = stock[rows, its[rows]] - stock[rows, mine[rows]]
    return {
        "tokens": len(ours),
        "equal": int((mine == its).sum()),
        "max_abs": float(np.abs(ours - stock).max()),
        "max_abs_logit": float(np.abs(stock).max()),
        "rms": _rms(ours - stock),
        "margins": [float(margin) for margin in margins],
    }


def speedup(ours: dict, stock: dict) -> dict:
    """Stock's seconds over ours, at the last context that both reached and in decode."""
    seconds = [{p["context"]: p["seconds"] for p in side["points"]} for side in (ours, stock)]
    both = sorted(seconds[0].keys() & seconds[1].keys())
    found = {}
    if both:
        found["context"] = both[-1]
        found["prefill"] = seconds[1][both[-1]] / seconds[0][both[-1]]
    if ours["decode"] and stock["decode"]:
        found["decode"] = stock["decode"]["median_s"] / ours["decode"]["median_s"]
    return found


def row(result: dict) -> list[str]:
    decoded = result["agreement"]["decode"]
    same = ""
    if decoded:
        same = f"{decoded['equal']}/{decoded['tokens']} tokens, {decoded['max_abs']:.2g} apart"
    if result["errors"]:
        ours, stock = (result["errors"][side] / result["errors"]["exact"] for side in SIDES)
        same += f"; errors {ours:.2%} and {stock:.2%}"
    ratio = ", ".join(
        f"{result['speedup'][part]:.2f}x {part}"
        for part in ("prefill", "decode")
        if part in result["speedup"]
    )
    return [result["name"], *(_side(result[side]) for side in SIDES), same, ratio]


def _side(side: dict) -> str:
    parts = []
    if side["points"]:
        last = side["points"][-1]
        parts.append(
            f"{last['context']} at {last['tokens_per_second']:,.0f} t/s, "
            f"{last['peak_bytes'] / 2**30:.1f} GiB"
        )
    if side["decode"]:
        parts.append(f"decode {side['decode']['tokens_per_second']:.1f} t/s")
    if "error" in side:
        parts.append(side["error"][:60])
    return "; ".join(parts)


TITLES = ("model", "ours", "stock", "agreement", "ratio")
