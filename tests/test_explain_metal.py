"""What `explain` says of the calls that this project exists for, on Macs that are only named."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest
from command_line import call, call_in_process
from mlx_sdpa_ext import _ext, device, limits, plans, router
from mlx_sdpa_ext.words import Device, Problem

GiB = 2**30


class Machine(NamedTuple):
    arch: str
    memory: str  # what macOS recommends to use of it: 3/4
    heads: tuple[int, int]  # of a model that one runs there

    @property
    def options(self) -> tuple[str, ...]:
        return ("--backend", "metal", "--arch", self.arch, "--memory", self.memory)


M1 = Machine("applegpu_g13g", "12GiB", (8, 4))
M2_ULTRA = Machine("applegpu_g14d", "96GiB", (64, 8))
M4_MAX = Machine("applegpu_g16s", "27GiB", (16, 2))
M5 = Machine("applegpu_g17s", "48GiB", (16, 2))
OLD = {"M1": M1, "M2 Ultra": M2_ULTRA, "M4 Max": M4_MAX}  # without neural accelerators
ALL = {**OLD, "M5": M5}
machines = pytest.mark.parametrize("machine", ALL.values(), ids=ALL)
old_machines = pytest.mark.parametrize("machine", OLD.values(), ids=OLD)

STEP = 2048  # query rows of one of mlx-lm's prefill steps


def shapes(machine, Lq, Lk, D, Dv, heads):
    Hq, Hkv = heads or machine.heads
    kv = f"1,{Hkv},{Lk}"
    return ("--q", f"1,{Hq},{Lq},{D}", "--k", f"{kv},{D}", "--v", f"{kv},{Dv or D}")


def explained(capsys, machine, Lq, Lk, D, Dv=None, *more, heads=None, mask="causal"):
    """The route of a call there, and the limits that it was chosen within."""
    asked = shapes(machine, Lq, Lk, D, Dv, heads)
    code, output, errors = call_in_process(
        capsys, "explain", *asked, "--mask", mask, *machine.options, *more, "--json"
    )
    assert code == 0, errors
    answer = json.loads(output)
    return answer["route"], answer["limits"]


def check_bounded(route, bounds):
    """A fused route of ours in dispatches that the watchdog lets pass, next to no memory."""
    assert route["provider"] == "ext"
    assert route["transient_bytes"] <= bounds["memory_limit"]
    assert route["dispatches"] >= 1
    assert 0 < route["dispatch_flops"] <= bounds["dispatch_flops"]
    assert 0 < route["dispatch_ms"] <= bounds["dispatch_ms"] == 250
    assert 0 < route["threadgroup_bytes"] <= 32768
    assert route["threads"] in (128, 256)
    # all of it is launched: a dispatch counts whole tiles, the route what is seen
    assert route["dispatches"] * route["dispatch_flops"] >= 0.99 * route["flops"]


@old_machines
@pytest.mark.parametrize("dims", [(192, None), (256, None), (192, 128)], ids=str)
def test_prefill_at_192_and_256(machine, dims, capsys):
    """Seeds: unfused up to 16384 keys, where it is faster and fits; fused beyond."""
    route, bounds = explained(capsys, machine, STEP, 16384, *dims)
    assert (route["path"], route["provider"], route["block_rows"]) == ("unfused", "ext", 0)
    assert 0 < route["transient_bytes"] <= bounds["memory_limit"]
    for Lk in (16385, 131072):
        route, bounds = explained(capsys, machine, STEP, Lk, *dims)
        assert route["path"] == "fused"
        assert route["kernel"].startswith(f"sdpa_prefill_bfloat16_d{dims[0]}_v{dims[1] or dims[0]}")
        assert route["transient_bytes"] == 0
        check_bounded(route, bounds)
    assert route["dispatches"] > 1


@pytest.mark.parametrize("dims", [(192, None), (192, 128)], ids=str)
def test_prefill_at_192_on_neural_accelerators(dims, capsys):
    """Matmuls are several times as fast there; the memory is bounded all the same."""
    route, bounds = explained(capsys, M5, STEP, 16385, *dims)
    assert (route["path"], route["provider"], route["block_rows"]) == ("unfused", "ext", 0)
    route, bounds = explained(capsys, M5, STEP, 131072, *dims)
    assert (route["path"], route["provider"]) == ("unfused", "ext")
    assert 0 < route["block_rows"] < STEP
    assert 0 < route["transient_bytes"] <= bounds["memory_limit"]
    # each matmul of a block is a dispatch, twice as fast as the kernel that set the bound
    assert 2 * 16 * route["block_rows"] * 131072 * 192 <= 2 * bounds["dispatch_flops"]


@pytest.mark.parametrize("D", (256, 512))
@pytest.mark.parametrize("Lk", (16384, 131072))
def test_stock_fuses_256_and_512_on_neural_accelerators(D, Lk, capsys):
    route, _ = explained(capsys, M5, STEP, Lk, D)
    assert (route["path"], route["kernel"]) == ("stock", "full")


@machines
@pytest.mark.parametrize("D", (128, 192, 256, 512))
@pytest.mark.parametrize("Lk", (65536, 131072))
def test_chunked(machine, Lk, D, capsys):
    """Seed #3307: the keys in chunks of 32768, by request; memory for one output, not for each."""
    route, bounds = explained(capsys, machine, STEP, Lk, D, None, "--path", "chunked")
    assert route["path"] == "chunked"
    assert (route["chunks"], route["chunk_size"]) == (Lk // 32768, 32768)
    one_output = machine.heads[0] * STEP * (D + 2) * 4  # its lse twice, in turns
    assert route["transient_bytes"] <= one_output
    check_bounded(route, bounds)


@machines
def test_chunked_by_the_environment(machine):
    """As with the switch of seed #3307, at head dim 128 too, which else stays with stock MLX."""
    asked = ("--mask", "causal", *machine.options, "--json")
    env = {"MLX_SDPA_CHUNK_THRESHOLD": "65536"}
    for Lk, path in {65535: "stock", 65536: "chunked"}.items():
        done = call("explain", *shapes(machine, STEP, Lk, 128, None, None), *asked, env=env)
        assert json.loads(done.stdout)["route"]["path"] == path, done.stderr


@machines
@pytest.mark.parametrize("D", (64, 96, 128))
def test_stock_stays_up_to_128(machine, D, capsys):
    for Lq in (1, 9, STEP):
        route, _ = explained(capsys, machine, Lq, 131072, D)
        assert (route["path"], route["provider"]) == ("stock", "stock")


@old_machines
@pytest.mark.parametrize("Lk", (2048, 16385, 131072))
def test_512_prefill(machine, Lk, capsys):
    """A fused kernel takes 2.4 to 2.9 times as long (seed uzu #412): matmuls by blocks of rows."""
    route, _ = explained(capsys, machine, STEP, Lk, 512)
    assert (route["path"], route["kernel"]) == ("stock", "query-blocked matmuls")
    # where stock MLX would hold all the scores, this package goes by blocks
    for more in (("--sinks",), ("--dtype", "float32")):
        route, bounds = explained(capsys, machine, STEP, Lk, 512, None, *more)
        assert (route["path"], route["provider"]) == ("unfused", "ext")
        assert route["transient_bytes"] <= bounds["memory_limit"]
    _, output, _ = call_in_process(
        capsys, "explain", *shapes(machine, STEP, Lk, 512, None, None), "--mask", "causal",
        *machine.options,
    )  # fmt: skip
    assert "a block of the scores, which MLX bounds" in output
    route, bounds = explained(capsys, machine, STEP, Lk, 512, None, "--path", "fused")
    assert route["kernel"].startswith("sdpa_prefill_bfloat16_d512_v512")
    check_bounded(route, bounds)


@machines
@pytest.mark.parametrize("Lk", (1024, 131072))
def test_512_decode(machine, Lk, capsys):
    """Stock MLX has a kernel for GQA factor 8; every other factor is ours."""
    route, _ = explained(capsys, machine, 1, Lk, 512, heads=(16, 2))
    assert (route["path"], route["kernel"]) == ("stock", "vector")
    kernels = {(8, 8): "decode", (8, 2): "decode", (16, 1): "middle", (32, 1): "prefill"}
    for heads, kernel in kernels.items():
        route, bounds = explained(capsys, machine, 1, Lk, 512, heads=heads)
        assert route["path"] == "fused"
        assert route["kernel"].startswith(f"sdpa_{kernel}_bfloat16_d512_v512")
        check_bounded(route, bounds)
    assert route["splits"] > 1 or Lk == 1024


@machines
@pytest.mark.parametrize("Lk", (1024, 131072))
def test_192_128_decode(machine, Lk, capsys):
    """Seed #3637: stock's vector kernel; ours where that cannot, as with sinks and a window."""
    route, _ = explained(capsys, machine, 1, Lk, 192, 128)
    assert (route["path"], route["kernel"]) == ("stock", "vector")
    more = ("--sinks", "--window", "128")
    route, bounds = explained(capsys, machine, 1, Lk, 192, 128, *more, heads=(64, 8))
    assert route["path"] == "fused"
    assert route["kernel"].startswith("sdpa_decode_bfloat16_d192_v128")
    check_bounded(route, bounds)


@machines
@pytest.mark.parametrize("Lq", (9, 16, 48))
@pytest.mark.parametrize("dims", [(192, None), (256, None), (512, None), (192, 128)], ids=str)
def test_speculative_verification(machine, dims, Lq, capsys):
    """9 to 48 query rows: ours, with the keys split so that the GPU is busy."""
    route, bounds = explained(capsys, machine, Lq, 32768, *dims)
    assert route["path"] == "fused"
    assert "few query rows" in route["reason"]
    check_bounded(route, bounds)
    assert route["splits"] > 1


def test_the_printed_answer(capsys):
    asked = shapes(M4_MAX, STEP, 131072, 256, None, None)
    code, output, _ = call_in_process(
        capsys, "explain", *asked, "--mask", "causal", *M4_MAX.options
    )
    assert code == 0
    words = " ".join(output.split())
    for text in (
        "kernel sdpa_prefill_bfloat16_d256_v256_bq64_bk16_w4x2",
        "threadgroup 256 threads, ",
        " KiB of its memory",
        "dispatches 8, the longest of 6",
        " GFLOP, about 2",
        "(at most 250 ms, by estimate)",
        "work 4,364 GFLOP",
    ):
        assert text in words
    asked = shapes(M4_MAX, 16, 131072, 256, None, None)
    _, output, _ = call_in_process(capsys, "explain", *asked, "--mask", "causal", *M4_MAX.options)
    assert "parts of the keys at once, then merged" in " ".join(output.split())


def test_the_matmuls_of_the_unfused_path_are_printed(capsys):
    """Each is one dispatch; a matmul is taken for twice as fast as the kernel of the estimate."""
    asked = ("explain", *shapes(M1, STEP, 131072, 512, None, None), "--mask", "bool", *M1.options)
    _, output, _ = call_in_process(capsys, *asked, "--json")
    found = json.loads(output)
    route, bounds = found["route"], found["limits"]
    blocks = -(-STEP // route["block_rows"])
    assert (route["path"], route["dispatches"]) == ("unfused", 2 * blocks)
    assert (
        route["dispatch_flops"] == 2 * found["problem"]["Hq"] * route["block_rows"] * 131072 * 512
    )
    assert 0.9 * bounds["dispatch_ms"] < route["dispatch_ms"] <= bounds["dispatch_ms"]
    _, output, _ = call_in_process(capsys, *asked)
    words = " ".join(output.split())
    assert f"dispatches {2 * blocks} matmuls, the longest of " in words
    assert "threadgroup" not in words
    assert ", if all of its memory is free)" in words


def test_a_long_dispatch_of_stock_is_pointed_out(capsys):
    """Head dim 128 on a slow GPU: one dispatch of 4.4e12 operations, as in seed #3307."""
    asked = shapes(M1, STEP, 131072, 128, None, (32, 8))
    _, output, _ = call_in_process(capsys, "explain", *asked, "--mask", "causal", *M1.options)
    words = " ".join(output.split())
    assert "watchdog one dispatch of up to 5.5 s" in words
    assert "set MLX_SDPA_CHUNK_THRESHOLD=131072 or less" in words
    _, output, _ = call_in_process(
        capsys, "explain", *asked, "--mask", "causal", *M1.options, "--path", "stock"
    )
    assert "watchdog" not in output  # where the variable would change nothing
    asked = shapes(M4_MAX, STEP, 16384, 128, None, None)
    _, output, _ = call_in_process(capsys, "explain", *asked, "--mask", "causal", *M4_MAX.options)
    assert "watchdog" not in output


def test_a_shorter_dispatch_by_the_environment():
    asked = ("--mask", "causal", *M4_MAX.options, "--json")
    env = {"MLX_SDPA_EXT_DISPATCH_MS": "25"}
    done = call("explain", *shapes(M4_MAX, STEP, 131072, 256, None, None), *asked, env=env)
    route = json.loads(done.stdout)["route"]
    assert route["dispatches"] >= 64
    assert route["dispatch_ms"] <= 25


METAL = Device.named(M4_MAX.arch, memory=27 * GiB, tiles=device.tiles())


def test_the_numbers_are_those_of_the_plan():
    problem = Problem(1, 16, 2, 16, 100_000, 256, 256, "float16", "causal", want_lse=True)
    bounds = limits.of(METAL)
    route = plans.planned(router.route(problem, METAL, bounds), problem, METAL, bounds)
    plan = _ext.plan(
        *problem[:8],
        mask="causal",
        want_lse=True,
        backend="metal",
        arch=METAL.arch,
        dispatch_flops=bounds.dispatch_flops,
        fill=bounds.fill_blocks,
        memory=bounds.memory_limit,
    )
    assert route.kernel == plan["kernel"]
    assert (route.threads, route.threadgroup_bytes) == (plan["threads"], plan["threadgroup_bytes"])
    assert (route.splits, route.dispatches) == (plan["splits"], plan["dispatches"])
    assert route.dispatch_flops == int(plan["longest_flops"])
    assert route.dispatch_ms == pytest.approx(250 * plan["longest_flops"] / bounds.dispatch_flops)
    assert route.transient_bytes == plan["scratch_bytes"]


@pytest.mark.parametrize("dtype", ("float32", "float16", "bfloat16"))
def test_router_and_plan_agree_on_what_is_served(dtype):
    """Head dims at the edges of the rows of tiles.def, and rows at the edges of their tiles."""
    edges = sorted({d + n for t in METAL.tiles for d in (t.d_max, t.dv_max) for n in (0, 1)})
    rows = sorted({t.bq + n for t in METAL.tiles for n in (0, 1)})
    for D in edges:
        for Dv in (D, 64, 128, 256, 512):
            for Lq in rows:
                problem = Problem(1, 2, 2, Lq, 500, D, Dv, dtype)
                tile = next((t for t in METAL.tiles if t.serves(problem)), None)
                try:
                    plan = plans.plan(problem, METAL, limits.of(METAL))
                except ValueError:
                    assert tile is None, problem
                else:
                    assert tile is not None, problem
                    kernel = f"sdpa_{tile.kernel}_{dtype}_d{tile.d_max}_v{tile.dv_max}_"
                    assert plan["kernel"].startswith(f"{kernel}bq{tile.bq}_bk{tile.bk}_")
                    assert plan["threads"] == tile.threads
