"""Runs functions of arm64 Mach-O files on Linux: Unicorn executes the code, this loads it.

A `Machine` maps files, binds their imports to each other and to `SYSTEM`, the few functions of
libSystem that are written here, and calls a function with numbers and buffers. No initialiser of a
file runs, no thread, no Objective-C. An import that nothing provides is an error when it is called.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import lief
import unicorn
from macos.system_libraries import parse
from unicorn import arm64_const as arm64

PAGE = 0x4000
STACK, STACK_BYTES = 0x7000_0000, 1 << 20
HEAP, HEAP_BYTES = 0x1_0000_0000, 1 << 26
IMPORTS, IMPORTS_BYTES = (
    0x6000_0000,
    1 << 20,
)  # one RET for each import that is no code of the files
FIRST_IMAGE = 0x2_0000_0000
FINISH = IMPORTS + IMPORTS_BYTES - 4  # where a call returns to
POISON = b"\xa5"  # memory that was not written
RET = bytes.fromhex("c0035fd6")
BUDGET = 200_000_000  # instructions of a call
N_TYPE, N_SECT = 0x0E, 0x0E  # <mach-o/nlist.h>: the symbol is defined in a section

System = Callable[["Machine", tuple[int, ...]], int]


class ExecutionError(Exception):
    """The code called what is not there, touched memory that is not its own, or did not end."""


def _copy(m: Machine, a: tuple[int, ...]) -> int:
    m.write(a[0], m.read(a[1], a[2]))
    return a[0]


def _fill(m: Machine, a: tuple[int, ...]) -> int:
    m.write(a[0], bytes([a[1] & 255]) * a[2])
    return a[0]


def _compare(m: Machine, a: tuple[int, ...]) -> int:
    one, other = m.read(a[0], a[2]), m.read(a[1], a[2])
    return (one > other) - (one < other)


def _nothing(m: Machine, a: tuple[int, ...]) -> int:
    return 0


SYSTEM: dict[str, System] = {
    "_malloc": lambda m, a: m.allocate(a[0]),
    "_aligned_alloc": lambda m, a: m.allocate(a[1], a[0]),
    "_free": _nothing,
    "_memcpy": _copy,
    "_memmove": _copy,
    "_memset": _fill,
    "_bzero": lambda m, a: _fill(m, (a[0], 0, a[1])),
    "_memcmp": _compare,
    "_strlen": lambda m, a: len(m.text(a[0])),
    "___cxa_atexit": _nothing,
    "_pthread_self": lambda m, a: STACK,
    "_pthread_mach_thread_np": lambda m, a: 1,
    "_pthread_mutex_lock": _nothing,
    "_pthread_mutex_unlock": _nothing,
    "_pthread_cond_broadcast": _nothing,
}


def functions(link_map: Path) -> dict[str, int]:
    """Addresses of what the linker took from object files, by its map; not the stubs of imports."""
    text = link_map.read_text()
    files = dict(re.findall(r"^\[ *(\d+)\] (.+)$", text, re.MULTILINE))
    entries = re.findall(r"^0x(\w+)\t0x\w+\t\[ *(\d+)\] (\S+)$", text, re.MULTILINE)
    return {
        name: int(address, 16)
        for address, file, name in entries
        if files[file].endswith((".o", ".o)"))
    }


class Machine:
    def __init__(self) -> None:
        self.cpu = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        self.cpu.ctl_set_cpu_model(arm64.UC_CPU_ARM64_MAX)
        for begin, size in ((STACK, STACK_BYTES), (HEAP, HEAP_BYTES), (IMPORTS, IMPORTS_BYTES)):
            self.cpu.mem_map(begin, size)
        self.cpu.mem_write(IMPORTS, RET * (IMPORTS_BYTES // 4))
        self.cpu.hook_add(
            unicorn.UC_HOOK_CODE, self._import, begin=IMPORTS, end=IMPORTS + IMPORTS_BYTES
        )
        self.symbols: dict[str, int] = {}
        self._imports: list[str] = []
        self._bindings: list[tuple[int, str, int, str]] = []
        self._exports: dict[str, set[str]] = {}
        self._next_image = FIRST_IMAGE
        self._heap = HEAP
        self.write(HEAP, POISON * HEAP_BYTES)
        self._error: Exception | None = None

    def load(self, file: Path, link_map: Path | None = None) -> None:
        """Map a file. The names of functions that its own table lacks come from its link map.

        Where two files have a function of one name, calls from anywhere go to that of the first.
        """
        binary = parse(file)
        base = self._next_image
        end = max(s.virtual_address + s.virtual_size for s in binary.segments)
        self._next_image += -(-end // PAGE) * PAGE + (1 << 24)
        self.cpu.mem_map(base, -(-end // PAGE) * PAGE)
        data = file.read_bytes()
        for s in binary.segments:
            content = data[s.file_offset : s.file_offset + s.file_size]
            self.write(base + s.virtual_address, content)
        self._rebase(binary, base)
        for binding in binary.bindings:
            library = binding.library.name if binding.has_library else ""
            self._bindings.append(
                (base + binding.address, binding.symbol.name, binding.addend, library)
            )
        for library in binary.libraries:
            if library.command == lief.MachO.LoadCommand.TYPE.ID_DYLIB:
                self._exports[library.name] = {s.name for s in binary.exported_symbols}
        for symbol in binary.symbols:
            if symbol.raw_type & N_TYPE == N_SECT:
                self.symbols.setdefault(symbol.name, base + symbol.value)
        for name, address in functions(link_map).items() if link_map else ():
            self.symbols.setdefault(name, base + address)

    def _rebase(self, binary: lief.MachO.Binary, base: int) -> None:
        for relocation in binary.relocations:
            at = base + relocation.address
            if isinstance(relocation, lief.MachO.RelocationFixup):
                target = relocation.target
            else:
                (target,) = struct.unpack("<Q", self.read(at, 8))
            self.write(at, struct.pack("<Q", base + target))

    def bind(self) -> None:
        """Resolve the imports of all files that are loaded.

        Raises:
            ExecutionError: a file wants of another what that hides.
        """
        for at, name, addend, library in self._bindings:
            if name not in self._exports.get(library, {name}):
                raise ExecutionError(f"{library} does not export {name}")
            home = self.symbols.get(name) if name not in SYSTEM else None
            if home is None:
                home = IMPORTS + 4 * len(self._imports)
                self._imports.append(name)
            self.write(at, struct.pack("<Q", home + addend))
        self._bindings.clear()

    def call(self, name: str, *integers: int, floats: Iterable[float] = ()) -> int:
        """The integer that a function returns.

        Raises:
            ExecutionError: it did not return.
            KeyError: no file that is loaded has it.
        """
        for number, value in enumerate(integers):
            self.cpu.reg_write(getattr(arm64, f"UC_ARM64_REG_X{number}"), value)
        for number, value in enumerate(floats):
            bits = int.from_bytes(struct.pack("<f", value), "little")
            self.cpu.reg_write(getattr(arm64, f"UC_ARM64_REG_S{number}"), bits)
        self.write(STACK, POISON * STACK_BYTES)
        self.cpu.reg_write(arm64.UC_ARM64_REG_SP, STACK + STACK_BYTES - 64)
        self.cpu.reg_write(arm64.UC_ARM64_REG_LR, FINISH)
        self._error = None
        try:
            self.cpu.emu_start(self.symbols[name], FINISH, count=BUDGET)
        except unicorn.UcError as error:
            raise ExecutionError(f"{name}: {error} at {self._where()}") from None
        if self._error:
            raise ExecutionError(f"{name}: {self._error}") from self._error
        if self.cpu.reg_read(arm64.UC_ARM64_REG_PC) != FINISH:
            raise ExecutionError(f"{name} did not end in {BUDGET} instructions")
        return self.cpu.reg_read(arm64.UC_ARM64_REG_X0)

    def _where(self) -> str:
        pc = self.cpu.reg_read(arm64.UC_ARM64_REG_PC)
        before = {n: a for n, a in self.symbols.items() if a <= pc}
        name = max(before, key=before.__getitem__) if before else "nowhere"
        return f"{pc:#x} in {name}"

    def _import(self, cpu: unicorn.Uc, address: int, size: int, _: object) -> None:
        if address == FINISH:
            return
        number = (address - IMPORTS) // 4
        name = self._imports[number] if number < len(self._imports) else f"{address:#x}"
        arguments = tuple(
            cpu.reg_read(getattr(arm64, f"UC_ARM64_REG_X{register}")) for register in range(4)
        )
        try:
            if name not in SYSTEM:
                raise ExecutionError(f"{name} was called, which no file provides")
            cpu.reg_write(arm64.UC_ARM64_REG_X0, SYSTEM[name](self, arguments) & (1 << 64) - 1)
        except Exception as error:  # would be lost in the C code that called this
            self._error = error
            cpu.emu_stop()

    def allocate(self, size: int, alignment: int = 16) -> int:
        """Poisoned memory, which is never given back.

        Raises:
            ExecutionError: there is no more.
        """
        begin = -(-self._heap // alignment) * alignment
        self._heap = begin + max(size, 1)
        if self._heap > HEAP + HEAP_BYTES:
            raise ExecutionError("the heap is used up")
        return begin

    def read(self, at: int, size: int) -> bytes:
        return bytes(self.cpu.mem_read(at, size))

    def write(self, at: int, data: bytes) -> None:
        if data:
            self.cpu.mem_write(at, data)

    def text(self, at: int) -> bytes:
        """A string that ends with a zero byte."""
        found = b""
        while b"\0" not in found:
            found += self.read(at + len(found), 1)
        return found[:-1]
