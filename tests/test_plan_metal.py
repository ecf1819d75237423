"""plan() for Apple GPUs, pure: which kernel, how the grid is cut, and that no dispatch is long."""

from __future__ import annotations

import itertools

import pytest
from cases import DTYPES
from mlx_sdpa_ext import _ext, limits
from mlx_sdpa_ext.words import Device

TILES = [tile for tile in _ext.tiles() if tile["backend"] == "metal"]
ROWS = [(tile, dtype) for tile in TILES for dtype in tile["dtypes"]]
ARCHS = ("applegpu_g13g", "applegpu_g14s", "applegpu_g15d", "applegpu_g17g")


def ask(B, Hq, Hkv, Lq, Lk, D, Dv=None, dtype="float16", mask="none", **more):
    more = {"arch": "applegpu_g13g", **more}
    return _ext.plan(B, Hq, Hkv, Lq, Lk, D, Dv or D, dtype, mask, backend="metal", **more)


def row_id(row):
    tile, dtype = row
    return f"{tile['kernel']}-{dtype}-{tile['d_max']}-{tile['dv_max']}-{tile['bq']}"


def threads(tile):
    return 32 * tile["wm"] * tile["wd"]


def seen(part, plan, p, tile):
    """Keys of a part that some row of a tile sees, by the definition of the masks."""
    Hq, Hkv, Lq, Lk, mask, window = p
    group = Hq // Hkv
    first = tile * plan["bq"] // group
    last = (min((tile + 1) * plan["bq"], Lq * group) - 1) // group
    keys = set()
    for q in (first, last):
        position = Lk - Lq + q
        begin = max(0, position + 1 - window) if window else 0
        end = min(Lk, position + 1) if mask == "causal" else Lk
        keys |= {begin, end}
    begin, end = max(min(keys), part["key0"]), min(max(keys), part["key1"])
    return max(0, end - begin)


def test_there_are_rows_for_every_kernel():
    assert {tile["kernel"] for tile in TILES} == {"prefill", "middle", "decode"}


@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_every_row_fits_threadgroup_memory_and_threads(row):
    """And every row is the plan of some problem, with its own name and threads."""
    tile, dtype = row
    few = tile["kernel"] == "decode", tile["kernel"] == "middle"
    for D, Dv in itertools.product((tile["d_max"], tile["d_max"] - 7), (tile["dv_max"],)):
        Lq = 1 if few[0] else 9 if few[1] and tile["bq"] > 8 else 2048
        # middle rows of 8 are for devices that the prefill rows ask too many threads of
        cap = 1024 if few[0] or Lq == 9 else threads(tile)
        plan = ask(1, 1, 1, Lq, 4096, D, Dv, dtype, max_threads=cap)
        assert plan["threadgroup_bytes"] <= 32768
        assert plan["threads"] <= min(cap, 1024)
        assert plan["threads"] == 32 * plan["wm"] * plan["wd"]


def test_every_row_is_reached():
    """By a problem of its own head dimensions, on a device that takes so many threads."""
    reached = set()
    for (tile, dtype), Lq, cap in itertools.product(ROWS, (1, 9, 17, 64), (1024, 128, 64)):
        if cap >= 128 or tile["kernel"] == "middle":
            with_cap = {"max_threads": cap}
            try:
                plan = ask(1, 1, 1, Lq, 4096, tile["d_max"], tile["dv_max"], dtype, **with_cap)
            except ValueError:
                continue
            reached.add(plan["kernel"])
    for tile, dtype in ROWS:
        name = (
            f"sdpa_{tile['kernel']}_{dtype}_d{tile['d_max']}_v{tile['dv_max']}"
            f"_bq{tile['bq']}_bk{tile['bk']}_w{tile['wm']}x{tile['wd']}"
        )
        assert name in reached


@pytest.mark.parametrize(
    ("problem", "kernel"),
    [
        ((1, 8, 8, 1, 4096, 128), "decode"),
        ((1, 8, 1, 1, 4096, 256), "decode"),  # 8 rows
        ((1, 9, 1, 1, 4096, 256), "middle"),
        ((1, 8, 2, 2, 4096, 512), "decode"),
        ((1, 8, 2, 4, 4096, 512), "middle"),  # 16 rows
        ((1, 8, 2, 5, 4096, 512), "prefill"),
        ((1, 8, 8, 2048, 4096, 256), "prefill"),
    ],
)
def test_the_rows_of_a_head_choose_the_kernel(problem, kernel):
    assert f"_{kernel}_" in ask(*problem)["kernel"]


