"""`demo`: prefill growing contexts through mlx-lm with stock attention and with ours."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)

import mlx_sdpa_ext

from . import machine
from .console import FAILED, INTERRUPTED, OK, err, fail, make_folder, out, seconds_text

DTYPES = ("float32", "float16", "bfloat16")
TASKS = {"rest": "without attention", "ours": "mlx-sdpa-ext", "stock": "stock"}
# The share of the budget that a pass may use; stock has all that the others leave, because it
# is the slow one.
SHARES = {"rest": 0.15, "ours": 0.4, "stock": 1.0}
# What takes less than this share of the budget is measured three times, for the median.
REPEATS, AGAIN = 3, 0.03
LONGEST = 1 << 30  # tokens
FAILURES = (RuntimeError, ValueError, TypeError, MemoryError)
WARM = 32  # tokens in the step before a pass


@dataclass(frozen=True)
class Settings:
    """The options of `demo`, checked."""

    model: Path | None
    contexts: tuple[int, ...]
    budget: float
    out: Path
    dtype: str | None
    step: int
    stock: bool

    @classmethod
    def parse(
        cls,
        model: Path | None,
        contexts: str,
        budget: float,
        out: Path,
        dtype: str | None,
        step: int,
        stock: bool,
    ) -> Settings:
        """Ends the command with one message and exit code 2 when an option is wrong."""
        if step < 1:
            fail(f"demo: --step is {step}; it must be at least 1")
        try:
            lengths = tuple(int(c) for c in contexts.split(","))
        except ValueError:
            fail(f"demo: --contexts {contexts!r} is not a list of numbers such as 2048,4096")
        if max(lengths) > LONGEST:
            fail(f"demo: --contexts {contexts}: a context is at most {LONGEST} tokens")
        if any(c < 1 or c % step for c in lengths) or sorted(set(lengths)) != list(lengths):
            fail(f"demo: --contexts {contexts} must be increasing multiples of --step {step}")
        if not (budget > 0 and math.isfinite(budget)):
            fail(f"demo: --budget is {budget:g}; it must be a number of seconds above 0")
        if dtype is not None and dtype not in DTYPES:
            fail(f"demo: --dtype {dtype} is not one of {', '.join(DTYPES)}")
        return cls(model, lengths, budget, out, dtype, step, stock)


def demo(settings: Settings) -> int:
    """Measures, prints the table, writes the picture and the JSON; returns the exit code."""
    if find_spec("mlx_lm") is None:
        fail("demo needs mlx-lm; install with: pip install 'mlx-sdpa-ext[lm]'", FAILED)
    make_folder("demo", settings.out)
    import mlx.core as mx

    from .models import ModelError, read_model, small_model
    from .report import Report

    try:
        if settings.model is None:
            model = small_model(settings.dtype or "bfloat16")
        else:
            model = read_model(settings.model, settings.dtype)
    except ModelError as error:
        fail(f"demo: {error}")
    mx.random.seed(1)
    prompt = mx.random.randint(0, model.vocab_size, (settings.contexts[-1] + 1,))
    report = Report(facts=_facts(settings, model), contexts=settings.contexts)
    try:
        _measure(report, settings, model.module, prompt)
    except KeyboardInterrupt:
        report.interrupted = True
        report.notes.append("interrupted: what follows is what was finished by then")
    return _finish(report, settings)


def _measure(report: Any, settings: Settings, module: Any, prompt: Any) -> None:
    started = time.perf_counter()
    if not settings.stock:
        report.notes.append("stock was not measured: --no-stock")
    progress = Progress(
        TextColumn("{task.description:<17}"),
        BarColumn(16),
        TextColumn("{task.completed:>7,} / {task.total:,} tokens"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
        console=err(),
    )
    with progress:
        for name in TASKS:
            if name == "stock" and not settings.stock:
                continue
            task = progress.add_task(TASKS[name], total=settings.contexts[-1], note="")
            with _attention_by(name) as entered:
                try:
                    limit = settings.budget - (time.perf_counter() - started)
                    limit = min(limit, settings.budget * SHARES[name])
                    _passes(report, settings, module, prompt, name, limit, progress, task)
                except FAILURES as error:  # out of memory, a model that mlx-lm cannot prefill
                    progress.update(task, note="failed")
                    progress.stop_task(task)
                    _note_failure(report, name, error)
                finally:
                    if name == "ours":
                        _note_routes(report, mlx_sdpa_ext.stats())
            if name == "rest":
                _note_calls(report, entered)


def _passes(
    report: Any,
    settings: Settings,
    module: Any,
    prompt: Any,
    name: str,
    limit: float,
    progress: Progress,
    task: Any,
) -> None:
    """The passes of one kind: one as far as `limit` seconds allow, and short ones again."""
    from .prefill import Prefill, prefill

    # Kernels are compiled and memory is mapped by the first call; that is nobody's prefill time.
    # A whole step of the first kind does it for all, a short one for each kind's attention.
    warm = settings.step if name == "rest" else WARM
    prefill(module, prompt[: warm + 1], (warm,), step=warm)
    passes = report.passes[name] = [Prefill()]
    prefill(
        module,
        prompt,
        settings.contexts,
        step=settings.step,
        budget=limit,
        result=passes[0],
        on_progress=lambda tokens: progress.update(task, completed=tokens),
    )
    if passes[0].expected:
        progress.update(task, note="stopped")
        _note_stop(report, name, passes[0], limit)
    short = [p.context for p in passes[0].points if p.seconds <= settings.budget * AGAIN]
    for n in range(1, REPEATS) if short else ():
        progress.update(task, note=f"again to {short[-1]:,}: {n} of {REPEATS - 1}")
        passes.append(Prefill())
        prefill(module, prompt[: short[-1] + 1], short, step=settings.step, result=passes[-1])
    progress.update(task, note="stopped" if passes[0].expected else "")
    progress.stop_task(task)


@contextmanager
def _attention_by(name: str) -> Iterator[Any]:
    """Attention by nobody, by us or by stock, for as long as a pass takes."""
    from .prefill import without_attention

    if name == "rest":
        with without_attention() as calls:
            yield calls
    elif name == "ours":
        with mlx_sdpa_ext.patched() as on:
            if not on:
                fail("demo: the patch is off: MLX_SDPA_EXT_DISABLE is set", FAILED)
            yield None
    else:
        yield None


def _note_calls(report: Any, calls: Any) -> None:
    report.facts["attention"] = asdict(calls)
    if calls.count == 0:
        report.notes.append(
            "this model makes no call of mx.fast.scaled_dot_product_attention: "
            "attention times are not known"
        )
        report.passes["rest"].clear()


def _note_routes(report: Any, stats: Any) -> None:
    report.routes = [
        {"path": path, "provider": provider, "reason": reason, "calls": calls}
        for (path, provider, reason), calls in stats.routes.items()
    ]
    for reason, calls in stats.fallback_reasons.items():
        report.notes.append(f"{calls} attention calls went back to stock: {reason}")


def _note_failure(report: Any, name: str, error: Exception) -> None:
    run = report.passes[name][-1] if report.passes.get(name) else None
    steps = len(run.step_seconds) if run else 0
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    report.notes.append(f"{TASKS[name]} failed after {steps} steps: {reason}")
    report.failed |= name != "stock"  # stock that runs out of memory is a result


def _note_stop(report: Any, name: str, run: Any, limit: float) -> None:
    context, seconds = next(iter(run.expected.items()))
    report.notes.append(
        f"{TASKS[name]} was not run at {context:,} tokens and above: by the steps before, "
        f"that prefill would take about {seconds_text(seconds)}, and --budget left it "
        f"{seconds_text(max(limit, 0.0))}"
    )


def _finish(report: Any, settings: Settings) -> int:
    from .plots import plot
    from .report import LEGEND

    measured = [n for n in ("stock", "ours") if n in report.runs and report.runs[n].points]
    console = out()
    if measured:
        console.print(_title(report), markup=False)
        console.print(report.table())
        console.print(LEGEND, style="dim")
    for note in report.notes:
        console.print(f"- {note}", markup=False)
    written = [settings.out / "demo.json"]
    try:
        report.write_json(written[0])
        if measured:
            written.append(settings.out / "demo.png")
            plot(report, written[1], _title(report), _subtitle(report))
    except OSError as error:
        fail(f"demo: cannot write to {settings.out}: {error.strerror}", FAILED)
    console.print("wrote " + ", ".join(str(path) for path in written), soft_wrap=True, markup=False)
    if report.interrupted:
        return INTERRUPTED
    return FAILED if report.failed else OK


def _title(report: Any) -> str:
    model, calls = report.facts["model"], report.facts.get("attention") or {}
    heads = ""
    if calls.get("count"):
        dims = ", ".join(f"{d}" if d == dv else f"({d}, {dv})" for d, dv in calls["head_dims"])
        plural = "s" if calls["kv_heads"] > 1 else ""
        heads = f", head_dim {dims}, {calls['heads']} heads on {calls['kv_heads']} KV head{plural}"
    return f"mlx-lm prefill: {model['family']} ({model['name']}), {model['dtype']}{heads}"


def _subtitle(report: Any) -> str:
    device, versions = report.facts["device"], report.facts["versions"]
    threads = f", {device['cpu_threads']} threads" if device["backend"] == "cpu" else ""
    return (
        f"{device['name']}{threads} · MLX {versions['mlx']} ({device['backend']}) · "
        f"mlx-sdpa-ext {versions['mlx-sdpa-ext']} · steps of {report.facts['settings']['step']} "
        f"tokens · {report.facts['date'][:10]}"
    )


def _facts(settings: Settings, model: Any) -> dict[str, Any]:
    return {
        "what": "mlx-sdpa-ext demo",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": machine.commit(),
        "versions": machine.versions(),
        "device": machine.device(),
        "model": {
            "name": model.name,
            "family": model.family,
            "dtype": model.dtype,
            "layers": model.layers,
            "parameters": model.parameters,
            "vocab_size": model.vocab_size,
        },
        "settings": {
            "model": str(settings.model) if settings.model else None,
            "contexts": list(settings.contexts),
            "budget_seconds": settings.budget,
            "step": settings.step,
            "stock": settings.stock,
            "prompt": "random tokens, seed 1",
        },
    }
