"""The macOS wheel that Linux builds: what is checked of it holds, and every planted fault shows.

It is never loaded here, and nothing of this ran on Apple hardware.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from macos import checks, mlx_wheels, python_headers, toolchain
from macos.system_libraries import LIBCXX
from macos.wheel_file import Wheel
from macos_build import TOOLS, build, not_on_a_mac, tool
from macos_faults import (
    appended,
    import_renamed,
    newer_libmlx,
    newer_macos,
    renamed,
    replaced,
    signature_shortened,
    text_changed,
    wheel_with,
    with_module,
    without,
)
from mlx_sdpa_ext._mlx_versions import DEFAULT_MLX, NANOBIND_FOR_MLX

pytestmark = not_on_a_mac

OTHERS = [mlx for mlx in NANOBIND_FOR_MLX if mlx != DEFAULT_MLX]


def test_every_check_passes(macos_wheel):
    done = tool("check_macos_wheel.py", macos_wheel.wheel)
    assert done.returncode == 0
    assert done.stdout.count(" ok ") == len(checks.CHECKS)


def test_pip_takes_it_for_a_mac(macos_wheel, tmp_path):
    platform = [
        "--platform",
        mlx_wheels.PLATFORM,
        "--python-version",
        Wheel(macos_wheel.wheel).python,
    ]
    only = ["--only-binary=:all:", "--no-deps", "--target", str(tmp_path)]
    command = [sys.executable, "-m", "pip", "install", *platform, *only, str(macos_wheel.wheel)]
    subprocess.run(command, check=True)
    (module,) = (tmp_path / "mlx_sdpa_ext").glob("_ext.*.so")
    assert module.read_bytes()[:4] == bytes.fromhex("cffaedfe")  # Mach-O, 64 bits


@pytest.mark.parametrize("mlx", OTHERS)
def test_the_other_supported_mlx(mlx, tmp_path):
    """Compiled against their headers, linked against their library, and checked as the first."""
    built = build(tmp_path, "--mlx", mlx)
    done = tool("check_macos_wheel.py", built.wheel)
    assert done.returncode == 0
    assert Wheel(built.wheel).mlx == mlx


HASH_MEMORY = b"__ZNSt3__113__hash_memoryEPKvm"  # in libc++ since macOS 15.4
KERNEL = "mlx_sdpa_ext/kernels/metal/prefill.h"
# By the check that has to find them.
FAULTS = {
    "imports from libmlx": {
        "a hidden MLX symbol": with_module(
            import_renamed(checks.LIBMLX, b"__ZN3mlx4core6hiddenEv")
        ),
    },
    "imports from libc++.1.dylib": {
        "a libc++ symbol newer than macOS 14": with_module(import_renamed(LIBCXX, HASH_MEMORY)),
    },
    f"imports from CPython {sys.version_info.major}.{sys.version_info.minor}": {
        "a Python function that CPython lacks": with_module(
            renamed(b"_PyCapsule_New", b"_PyCapsule_Old")
        ),
    },
    "kernels and Python files as in the checkout": {
        "a missing kernel file": without(KERNEL),
        "a changed kernel file": appended(KERNEL, b"\n"),
    },
    "signature": {
        "a broken signature": with_module(text_changed, sign=False),
        "a signature without its end": with_module(signature_shortened, sign=False),
        "bytes after the signature": with_module(lambda data, _: data + b"\0" * 16, sign=False),
    },
    "deployment target": {"a newer macOS": with_module(newer_macos)},
    "rpath": {
        "another rpath": with_module(
            lambda data, _: data.replace(b"../mlx/lib\0", b"../mlx/LIB\0")
        ),
    },
    "paths of the build machine": {
        "a path of the build machine": with_module(
            lambda data, _: data.replace(b"/sys/fs/cgroup/cpu", b"/home/someone/cpux")
        ),
    },
    "architecture and kind": {
        "another kind of arm64": with_module(  # arm64e
            lambda data, _: data[:8] + b"\x02\0\0\x80" + data[12:]
        ),
    },
    "libraries": {"a newer libmlx": with_module(newer_libmlx)},
    "name, METADATA, WHEEL, entry points": {
        "another version in the metadata": replaced("/METADATA", b"Version: 0.", b"Version: 9."),
        "a newer Python asked for": replaced(
            "/METADATA", b"Requires-Python: >=3.10", b"Requires-Python: >=3.99"
        ),
        "the build tag of another MLX": replaced("/WHEEL", b"Build: 1mlx", b"Build: 2mlx"),
        "no command": replaced("/entry_points.txt", b"mlx-sdpa-ext", b"mlx-sdpa"),
    },
    "MLX pinned, and compiled against": {
        "another MLX in the build's record": replaced(
            "_build_info.py", DEFAULT_MLX.encode(), b"0.0.1"
        ),
    },
    "tags of the name and of WHEEL": {
        "a tag for another CPython": replaced("/WHEEL", b"Tag: cp3", b"Tag: cp2"),
    },
}


@pytest.mark.parametrize(
    ("check", "fault"), [(check, fault) for check, faults in FAULTS.items() for fault in faults]
)
def test_a_planted_fault_shows_in_its_check_alone(check, fault, macos_wheel, tmp_path):
    changed = wheel_with(FAULTS[check][fault], macos_wheel.wheel, tmp_path)
    rows = list(checks.run(changed, tmp_path))
    assert [row.check for row in rows if row.misses] == [check]


def test_another_nanobind(macos_wheel, tmp_path):
    """By the tag of the installed one, whichever that is."""
    row = next(row for row in checks.run(macos_wheel.wheel, tmp_path) if "ABI tag" in row.check)
    tag = row.found.encode()
    older = tag[:-2] + b"%02d" % (int(tag[-2:]) - 1)
    changed = wheel_with(with_module(renamed(tag, older)), macos_wheel.wheel, tmp_path)
    assert [r.check for r in checks.run(changed, tmp_path) if r.misses] == [row.check]


def test_a_file_that_record_does_not_know(macos_wheel, tmp_path):
    changed = wheel_with(
        appended("mlx_sdpa_ext/py.typed", b"\n"), macos_wheel.wheel, tmp_path, record=False
    )
    missed = [row.check for row in checks.run(changed, tmp_path) if row.misses]
    assert missed == ["RECORD", "kernels and Python files as in the checkout"]


def test_what_a_native_build_adds(macos_wheel, tmp_path):
    """nanobind's stubs, from a module that it can import."""

    def add(files, _):
        files["mlx_sdpa_ext/_ext.pyi"] = b"..."

    changed = wheel_with(add, macos_wheel.wheel, tmp_path)
    assert not [row for row in checks.run(changed, tmp_path) if row.misses]


