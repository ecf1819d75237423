"""The suites: what is measured where, how a result is shown, and what draws a record."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx

from . import (
    context,
    context_plot,
    cpu,
    cpu_plot,
    cuda,
    cuda_plot,
    metal,
    models,
    quick,
    rows,
    soak,
    training,
)


class Options(NamedTuple):
    """What a suite may be told; those that it does not know mean nothing to it."""

    quick: bool = False  # small shapes, to see that it works
    only: str | None = None  # a regular expression that a result's name must contain
    torch: str | None = None  # the Python of an environment with torch
    limit: float = 120  # seconds: of one model on one side; of stock as the context grows


class Suite(NamedTuple):
    """One of them."""

    what: str  # in a line
    run: Callable[[Options], Iterator[dict]]
    device: str  # cpu, metal, cuda; gpu is whichever there is, any the default one
    titles: tuple[str, ...] = rows.TITLES
    row: Callable[[dict], list[str]] = rows.speed_row
    plot: Callable[[dict, Path], None] | None = None
    needs: tuple[str, ...] = ()  # modules, of the extra `bench`
    options: tuple[str, ...] = ()  # of Options, besides `quick`, that mean something to it


SUITES = {
    "quick": Suite(
        "prefill and decode at five head dims, on the default device: less than a minute",
        lambda o: quick.suite(o.quick),
        "any",
        plot=quick.plot,
    ),
    "context": Suite(
        "time, memory and route by context length, on the default device: a minute or two",
        lambda o: context.suite(o.quick, o.limit),
        "any",
        context.TITLES,
        context.row,
        context_plot.plot,
        options=("limit",),
    ),
    "cpu": Suite(
        "speed on the CPU: four to five minutes on two cores, most of them stock's",
        lambda o: cpu.speed(o.quick, o.torch),
        "cpu",
        rows.CPU_TITLES,
        rows.cpu_row,
        cpu_plot.plot,
        ("mlx_lm",),
        ("torch",),
    ),
    "cpu-memory": Suite(
        "peak memory by path on the CPU: twenty minutes, as stock's matmul is slow",
        lambda o: cpu.memory(o.quick),
        "cpu",
        rows.MEMORY_TITLES,
        rows.memory_row,
    ),
    "training": Suite(
        "gradients by length on the CPU, time and memory: a minute or two of stock's",
        lambda o: training.gradients(o.quick),
        "cpu",
        training.TITLES,
        training.row,
    ),
    "metal": Suite("speed on a Mac's GPU", lambda o: metal.speed(o.quick), "metal"),
    "cuda": Suite(
        "speed, memory and ceilings on an NVIDIA GPU: about four minutes",
        lambda o: cuda.suite(o.quick, o.only, o.torch),
        "cuda",
        cuda.TITLES,
        cuda.row,
        cuda_plot.plot,
        ("mlx_lm",),
        ("only", "torch"),
    ),
    "models": Suite(
        "models of mlx-lm on a GPU, prefill and decode, with the patch and without",
        lambda o: models.suite(o.quick, o.only, o.limit),
        "gpu",
        models.TITLES,
        models.row,
        needs=("mlx_lm",),
        options=("only", "limit"),
    ),
    "soak": Suite(
        "mlx_lm.server under eight clients, patched and not: five minutes; on Linux",
        lambda o: soak.suite(o.quick, o.only),
        "cpu",
        soak.TITLES,
        soak.row,
        needs=("mlx_lm",),
        options=("only",),
    ),
}
GPUS = {"metal": (mx.metal,), "cuda": (mx.cuda,), "gpu": (mx.metal, mx.cuda), "cpu": (), "any": ()}
NAMES = {"metal": "Metal GPU", "cuda": "NVIDIA GPU", "gpu": "GPU"}


def missing_device(suite: Suite) -> str | None:
    """Why the suite cannot run here."""
    if not GPUS[suite.device] or any(gpu.is_available() for gpu in GPUS[suite.device]):
        return None
    return f"this MLX has no {NAMES[suite.device]}"


def mlx_device(suite: Suite) -> mx.Device | mx.DeviceType:
    if suite.device == "any":
        return mx.default_device()
    return mx.gpu if GPUS[suite.device] else mx.cpu


def record_name(suite: str, gpu: str | None) -> str:
    """Of the files of a record; with the GPU's name where results of several are kept."""
    if suite not in ("cuda", "models"):
        return suite
    words = re.sub(r"[^a-z0-9]+", "-", (gpu or "").lower().removeprefix("nvidia "))
    return f"{suite}-{words.strip('-')}"
