"""Functions of the macOS wheel's arm64 code answer as the Linux build does.

Unicorn executes the code of the wheel's own module, with the functions found by the linker's map.
"""

from __future__ import annotations

import struct

import pytest
from macos import mlx_wheels, probe
from macos.arm64 import IMPORTS, POISON, ExecutionError, Machine
from macos.checks import LIBMLX
from macos.toolchain import zig
from macos.wheel_file import Wheel
from macos_build import not_on_a_mac
from macos_faults import import_renamed
from mlx_sdpa_ext import _ext

pytestmark = not_on_a_mac

DTYPES = ("float32", "float16", "bfloat16")  # in the order of sdpa::DType
MASKS = ("none", "bool", "additive")  # of sdpa::MaskKind; causal is none of them


@pytest.fixture(scope="module")
def macos(macos_wheel, tmp_path_factory):
    folder = tmp_path_factory.mktemp("arm64")
    wheel = Wheel(macos_wheel.wheel)
    module = folder / "_ext.so"
    module.write_bytes(wheel.files[wheel.module])
    wheels = mlx_wheels.unpacked(wheel.mlx, wheel.python)
    dylib = probe.build_for_macos(zig(), wheels, module, folder / "probe.dylib")
    return probe.MacOS(module, macos_wheel.link_map, dylib, wheels)


@pytest.fixture(scope="module")
def linux(tmp_path_factory):
    return probe.Linux(probe.build_here(tmp_path_factory.mktemp("linux") / "probe.so"))


PROBLEMS = [
    {"B": 1, "Hq": 16, "Hkv": 2, "Lq": 2048, "Lk": 131072, "D": 256, "mask": "causal"},
    {"B": 1, "Hq": 16, "Hkv": 2, "Lq": 2048, "Lk": 32768, "D": 192, "chunk_size": 10000},
    {"B": 2, "Hq": 8, "Hkv": 8, "Lq": 300, "Lk": 77, "D": 80, "dtype": "float32"},
    {"B": 1, "Hq": 32, "Hkv": 8, "Lq": 1, "Lk": 4096, "D": 128, "dtype": "bfloat16"},
    {"B": 4, "Hq": 64, "Hkv": 4, "Lq": 1, "Lk": 65536, "D": 192, "Dv": 128, "sinks": True},
    {"B": 1, "Hq": 128, "Hkv": 1, "Lq": 1, "Lk": 8192, "D": 576, "Dv": 512},
    {"B": 1, "Hq": 8, "Hkv": 2, "Lq": 9, "Lk": 20000, "D": 512, "mask": "bool", "want_lse": True},
    {"B": 1, "Hq": 8, "Hkv": 4, "Lq": 40, "Lk": 9000, "D": 256, "mask": "additive"},
    {"B": 1, "Hq": 4, "Hkv": 2, "Lq": 700, "Lk": 9000, "D": 64, "mask": "causal", "window": 512},
    {"B": 1, "Hq": 4, "Hkv": 4, "Lq": 513, "Lk": 513, "D": 96, "softcap": True},
    {"B": 1, "Hq": 4, "Hkv": 4, "Lq": 64, "Lk": 64, "D": 1024},  # too large
    {"B": 0, "Hq": 4, "Hkv": 4, "Lq": 0, "Lk": 64, "D": 64},
]


