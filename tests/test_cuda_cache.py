"""Compiled CUDA kernels are kept on disk: found again, and never taken for what they are not.

The compiler of the CUDA backend is built by itself here and given NVRTC; no GPU is needed.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import nvrtc
import pytest

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="NVRTC and CUDA's headers are not there on macOS"
)

TESTS = Path(__file__).parent
KERNEL = 'extern "C" __global__ void sdpa_kernel(int* out) { *out = NUMBER; }\n'
ROOM = 1 << 20


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> ctypes.CDLL:
    nvrtc.library()  # the backend takes the copy that is loaded
    out = tmp_path_factory.mktemp("shim") / "shim.so"
    sources = [TESTS / "cuda_compiler_shim.cpp"]
    sources += [
        nvrtc.REPO / f"src/backends/cuda/{name}.cpp" for name in ("compiler", "cubin_cache")
    ]
    flags = ["-std=c++20", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", f"-I{nvrtc.REPO}"]
    subprocess.run(["g++", *flags, *map(str, sources), "-o", str(out), "-ldl"], check=True)
    loaded = ctypes.CDLL(str(out))
    loaded.shim_compile.restype = ctypes.c_long
    return loaded


class Compiler:
    """The backend's compiler on sources and a cache of its own."""

    def __init__(self, library: ctypes.CDLL, folder: Path) -> None:
        self.library, self.sources, self.cache = library, folder / "sources", folder / "cache"
        self.kernel = self.sources / "kernels/cuda/one.cuh"
        self.kernel.parent.mkdir(parents=True)
        self.kernel.write_text(KERNEL)
        (self.sources / "kernels/params.h").write_text("")
        self.keep_in(self.cache)

    def keep_in(self, folder: Path | str) -> None:
        self.library.shim_folders(str(self.sources).encode(), str(folder).encode())

    def __call__(self, number: int = 1, arch: str = "sm_90a") -> bytes:
        out = ctypes.create_string_buffer(ROOM)
        args = (b"kernels/cuda/one.cuh", arch.encode(), f"NUMBER={number}".encode())
        size = self.library.shim_compile(*args, out, ctypes.c_long(ROOM))
        if size < 0:
            raise RuntimeError(out.value.decode())
        return out.raw[:size]

    def kept(self) -> list[Path]:
        return sorted(self.cache.glob("*")) if self.cache.exists() else []


@pytest.fixture
def compiler(library, tmp_path) -> Compiler:
    return Compiler(library, tmp_path)


def test_a_kernel_is_compiled_once(compiler):
    cubin = compiler()
    assert cubin.startswith(b"\x7fELF")
    (path,) = compiler.kept()
    assert path.read_bytes()[32:] == cubin
    written = path.stat().st_mtime_ns
    assert compiler() == cubin
    assert path.stat().st_mtime_ns == written


def test_what_is_kept_is_what_is_used(compiler):
    """The kernel of another number under this one's name: only a cache that is read gives it."""
    compiler(1)
    (first,) = compiler.kept()
    two = compiler(2)
    (second,) = set(compiler.kept()) - {first}
    shutil.copy(second, first)
    assert compiler(1) == two


@pytest.mark.parametrize("size", (0, 10, 32, 33, -1))
def test_a_file_that_was_cut_short_is_compiled_again(size, compiler):
    cubin = compiler()
    (path,) = compiler.kept()
    whole = path.read_bytes()
    path.write_bytes(whole[:size])
    assert compiler() == cubin
    assert path.read_bytes() == whole


def test_a_changed_byte_is_seen(compiler):
    cubin = compiler()
    (path,) = compiler.kept()
    spoilt = bytearray(path.read_bytes())
    spoilt[len(spoilt) // 2] ^= 1
    path.write_bytes(spoilt)
    assert compiler() == cubin


def test_all_that_a_kernel_is_made_of_is_in_its_name(compiler):
    compiler()
    compiler(number=2)
    compiler(arch="sm_80")
    assert len(compiler.kept()) == 3
    compiler.kernel.write_text(KERNEL + "// changed\n")
    compiler()
    assert len(compiler.kept()) == 4
    (compiler.kernel.parent / "another.cuh").write_text("// what a kernel may include\n")
    compiler()
    assert len(compiler.kept()) == 5
    assert not [path for path in compiler.kept() if path.suffix != ".cubin"]


@pytest.mark.parametrize("where", ("nowhere", "a file"))
def test_without_a_folder_kernels_are_compiled_each_time(where, compiler, tmp_path):
    cubin = compiler()
    (tmp_path / "file").write_text("")
    compiler.keep_in("" if where == "nowhere" else tmp_path / "file" / "cache")
    assert compiler() == compiler() == cubin


def test_what_does_not_compile_says_why_and_is_not_kept(compiler):
    compiler.kernel.write_text("this is no kernel\n")
    with pytest.raises(RuntimeError, match=r"does not compile: .*one\.cuh"):
        compiler()
    assert compiler.kept() == []
