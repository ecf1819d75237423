"""`doctor`: what is installed, what it can do here, and what is wrong with it."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from dataclasses import dataclass, field
from typing import Any

from rich import box
from rich.table import Table

from . import machine
from .console import FAILED, INTERRUPTED, OK, bytes_text, out, print_json

# The head dims of the models in mlx-lm, with the edges of the kernels' ranges; (D, Dv).
HEAD_DIMS = (
    *((d, d) for d in (1, 40, 64, 72, 80, 96, 112, 128, 160, 192, 256, 512, 576, 1024)),
    (96, 64),
    (192, 128),
    (192, 256),
    (576, 512),
)
DTYPES = ("float32", "float16", "bfloat16")
WIDE = 152  # columns, of a table of kernels: their names are long


@dataclass
class Findings:
    """What was found; every part of it is there even when the package does not load."""

    versions: dict[str, str | None] = field(default_factory=dict)
    build: dict[str, Any] | None = None
    backends: dict[str, str] = field(default_factory=dict)
    device: dict[str, Any] | None = None
    limits: dict[str, Any] | None = None
    profile: dict[str, Any] | None = None  # the user's own, of the device
    failed_kernels: dict[str, str] = field(default_factory=dict)  # kernel -> what is wrong
    selftest: list[dict[str, Any]] | None = None  # rows of selftest.selftest, if asked for
    interrupted: bool = False  # it was, and the rest of its rows is missing
    head_dims: list[dict[str, Any]] = field(default_factory=list)
    environment: list[dict[str, Any]] = field(default_factory=list)
    patch: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[dict[str, str]] = field(default_factory=list)  # what is wrong, what mends it

    def problem(self, what: str, mend: str) -> None:
        self.problems.append({"what": what.strip(), "mend": mend.strip()})


def doctor(refusal: ImportError | None, as_json: bool, selftest: str | None = None) -> int:
    """Prints the findings; returns exit code 1 if there is a problem.

    refusal:  what `import mlx_sdpa_ext` raised, if it did
    selftest: None, or a part of the names of the kernels to run
    """
    found = Findings(versions=machine.versions())
    _look_at_build(found)
    environment_is_good = _look_at_environment(found)
    if refusal is not None:
        from .. import _mend

        # The gate's message ends with the command, set off by an empty line.
        what, _, mend = str(refusal).partition("\n\n")
        found.problem(
            what.removesuffix(" To mend it:"), mend or _mend.rebuild(_mend.installed_mlx())
        )
    else:
        if environment_is_good and _look_at_device(found) and _open_device(found):
            _try_kernel(found)
            _look_at_kernels(found, selftest)
        _look_at_patch(found)
    if as_json:
        print_json({"ok": not (found.problems or found.interrupted), **vars(found)})
    else:
        _print(found)
    if found.interrupted:
        return INTERRUPTED
    return FAILED if found.problems else OK


def _look_at_build(found: Findings) -> None:
    try:
        info = importlib.import_module("mlx_sdpa_ext._build_info")
    except ModuleNotFoundError:
        return
    found.build = {
        "mlx": info.MLX_VERSION,
        "nanobind": info.NANOBIND_VERSION,
        "compiler": info.COMPILER,
        "matches_installed_mlx": found.versions["mlx"] == info.MLX_VERSION,
    }


def _look_at_environment(found: Findings) -> bool:
    """Whether the environment can be read; a wrong value would fail the first attention call."""
    from .. import limits

    for row in limits.VARIABLES:
        found.environment.append(
            {
                "name": row.name,
                "value": os.environ.get(row.name),
                "default": row.default,
                "meaning": row.meaning,
            }
        )
    good = True
    for name, value in limits.in_force().items():
        try:
            settings = limits.read({name: value})
        except ValueError as error:
            found.problem(str(error), f"unset {name}")
            good = False
        else:
            if settings.disable:
                found.notes.append(f"{name} is set: patch() does nothing")
    return good


def _look_at_device(found: Findings) -> bool:
    """Whether there is a device to compute on."""
    import mlx.core as mx

    from .. import _ext, limits, router
    from .. import device as devices

    try:
        device = devices.current()
    except (
        ValueError
    ) as error:  # the environment names one that is not here, or what it does not run
        name = limits.CPU_ISA if limits.CPU_ISA in str(error) else limits.DEVICE
        found.problem(str(error), f"unset {name}")
        return False
    cpu = _ext.cpu()
    found.device = {
        **machine.device(),
        "software": device.software,
        "cpu_isa": cpu["isa"],
        "cpu_isas": list(cpu["isas"]),
        "kernel_cache": _kernel_cache() if device.backend == "cuda" else None,
    }
    kernels = {tile["backend"] for tile in _ext.tiles()}
    here = {"cpu": True, "metal": mx.metal.is_available(), "cuda": mx.cuda.is_available()}
    for backend, available in here.items():
        ours = "kernels of ours" if backend in kernels else "no kernels of ours"
        found.backends[backend] = f"{'available' if available else 'not here'}, {ours}"
    if device.software:
        found.backends["metal"] += ", emulated on the CPU"
        found.notes.append(SOFTWARE)
    if device.backend == "metal":
        found.notes.append(WATCHDOG.format(bound=limits.DISPATCH_MS))
    _look_at_profile(found, device)
    bounds, follows = machine.bounds(device)
    found.limits = {**bounds._asdict(), "memory_limit_follows": follows}
    for d, dv in HEAD_DIMS:
        row: dict[str, Any] = {"head_dim": d, "v_head_dim": dv}
        for dtype in DTYPES:
            support = router.supports(d, dv, dtype, device, bounds)
            row[dtype] = {"prefill": support.prefill, "decode": support.decode}
        found.head_dims.append(row)
    return True


def _look_at_profile(found: Findings, device: Any) -> None:
    """Which thresholds are the user's own; one that does not count is said here, and not again."""
    from .. import attention, limits
    from ..profiles import user

    profile = attention.profile_of(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        user.warn(profile)
    if profile.file is None or not (profile.values or profile.ignored or profile.measured):
        return
    found.profile = {
        "file": str(profile.file),
        "measured": profile.measured,
        "values": {name: value.value for name, value in profile.values.items()},
        "ignored": profile.ignored,
    }
    if profile.broken:
        mend = f"delete it, or unset {limits.PROFILE}" if limits.settings().profile else "delete it"
        found.problem(f"the profile {profile.file} is ignored: {profile.ignored}", mend)
    elif profile.ignored:
        found.notes.append(
            f"the profile {profile.file} is ignored: {profile.ignored}; "
            "mlx-sdpa-ext calibrate measures anew"
        )


def _kernel_cache() -> dict[str, Any] | None:
    """Where compiled CUDA kernels are kept, and how many are there."""
    from .. import cuda

    try:
        folder = cuda.kernel_cache()
    except RuntimeError:  # no home folder
        return None
    kept = [path.stat().st_size for path in folder.glob("*.cubin")]
    return {"folder": str(folder), "kernels": len(kept), "bytes": sum(kept)}


SOFTWARE = (
    "software-metal: THERE IS NO GPU AT WORK HERE. Metal kernels are emulated "
    "on the CPU, thousands of times slower; it is for tests, and its times mean nothing"
)
WATCHDOG = (
    'should macOS end a command with "Impacting Interactivity" (the GPU watchdog): kernels of this '
    "package keep to {bound}, which may be lowered; for what other kernels take, users report that "
    "AGX_RELAX_CDM_CTXSTORE_TIMEOUT=1 in the environment helps"
)


def _open_device(found: Findings) -> bool:
    """Whether the device takes kernels of ours; of the software device, whether it is there."""
    from .. import attention, limits

    gate = attention.place_of(None).gate
    try:
        if gate:
            gate.open()
    except ImportError as error:  # its message says what to do
        what, _, mend = str(error).rpartition(": ")
        found.problem(what or mend, mend)
        return False
    except RuntimeError as error:  # of the emulator's compiler
        found.problem(str(error), f"unset {limits.DEVICE}")
        return False
    return True


def _look_at_kernels(found: Findings, selftest: str | None) -> None:
    """What the self-check of GPU kernels found on this machine, or finds now."""
    from .. import attention, first_use, verdicts
    from . import selftest as command

    place = attention.place_of(None)
    if selftest is not None:
        found.selftest = []
        try:
            for row in command.selftest(place.device, place.limits, selftest):
                found.selftest.append(row)
        except KeyboardInterrupt:
            found.interrupted = True
            found.notes.append("the self-test was interrupted: kernels are missing in its table")
        for row in found.selftest:
            errors = {name: r["error"] for name, r in row["features"].items() if r["error"]}
            if errors:
                kernel = f"{row['kernel']} ({', '.join(errors)})"
                found.failed_kernels[kernel] = next(iter(errors.values()))
        if not found.selftest and not found.interrupted:
            found.problem(
                f"--only {selftest}: no kernel of this device is named so", "leave it out"
            )
    elif place.gate and not place.device.software:
        known = verdicts.of(place.device)
        found.failed_kernels |= {kernel: error for kernel, error in known.items() if error}
    if place.gate:
        found.failed_kernels |= first_use.failures()
    for kernel, error in found.failed_kernels.items():
        found.problem(
            f"the kernel {kernel} is not used here: {error}",
            "stock MLX takes its place; report it, with the output of "
            "mlx-sdpa-ext doctor --selftest --json",
        )


def _try_kernel(found: Findings) -> None:
    """Runs one small call of ours beside the unfused path: it loads, it runs, it is right."""
    from .. import _mend

    try:
        difference, bound = _kernel_difference()
    # Whatever a broken build or driver raises is the finding.
    except Exception as error:
        found.problem(
            f"a small fused call fails here: {type(error).__name__}: {error}",
            _mend.rebuild(_mend.installed_mlx()),
        )
        return
    if not difference < bound:
        found.problem(
            f"a small fused call differs from the unfused path by {difference:g}",
            _mend.rebuild(_mend.installed_mlx()),
        )


def _kernel_difference() -> tuple[float, float]:
    """From the unfused path on the CPU, whose float32 is exact, and what is too much.

    In float32; or, where no kernel takes it, in float16, which rounds each result by 2^-11.
    """
    import mlx.core as mx

    from .. import attention

    fused = attention.supports(256, dtype=mx.float32).prefill is not None
    dtype, bound = (mx.float32, 1e-4) if fused else (mx.float16, 8e-3)
    shapes = ((1, 4, 33, 256), (1, 2, 70, 256), (1, 2, 70, 256))
    keys = mx.random.split(mx.random.key(0), 3)
    q, k, v = (
        mx.random.normal(s, key=key).astype(dtype) for s, key in zip(shapes, keys, strict=True)
    )
    call = {"scale": 256**-0.5, "mask": "causal"}
    ours = attention.scaled_dot_product_attention(q, k, v, path="fused", **call)
    q, k, v = (a.astype(mx.float32, stream=mx.cpu) for a in (q, k, v))
    exact = attention.scaled_dot_product_attention(q, k, v, path="unfused", stream=mx.cpu, **call)
    mx.eval(ours, exact)
    difference = mx.abs(mx.subtract(ours, exact, stream=mx.cpu), stream=mx.cpu)
    return difference.max(stream=mx.cpu).item(), bound


def _look_at_patch(found: Findings) -> None:
    """Which functions of MLX and mlx-lm the patch would reach here."""
    from ..patch import SITES

    for site in SITES:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = importlib.import_module(site.module)
        except ModuleNotFoundError:
            status = "not installed" if found.versions["mlx-lm"] is None else "not in this version"
        except Exception as error:  # what a broken mlx-lm raises is the finding
            status = f"does not import: {error}"
        else:
            status = "reached" if site.owner(module) is not None else "not in this version"
        found.patch.append({"function": site.name, "status": status})
    if found.versions["mlx-lm"] is None:
        found.notes.append("mlx-lm is not installed; demo needs it: pip install 'mlx-sdpa-ext[lm]'")


def _print(found: Findings) -> None:
    console = out()
    if found.device and found.device["software"]:
        console.print(f"*** {SOFTWARE} ***\n", style="bold red", markup=False)
    for title, rows in _sections(found):
        table = Table.grid(padding=(0, 2))
        for row in rows:
            table.add_row(*(str(cell) for cell in row))
        console.print(title, style="bold")
        console.print(table, markup=False)
        console.print()
    if found.head_dims:
        console.print(_head_dims(found))
    if found.selftest:
        from .selftest import table

        out(width=WIDE).print(table(found.selftest))
    for note in found.notes:
        console.print(f"note: {note}", markup=False)
    for problem in found.problems:
        console.print(f"WRONG: {problem['what']}", style="red", markup=False, soft_wrap=True)
        console.print(f"  to mend it: {problem['mend']}", markup=False, soft_wrap=True)
    if not found.problems and not found.interrupted:
        console.print("all is well", style="green")


def _sections(found: Findings) -> list[tuple[str, list[tuple]]]:
    versions = [(name, version or "not installed") for name, version in found.versions.items()]
    if found.build:
        built = found.build
        match = "matches" if built["matches_installed_mlx"] else "DOES NOT MATCH the installed MLX"
        versions.append(
            ("built for", f"mlx {built['mlx']} ({match}), nanobind {built['nanobind']}, "
             f"{built['compiler']}")
        )  # fmt: skip
    versions.append(("executable", sys.executable))
    sections = [("versions", versions)]
    if found.device:
        device, bounds = found.device, found.limits
        extra = ", neural accelerators" if device["neural_accelerators"] else ""
        sections.append(
            (
                "device",
                [
                    ("computes on", f"{device['backend']}: {device['name']}, "
                     f"{device['architecture']}{extra}, {bytes_text(device['memory_bytes'])}"),
                    ("CPU kernels", f"{device['cpu_isa']} of {', '.join(device['cpu_isas'])}; "
                     f"{device['cpu_threads']} threads"),
                    *_kernel_cache_row(device),
                    ("memory limit", f"{bytes_text(bounds['memory_limit'])} for the temporaries of "
                     f"one call, {bounds['memory_limit_follows']}"),
                    ("profile", _profile_text(found.profile)),
                    *((f"backend {name}", text) for name, text in found.backends.items()),
                ],
            )
        )  # fmt: skip
    if found.patch:
        sections.append(("patch", [(row["function"], row["status"]) for row in found.patch]))
    rows = []
    for row in found.environment:
        set_to = f"{row['value']}, where the default is " if row["value"] else ""
        rows.append((row["name"], f"{set_to}{row['default']}"))
    return [*sections, ("environment", rows)]


def _profile_text(profile: dict[str, Any] | None) -> str:
    if profile is None:
        return "as shipped; mlx-sdpa-ext calibrate measures this machine's own"
    if profile["ignored"]:
        return f"as shipped; {profile['file']} is ignored"
    values = ", ".join(f"{name} {value}" for name, value in profile["values"].items())
    return f"{profile['file']}, measured {profile['measured']}: {values or 'as shipped'}"


def _kernel_cache_row(device: dict[str, Any]) -> list[tuple[str, str]]:
    if device["backend"] != "cuda":
        return []
    cache = device["kernel_cache"]
    where = "compiled again in each process: there is no home folder to keep them in"
    if cache:
        where = (
            f"{cache['kernels']} compiled ones ({bytes_text(cache['bytes'])}) in {cache['folder']}"
        )
    return [("CUDA kernels", where)]


def _head_dims(found: Findings) -> Table:
    """Who can run a fused kernel for which head dims: one row for dims with the same answer."""
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, title="fused kernels here", title_justify="left"
    )
    for title in ("head dims (D or D,Dv)", "prefill", "decode", "dtypes"):
        table.add_column(title)
    groups: dict[tuple, list[str]] = {}
    for row in found.head_dims:
        d, dv = row["head_dim"], row["v_head_dim"]
        dims = f"{d}" if d == dv else f"{d},{dv}"
        by_answer: dict[tuple, list[str]] = {}
        for dtype in DTYPES:
            by_answer.setdefault((row[dtype]["prefill"], row[dtype]["decode"]), []).append(dtype)
        for answer, dtypes in by_answer.items():
            groups.setdefault((*answer, tuple(dtypes)), []).append(dims)
    names = {"ext": "mlx-sdpa-ext", "stock": "stock MLX", None: "nobody"}
    for (prefill, decode, dtypes), group in groups.items():
        table.add_row("  ".join(group), names[prefill], names[decode], ", ".join(dtypes))
    return table
