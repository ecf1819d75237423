"""`explain` prints what the router says of any call on any machine, without making it."""

from __future__ import annotations

import json

import mlx.core as mx
import pytest
from command_line import call_in_process
from mlx_sdpa_ext import device, limits, plans, router
from mlx_sdpa_ext.words import Device, Problem

LONG = ("--q", "1,16,2048,256", "--k", "1,2,131072,256", "--mask", "causal")
LONG_PROBLEM = Problem(1, 16, 2, 2048, 131072, 256, 256, "bfloat16", "causal")


def planned(there, bounds):
    route = router.route(LONG_PROBLEM, there, bounds)
    return plans.planned(route, LONG_PROBLEM, there, bounds)


def explained(capsys, *args):
    code, output, errors = call_in_process(capsys, "explain", *args, "--json")
    assert code == 0, errors
    return json.loads(output)


def test_this_machine(capsys):
    here = device.current()
    bounds = limits.of(here, limits.settings())
    answer = explained(capsys, *LONG)
    assert answer["problem"] == LONG_PROBLEM._asdict()
    room = answer["limits"]["memory_limit"]
    assert 0 < room <= bounds.memory_limit
    assert answer["limits"] == {**bounds._asdict(), "memory_limit": room, "calibrated": []}
    assert answer["route"] == planned(here, bounds._replace(memory_limit=room))._asdict()
    _, output, _ = call_in_process(capsys, "explain", *LONG)
    assert ", by what is free now)" in " ".join(output.split())


@pytest.mark.parametrize(
    ("arch", "backend", "mlx"),
    [
        ("applegpu_g13g", "metal", "0.31.2"),
        ("applegpu_g15d", "metal", "0.32.4"),
        ("applegpu_g17s", "metal", "0.32.4"),
        ("sm_90", "cuda", "0.32.4"),
        ("neon", "cpu", "0.32.2"),
    ],
)
def test_a_named_machine(capsys, arch, backend, mlx):
    memory = 36 * 10**9
    there = Device.named(arch, mlx=mlx, memory=memory, tiles=device.tiles())
    bounds = limits.of(there, limits.settings())
    route = planned(there, bounds)
    answer = explained(
        capsys, *LONG, "--backend", backend, "--arch", arch, "--mlx", mlx, "--memory", "36GB"
    )
    assert answer["device"] == {**there._asdict(), "tiles": len(there.tiles)}
    assert answer["route"] == route._asdict()


def test_every_option_reaches_the_problem(capsys):
    answer = explained(
        capsys, "--q", "2,8,4,96", "--k", "2,2,50,96", "--v", "2,2,50,64", "--dtype", "float16",
        "--mask", "causal", "--window", "7", "--softcap", "30", "--sinks", "--lse",
        "--path", "unfused",
    )  # fmt: skip
    asked = Problem(2, 8, 2, 4, 50, 96, 64, "float16", "causal", 7, 30.0, True, True)
    assert answer["problem"] == asked._asdict()
    assert answer["route"]["path"] == "unfused"
    for mask in ("none", "bool", "additive"):
        answer = explained(capsys, "--q", "1,1,4,8", "--k", "1,1,4,8", "--mask", mask)
        assert answer["problem"]["mask"] == mask


def test_prints_the_call_and_its_route(capsys):
    code, output, _ = call_in_process(capsys, "explain", *LONG, "--path", "chunked")
    assert code == 0
    words = " ".join(output.split())
    for text in ("q [1, 16, 2048, 256]", "k [1, 2, 131072, 256]", "bfloat16, causal"):
        assert text in words
    for text in ("path chunked", "by mlx-sdpa-ext", "was asked for", "chunks 4 of 32,768 keys"):
        assert text in words


def test_allocates_nothing_of_these_sizes(capsys):
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    explained(capsys, *LONG, "--lse")
    for mask in ("bool", "additive"):
        explained(capsys, "--q", "1,64,65536,256", "--k", "1,8,1048576,256", "--mask", mask)
    assert mx.get_peak_memory() - before < 1 << 20


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--q", "1,16,2048", "--k", "1,2,64,256"), "--q 1,16,2048: expected four lengths"),
        (("--q", "1,x,8,256", "--k", "1,2,64,256"), "--q 1,x,8,256: expected four lengths"),
        (("--q", "1,2,8,-1", "--k", "1,2,64,256"), "--q 1,2,8,-1: expected four lengths"),
        (("--q", "1,2,8,64", "--k", "1,2,9999999999,64"), "a length is at most"),
        ((*LONG, "--v", "1,2,64"), "--v 1,2,64: expected four lengths"),
        (("--q", "1,15,8,64", "--k", "1,2,64,64"), "15"),
        (("--q", "1,2,8,64", "--k", "1,2,64,32"), "32"),
        (("--q", "1,2,8,64", "--k", "2,2,64,64"), "batch"),
        ((*LONG, "--mask", "diagonal"), "--mask diagonal: expected none, causal, bool or additive"),
        ((*LONG, "--dtype", "int8"), "--dtype int8: expected float32"),
        ((*LONG, "--path", "fastest"), "explain: --path: got 'fastest'"),
        ((*LONG, "--window", "0"), "window"),
        ((*LONG[:4], "--window", "5"), "window"),
        ((*LONG, "--softcap", "-1"), "softcap"),
        ((*LONG, "--lse", "--path", "stock"), "logsumexp"),
        ((*LONG, "--backend", "tpu"), "--backend tpu: expected metal, cuda or cpu"),
        ((*LONG, "--backend", "metal"), "--backend metal: name its --arch too"),
        ((*LONG, "--backend", "cuda", "--arch", "applegpu_g15d"), "is metal, not cuda"),
        ((*LONG, "--arch", "g15"), "explain: --arch: got 'g15'"),
        ((*LONG, "--arch", "sm_90", "--memory", "much"), "--memory much: expected"),
        ((*LONG, "--arch", "sm_90", "--mlx", "newest"), "explain: --mlx: got 'newest'"),
    ],
)
def test_wrong_questions_get_one_message(capsys, args, message):
    code, output, errors = call_in_process(capsys, "explain", *args)
    assert (code, output) == (2, "")
    assert errors.startswith("mlx-sdpa-ext: explain: ")
    assert message in errors
    assert errors.count("\n") == 1


@pytest.mark.parametrize("args", [("--k", "1,2,3,4"), (*LONG, "--window", "wide"), (*LONG, "more")])
def test_wrong_usage_is_refused(capsys, args):
    code, output, errors = call_in_process(capsys, "explain", *args)
    assert (code, output) == (2, "")
    assert "mlx-sdpa-ext explain" in errors
