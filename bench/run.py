"""Measure this package beside stock MLX on this machine, and write the result as JSON.

python bench/run.py cpu           speed: four to five minutes on two cores, most of them stock's;
                                  --torch PYTHON sets PyTorch of that environment beside
python bench/run.py cpu-memory    peak memory by path: some minutes more (stock's matmul is slow)
python bench/run.py training      gradients by length, time and memory: a minute or two of stock's
python bench/run.py metal         speed on a Mac's GPU
python bench/run.py cuda          speed, memory and ceilings on an NVIDIA GPU: about four minutes;
                                  --torch PYTHON sets PyTorch of that environment beside
python bench/run.py models        models of mlx-lm, prefill and decode, with the patch and without
python bench/run.py soak          mlx_lm.server under eight clients, 500 requests, patched and not:
                                  answers, memory, threads, files: five minutes; on Linux
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cpu
import cuda
import metal
import mlx.core as mx
import models
import soak
import training
from measure import environment
from rich.console import Console
from rich.table import Table


def speed_row(result: dict) -> list[str]:
    """The columns of one result of cpu and metal."""
    return [
        f"{result['case']} {result['dtype']}",
        shape(result),
        f"{result['ours']['median_s'] * 1e3:.2f} ms  {result['ours_gflops']:.0f} GFLOP/s",
        f"{result['stock']['median_s'] * 1e3:.1f} ms  {result['stock_gflops']:.1f} GFLOP/s",
        f"{result['speedup']:.1f}x",
    ]


def cpu_row(result: dict) -> list[str]:
    """The columns of one result of cpu."""
    if result["case"] == "torch":
        return ["torch", "", result.get("torch", result.get("error", "")), "", ""]
    if result["case"] == "ceiling":
        rate = "gflops" if result["name"] == "gemm" else "gb_per_s"
        size = f"{result['n']}" if result["name"] == "gemm" else f"{result['bytes'] >> 20} MiB"
        found = result.get("error") or f"{result[rate]:.0f} {rate}"
        return [f"{result['name']} {result.get('dtype', '')}", size, found, result["by"], ""]
    if result["case"] == "growth":
        found = f"{result['ns_by_key']:.1f} ns a key, adds {result['added_bytes'] >> 10} KiB"
        return [f"growth {result['dtype']}", shape(result), found, "", ""]
    row = speed_row(result)
    if "over_torch" in result:
        side = result["torch"]
        row[3] += f"  torch {side['gflops']:.0f} GFLOP/s"
        row[4] += f"  {result['over_torch']:.2f}x"
    return row


def memory_row(result: dict) -> list[str]:
    added, taken = f"{result['added_mib']:.1f} MiB", f"{result['seconds']:.1f} s"
    return [result["path"], shape(result), added, taken, ""]


def shape(result: dict) -> str:
    return f"{result['q'][1]}/{result['k'][1]} {result['q'][2]}x{result['k'][2]} D{result['q'][3]}"


class Suite(NamedTuple):
    """What is measured where, and how a result is shown."""

    run: Callable[[argparse.Namespace], Iterator[dict]]
    device: str  # cpu, metal, cuda; gpu is whichever there is
    titles: tuple[str, ...] = ("case", "shape", "ours", "stock", "")
    row: Callable[[dict], list[str]] = speed_row


SUITES = {
    "cpu": Suite(
        lambda options: cpu.speed(options.quick, options.torch),
        "cpu",
        ("case", "shape", "ours", "stock, PyTorch", "ratios"),
        cpu_row,
    ),
    "cpu-memory": Suite(
        lambda options: cpu.memory(options.quick),
        "cpu",
        ("path", "shape", "added", "time", ""),
        memory_row,
    ),
    "training": Suite(
        lambda options: training.gradients(options.quick), "cpu", training.TITLES, training.row
    ),
    "metal": Suite(lambda options: metal.speed(options.quick), "metal"),
    "cuda": Suite(
        lambda options: cuda.suite(options.quick, options.only, options.torch),
        "cuda",
        cuda.TITLES,
        cuda.row,
    ),
    "models": Suite(
        lambda options: models.suite(options.quick, options.only, options.limit),
        "gpu",
        models.TITLES,
        models.row,
    ),
    "soak": Suite(
        lambda options: soak.suite(options.quick, options.only), "cpu", soak.TITLES, soak.row
    ),
}
GPUS = {"metal": (mx.metal,), "cuda": (mx.cuda,), "gpu": (mx.metal, mx.cuda), "cpu": ()}
NAMES = {"metal": "Metal GPU", "cuda": "NVIDIA GPU", "gpu": "GPU"}


def default_name(suite: str, gpu: str | None) -> str:
    """Of the JSON file; with the GPU's name where results of several are kept."""
    if suite not in ("cuda", "models"):
        return f"{suite}.json"
    words = re.sub(r"[^a-z0-9]+", "-", (gpu or "").lower().removeprefix("nvidia "))
    return f"{suite}-{words.strip('-')}.json"


def write(record: dict, out: Path) -> None:
    """A reader sees the old file or the new one, never half of one."""
    part = out.with_name(out.name + ".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(part, out)


def main() -> int:
    """Run one suite; what is finished is in the file at any time, also when interrupted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--quick", action="store_true", help="small shapes, to see that it works")
    parser.add_argument("--only", help="cuda, models, soak: results whose name contains this regex")
    parser.add_argument("--torch", help="cpu, cuda: the Python of an environment with torch")
    parser.add_argument(
        "--limit", type=float, default=120, help="models: seconds for one model on one side"
    )
    parser.add_argument("--commit", help="of this checkout, where it has no .git")
    parser.add_argument("--out", type=Path, help="JSON file (default: bench/results/<suite>.json)")
    options = parser.parse_args()
    suite = SUITES[options.suite]
    if GPUS[suite.device] and not any(gpu.is_available() for gpu in GPUS[suite.device]):
        parser.error(f"this MLX has no {NAMES[suite.device]}")
    mx.set_default_device(mx.gpu if GPUS[suite.device] else mx.cpu)
    where = environment()
    where["commit"] = options.commit or where["commit"]
    results = Path(__file__).parent / "results"
    out = options.out or results / default_name(options.suite, where["gpu"])
    out.parent.mkdir(parents=True, exist_ok=True)

    console = Console()
    record = {"suite": options.suite, "quick": options.quick, "environment": where}
    record |= {"only": options.only} if options.only else {}
    record |= {"interrupted": True, "results": []}
    try:
        with console.status(options.suite) as status:
            for result in suite.run(options):
                record["results"].append(result)
                write(record, out)
                console.print("  ".join(filter(None, suite.row(result))), highlight=False)
                status.update(f"{options.suite}: {len(record['results'])} done")
        record["interrupted"] = False
    except KeyboardInterrupt:
        pass
    write(record, out)

    table = Table(*suite.titles)
    for result in record["results"]:
        table.add_row(*suite.row(result))
    console.print(table)
    console.print(f"written to {out}")
    return 130 if record["interrupted"] else 0


if __name__ == "__main__":
    sys.exit(main())
