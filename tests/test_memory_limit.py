"""The memory limit follows what the device can still give, and the routes follow the limit."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_sdpa_ext import attention, device, limits, memory, router, stats
from mlx_sdpa_ext.words import Device, Problem

MiB, GiB = 2**20, 2**30
M4_MAX = Device.named("applegpu_g16s", memory=32 * GiB)
WITH_TILES = Device.named("applegpu_g16s", memory=32 * GiB, tiles=device.tiles())
H200 = Device.named("sm_90", memory=141 * 10**9)
CPU = Device.named("avx2", memory=16 * GiB)


pytestmark = pytest.mark.usefixtures("environment")


@pytest.mark.parametrize(
    ("free", "margin", "most"),
    [
        (20 * GiB, 2 * GiB, 10 * GiB),  # half is the larger margin
        (20 * GiB, 15 * GiB, 5 * GiB),
        (20 * GiB, 30 * GiB, limits.LEAST_LIMIT),
        (0, 1, limits.LEAST_LIMIT),
    ],
)
def test_a_margin_is_left(free, margin, most):
    assert most * 7 // 8 <= limits.less_margin(free, margin) <= most


def test_the_limit_goes_in_steps():
    """So that routes, which are remembered by it, are few; and never by more than 1/8."""
    found = {free: limits.less_margin(free, 0) for free in range(GiB, 2 * GiB, 997 * 1009)}
    assert len(set(found.values())) <= limits.LIMIT_STEPS + 1
    assert all(7 / 16 * free <= room <= free / 2 for free, room in found.items())
    assert list(found.values()) == sorted(found.values())


def files(folder: Path, contents: dict[str, str]) -> Path:
    for name, text in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


MEMINFO = {"meminfo": "MemTotal:  100 kB\nMemFree:  10 kB\nMemAvailable:  90 kB\n"}
V2 = {"memory.max": "51200\n", "memory.current": "40960\n", "memory.stat": "inactive_file 20480\n"}
V1 = {
    "memory/memory.limit_in_bytes": "51200\n",
    "memory/memory.usage_in_bytes": "40960\n",
    "memory/memory.stat": "inactive_file 1\ntotal_inactive_file 20480\n",
}


@pytest.mark.parametrize(
    ("proc", "group", "available"),
    [
        (MEMINFO, {}, 90 * 1024),
        (MEMINFO, V2, 30 * 1024),  # what is left, and files that can be dropped
        (MEMINFO, V1, 30 * 1024),
        (MEMINFO, V2 | {"memory.max": "max\n"}, 90 * 1024),
        (MEMINFO, V2 | {"memory.max": "1024\n"}, 0),
        ({}, V2, None),
        ({"meminfo": "MemTotal: 100 kB\n"}, {}, None),
    ],
)
def test_available_memory_of_linux(proc, group, available, tmp_path):
    found = memory._available(files(tmp_path / "proc", proc), files(tmp_path / "cgroup", group))
    assert found == available


def test_what_is_free_by_backend(monkeypatch):
    held = mx.zeros((8, MiB))
    mx.eval(held)
    assert 0 < memory.free(M4_MAX) <= M4_MAX.memory - held.nbytes
    info = {"free_memory": 5 * GiB}
    monkeypatch.setattr(mx, "device_info", lambda where: info)
    assert memory.free(H200) == 5 * GiB + mx.get_cache_memory()
    info.clear()
    assert memory.free(H200) <= H200.memory - held.nbytes
    monkeypatch.setattr(memory, "_available", lambda: 3 * GiB)
    assert memory.free(CPU) == 3 * GiB + mx.get_cache_memory()
    assert memory.free(M4_MAX._replace(software=True)) == 3 * GiB + mx.get_cache_memory()
    monkeypatch.setattr(memory, "_available", lambda: None)
    assert memory.free(CPU) <= CPU.memory - held.nbytes


def test_it_is_read_now_and_then_and_followed_in_between():
    readings, clock = [], [0.0]

    def read(where):
        readings.append(where)
        return 10 * GiB

    headroom = memory.Headroom(CPU, read, lambda: clock[0])
    first = headroom.now()
    held = mx.zeros((32, MiB))
    mx.eval(held)
    assert headroom.now() <= first - held.nbytes
    del held
    assert headroom.now() >= first - MiB
    assert len(readings) == 1
    clock[0] += memory.READ_EVERY
    headroom.now()
    assert readings == [CPU, CPU]


def test_of_this_machine():
    here = attention.place_of(mx.cpu)
    assert limits.LEAST_LIMIT <= here.limits.memory_limit <= here.device.memory // 2
    assert limits.of(here.device).memory_limit >= here.limits.memory_limit


class Conversation:
    """A device that gives what a cache of so many keys leaves, and turns of 64 tokens there."""

    STEP, D, HEADS = 64, 256, 4

    def __init__(self, monkeypatch, total, bytes_a_key):
        self.keys, self.total, self.bytes_a_key = 0, total, bytes_a_key
        monkeypatch.setattr(device, "current", lambda stream=None: M4_MAX)
        monkeypatch.setattr(limits, "LEAST_LIMIT", 4096)

        def stock(q, k, v, **arguments):  # the CPU in the GPU's place has no kernel to be forced
            arguments.pop("force_fused", None)
            return found(q, k, v, **arguments)

        found = attention.stock_attention
        monkeypatch.setattr(attention, "stock_attention", stock)
        monkeypatch.setattr(attention, "Headroom", lambda where: self)
        limits.refresh()

    def now(self):
        # M4_MAX's margin is 1/8 of its 32 GiB, above which this conversation has little room.
        return 4 * GiB + self.total - self.keys * self.bytes_a_key

    def turn(self, rng):
        """One prefill step: the route, its limit, and whether the result is stock's."""
        self.keys += self.STEP
        shapes = ((self.STEP, 1), (self.keys, 1), (self.keys, 1))
        q, k, v = (
            mx.array(rng.standard_normal((1, self.HEADS * n, rows, self.D), dtype=np.float32))
            for rows, n in shapes
        )
        before = sum(stats().reasons.values())
        route = attention.explain(q, k, v, mask="causal")
        out = attention.scaled_dot_product_attention(q, k, v, scale=0.06, mask="causal")
        assert sum(stats().reasons.values()) == before + 1
        expected = mx.fast.scaled_dot_product_attention(q, k, v, scale=0.06, mask="causal")
        assert mx.allclose(out, expected, rtol=1e-5, atol=1e-5).item()
        return route, attention.place_of(None).limits.memory_limit


