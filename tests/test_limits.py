"""The environment table, the profiles, and the Limits that follow."""

from __future__ import annotations

import inspect
from pathlib import Path

import mlx_sdpa_ext
import pytest
from mlx_sdpa_ext import limits
from mlx_sdpa_ext.profiles import profile, shipped
from mlx_sdpa_ext.words import Device

GiB = 2**30
CPU = Device.named("avx2", memory=16 * GiB)
M4_MAX = Device.named("applegpu_g16s", memory=32 * GiB)
H200 = Device.named("sm_90", memory=141 * 10**9)
PACKAGE = Path(inspect.getfile(mlx_sdpa_ext)).parent


def test_the_defaults_are_the_documented_ones():
    documented = {row.name: row.default for row in limits.VARIABLES}
    bounds = limits.of(M4_MAX)
    assert str(bounds.chunk_threshold) == documented["MLX_SDPA_CHUNK_THRESHOLD"]
    assert str(bounds.chunk_size) == documented["MLX_SDPA_CHUNK_SIZE"]
    assert str(bounds.fused_min_keys) == documented["MLX_SDPA_EXT_FUSED_MIN_KEYS"]
    assert f"{bounds.dispatch_ms:g}" == documented["MLX_SDPA_EXT_DISPATCH_MS"]
    margin = documented["MLX_SDPA_EXT_MEMORY_LIMIT"]
    assert margin == "what the device can still give, less a margin"
    for device in (CPU, M4_MAX, H200):
        bounds = limits.of(device)
        assert bounds.memory_margin == bounds.block_bytes == device.memory // 8
        assert bounds.memory_limit == limits.less_margin(device.memory, bounds.memory_margin)
        assert not bounds.chunk_asked


def test_the_environment_is_on_top_of_the_profile():
    chosen = limits.read(
        {
            "MLX_SDPA_CHUNK_THRESHOLD": "1000",
            "MLX_SDPA_CHUNK_SIZE": "100",
            "MLX_SDPA_EXT_FUSED_MIN_KEYS": "0",
            "MLX_SDPA_EXT_MEMORY_LIMIT": "256MiB",
            "MLX_SDPA_EXT_PROFILE": "none",
            "MLX_SDPA_EXT_DISPATCH_MS": "50",
            "MLX_SDPA_EXT_DEVICE": "software-metal",
            "MLX_SDPA_EXT_CPU_THREADS": "3",
            "MLX_SDPA_EXT_CPU_ISA": "avx2",
            "MLX_SDPA_EXT_DISABLE": "0",
            "MLX_SDPA_EXT_LOG": "1",
        }
    )
    device = "software-metal:applegpu_g15s"
    assert chosen == limits.Settings(
        1000, 100, 0, 256 << 20, "none", 50, device, 3, "avx2", False, True
    )
    assert chosen.software_arch == "applegpu_g15s"
    bounds = limits.of(M4_MAX, chosen)
    assert (bounds.chunk_threshold, bounds.chunk_size, bounds.chunk_asked) == (1000, 100, True)
    assert (bounds.fused_min_keys, bounds.memory_limit) == (0, 256 << 20)
    plain = limits.of(M4_MAX)
    assert bounds.fused_dim == plain.fused_dim
    assert (bounds.dispatch_ms, plain.dispatch_ms) == (50, 250)
    assert bounds.dispatch_flops == plain.dispatch_flops // 5
    assert limits.of(CPU, chosen).dispatch_flops == 0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("536870912", 512 << 20),
        ("512MiB", 512 << 20),
        (" 1.5 GiB ", 3 << 29),
        ("2GB", 2 * 10**9),
        ("3KB", 3000),
        ("1TiB", 1 << 40),
        ("7B", 7),
    ],
)
def test_bytes(text, value):
    assert limits.parse_bytes(text) == value


@pytest.mark.parametrize("text", ("", "0", "-1", "2G", "1,5GB", "GB", "0.1B", "1e9", "2 GB GB"))
def test_no_bytes(text):
    with pytest.raises(ValueError, match="512MiB or 2GB"):
        limits.parse_bytes(text)


