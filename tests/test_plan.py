"""plan(), pure, for named CPUs: it covers every row and key once, and its scratch is bounded."""

from __future__ import annotations

import itertools

import pytest
from cases import DTYPES
from mlx_sdpa_ext import _ext

CPUS = [("avx2", 1), ("avx512", 2), ("avx512bf16", 8), ("neon", 10), ("avx512", 64)]
PROBLEMS = [
    # B, Hq, Hkv, Lq, Lk, D, Dv
    (1, 8, 1, 1, 32768, 256, 256),
    (1, 16, 2, 2048, 32768, 256, 256),
    (4, 32, 8, 1, 4096, 128, 128),
    (1, 8, 8, 1, 1, 64, 64),
    (2, 4, 2, 65, 127, 192, 128),
    (1, 1, 1, 7, 100_000, 576, 512),
    (1, 128, 1, 3, 5000, 40, 1024),
    (1, 24, 3, 333, 257, 1, 1),
]
CHUNKS = (0, 1, 100, 4096, 10**6)


def ask(problem, dtype="float32", cpu=("avx512", 8), **more):
    return _ext.plan(*problem, dtype, arch=cpu[0], threads=cpu[1], **more)


def parts(total: int, size: int) -> list[range]:
    return [range(i, min(i + size, total)) for i in range(0, total, size)]


@pytest.mark.parametrize("cpu", CPUS, ids=str)
@pytest.mark.parametrize("chunk_size", CHUNKS)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_every_row_meets_every_key_once(problem, chunk_size, cpu):
    B, Hq, Hkv, Lq, Lk, _, _ = problem
    plan = ask(problem, cpu=cpu, chunk_size=chunk_size)
    rows = parts(Lq * Hq // Hkv, plan["bq"])
    assert len(rows) == plan["row_tiles"]
    chunks = parts(Lk, plan["chunk_keys"])
    assert len(chunks) == plan["chunks"]
    covered = 0
    for chunk in chunks:
        splits = parts(len(chunk), plan["split_keys"])
        assert len(splits) <= plan["splits"]
        covered += sum(map(len, splits))
    assert covered == Lk
    assert plan["splits"] == len(parts(plan["chunk_keys"], plan["split_keys"]))
    assert plan["tasks"] == B * Hkv * plan["row_tiles"] * plan["splits"]
    if chunk_size:
        assert plan["chunk_keys"] <= chunk_size


@pytest.mark.parametrize("cpu", CPUS, ids=str)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scratch_does_not_grow_with_the_keys(dtype, problem, cpu):
    """At most one partial output for each of the tasks of a thread, and one carried output."""
    B, Hq, Hkv, Lq, _, D, Dv = problem
    state = 4 * B * Hq * Lq * (Dv + 1)
    for Lk, chunk_size in itertools.product((1, 1000, 10**5, 2 * 10**9), CHUNKS):
        plan = ask((B, Hq, Hkv, Lq, Lk, D, Dv), dtype, cpu, chunk_size=chunk_size)
        units = B * Hkv * plan["row_tiles"]
        tasks = 8 if "decode" in plan["kernel"] else 2  # a thread
        assert plan["splits"] <= max(1, -(-tasks * cpu[1] // units))
        assert plan["scratch_bytes"] <= (plan["splits"] + 1) * state
        if plan["splits"] == 1 and plan["chunks"] == 1:
            assert plan["scratch_bytes"] == 4 * B * Hq * Lq  # lse, for a gradient


def test_keys_are_split_only_where_threads_would_idle():
    decode, prefill = (1, 8, 1, 1, 32768, 256, 256), (1, 16, 2, 2048, 32768, 256, 256)
    assert ask(decode, cpu=("avx2", 1))["splits"] == 1
    assert ask(decode, cpu=("avx2", 2))["tasks"] >= 2
    assert ask(decode, cpu=("avx2", 64))["tasks"] >= 64
    assert ask(prefill, cpu=("avx2", 64))["splits"] == 1
    assert ask((1, 8, 1, 1, 20, 256, 256), cpu=("avx2", 64))["splits"] == 1
    assert ask((64, 8, 8, 1, 32768, 256, 256), cpu=("avx2", 64))["splits"] == 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_the_kernel_name_spells_the_tile(problem, dtype):
    plan = ask(problem, dtype, ("avx2", 4))
    D, Dv = problem[-2:]
    tiles = [
        t for t in _ext.tiles()
        if t["backend"] == "cpu" and f"sdpa_{t['kernel']}_" in plan["kernel"]
        and (t["bq"], t["bk"]) == (plan["bq"], plan["bk"])
    ]  # fmt: skip
    assert len(tiles) == 1, "the name is of one row of tiles()"
    (t,) = tiles
    assert plan["kernel"] == f"sdpa_{t['kernel']}_{dtype}_d{D}_v{Dv}_bq{t['bq']}_bk{t['bk']}_avx2"
    assert (
        t["d_min"] <= D <= t["d_max"] and t["dv_min"] <= Dv <= t["dv_max"] and dtype in t["dtypes"]
    )


def test_decode_reads_each_key_once():
    """All rows of a KV head sit in one tile, and a decode kernel is taken."""
    for Hq, Hkv, Lq in ((8, 1, 1), (32, 8, 1), (8, 8, 1), (8, 8, 4)):
        plan = ask((1, Hq, Hkv, Lq, 32768, 256, 256), cpu=("avx512", 2))
        assert plan["row_tiles"] == 1 and "decode" in plan["kernel"]


@pytest.mark.usefixtures("default_cpu")
def test_the_same_question_gets_the_same_answer():
    for problem, cpu in itertools.product(PROBLEMS, CPUS):
        answers = []
        for threads in (1, 3):
            _ext.set_cpu_threads(threads)
            answers.append(ask(problem, cpu=cpu))
        assert answers[0] == answers[1]


def test_this_machine_is_the_default():
    here = _ext.cpu()
    problem = PROBLEMS[0]
    assert _ext.plan(*problem, "float32") == ask(problem, cpu=(here["isa"], here["threads"]))


@pytest.mark.parametrize("D, Dv", [(0, 8), (8, 0), (1025, 8), (8, 1025), (4096, 4096)])
def test_refusals_say_what_there_is(D, Dv):
    with pytest.raises(ValueError, match=rf"head_dim {D}\b.*{Dv}.*1024"):
        ask((1, 8, 1, 1, 8, D, Dv))


def test_a_call_that_no_kernel_serves_is_refused_with_a_reason():
    with pytest.raises(ValueError, match=r"no cuda kernel for head_dim .* in float32"):
        _ext.plan(*PROBLEMS[0], "float32", backend="cuda")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "int8"}, "int8"),
        ({"backend": "tpu"}, "tpu"),
        ({"mask": "diagonal"}, "diagonal"),
        ({"Hq": 7}, "Hq"),
        ({"Hkv": 0}, "Hkv"),
        ({"threads": -1}, "threads"),
        ({"chunk_size": -1}, "chunk_size"),
    ],
    ids=str,
)
def test_bad_questions(change, message):
    names = ("B", "Hq", "Hkv", "Lq", "Lk", "D", "Dv")
    question = dict(zip(names, (1, 8, 2, 1, 8, 64, 64))) | {"dtype": "float32"}
    with pytest.raises(ValueError, match=message):
        _ext.plan(**question | change)


