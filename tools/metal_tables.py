"""Writes the tables of docs/metal.md: tiles, counts, planted faults, checks of the macOS wheel.

python tools/metal_tables.py            # rewrite docs/metal.md between its markers
python tools/metal_tables.py --check    # exit code 1, with the difference, if out of date
"""

from __future__ import annotations

import json
import sys

from mlx_sdpa_ext import _ext
from mlx_sdpa_ext.words import ITEMSIZE
from readme_tables import RESULTS, ROOT, main

LANES = 32
SHORT = {"float32": "32", "float16": "16", "bfloat16": "16"}  # bits


def registers(tile: dict, itemsize: int) -> dict[str, int]:
    """What of Q, O and S a lane holds, in registers of 32 bits.

    A simdgroup of prefill owns bq / wm rows and 1 / wd of D and DV; one of decode 8 rows, and of Q
    whole groups of 128 bytes a row, in threadgroup memory where they would be too many beside O.
    """
    if tile["kernel"] == "decode":
        O = tile["dv_max"] // tile["wd"] // 4
        Q = 8 * -(-tile["d_max"] * itemsize // 128 // tile["wd"])
        return {"Q": Q if Q + O <= 72 else 0, "O": O, "S": tile["bk"] // 4}
    rows = tile["bq"] // tile["wm"]
    return {
        "Q": rows * tile["d_max"] // tile["wd"] * itemsize // (4 * LANES),
        "O": rows * tile["dv_max"] // tile["wd"] // LANES,
        "S": rows * tile["bk"] // LANES,
    }


def name_of(D: int, Dv: int) -> str:
    return str(D) if Dv == D else f"({D}, {Dv})"


def tiles() -> str:
    """A row for each Metal row of tiles.def and each size of element that it serves."""
    lines = [
        "| kernel | D, or (D, Dv) | bits | rows x keys | simdgroups | threads | threadgroup bytes "
        "| registers Q + O + S |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for tile in _ext.tiles():
        if tile["backend"] != "metal":
            continue
        by_size = {ITEMSIZE[dtype]: dtype for dtype in tile["dtypes"]}
        for itemsize, dtype in sorted(by_size.items()):
            held = registers(tile, itemsize)
            cells = [
                tile["kernel"],
                name_of(tile["d_max"], tile["dv_max"]),
                SHORT[dtype],
                f"{tile['bq']} x {tile['bk']}",
                f"{tile['wm']} x {tile['wd']}",
                str(32 * tile["wm"] * tile["wd"]),
                f"{tile['threadgroup_bytes'][dtype]:,}",
                f"{held['Q']} + {held['O']} + {held['S']} = {sum(held.values())}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _counts(rows: list[dict], columns: dict[str, str]) -> list[str]:
    lines = [
        f"| D | dtype | | {' | '.join(columns.values())} |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for row in rows:
        numbers = [
            f"{row[name]:,}" if isinstance(row[name], int) else f"{row[name]:.3g}"
            for name in columns
        ]
        who = f"**{row['by']}**" if row["by"] == "ours" else row["by"]
        cells = [name_of(row["D"], row["Dv"]), row["dtype"], who, *numbers]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _record() -> dict:
    return json.loads((RESULTS / "metal-counts.json").read_text(encoding="utf-8"))


def _taken(record: dict) -> str:
    at = record["environment"]
    return f"{record['note']} MLX {at['mlx']}; {at['date']}, commit {at['commit']}."


PREFILL = {
    "multiplies": "8x8x8 multiplies",
    "threadgroup_read_bytes_per_multiply": "threadgroup bytes read a multiply",
    "threadgroup_write_bytes": "threadgroup bytes written",
    "threadgroup_memory_bytes": "threadgroup memory",
    "threadgroup_barriers_per_32_keys": "barriers a 32 keys",
    "simdgroup_barriers": "simdgroup barriers",
    "shuffles": "shuffles",
    "exp2": "exp2",
    "device_read_bytes": "device bytes read",
}
DECODE = {
    "device_read_bytes_per_kv_byte": "device bytes read a byte of K and V",
    "multiplies": "8x8x8 multiplies",
    "threadgroup_memory_bytes": "threadgroup memory",
    "threadgroup_barriers": "threadgroup barriers",
    "exp2": "exp2",
}


def prefill() -> str:
    record = _record()
    return "\n".join([*_counts(record["prefill"], PREFILL), "", _taken(record)])


def decode() -> str:
    return "\n".join(_counts(_record()["decode"], DECODE))


def faults() -> str:
    """By the check that has to object, what is planted for it."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from metal_faults import FAULTS
    from metal_host_faults import HOST_FAULTS

    lines = ["| caught by | kernels | host |", "|---|---|---|"]
    for check in dict.fromkeys(fault.caught_by for fault in (*FAULTS, *HOST_FAULTS)):
        cells = [
            "; ".join(fault.name for fault in some if fault.caught_by == check)
            for some in (FAULTS, HOST_FAULTS)
        ]
        lines.append(f"| {check} | {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"{len(FAULTS)} in the kernels, {len(HOST_FAULTS)} in the host."])


def wheel() -> str:
    """What tools/check_macos_wheel.py found, a column for each MLX."""
    record = json.loads((RESULTS / "macos-wheel.json").read_text())
    wheels = {w["wheel"].split("-")[2].removeprefix("1mlx"): w["rows"] for w in record["wheels"]}
    lines = [
        f"| check | {' | '.join(f'MLX {mlx}' for mlx in wheels)} |",
        "|---" * (1 + len(wheels)) + "|",
    ]
    for rows in zip(*wheels.values(), strict=True):
        cells = [f"**{row['found']}**" if row["misses"] else row["found"] for row in rows]
        lines.append(f"| {rows[0]['check']} | {' | '.join(cells)} |")
    missed = sum(bool(row["misses"]) for rows in wheels.values() for row in rows)
    return "\n".join(
        [
            *lines,
            "",
            f"{missed} of {sum(map(len, wheels.values()))} checks missed. CPython "
            f"{record['python']}, ziglang {record['ziglang']}, lief {record['lief']}; "
            f"{record['date']}. Not loaded: nothing was run on Apple hardware.",
        ]
    )


TABLES = {
    "tiles": tiles,
    "prefill": prefill,
    "decode": decode,
    "faults": faults,
    "wheel": wheel,
}

if __name__ == "__main__":
    sys.exit(main(page=ROOT / "docs" / "metal.md", tables=TABLES))
