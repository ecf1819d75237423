"""MLX_SDPA_EXT_DEVICE: where attention runs, and that no software device passes for a GPU."""

from __future__ import annotations

import json

import mlx.core as mx
import numpy as np
import pytest
from command_line import call
from mlx_sdpa_ext import (
    _ext,
    attention,
    device,
    first_use,
    limits,
    patched,
    router,
    software,
    stats,
)
from mlx_sdpa_ext.words import Device


@pytest.fixture
def chosen(monkeypatch):
    """Sets MLX_SDPA_EXT_DEVICE for one test; nothing is loaded."""
    loaded = []
    monkeypatch.setattr(_ext, "load_gpu_backend", lambda *where: loaded.append(where))
    monkeypatch.setattr(_ext, "set_gpu_limits", lambda **bounds: loaded.append(bounds))
    monkeypatch.setattr(_ext, "prepare", lambda *arrays, **options: None)
    monkeypatch.setattr(software, "_library", lambda: "library.so")
    monkeypatch.setattr(software, "_loaded", None)

    def choose(text):
        monkeypatch.setenv("MLX_SDPA_EXT_DEVICE", text)
        limits.refresh()
        return loaded

    yield choose
    monkeypatch.undo()
    limits.refresh()


def inputs(rng, Lq, Lk, D):
    shapes = (1, 4, Lq, D), (1, 2, Lk, D), (1, 2, Lk, D)
    return tuple(mx.array(rng.standard_normal(s, dtype=np.float32)) for s in shapes)


def test_the_software_device_is_the_gpu_that_it_plays(chosen):
    chosen("software-metal:applegpu_g13g")
    here = device.current()
    named = Device.named("applegpu_g13g", mlx=mx.__version__, tiles=device.tiles())
    assert here == named._replace(memory=device.cpu_memory(), software=True)
    assert {tile.backend for tile in here.tiles} == {"metal"}
    assert device.current(mx.cpu) is here
    assert device.current(mx.new_stream(mx.cpu)) is here
    chosen("software-metal:applegpu_g17s")
    assert device.current().neural_accelerators
    chosen("")
    assert device.current().backend == "cpu"


def test_cpu_is_the_cpu(chosen):
    chosen("cpu")
    assert device.current().backend == "cpu"
    assert device.stream_of(None) == mx.cpu
    stream = mx.new_stream(mx.cpu)
    assert device.stream_of(stream) is stream
    with device.default():
        assert mx.default_device() == mx.Device(mx.cpu, 0)


def test_metal_has_to_be_there(chosen, rng):
    if mx.metal.is_available():
        pytest.skip("this machine has it")
    chosen("metal")
    with pytest.raises(ValueError, match="MLX_SDPA_EXT_DEVICE: got 'metal', and this MLX has no"):
        attention.scaled_dot_product_attention(*inputs(rng, 9, 9, 64), scale=1.0)
    out = attention.scaled_dot_product_attention(*inputs(rng, 9, 9, 64), scale=1.0, stream=mx.cpu)
    assert out.shape == (1, 4, 9, 64)


def test_the_backend_is_loaded_at_the_first_call_of_ours(chosen, rng):
    loaded = chosen("software-metal:applegpu_g16s")
    q, k, v = inputs(rng, 20, 30, 128)
    attention.scaled_dot_product_attention(q, k, v, scale=0.1)  # left to stock MLX
    attention.explain(q, k, v, softcap=1.0)
    assert loaded == []
    for _ in range(2):
        attention.scaled_dot_product_attention(q, k, v, scale=0.1, softcap=1.0)
    bounds = limits.of(device.current())
    said = {
        "dispatch_flops": bounds.dispatch_flops,
        "fill": bounds.fill_blocks,
        "memory": bounds.memory_limit,
    }
    assert loaded == [("library.so", "applegpu_g16s"), said]
    chosen("")
    attention.scaled_dot_product_attention(q, k, v, scale=0.1)
    assert loaded[2:] == [("", "")]  # back to the CPU's own kernels