def test_smaller_head_dims_take_the_next_row():
    """They are padded inside the kernel."""
    assert "_d112_v112_" in ask(1, 8, 8, 2048, 4096, 100)["kernel"]
    assert "_d192_v128_" in ask(1, 8, 8, 2048, 4096, 192, 128)["kernel"]
    assert "_d576_v512_" in ask(1, 8, 8, 2048, 4096, 576, 512)["kernel"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_fewer_threads_mean_another_tile(dtype):
    """As on a GPU whose pipelines hold fewer threads than the tile asks for."""
    caps = (1024, 128, 64)
    for Lq, D in itertools.product((1, 9, 2048), (64, 256, 512)):
        for cap in caps[:2]:
            assert ask(1, 4, 4, Lq, 4096, D, dtype=dtype, max_threads=cap)["threads"] <= cap
        with pytest.raises(ValueError, match=rf"head_dim {D}\b.*64 threads"):
            ask(1, 4, 4, Lq, 4096, D, dtype=dtype, max_threads=64)
    assert "_middle_" in ask(1, 4, 4, 2048, 4096, 256, dtype=dtype, max_threads=128)["kernel"]


@pytest.mark.parametrize("D, Dv", [(577, 64), (64, 513), (1024, 1024)])
def test_refusals_say_what_there_is(D, Dv):
    with pytest.raises(ValueError, match=rf"head_dim {D}\b.*{Dv}.*1-576 \(v 1-512\)"):
        ask(1, 8, 1, 1, 8, D, Dv)


PROBLEMS = [
    # B, Hq, Hkv, Lq, Lk, D, mask, window, chunk_size
    (1, 16, 2, 2048, 16385, 256, "causal", 0, 0),
    (2, 8, 8, 333, 1000, 128, "causal", 100, 0),
    (1, 4, 2, 700, 5000, 512, "none", 0, 1024),
    (1, 8, 1, 1, 100_000, 512, "causal", 0, 0),
    (1, 8, 1, 1, 100_000, 512, "causal", 4096, 0),
    (2, 8, 2, 9, 3000, 256, "none", 0, 1000),
    (3, 5, 5, 100, 60, 64, "causal", 0, 0),  # rows that see no key
    (1, 2, 2, 40, 0, 64, "none", 0, 0),
    (1, 8, 8, 64, 64, 64, "causal", 1, 7),
]


@pytest.mark.parametrize("bound", (0.0, 1e9, 3e7, 1e6))
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_every_row_meets_every_visible_key_once(problem, bound):
    B, Hq, Hkv, Lq, Lk, D, mask, window, chunk_size = problem
    plan = ask(
        B, Hq, Hkv, Lq, Lk, D, mask=mask, window=window, chunk_size=chunk_size, sinks=True,
        dispatch_flops=bound,
    )  # fmt: skip
    cells = {}  # (head, row tile) -> key ranges, in order
    last_chunk = -1
    for part in plan["parts"]:
        assert part["chunk"] in (last_chunk, last_chunk + 1)
        last_chunk = part["chunk"]
        assert part["row_tiles"] > 0 and part["heads"] > 0 and part["splits"] > 0
        assert 0 <= part["key0"] <= part["key1"] <= Lk
        if chunk_size:
            assert part["key1"] - part["key0"] <= chunk_size
        for split in range(part["splits"]):
            begin = min(part["key0"] + split * part["split_keys"], part["key1"])
            end = min(begin + part["split_keys"], part["key1"])
            for head in range(part["head0"], part["head0"] + part["heads"]):
                for tile in range(part["row_tile0"], part["row_tile0"] + part["row_tiles"]):
                    first = split == 0
                    cells.setdefault((head, tile), []).append(
                        (part["chunk"], begin, end, first and part["with_sinks"],
                         first and part["with_carry"])
                    )  # fmt: skip
    assert last_chunk + 1 == plan["chunks"]
    assert set(cells) == set(itertools.product(range(B * Hkv), range(plan["row_tiles"])))
    group = Hq // Hkv
    for (_, tile), ranges in cells.items():
        assert all(a[2] == b[1] for a, b in itertools.pairwise(ranges)), "no gap, no overlap"
        assert [r[3] for r in ranges].count(True) == 1, "sinks are counted once"
        for chunk in range(plan["chunks"]):
            carries = [r[4] for r in ranges if r[0] == chunk]
            assert carries.count(True) == (chunk > 0), "each chunk continues the one before"
        first = tile * plan["bq"] // group
        last = (min((tile + 1) * plan["bq"], Lq * group) - 1) // group
        end = min(Lk, Lk - Lq + last + 1) if mask == "causal" else Lk
        begin = max(0, Lk - Lq + first + 1 - window) if window else 0
        if begin < end:
            assert ranges[0][1] <= begin and ranges[-1][2] >= end


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("bound", (1e9, 3e7))
def test_flops_are_those_of_the_visible_blocks(problem, bound):
    B, Hq, Hkv, Lq, Lk, D, mask, window, chunk_size = problem
    plan = ask(
        B, Hq, Hkv, Lq, Lk, D, mask=mask, window=window, chunk_size=chunk_size,
        dispatch_flops=bound,
    )  # fmt: skip
    p = (Hq, Hkv, Lq, Lk, mask, window)
    for part in plan["parts"]:
        tiles = range(part["row_tile0"], part["row_tile0"] + part["row_tiles"])
        exact = sum(seen(part, plan, p, tile) for tile in tiles)
        exact *= part["heads"] * 2 * plan["bq"] * 2 * D
        blocks = part["heads"] * part["row_tiles"] * part["splits"] * plan["bk"]
        assert exact <= part["flops"] <= exact + 2 * blocks * plan["bq"] * 4 * max(D, 64)
    assert plan["longest_flops"] == max(part["flops"] for part in plan["parts"])


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("row", ROWS, ids=row_id)
def test_no_dispatch_is_long(row, arch):
    """2048 x 131072, 32 heads, on every row that can serve it, and on half of the default bound."""
    tile, dtype = row
    default = limits.of(Device.named(arch)).dispatch_flops
    for cap, bound in itertools.product((1024, 128), (default, default / 2)):
        plan = ask(
            1, 32, 8, 2048, 131072, tile["d_max"], tile["dv_max"], dtype, "causal", arch=arch,
            max_threads=cap, dispatch_flops=bound,
        )  # fmt: skip
        assert 0 < plan["longest_flops"] <= bound
        assert plan["chunks"] == 1, "keys are cut last"
        assert plan["dispatches"] == len(plan["parts"])


def test_keys_are_cut_only_where_one_tile_is_too_long():

    def bounded(flops):
        return ask(1, 2, 2, 256, 65536, 256, fill=1, dispatch_flops=flops)

    whole = bounded(1e15)
    assert (whole["dispatches"], whole["chunks"]) == (1, 1)
    tile = 2 * whole["bq"] * 65536 * 512.0  # work of one tile of one head
    assert bounded(4 * tile)["dispatches"] == 2  # a head each
    assert bounded(tile)["dispatches"] == 8
    assert bounded(tile)["chunks"] == 1
    cut = bounded(tile / 2)
    assert cut["chunks"] == 2 and cut["chunk_keys"] % cut["bk"] == 0
    assert cut["scratch_bytes"] == 4 * 2 * 256 * 257  # the running O and lse
    least = bounded(1e6)
    assert least["chunk_keys"] == least["bk"], "a block of keys is the least there is"


def test_keys_are_split_only_where_the_gpu_would_idle():
    decode = (1, 8, 1, 1, 131072, 256)
    for fill in (8, 32, 64):
        plan = ask(*decode, fill=fill)
        assert plan["splits"] == 2 * fill and plan["split_keys"] % plan["bk"] == 0
        assert plan["dispatches"] == 2, "the merge is one more"
        assert ask(64, 8, 1, 1, 131072, 256, fill=fill)["splits"] == 1
    assert ask(*decode, fill=1000)["splits"] == 128
    assert ask(1, 8, 1, 1, 511, 256, fill=32)["splits"] == 1
    assert ask(1, 8, 1, 1, 512, 256, fill=32)["splits"] == 2
    window = ask(*decode, mask="causal", window=1024, fill=32)
    assert window["splits"] in (4, 5) and window["parts"][0]["key0"] >= 131072 - 1024 - 16
    state = 4 * 8 * (256 + 1)
    assert ask(*decode, fill=32)["scratch_bytes"] == 64 * state
    assert ask(*decode, fill=32, memory=10 * state)["splits"] == 10
    assert ask(*decode, fill=32, memory=1)["splits"] == 1


def test_chunks_outside_the_window_are_left_out():
    plan = ask(1, 8, 8, 64, 100_000, 128, mask="causal", window=500, chunk_size=1000)
    assert plan["chunks"] == 1 and plan["parts"][0]["key0"] >= 99_000
    assert ask(1, 8, 8, 64, 100_000, 128, mask="causal", chunk_size=1000)["chunks"] == 100


def test_scratch_does_not_grow_with_the_keys():
    for Lk, chunk in itertools.product((10**4, 10**6, 2 * 10**9), (0, 10**4)):
        decode = ask(1, 8, 1, 1, Lk, 512, chunk_size=chunk)
        assert decode["scratch_bytes"] <= (128 + 1) * 4 * 8 * 513
        prefill = ask(1, 8, 8, 2048, Lk, 512, mask="causal", chunk_size=chunk)
        assert prefill["scratch_bytes"] <= 4 * 8 * 2048 * 514


def test_the_defaults_are_those_of_the_smallest_gpu():
    """Written twice: the plan is pure C++, the profiles say where the numbers come from."""
    profiles = [limits.of(Device.named(arch)) for arch in ARCHS]
    bounds = {
        "fill": min(profile.fill_blocks for profile in profiles),
        "dispatch_flops": min(profile.dispatch_flops for profile in profiles),
    }
    for problem in ((1, 32, 8, 2048, 131072, 256), (1, 8, 1, 1, 131072, 256)):
        assert ask(*problem) == ask(*problem, **bounds)


@pytest.mark.parametrize("name", ("max_threads", "fill", "dispatch_flops", "memory"))
def test_negative_limits_are_refused(name):
    with pytest.raises(ValueError, match=name):
        ask(1, 1, 1, 1, 8, 64, **{name: -1})
