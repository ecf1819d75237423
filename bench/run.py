"""Measure this package beside stock MLX on this machine, and write the result as JSON.

python bench/run.py cpu           speed: four to five minutes on two cores, most of them stock's
python bench/run.py cpu-memory    peak memory by path: some minutes more (stock's matmul is slow)
python bench/run.py metal         speed on a Mac's GPU
"""

import argparse
import json
import sys
from pathlib import Path

import cpu
import metal
import mlx.core as mx
from measure import environment
from rich.console import Console
from rich.table import Table

SUITES = {"cpu": cpu.speed, "cpu-memory": cpu.memory, "metal": metal.speed}


def row(result: dict) -> list[str]:
    """The columns of one result."""
    shape = f"{result['q'][1]}/{result['k'][1]} {result['q'][2]}x{result['k'][2]} D{result['q'][3]}"
    if result["case"] == "memory":
        return [
            result["path"],
            shape,
            f"{result['added_mib']:.1f} MiB",
            f"{result['seconds']:.1f} s",
            "",
        ]
    return [
        f"{result['case']} {result['dtype']}",
        shape,
        f"{result['ours']['median_s'] * 1e3:.2f} ms  {result['ours_gflops']:.0f} GFLOP/s",
        f"{result['stock']['median_s'] * 1e3:.1f} ms  {result['stock_gflops']:.1f} GFLOP/s",
        f"{result['speedup']:.1f}x",
    ]


def main() -> int:
    """Run one suite; what is finished is written also when interrupted."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--quick", action="store_true", help="small shapes, to see that it works")
    parser.add_argument("--out", type=Path, help="JSON file (default: bench/results/<suite>.json)")
    options = parser.parse_args()
    if options.suite == "metal" and not mx.metal.is_available():
        parser.error("this MLX has no Metal GPU")
    mx.set_default_device(mx.gpu if options.suite == "metal" else mx.cpu)
    out = options.out or Path(__file__).parent / "results" / f"{options.suite}.json"
    out.parent.mkdir(parents=True, exist_ok=True)

    console = Console()
    record = {"suite": options.suite, "quick": options.quick, "environment": environment()}
    results, interrupted = [], False
    try:
        with console.status(options.suite) as status:
            for result in SUITES[options.suite](options.quick):
                results.append(result)
                console.print("  ".join(filter(None, row(result))), highlight=False)
                status.update(f"{options.suite}: {len(results)} done")
    except KeyboardInterrupt:
        interrupted = True
    record |= {"interrupted": interrupted, "results": results}
    out.write_text(json.dumps(record, indent=1) + "\n")

    memory = options.suite == "cpu-memory"
    titles = ["path", "shape", "added", "time"] if memory else ["case", "shape", "ours", "stock"]
    table = Table(*titles, "")
    for result in results:
        table.add_row(*row(result))
    console.print(table)
    console.print(f"written to {out}")
    return 130 if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