def test_stock_runs_on_the_cpu(chosen, rng):
    """Where stock MLX would be told to use a Metal kernel, there is none to use."""
    chosen("software-metal:applegpu_g16s")
    q, k, v = inputs(rng, 70, 90, 128)
    for path, D in (("auto", 128), ("fused", 128), ("stock", 256), ("unfused", 256)):
        q, k, v = inputs(rng, 70, 90, D)
        out = attention.scaled_dot_product_attention(q, k, v, scale=0.1, path=path)
        expected = attention.stock_attention(q, k, v, scale=0.1)
        assert mx.allclose(out, expected, rtol=1e-5, atol=1e-5).item()
    here = device.current()._replace(tiles=())
    place = attention._Place(here, limits.settings())
    q, k, v = inputs(rng, 70, 90, 256)
    problem = attention._problem(q, k, v, None, None, None, None, False)
    assert router.route(problem, here, place.limits, "fused").forces_stock
    assert not place.route(problem, "fused", False, (q, k, v, None, None)).forces_stock


@pytest.mark.parametrize(
    ("missing", "says"),
    [
        ("emulator", "needs the package `emulator`.*add the folder of a checkout to PYTHONPATH"),
        ("ziglang", "needs a compiler: pip install ziglang"),
    ],
)
def test_what_is_missing_is_named(missing, says, chosen, rng, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(software, "_loaded", None)
    chosen("software-metal")
    monkeypatch.setattr(software, "find_spec", lambda name: None if name == missing else name)
    q, k, v = inputs(rng, 20, 30, 192)
    with pytest.raises(ImportError, match=says):
        attention.scaled_dot_product_attention(q, k, v, scale=0.1)
    # the patch does not hide it
    with patched(), pytest.raises(ImportError, match=says):
        mx.fast.scaled_dot_product_attention(q, k, v, scale=0.1)


SOFTWARE = {"MLX_SDPA_EXT_DEVICE": "software-metal:applegpu_g16s"}


def test_explain_says_that_it_is_software():
    asked = ("--q", "1,8,2048,256", "--k", "1,2,32768,256", "--mask", "causal")
    done = call("explain", *asked, env=SOFTWARE)
    assert "on metal applegpu_g16s, played by this CPU in software" in done.stdout
    answer = json.loads(call("explain", *asked, "--json", env=SOFTWARE).stdout)
    assert answer["device"]["software"]
    assert answer["route"]["kernel"].startswith("sdpa_prefill_bfloat16_d256")


def test_the_cpu_may_still_be_asked_about(chosen):
    chosen("software-metal")
    assert device.current(mx.cpu).backend == "metal"
    assert device.cpu().backend == "cpu" and device.cpu() is device.cpu()
    assert "fused by this package" in attention.supports(300, backend="cpu").reason
    done = call("explain", "--q", "1,8,64,256", "--k", "1,2,64,256", "--backend", "cpu")
    assert "on cpu " in done.stdout, done.stderr
    done = call(
        *("explain", "--q", "1,8,64,256", "--k", "1,2,64,256", "--backend", "cpu"), env=SOFTWARE
    )
    assert "on cpu " in done.stdout, done.stderr


def test_the_settings_that_are_not_here_are_a_finding():
    if mx.metal.is_available():
        pytest.skip("this machine has Metal")
    done = call("doctor", env={"MLX_SDPA_EXT_DEVICE": "metal"})
    assert done.returncode == 1
    assert "MLX_SDPA_EXT_DEVICE: got 'metal', and this MLX has no Metal GPU" in done.stdout
    assert "to mend it: unset MLX_SDPA_EXT_DEVICE" in done.stdout


def test_failures_of_the_device_are_in_the_stats(monkeypatch):
    monkeypatch.setattr(_ext, "gpu", lambda: {"failures": [("sdpa_merge_x", "lost")]})
    monkeypatch.setattr(first_use, "_failed", {"sdpa_decode_x": "wrong"})
    assert stats().failed_kernels == {"sdpa_merge_x": "lost", "sdpa_decode_x": "wrong"}
