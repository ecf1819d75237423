"""device.current(): the Device of a machine; a GPU is stood in for where there is none."""

from __future__ import annotations

import platform
from importlib import metadata

import mlx.core as mx
import pytest
from mlx_sdpa_ext import _ext, cuda, device
from mlx_sdpa_ext.words import Device

GPU = mx.Device(mx.gpu, 0)
METAL = {"architecture": "applegpu_g17s", "max_recommended_working_set_size": 48 << 30}
CUDA = {"architecture": "sm_90", "total_memory": 80 << 30}


def test_the_cpu():
    here = device.current(mx.cpu)
    assert (here.backend, here.arch, here.mlx) == ("cpu", _ext.cpu()["isa"], mx.__version__)
    assert 2**30 < here.memory <= device.cpu_memory()
    assert {tile.backend for tile in here.tiles} == {"cpu"}


def test_it_is_one_that_can_be_named():
    here = device.current(mx.cpu)
    named = Device.named(here.arch, mlx=here.mlx, memory=here.memory, tiles=device.tiles())
    assert named == here


def test_the_device_of_a_stream():
    here = device.current(mx.cpu)
    for stream in (mx.default_stream(mx.cpu), mx.Device(mx.cpu, 0), mx.new_stream(mx.cpu)):
        assert device.current(stream) is here
    with mx.stream(mx.cpu):
        assert device.current() is here


@pytest.mark.parametrize("stream", (0, "cpu", object()))
def test_no_stream(stream):
    name = type(stream).__name__
    with pytest.raises(TypeError, match=f"stream: got {name}; allowed are None, a stream"):
        device.current(stream)


@pytest.fixture
def gpu(monkeypatch):
    """Gives this machine a GPU."""

    def stand_in(backend, info):
        monkeypatch.setattr(mx.metal, "is_available", lambda: backend == "metal")
        monkeypatch.setattr(mx.cuda, "is_available", lambda: backend == "cuda")
        monkeypatch.setattr(mx, "device_count", lambda kind: 1)
        monkeypatch.setattr(mx, "device_info", lambda where: info)
        monkeypatch.setattr(device, "_found", {})
        device._single.cache_clear()

    yield stand_in
    device._single.cache_clear()


def macos(monkeypatch, release, wheel):
    class Wheel:
        def read_text(self, name):
            return f"Wheel-Version: 1.0\nTag: py3-none-macosx_{wheel}_0_arm64\n"

    monkeypatch.setattr(platform, "mac_ver", lambda: (release, ("", "", ""), "arm64"))
    monkeypatch.setattr(metadata, "distribution", lambda name: Wheel())


# MLX uses them on macOS 26.2 or later, and in its wheels for macOS 26 only
@pytest.mark.parametrize(
    ("arch", "release", "wheel", "accelerators"),
    [
        ("applegpu_g17s", "26.2", 26, True),
        ("applegpu_g17s", "27.0.1", 26, True),
        ("applegpu_g17s", "26.1", 26, False),
        ("applegpu_g17s", "26.2", 15, False),
        ("applegpu_g16s", "26.2", 26, False),
    ],
)
def test_metal(arch, release, wheel, accelerators, gpu, monkeypatch):
    macos(monkeypatch, release, wheel)
    gpu("metal", {**METAL, "architecture": arch})
    found = device.current(mx.gpu)
    expected = Device.named(arch, memory=48 << 30, tiles=device.tiles(), mlx=mx.__version__)
    assert found == expected._replace(neural_accelerators=accelerators)


def test_cuda(gpu, monkeypatch):
    monkeypatch.setattr(cuda, "refusal", lambda: None)
    gpu("cuda", CUDA)
    expected = Device.named("sm_90", memory=80 << 30, tiles=device.tiles(), mlx=mx.__version__)
    assert device.current(GPU) == expected


def test_cuda_without_our_library_has_no_kernels_of_ours(gpu, monkeypatch):
    monkeypatch.setattr(cuda, "refusal", lambda: "no driver")
    gpu("cuda", CUDA)
    assert device.current(GPU).tiles == ()


def test_the_switches_of_stock_mlx(gpu, monkeypatch):
    monkeypatch.setattr(cuda, "refusal", lambda: None)
    gpu("cuda", CUDA)
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")
    monkeypatch.setenv("MLX_SDPA_D512_MIN_KL", "4096")
    found = device.current(GPU)
    assert (found.tf32, found.d512_min_keys) == (False, 4096)


def test_a_gpu_that_is_not_there():
    if mx.metal.is_available() or mx.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match=r"stream: got Device\(gpu, 0\), and this MLX has no GPU"):
        device.current(mx.gpu)