def test_two_pins_of_mlx(macos_wheel, tmp_path):
    two = replaced(
        "/METADATA", b"Requires-Dist: mlx==", b"Requires-Dist: mlx==0.1\nRequires-Dist: mlx=="
    )
    changed = wheel_with(two, macos_wheel.wheel, tmp_path)
    done = tool("check_macos_wheel.py", changed)
    assert done.returncode == 1
    assert f"{changed.name}: it pins no one MLX: ==0.1, =={DEFAULT_MLX}" in done.stdout


def test_a_fault_is_printed_and_the_exit_code_is_1(macos_wheel, tmp_path):
    changed = wheel_with(without(KERNEL), macos_wheel.wheel, tmp_path)
    done = tool("check_macos_wheel.py", changed)
    assert done.returncode == 1
    assert f"{KERNEL} is missing" in done.stdout


def test_a_file_that_is_no_wheel(tmp_path):
    name = "mlx_sdpa_ext-0.1.0-cp311-cp311-macosx_14_0_arm64.whl"
    (tmp_path / name).write_bytes(b"nothing")
    done = tool("check_macos_wheel.py", tmp_path / name)
    assert done.returncode == 1
    assert done.stdout == f"check_macos_wheel: {name}: no wheel: File is not a zip file\n"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--mlx", "0.1.0"), "--mlx 0.1.0: this version builds for 0.31.2, 0.32.2, 0.32.4"),
        (
            ("--python-headers", "/nowhere"),
            "/nowhere holds no headers of CPython",
        ),
        (("--linker", "/nowhere/ld64.lld"), "--linker /nowhere/ld64.lld is not LLVM's ld64.lld"),
    ],
)
def test_what_a_wrong_option_is_told(options, says, tmp_path):
    done = tool("macos_wheel.py", "--outdir", tmp_path, *options)
    assert done.returncode == 1
    assert says in done.stdout
    assert "Traceback" not in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_missing_linker_names_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(toolchain.NoLinker, match="pip install iree-base-compiler") as error:
        toolchain.linker(None, tmp_path)
    assert "apt-get install lld-19" in str(error.value)


def test_the_linker_of_the_test_extra(monkeypatch, tmp_path):
    """What the README's command installs is enough where the PATH has no linker."""
    (tmp_path / "bin").mkdir()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path / "bin"))
        found = toolchain.linker(None, tmp_path)
    done = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("LLD ")


@pytest.mark.parametrize("name", ("macos_wheel.py", "check_macos_wheel.py"))
def test_a_missing_package_names_what_to_install(name):
    done = subprocess.run(
        [sys.executable, "-S", str(TOOLS / name), "--help"], capture_output=True, text=True
    )
    assert done.returncode == 1
    said = rf"{name[:-3]}: not installed: .*lief.*typer.* pip install '.*\[test\]'\n"
    assert re.fullmatch(said, done.stderr)


PATCHLEVEL = "#define PY_MAJOR_VERSION 3\n#define PY_MINOR_VERSION  14\n"


@pytest.mark.parametrize("wrapped", (False, True))
def test_headers_of_another_python(wrapped, tmp_path):
    """Debian's pyconfig.h includes that of the architecture, and refuses other systems."""
    headers = tmp_path / "python3.14"
    own = tmp_path / "x86_64-linux-gnu" / "python3.14" if wrapped else headers
    for folder in {headers, own}:
        folder.mkdir(parents=True)
    (headers / "pyconfig.h").write_text("#error unknown multiarch location for pyconfig.h\n")
    (own / "pyconfig.h").write_text("/* #undef Py_GIL_DISABLED */\n")
    (headers / "patchlevel.h").write_text(PATCHLEVEL)
    assert python_headers.version(headers) == "3.14"
    prepared = python_headers.prepare(headers, tmp_path / "prepared")
    assert (prepared / "patchlevel.h").read_text() == PATCHLEVEL
    assert "#undef" in (prepared / "pyconfig.h").read_text()
    for name in ("Py_GIL_DISABLED", "Py_DEBUG"):
        (own / "pyconfig.h").write_text(f"#define {name} 1\n")
        with pytest.raises(python_headers.HeadersError, match=f"{name}: not supported"):
            python_headers.version(headers)
