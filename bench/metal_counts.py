"""Count what the Metal kernels do, ours beside stock MLX's, and write the result as JSON.

python bench/metal_counts.py            about a minute on two cores

Operations and bytes, counted exactly while the kernels run on the software Metal device
(emulator/). These are counts, not times: nothing was run on Apple hardware.
"""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path

import counts
from mlx_sdpa_ext.bench.measure import environment
from rich.console import Console
from rich.table import Table

NOTE = (
    "Counts of operations on a software Metal device, not times. Nothing was run on Apple hardware."
)
PREFILL = {
    "multiplies": "multiplies",
    "threadgroup_read_bytes_per_multiply": "read a multiply",
    "threadgroup_write_bytes": "written",
    "threadgroup_memory_bytes": "memory",
    "threadgroup_barriers_per_32_keys": "barriers a 32 keys",
    "simdgroup_barriers": "simdgroup barriers",
    "shuffles": "shuffles",
    "exp2": "exp2",
    "device_read_bytes": "device read",
    "device_write_bytes": "device written",
}
DECODE = {
    "device_read_bytes_per_kv_byte": "device read a K/V byte",
    "device_read_bytes": "device read",
    "device_write_bytes": "device written",
    "multiplies": "multiplies",
    "threadgroup_read_bytes": "threadgroup read",
    "threadgroup_memory_bytes": "memory",
    "threadgroup_barriers": "barriers",
    "reductions": "reductions",
    "shuffles": "shuffles",
    "exp2": "exp2",
}


def table(title: str, columns: dict[str, str], rows: list[dict]) -> Table:
    made = Table("D", "dtype", "kernel of", *columns.values(), title=title, title_justify="left")
    for row in rows:
        D = f"{row['D']}" if row["D"] == row["Dv"] else f"({row['D']}, {row['Dv']})"
        cells = [
            f"{row[name]:,}" if isinstance(row[name], int) else f"{row[name]:.4g}"
            for name in columns
        ]
        made.add_row(D, row["dtype"], row["by"], *cells)
    return made


def record() -> dict:
    """What is written: the counts, and with what they were taken."""
    where = environment() | {"device": "software Metal device", "ziglang": version("ziglang")}
    return {
        "suite": "metal-counts",
        "note": NOTE,
        "environment": where,
        "prefill": list(counts.prefill()),
        "decode": list(counts.decode()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    results = Path(__file__).parent / "results"
    parser.add_argument("--out", type=Path, default=results / "metal-counts.json", help="JSON file")
    out = parser.parse_args().out
    out.parent.mkdir(parents=True, exist_ok=True)

    console = Console(width=max(160, Console().width))
    with console.status("counting"):
        made = record()
    out.write_text(json.dumps(made, indent=1) + "\n")
    prefill = f"Prefill: {counts.LQ} query rows, {counts.LK} keys, one head, not causal"
    decode = (
        f"Decode: one query row of {counts.GROUP} heads on one KV head, {counts.KEYS} keys; "
        f"{counts.SPLITS} splits, merge included"
    )
    console.print(table(prefill, PREFILL, made["prefill"]))
    console.print(table(decode, DECODE, made["decode"]))
    console.print(NOTE, style="bold")
    console.print(f"written to {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
