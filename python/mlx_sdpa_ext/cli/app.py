"""The commands, their options and their help; what they do is in the modules of their names."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from .console import FAILED, INTERRUPTED, fail

app = typer.Typer(
    name="mlx-sdpa-ext",
    help="Attention for MLX at any head dimension and any key length, in bounded memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


@dataclass
class Session:
    """What one invocation carries from its start into its command, and out of it again."""

    refusal: ImportError | None = None  # why the package does not load
    target: Callable[[], int] | None = None  # a program that `run` is to start


def execute(argv: list[str], refusal: ImportError | None) -> int:
    """Runs `argv`; raises SystemExit with the exit code, or returns it."""
    from .run import protect

    session = Session(refusal)
    try:
        command = typer.main.get_command(app)
        command.main(args=protect(argv), prog_name="mlx-sdpa-ext", obj=session)
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit:
        # The target of `run` starts here, out of the parser's reach: it must see its own
        # SystemExit, KeyboardInterrupt and EOFError as under plain Python.
        if session.target is None:
            raise
    return session.target() if session.target else 0


def need_package(ctx: typer.Context) -> None:
    """Ends a command that cannot work, because of the installation or the environment."""
    if ctx.obj.refusal is not None:
        print(ctx.obj.refusal, file=sys.stderr)
        raise typer.Exit(FAILED)
    from ..limits import settings

    try:
        settings()
    except ValueError as error:  # a variable of the environment; the first attention would fail
        fail(str(error))


def _version(asked: bool) -> None:
    if asked:
        from .machine import package_version

        print(f"mlx-sdpa-ext {package_version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


@app.command(
    options_metavar="[--stats] (SCRIPT | -m MODULE)",
    epilog="Example: mlx-sdpa-ext run --stats -m mlx_lm.generate --model MODEL --prompt hello",
)
def run(
    ctx: typer.Context,
    args: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARGS",
            help="The program's own arguments, passed on untouched.",
            show_default=False,
        ),
    ] = None,
    module: Annotated[
        str | None,
        typer.Option("-m", metavar="MODULE", help="Run a module, as `python -m` does."),
    ] = None,
    stats: Annotated[
        bool, typer.Option("--stats", help="Print which attention path ran how often, at the end.")
    ] = False,
) -> None:
    """Run any Python program with the attention of mlx-sdpa-ext.

    Options of the command itself come before the script or -m; everything after belongs to the
    program. The exit code is the program's; 130 after Ctrl-C.
    """
    need_package(ctx)
    from . import run as command

    ctx.obj.target = command.target(module, args or [], stats)


@app.command()
def doctor(
    ctx: typer.Context,
    selftest: Annotated[
        bool,
        typer.Option("--selftest", help="Also run every kernel of this device beside stock MLX."),
    ] = False,
    only: Annotated[
        str, typer.Option(help="With --selftest: kernels whose name contains this.", metavar="TEXT")
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Check the installation: versions, build, device, who fuses what, environment in force.

    Exit code 1, with the command that mends it, when something is off.
    """
    from . import doctor as command

    if only and not selftest:
        fail("doctor: --only is for --selftest")
    raise typer.Exit(command.doctor(ctx.obj.refusal, as_json, only if selftest else None))