BAD = [
    ("MLX_SDPA_CHUNK_THRESHOLD", "64k", "a whole number from 1 to 2147483647"),
    ("MLX_SDPA_CHUNK_SIZE", "0", "a whole number from 1 to 2147483647"),
    ("MLX_SDPA_CHUNK_SIZE", "2147483648", "a whole number from 1 to 2147483647"),
    ("MLX_SDPA_EXT_FUSED_MIN_KEYS", "-1", "a whole number from 0 to 2147483647"),
    ("MLX_SDPA_EXT_MEMORY_LIMIT", "half", "512MiB or 2GB"),
    ("MLX_SDPA_EXT_PROFILE", "off", "the name of a .json file, or none"),
    ("MLX_SDPA_EXT_DISPATCH_MS", "0", "a whole number from 1 to 60000"),
    (
        "MLX_SDPA_EXT_DEVICE",
        "gpu",
        "cpu, metal, cuda, software-metal or software-metal:applegpu_g15s",
    ),
    ("MLX_SDPA_EXT_DEVICE", "software-metal:g15s", "cpu, metal, cuda, software-metal or"),
    ("MLX_SDPA_EXT_DEVICE", "metal:applegpu_g15s", "cpu, metal, cuda, software-metal or"),
    ("MLX_SDPA_EXT_CPU_THREADS", "all", "a whole number from 1 to 1024"),
    ("MLX_SDPA_EXT_CPU_THREADS", "99999999999", "a whole number from 1 to 1024"),
    ("MLX_SDPA_EXT_CPU_ISA", "AVX-512", "the name of an instruction set, such as avx2"),
    ("MLX_SDPA_EXT_DISABLE", "yes", "0 or 1"),
    ("MLX_SDPA_EXT_LOG", "2", "0 or 1"),
]


@pytest.mark.parametrize(("name", "text", "allowed"), BAD)
def test_a_bad_value_is_refused(name, text, allowed, environment):
    environment.setenv(name, text)
    with pytest.raises(ValueError, match=f"{name}: got '{text}', allowed is .*{allowed}"):
        limits.refresh()
    assert limits.settings() == limits.NOTHING_SET  # as before


def test_every_variable_has_a_bad_value_above():
    assert {name for name, _, _ in BAD} == {row.name for row in limits.VARIABLES}


@pytest.mark.parametrize(
    ("text", "value", "arch"),
    [
        ("cpu", "cpu", None),
        ("metal", "metal", None),
        ("software-metal", "software-metal:applegpu_g15s", "applegpu_g15s"),
        ("software-metal:applegpu_g13g", "software-metal:applegpu_g13g", "applegpu_g13g"),
    ],
)
def test_devices(text, value, arch):
    chosen = limits.read({"MLX_SDPA_EXT_DEVICE": text})
    assert (chosen.device, chosen.software_arch) == (value, arch)


def test_an_empty_value_is_none():
    assert limits.read({row.name: " " for row in limits.VARIABLES}) == limits.NOTHING_SET


def test_changes_count_from_refresh_on(environment):
    before = limits.settings()
    environment.setenv("MLX_SDPA_EXT_MEMORY_LIMIT", "1GB")
    assert limits.settings() is before
    assert limits.of(CPU, limits.settings()).memory_limit == 8 * GiB  # half of 16, all free
    limits.refresh()
    assert limits.of(CPU, limits.settings()).memory_limit == 10**9
    assert limits.in_force() == {"MLX_SDPA_EXT_MEMORY_LIMIT": "1GB"}


def test_changes_inside_a_block(environment):
    before = limits.settings()
    with limits.using(memory_limit=5):
        assert limits.settings() == before._replace(memory_limit=5)
    assert limits.settings() is before


def test_disable_is_read_when_asked(environment):
    assert not limits.disabled()
    environment.setenv("MLX_SDPA_EXT_DISABLE", "1")
    assert limits.disabled()
    environment.setenv("MLX_SDPA_EXT_DISABLE", "on")
    with pytest.raises(ValueError, match="MLX_SDPA_EXT_DISABLE: got 'on'"):
        limits.disabled()


def test_the_package_reads_its_variables_in_one_place():
    readers = []
    for file in sorted(PACKAGE.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        ours = any(row.name in text for row in limits.VARIABLES)
        if ours and ("environ" in text or "getenv" in text):
            readers.append(file.name)
    assert readers == ["limits.py"]


@pytest.mark.parametrize("row", shipped(), ids=lambda row: f"{row.backend} {row.arch}")
def test_each_number_of_a_profile_says_where_it_comes_from(row):
    assert row.backend in ("cpu", "metal", "cuda")
    for name, entry in row.values.items():
        assert len(entry.meaning) > 20, name
        assert len(entry.source) > 20, name


def test_a_device_takes_the_rows_of_its_class():
    files = {entry.file for entry in profile("metal", "applegpu_g14d").values()}
    assert files == {"metal.json", "metal-ultra.json"}
    work = [
        limits.of(Device.named(arch)).dispatch_flops
        for arch in ("applegpu_g13g", "applegpu_g13s", "applegpu_g13d")
    ]
    assert work == sorted(set(work))
    assert limits.of(CPU).dispatch_flops == limits.of(H200).dispatch_flops == 0  # no watchdog


def test_some_rows_are_for_neural_accelerators_only():
    old, new = (Device.named(f"applegpu_g{generation}s") for generation in (16, 17))
    assert limits.of(old).unfused_dim == 256
    assert limits.of(new).unfused_dim == 128
    assert limits.of(new._replace(neural_accelerators=False)) == limits.of(old)
    assert limits.of(new, limits.Settings(fused_min_keys=16384)) == limits.of(old)