@pytest.mark.parametrize("gpu", ["applegpu_g13g", "applegpu_g15s", "applegpu_g14d"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_plan(problem, gpu, macos):
    asked = {"dtype": "float16", "mask": "none", "Dv": problem["D"]} | problem
    try:
        wanted = _ext.plan(**asked, backend="metal", arch=gpu)
    except ValueError as error:
        wanted = str(error)
    numbers = asked | {
        "dtype": DTYPES.index(asked["dtype"]),
        "causal": asked["mask"] == "causal",
        "mask": MASKS.index(asked["mask"]) if asked["mask"] in MASKS else 0,
    }
    found = macos.plan([int(numbers.get(name, 0)) for name in probe.PROBLEM], gpu)
    if isinstance(wanted, str):
        assert found == wanted
    else:
        assert found == {name: wanted[name] for name in (*probe.PLAN, "parts", "kernel")}


@pytest.mark.parametrize("number", range(10))
def test_params(number, macos, linux, rng):
    B, Hkv, group, Lq, Lk = (int(n) for n in rng.integers(1, [5, 5, 9, 300, 3000]))
    D, Dv = (int(n) for n in rng.choice([1, 64, 72, 128, 192, 256, 512], 2))
    q, k, v = (B, Hkv * group, Lq, D), (B, Hkv, Lk, D), (B, Hkv, Lk, Dv)
    mask = (0, 0, 0, 0)
    if number % 2:
        mask = tuple(int(rng.choice([1, full])) for full in (B, Hkv * group, Lq, Lk))
    dtype, swapped, bool_mask, causal, sinks = (int(n) for n in rng.integers([3, 2, 2, 2, 2]))
    window, chunk_size = (int(n) for n in rng.integers(0, 1000, 2))
    call = [*q, *k, *v, *mask, dtype, swapped, bool_mask, causal, window, sinks, chunk_size]
    scale, softcap = (float(x) for x in rng.uniform(0.01, 50, 2))
    found = macos.params(call, scale, softcap)
    assert found == linux.params(call, scale, softcap)
    assert struct.unpack_from("<9i", found) == (
        *(B, Hkv * group, Hkv, group, Lq, Lk, D, Dv, Lk - Lq),
    )


def test_what_cannot_be_run_says_so(macos):
    """Nothing is made up for an import that no file provides."""
    with pytest.raises(ExecutionError, match=r"_PyInit__ext: _Py\w+ was called, which no file"):
        macos.machine.call("_PyInit__ext")


def test_an_endless_function_ends(monkeypatch):
    from macos import arm64

    monkeypatch.setattr(arm64, "BUDGET", 1000)
    machine = Machine()
    machine.symbols["endless"] = machine.allocate(4)
    machine.write(machine.symbols["endless"], bytes.fromhex("00000014"))  # b .
    with pytest.raises(ExecutionError, match="endless did not end in 1000 instructions"):
        machine.call("endless")


def test_memory_that_is_not_there():
    machine = Machine()
    machine.symbols["wild"] = machine.allocate(8)
    machine.write(machine.symbols["wild"], bytes.fromhex("1f0040f9c0035fd6"))  # ldr xzr, [x0]
    with pytest.raises(ExecutionError, match="wild: Invalid memory read"):
        machine.call("wild", 0x10)


def test_a_jump_to_where_nothing_is():
    machine = Machine()
    machine.symbols["lost"] = machine.allocate(8)
    machine.write(machine.symbols["lost"], bytes.fromhex("00001fd6"))  # br x0
    with pytest.raises(
        ExecutionError, match=rf"lost: {IMPORTS + 400:#x} was called, which no file"
    ):
        machine.call("lost", IMPORTS + 400)


def test_memory_that_was_not_written_is_no_zero():
    machine = Machine()
    assert machine.read(machine.allocate(64), 64) == POISON * 64
    machine.symbols["stack"] = machine.allocate(8)
    machine.write(machine.symbols["stack"], bytes.fromhex("e0835ff8c0035fd6"))  # ldur x0, [sp, -8]
    assert machine.call("stack") == int.from_bytes(POISON * 8, "little")


def test_a_hidden_function_is_not_bound(macos_wheel, tmp_path):
    """libmlx.dylib has thousands of them in its table of symbols."""
    wheel = Wheel(macos_wheel.wheel)
    (tmp_path / "module.so").write_bytes(wheel.files[wheel.module])
    data = import_renamed(LIBMLX, b"_hidden")(wheel.files[wheel.module], tmp_path / "module.so")
    (tmp_path / "module.so").write_bytes(data)
    machine = Machine()
    machine.load(tmp_path / "module.so")
    machine.load(mlx_wheels.unpacked(wheel.mlx, wheel.python) / "mlx/lib/libmlx.dylib")
    with pytest.raises(ExecutionError, match=r"@rpath/libmlx\.dylib does not export _hidden"):
        machine.bind()