@app.command(
    epilog="Example: mlx-sdpa-ext explain --q 1,16,2048,256 --k 1,2,131072,256 --mask causal "
    "--backend metal --arch applegpu_g15d --memory 36GB"
)
def explain(
    ctx: typer.Context,
    q: Annotated[str, typer.Option(help="Shape of the queries: B,Hq,Lq,D.", metavar="SHAPE")],
    k: Annotated[str, typer.Option(help="Shape of the keys: B,Hkv,Lk,D.", metavar="SHAPE")],
    v: Annotated[
        str | None,
        typer.Option(help="Shape of the values: B,Hkv,Lk,Dv; that of --k if left out."),
    ] = None,
    mask: Annotated[str, typer.Option(help="none, causal, bool or additive.")] = "none",
    dtype: Annotated[str, typer.Option(help="float32, float16, bfloat16 or float64.")] = "bfloat16",
    window: Annotated[
        int | None, typer.Option(help="Keys a query sees, its own included (needs causal).")
    ] = None,
    softcap: Annotated[float | None, typer.Option(help="c of s -> c*tanh(s/c).")] = None,
    sinks: Annotated[bool, typer.Option("--sinks", help="With attention sinks.")] = False,
    lse: Annotated[bool, typer.Option("--lse", help="With the logsumexp returned.")] = False,
    path: Annotated[str, typer.Option(help="auto, fused, unfused, chunked or stock.")] = "auto",
    backend: Annotated[
        str | None, typer.Option(help="cpu, metal or cuda; this machine's if left out.")
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(help="Its architecture, as MLX names it: applegpu_g15d, sm_90."),
    ] = None,
    mlx: Annotated[
        str | None, typer.Option(help="The MLX version; the installed one if left out.")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="The device's memory: 36GB, 24GiB or bytes.")
    ] = None,
    neural_accelerators: Annotated[
        bool | None,
        typer.Option(
            "--neural-accelerators/--no-neural-accelerators",
            help="Whether the GPU has them (M5 and later); what --arch says if left out.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Print which path an attention call would take, by whom, and why.

    Nothing is computed and nothing of these sizes is allocated, so any call can be asked about,
    on this machine or on one that is only named.
    """
    need_package(ctx)
    from . import explain as command

    call = command.Call(q, k, v, mask, dtype, window, softcap, sinks, lse, path)
    where = command.Where(backend, arch, mlx, memory, neural_accelerators)
    command.explain(call, where, as_json)


@app.command()
def demo(
    ctx: typer.Context,
    model: Annotated[
        Path | None,
        typer.Option(
            help="Folder of an mlx-lm model; left out, a small Gemma 3 with random weights "
            "(head_dim 256, 4 query heads on 1 key/value head)."
        ),
    ] = None,
    contexts: Annotated[
        str,
        typer.Option(help="Context lengths in tokens, increasing multiples of --step."),
    ] = "2048,4096,8192,16384,32768",
    budget: Annotated[
        float,
        typer.Option(help="Seconds for all measurements; contexts beyond it are left out."),
    ] = 165.0,
    out: Annotated[
        Path, typer.Option(help="Folder for demo.png and demo.json, made if needed.")
    ] = Path("mlx-sdpa-ext-demo"),
    dtype: Annotated[
        str | None,
        typer.Option(help="float32, float16 or bfloat16; the model's own if left out."),
    ] = None,
    step: Annotated[int, typer.Option(help="Tokens per prefill step; mlx-lm takes 2048.")] = 2048,
    no_stock: Annotated[bool, typer.Option("--no-stock", help="Measure only ours.")] = False,
) -> None:
    """Prefill growing contexts through mlx-lm, with stock attention and with ours, and compare.

    Same weights, same prompt, same process; mlx-lm's own loop does the prefill. One pass reads
    off every context on its way: time since the start, peak memory above the weights (the
    KV cache is in it), and the logits of the next token. The attention time is the time of that
    prefill less the time of one in which attention calls are answered with their queries. Short
    passes are repeated, and the median of each step counts. A pass ends at the last context that
    the budget allows; Ctrl-C keeps what is finished.
    """
    need_package(ctx)
    from . import demo as command

    settings = command.Settings.parse(model, contexts, budget, out, dtype, step, not no_stock)
    raise typer.Exit(command.demo(settings))


@app.command(epilog="Example: mlx-sdpa-ext bench quick")
def bench(
    ctx: typer.Context,
    suite: Annotated[
        str | None,
        typer.Argument(
            metavar="SUITE", help="What to measure; left out: the list.", show_default=False
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small shapes, to see that a suite works.")
    ] = False,
    only: Annotated[
        str | None,
        typer.Option(help="cuda, models, soak: results whose name this regex finds.", metavar="RE"),
    ] = None,
    torch: Annotated[
        str | None,
        typer.Option(
            help="cpu, cuda: set PyTorch beside, with this Python of an environment that has it.",
            metavar="PYTHON",
        ),
    ] = None,
    limit: Annotated[
        float, typer.Option(help="Seconds. models: for one model on one side; context: for stock.")
    ] = 120.0,
    out: Annotated[
        Path, typer.Option(help="Folder for the JSON and the picture, made if needed.")
    ] = Path("mlx-sdpa-ext-bench"),
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            help="Measure nothing: what became faster from one JSON file to another.",
            metavar="BEFORE AFTER",
        ),
    ] = None,
    commit: Annotated[
        str | None, typer.Option(help="To record, where the sources have no .git.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Measure this package beside stock MLX, in one run on this machine.

    Prints a table, and writes JSON and, for most suites, a picture. Ctrl-C keeps what is finished.
    """
    need_package(ctx)
    from . import bench as command

    if compare is not None:
        if suite is not None:
            fail("bench: --compare measures nothing: leave the suite out")
        raise typer.Exit(command.compare(*compare, as_json))
    if suite is None:
        raise typer.Exit(command.list_suites())
    call = command.Call(suite, quick, only, torch, limit, commit, out, as_json)
    raise typer.Exit(command.bench(call))


@app.command()
def calibrate(
    ctx: typer.Context,
    quick: Annotated[
        bool, typer.Option("--quick", help="Some calls only, about a minute.")
    ] = False,
    budget: Annotated[
        float | None,
        typer.Option(help="Minutes; what is not measured by then is left.", metavar="MINUTES"),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Measure anew what is already there.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder to write to; the user's settings if left out."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead.")] = False,
) -> None:
    """Measure which attention path is the fastest on this machine, and have the router follow.

    Each call of a grid is timed on every path and on stock MLX, in turns. A threshold of the
    router is set where the difference exceeds the noise, and stays as shipped elsewhere. What is
    measured is kept as it comes: after Ctrl-C, the same command goes on.
    """
    need_package(ctx)
    from . import calibrate as command

    raise typer.Exit(command.calibrate(quick, budget, restart, out, as_json))