def test_a_growing_conversation_is_fused_when_memory_runs_short(environment, rng):
    """Unfused is the faster path at head dim 256, as long as its scores fit what is free."""
    conversation = Conversation(environment, total=4 * MiB, bytes_a_key=4096)
    turns = [conversation.turn(rng) for _ in range(12)]
    routes, rooms = zip(*turns)
    assert list(rooms) == sorted(rooms, reverse=True)
    assert rooms[-1] < rooms[0] / 2
    paths = [route.path for route in routes]
    change = paths.index("fused")
    assert paths == ["unfused"] * change + ["fused"] * (12 - change)
    assert 2 <= change <= 10
    for route, room in turns:
        assert route.transient_bytes <= room
    for route in routes[:change]:
        assert "fit the memory limit" in route.reason
    for route in routes[change:]:
        assert router.EXCEEDED in route.reason
    assert stats().reasons[routes[-1].reason] >= 12 - change
    conversation.total += 64 * MiB  # memory that is given back is taken note of too
    assert conversation.turn(rng)[0].path == "unfused"


def test_a_limit_that_is_set_stays(environment, rng):
    environment.setenv("MLX_SDPA_EXT_MEMORY_LIMIT", "64MiB")
    conversation = Conversation(environment, total=4 * MiB, bytes_a_key=4096)
    assert {conversation.turn(rng)[1] for _ in range(12)} == {64 * MiB}


def test_the_gate_of_a_gpu_is_told(monkeypatch):
    told = []
    place = attention._Place(WITH_TILES, limits.NOTHING_SET)
    monkeypatch.setattr(place.gate, "follow", told.append)
    for free in (20 * GiB, 20 * GiB, 6 * GiB):
        monkeypatch.setattr(place, "_headroom", type("Free", (), {"now": lambda self, f=free: f})())
        place.follow()
    assert [bounds.memory_limit for bounds in told] == [10 * GiB, 2 * GiB]
    assert told[-1] == place.limits


@pytest.mark.parametrize("D", (64, 128, 192, 256, 512))
def test_what_is_free_decides_with_kernels_of_ours(D):
    """From all to nothing: a call never takes more than the limit of the moment."""
    problem = Problem(1, 16, 2, 2048, 16384, D, D, "bfloat16", "causal")
    bounds = limits.of(WITH_TILES)
    paths = []
    for free in (32 * GiB, 8 * GiB, 4 * GiB + 64 * MiB, 0):
        room = limits.less_margin(free, bounds.memory_margin)
        route = router.route(problem, WITH_TILES, bounds._replace(memory_limit=room))
        assert route.transient_bytes <= room
        paths.append(route.path)
    assert paths[-1] != "unfused" or D == 512
    assert (paths[0] == "unfused") == (D in (192, 256))


def test_blocks_stay_small_where_the_scores_do_not_fit_at_once():
    """However much is free: a block beyond block_bytes gains nothing."""
    wide = Problem(1, 64, 8, 2048, 1 << 20, 576, 512, "bfloat16", "additive")
    bounds = limits.of(WITH_TILES)._replace(dispatch_flops=0)
    route = router.route(wide, WITH_TILES, bounds)
    assert route.path == "unfused"
    assert 0.9 * bounds.block_bytes < route.transient_bytes <= bounds.block_bytes
    assert bounds.block_bytes < bounds.memory_limit / 2
    few = limits.of(WITH_TILES, limits.Settings(memory_limit=8 * GiB))
    assert few.block_limit == few.memory_limit == 8 * GiB


def test_chunks_that_were_asked_for_are_not_taken_beyond_the_limit():
    problem = Problem(1, 16, 2, 2048, 131072, 256, 256, "bfloat16", "causal")
    carried = 16 * 2048 * 257 * 4
    asked = limits.of(WITH_TILES)._replace(chunk_asked=True)
    route = router.route(problem, WITH_TILES, asked._replace(memory_limit=carried))
    assert (route.path, route.transient_bytes) == ("chunked", carried)
    route = router.route(problem, WITH_TILES, asked._replace(memory_limit=carried - 1))
    assert (route.path, route.transient_bytes) == ("fused", 0)
    assert router.CARRY_EXCEEDS in route.reason


def test_stocks_kernel_is_forced_where_not_one_row_of_scores_fits():
    """At 512 on neural accelerators, where blocks of rows are the faster path else."""
    m5 = Device.named("applegpu_g17s")
    problem = Problem(1, 16, 2, 64, 1 << 20, 512, 512, "bfloat16", "bool")
    bounds = limits.of(m5)._replace(dispatch_flops=0)
    row = router.unfused_bytes(problem, rows=1)
    assert router.route(problem, m5, bounds._replace(memory_limit=row)).path == "unfused"
    route = router.route(problem, m5, bounds._replace(memory_limit=row - 1))
    assert (route.path, route.provider, route.forces_stock) == ("fused", "stock", True)
    assert router.EXCEEDED in route.reason
