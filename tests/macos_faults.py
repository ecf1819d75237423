"""Faults planted in a macOS wheel. RECORD and signature stay right beside it."""

from __future__ import annotations

import hashlib
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import lief
from macos import system_libraries
from macos.signature import code_directory
from macos.wheel_file import Wheel, digest

Files = dict[str, bytes]
Change = Callable[[bytes, Path], bytes]  # of the module's bytes; the path holds them as a file


def signed(data: bytes, module: Path) -> bytes:
    """With the hashes of what the pages hold now."""
    module.write_bytes(data)
    changed = bytearray(data)
    for page in code_directory(module).pages:
        page_hash = hashlib.sha256(data[page.begin : page.end]).digest()
        changed[page.hash_at : page.hash_at + 32] = page_hash
    return bytes(changed)


def renamed(old: bytes, new: bytes) -> Change:
    """Another name wherever a name stands; the file keeps its length."""
    assert len(new) <= len(old)

    def change(data: bytes, module: Path) -> bytes:
        assert b"\0" + old + b"\0" in data
        padded = new + b"\0" * (len(old) - len(new))
        return data.replace(b"\0" + old + b"\0", b"\0" + padded + b"\0")

    return change


def import_renamed(library: str, new: bytes) -> Change:
    """Some import of a library gets another name; it must be as long."""

    def change(data: bytes, module: Path) -> bytes:
        names = (n for n, home in system_libraries.imports(module).items() if home == library)
        return renamed(max(names, key=len).encode(), new)(data, module)

    return change


def _command(module: Path, kind: lief.MachO.LoadCommand.TYPE) -> int:
    """Where in the file the first load command of a kind begins."""
    binary = system_libraries.parse(module)
    return next(c.command_offset for c in binary.commands if c.command == kind)


def _number(data: bytes, at: int, value: int, order: str = "<") -> bytes:
    return data[:at] + struct.pack(f"{order}I", value) + data[at + 4 :]


def newer_macos(data: bytes, module: Path) -> bytes:
    at = _command(module, lief.MachO.LoadCommand.TYPE.BUILD_VERSION)
    return _number(data, at + 12, 15 << 16)  # minos


def newer_libmlx(data: bytes, module: Path) -> bytes:
    at = _command(module, lief.MachO.LoadCommand.TYPE.LOAD_DYLIB)
    assert b"libmlx" in data[at + 24 : at + 48]
    return _number(data, at + 20, 9 << 16)  # compatibility_version


def signature_shortened(data: bytes, module: Path) -> bytes:
    """The code directory says that it ends before its hashes."""
    binary = system_libraries.parse(module)
    start = binary.code_signature.data_offset
    (offset,) = struct.unpack_from(">I", data, start + 16)
    return _number(data, start + offset + 4, 88, ">")


def text_changed(data: bytes, module: Path) -> bytes:
    binary = system_libraries.parse(module)
    section = binary.get_section("__text")
    at = section.offset + section.size // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def with_module(change: Change, sign: bool = True) -> Callable[[Files, Path], None]:
    def apply(files: Files, scratch: Path) -> None:
        (name,) = (n for n in files if n.endswith(".so"))
        module = scratch / "module.so"
        module.write_bytes(files[name])
        data = change(files[name], module)
        files[name] = signed(data, module) if sign else data

    return apply


def without(name: str) -> Callable[[Files, Path], None]:
    return lambda files, scratch: files.__delitem__(name)


def appended(name: str, text: bytes) -> Callable[[Files, Path], None]:
    return lambda files, scratch: files.__setitem__(name, files[name] + text)


def replaced(suffix: str, old: bytes, new: bytes) -> Callable[[Files, Path], None]:
    def apply(files: Files, scratch: Path) -> None:
        (name,) = (n for n in files if n.endswith(suffix))
        assert old in files[name]
        files[name] = files[name].replace(old, new)

    return apply


def wheel_with(
    fault: Callable[[Files, Path], None], wheel: Path, folder: Path, record: bool = True
) -> Path:
    """The wheel with a fault, in a folder of its own; RECORD agrees with it unless told not to."""
    files = dict(Wheel(wheel).files)
    fault(files, folder)
    (recorded,) = (n for n in files if n.endswith("/RECORD"))
    if record:
        files[recorded] = "".join(
            f"{name},{digest(data)},{len(data)}\n" if name != recorded else f"{name},,\n"
            for name, data in files.items()
        ).encode()
    changed = folder / wheel.name
    with zipfile.ZipFile(changed, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return changed
