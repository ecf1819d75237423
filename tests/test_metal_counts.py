"""Bars for the exact counts of bench/metal_counts.py: our kernels beside stock's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "bench"))

import counts

pytestmark = [pytest.mark.metal, pytest.mark.emulator]


def test_prefill_at_head_dim_256_beside_stock():
    case = counts.prefill_case(256, 256, "float16")
    ours = counts.prefill_row("ours", counts.our_prefill, case)
    stock = counts.prefill_row("stock", counts.stock_prefill, case)
    assert stock["threadgroup_read_bytes_per_multiply"] == 168
    assert ours["threadgroup_read_bytes_per_multiply"] <= 84
    assert stock["threadgroup_barriers_per_32_keys"] == 12
    assert ours["threadgroup_barriers_per_32_keys"] <= 6
    assert ours["device_read_bytes"] <= stock["device_read_bytes"]
    assert ours["device_write_bytes"] <= stock["device_write_bytes"]
    assert ours["multiplies"] == stock["multiplies"]


@pytest.mark.parametrize("D, Dv", ((512, 512), (576, 512)))
@pytest.mark.parametrize("dtype", ("float16", "float32"))
def test_wide_heads_fit_threadgroup_memory(D, Dv, dtype):
    run = counts.our_prefill(counts.prefill_case(D, Dv, dtype, Lk=32))
    assert 0 < run.counts["threadgroup_memory_bytes"] <= 32 * 1024


@pytest.mark.parametrize("D", (128, 256, 512))
def test_decode_reads_each_byte_of_K_and_V_once(D):
    case = counts.decode_case(D, D, "bfloat16")
    row = counts.decode_row("ours", counts.our_decode(case), case)
    # beyond K and V: Q once for each split, and the partial results of the splits
    assert row["device_read_bytes_per_kv_byte"] < 1.1


RESULTS = Path(__file__).parents[1] / "bench" / "results"
RECORD = json.loads((RESULTS / "metal-counts.json").read_text())
# Not bytes, which another version of the compiler may move by loading something twice.
STRUCTURE = ("kernel", "threads", "multiplies", "threadgroup_barriers", "threadgroup_memory_bytes")


@pytest.mark.parametrize("D", (64, 256, 512))
def test_the_record_is_of_these_kernels(D):
    """Of what docs/metal.md shows: bench/metal_counts.py writes it."""
    case = counts.prefill_case(D, D, "float16")
    step = counts.decode_case(D, D, "float16")
    now = {
        "prefill": counts.prefill_row("ours", counts.our_prefill, case),
        "decode": counts.decode_row("ours", counts.our_decode(step), step),
    }
    for name, row in now.items():
        (then,) = (
            then
            for then in RECORD[name]
            if (then["by"], then["D"], then["Dv"], then["dtype"]) == ("ours", D, D, "float16")
        )
        assert {key: then[key] for key in STRUCTURE} == {key: row[key] for key in STRUCTURE}