CUDA_TILES = [tile for tile in _ext.tiles() if tile["backend"] == "cuda"]
CPU_TILES = [tile for tile in _ext.tiles() if tile["backend"] == "cpu"]


@pytest.mark.parametrize(
    "tile", CUDA_TILES, ids=lambda t: f"{t['kernel']}-{t['d_max']}-{t['dv_max']}-{t['bq']}"
)
def test_a_row_of_cuda_says_what_the_header_of_its_kernel_says(tile):
    few = tile["kernel"] in ("decode", "packed") or (
        tile["kernel"] == "narrow" and tile["bq"] == 64
    )
    dims = tile["d_max"], tile["dv_max"]
    # where no other row comes first: narrow also serves few rows, wide too but for a softcap
    old = tile["kernel"] == "prefill" or (tile["kernel"] == "decode" and dims[0] <= 256)
    arch, capped = "sm_80" if old else "sm_90", tile["kernel"] == "decode"
    Lq = tile["bq"] if few else 1000
    bits = 4 if tile["kernel"] == "packed" else 0
    plan = _ext.plan(
        1, 2, 2, Lq, 1000, *dims, "bfloat16", softcap=capped, backend="cuda", arch=arch, bits=bits,
        group_size=32,
    )  # fmt: skip
    assert plan["kernel"].startswith(f"sdpa_{tile['kernel']}_bfloat16_d{dims[0]}_v{dims[1]}_")
    assert (plan["bq"], plan["bk"]) == (tile["bq"], tile["bk"])


def test_prefill_tiles_on_a_cpu_grow_with_its_l2_cache():
    for D in (64, 128, 256, 512, 1024):
        sizes = []
        for l2 in (2**18, 2**20, 2**21, 2**23):
            plan = _ext.plan(1, 8, 8, 2048, 2048, D, D, "float32", threads=1, l2_bytes=l2)
            bq, bk = plan["bq"], plan["bk"]
            sizes.append(bq * bk)
            smallest = min(t["bq"] * t["bk"] for t in CPU_TILES if t["kernel"] == "prefill")
            assert 4 * (bq * D + bk * D + bq * bk) <= l2 or sizes[-1] == smallest
        assert sizes == sorted(sizes) and len(set(sizes)) > 1


def test_prefill_tiles_on_a_cpu_leave_tasks_for_all_threads():
    most = max(t["bq"] for t in CPU_TILES if t["kernel"] == "prefill")
    for threads, tall in ((1, True), (8, True), (9, False), (512, False)):
        plan = _ext.plan(1, 8, 8, 2048, 2048, 64, 64, "float32", threads=threads, l2_bytes=2**23)
        assert (plan["bq"] == most) == tall
        few = _ext.plan(
            64, 8, 8, most - 1, 2048, 64, 64, "float32", threads=threads, l2_bytes=2**23
        )
        assert few["bq"] < most
        assert plan["tasks"] >= 2 * min(threads, 2048 * 8 // 128)


@pytest.mark.parametrize("arch", ("sm_80", "sm_89", "sm_90", "sm_120"))
@pytest.mark.parametrize("bits", (4, 8))
@pytest.mark.parametrize("D", (64, 96, 128, 160, 192, 256, 512))
def test_few_rows_over_a_quantized_cache_are_packed(D, bits, arch):
    for Hq, Lq, kernel in (
        (2, 1, "packed"),
        (16, 1, "packed"),
        (2, 8, "packed"),
        (18, 1, "decode"),
    ):
        plan = _ext.plan(
            1, Hq, 2, Lq, 131072, D, D, "float16", backend="cuda", arch=arch, bits=bits
        )
        assert plan["kernel"].startswith(f"sdpa_{kernel}_float16_d")
        assert plan["kernel"].endswith(f"_{bits}bit_g64_{arch}")
        assert plan["row_tiles"] == 1


def test_a_group_has_elements():
    with pytest.raises(ValueError, match="group_size"):
        _ext.plan(1, 2, 2, 1, 9, 64, 64, "float16", backend="cuda", bits=4, group_size=0)
