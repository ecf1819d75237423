"""Makes LLVM's intermediate code of a kernel ask the runtime about every access.

Loads and stores of device (1), constant (2) and threadgroup (3) memory become calls of the checks
in msl/softmetal/checks.h, which return the real address. Every access and every call of the runtime
gets a number, its site, and the module a table of the sites' source lines. With `coverage`, every
basic block sets its byte in a table.
"""

from __future__ import annotations

import re

from .debug_info import DebugInfo, Line
from .errors import CompileError
from .toolchain import MSL, RUNTIME

SITE = "1409286211"  # SOFTMETAL_SITE
SPACES = {"1": "device", "2": "constant", "3": "threadgroup"}
CHECKED_SIZES = (1, 2, 4, 8, 16, 32, 64)
ACCESS = {  # softmetal::Access
    ("device", "load"): 0,
    ("device", "store"): 1,
    ("constant", "load"): 2,
    ("constant", "store"): 3,
    ("threadgroup", "load"): 4,
    ("threadgroup", "store"): 5,
}
SCALARS = {"half": 2, "bfloat": 2, "float": 4, "double": 8, "ptr": 8}

LOAD = re.compile(
    r"^(?P<head>\s+\S+ = load (?:volatile )?)(?P<type>.+), ptr addrspace\((?P<space>\d+)\) "
    r"(?P<pointer>[^,]+)(?P<tail>, align (?P<align>\d+).*)$"
)
STORE = re.compile(
    r"^(?P<head>\s+store (?:volatile )?(?P<type>.+)), ptr addrspace\((?P<space>\d+)\) "
    r"(?P<pointer>[^,]+)(?P<tail>, align (?P<align>\d+).*)$"
)
MEMORY = re.compile(
    r"^\s+(?:tail )?call void @llvm\.(?P<what>memcpy|memmove|memset)\.(?P<types>p[\w.]+)"
    r"\((?P<arguments>.*)\)[^()]*?(?P<tail>(?:, !.*)?)$"
)
DEBUG = re.compile(r"!dbg (!\d+)")
FUNCTION = re.compile(r"^define .*@(?P<name>[^(]+)\(.*?(?:!dbg (?P<scope>!\d+))? \{$")
LABEL = re.compile(r"^(?:[\w.$-]+|\"[^\"]*\"):")


def instrument(module: str, coverage: bool = False) -> str:
    """The module with checks.

    Raises:
        CompileError: it does something with an address space that cannot be checked.
    """
    return _Pass(module, coverage).run()


def size_of(type_: str) -> int:
    """Bytes that a load or store of an LLVM type moves.

    Raises:
        CompileError: kernels have no such type in memory.
    """
    type_ = type_.strip()
    if type_ in SCALARS or type_.startswith("ptr"):
        return SCALARS.get(type_, 8)
    integer = re.fullmatch(r"i(\d+)", type_)
    if integer:
        return (int(integer[1]) + 7) // 8
    several = re.fullmatch(r"[<\[](\d+) x (.+)[>\]]", type_)
    if several:
        if several[2] == "i1":
            return (int(several[1]) + 7) // 8
        return int(several[1]) * size_of(several[2])
    raise CompileError(f"a load or store of {type_} in device or threadgroup memory")


class _Pass:
    def __init__(self, module: str, coverage: bool) -> None:
        self.module = module
        self.coverage = coverage
        self.debug = DebugInfo(module)
        self.sites: list[Line | None] = []
        self.lines: list[tuple[Line, int]] = []  # and the block that they are in
        self.blocks = 0
        self.scope: str | None = None  # of the function
        self.last: Line | None = None
        self.new = 0

    def run(self) -> str:
        out: list[str] = []
        inside = False
        block: list[str] = []
        for row in self.module.splitlines():
            if not inside:
                function = FUNCTION.match(row)
                if function:
                    inside, self.scope, self.last = True, function["scope"], None
                if not row.startswith(("@softmetal_site", "@softmetal_cover")):
                    out.append(row)
            elif row == "}":
                out += self._covered(block)
                out.append(row)
                inside, block = False, []
            elif LABEL.match(row):
                out += self._covered(block)
                block = [row]
            else:
                block += self._checked(row)
        return "\n".join(out) + "\n" + self._tables()

    def _checked(self, row: str) -> list[str]:
        if "addrspace(" in row:
            for kind, pattern in (("load", LOAD), ("store", STORE)):
                match = pattern.match(row)
                if match:
                    return self._access(row, kind, match)
            match = MEMORY.match(row)
            if match:
                return self._memory(row, match)
            if "addrspacecast" in row:
                raise CompileError(f"{self._where(row)}: a cast between address spaces")
            if re.search(r" (?:atomicrmw|cmpxchg|load atomic|store atomic) ", row):
                raise CompileError(f"{self._where(row)}: atomic operations are not supported")
        if SITE in row and "@softmetal_" in row:
            return [row.replace(SITE, str(self._site(row)))]
        return [row]

    def _access(self, row: str, kind: str, match: re.Match[str]) -> list[str]:
        pointer = match["pointer"].strip()
        space = SPACES.get(match["space"])
        if space is None:
            raise CompileError(f"{self._where(row)}: unknown address space {match['space']}")
        if space == "constant" and kind == "load" and not pointer.startswith("%"):
            return [row.replace("ptr addrspace(2) ", "ptr addrspace(2) ", 1)]  # a global table
        type_ = match["type"] if kind == "load" else _type_of_value(match["type"])
        size = size_of(type_)
        site = self._site(row)
        address, place, tail = self._name("a"), self._name("p"), self._debug(row)
        integer = f"  {address} = ptrtoint ptr addrspace({match['space']}) {pointer} to i64{tail}"
        if size in CHECKED_SIZES:
            call = (
                f"  {place} = call preserve_allcc ptr @softmetal_{space}_{kind}_{size}"
                f"(i64 {address}, i32 {match['align']}, i32 {site}){tail}"
            )
        else:
            call = (
                f"  {place} = call ptr @softmetal_access(i64 {address}, i32 {size}, "
                f"i32 {match['align']}, i32 {ACCESS[space, kind]}, i32 {site}){tail}"
            )
        # The real memory may be aligned less than Metal's; the check has judged the tagged address.
        tail = re.sub(r"^, align \d+", ", align 1", match["tail"])
        value = match["type"] if kind == "load" else ""
        done = f"{match['head']}{value}, ptr {place}{tail}"
        return [integer, call, done]

    def _memory(self, row: str, match: re.Match[str]) -> list[str]:
        spaces = re.findall(r"p(\d+)", match["types"])
        if not set(spaces) & set(SPACES):
            return [row]
        arguments = _split(match["arguments"])
        out, values, tail = [], [], self._debug(row)
        for argument, space in zip(arguments, spaces):
            name = self._name("a")
            prefix = "ptr" if space == "0" else f"ptr addrspace({space})"
            out.append(f"  {name} = ptrtoint {prefix} {argument.split()[-1]} to i64{tail}")
            aligned = re.search(r"align (\d+)", argument)
            values.append((name, int(aligned[1]) if aligned else 1))
        site = self._site(row)
        count = arguments[2].split()[-1]
        if match["what"] == "memset":
            value = arguments[1].split()[-1]
            out.append(
                f"  call void @softmetal_fill(i64 {values[0][0]}, i8 {value}, i64 {count}, "
                f"i32 {site}){tail}"
            )
        else:
            aligns = values[0][1] | values[1][1] << 16
            out.append(
                f"  call void @softmetal_copy(i64 {values[0][0]}, i64 {values[1][0]}, i64 {count}, "
                f"i32 {aligns}, i32 {site}){tail}"
            )
        return out

    def _covered(self, block: list[str]) -> list[str]:
        if not self.coverage or self.scope is None or not block:
            return block
        found = {self.debug.line(at) for row in block for at in DEBUG.findall(row)}
        lines = [line for line in found if line and line.line and _is_ours(line.file)]
        if not lines:
            return block
        self.lines += [(line, self.blocks) for line in lines]
        at = next(
            (i for i, row in enumerate(block) if not LABEL.match(row) and " = phi " not in row), 0
        )
        mark = f"  store i8 1, ptr getelementptr (i8, ptr @softmetal_covered, i64 {self.blocks})"
        self.blocks += 1
        return [*block[:at], mark, *block[at:]]

    def _site(self, row: str) -> int:
        self.sites.append(self._line(row))
        return len(self.sites) - 1

    def _line(self, row: str) -> Line | None:
        """Where the row comes from; what optimisation moved has lost it, and takes the last one."""
        location = DEBUG.search(row)
        line = self.debug.caller(location[1], _is_ours) if location else None
        self.last = line or self.last
        return self.last

    def _where(self, row: str) -> str:
        line = self._line(row)
        return f"{line.file}:{line.line}" if line else "kernel"

    def _debug(self, row: str) -> str:
        location = DEBUG.search(row)
        if location:
            return f", !dbg {location[1]}"
        return f", !dbg !DILocation(line: 0, scope: {self.scope})" if self.scope else ""

    def _name(self, what: str) -> str:
        self.new += 1
        return f"%softmetal.{what}{self.new}"

    def _tables(self) -> str:
        files: dict[str, int] = {}
        for line in [*self.sites, *(line for line, _ in self.lines)]:
            files.setdefault(line.file if line else "", len(files))
        out = []
        for name, number in files.items():
            data = name.encode()
            text = "".join(
                chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:02X}" for b in data
            )
            out.append(
                f"@softmetal_file_{number} = private constant [{len(data) + 1} x i8] "
                f'c"{text}\\00"\n'
            )
        sites = [
            f"{{ ptr, i32, i32 }} {{ ptr @softmetal_file_{files[s.file if s else '']}, "
            f"i32 {s.line if s else 0}, i32 0 }}"
            for s in self.sites
        ]
        coverage = [
            f"{{ ptr, i32, i32 }} {{ ptr @softmetal_file_{files[line.file]}, i32 {line.line}, "
            f"i32 {block} }}"
            for line, block in self.lines
        ]
        for name, rows in (("sites", sites), ("coverage", coverage)):
            out.append(
                f"@softmetal_{name} = hidden constant [{len(rows)} x {{ ptr, i32, i32 }}] "
                f"[{', '.join(rows)}]\n"
            )
        out.append(f"@softmetal_site_count = hidden constant i32 {len(sites)}\n")
        out.append(f"@softmetal_coverage_count = hidden constant i32 {len(coverage)}\n")
        out.append(f"@softmetal_covered = hidden global [{self.blocks + 1} x i8] zeroinitializer\n")
        return "".join(out)


def _is_ours(file: str) -> bool:
    """Not of the shim's: those lines are nobody's fault."""
    return not file.startswith((str(MSL), str(RUNTIME), "<software metal"))


def _type_of_value(text: str) -> str:
    """`<4 x half> %5` -> `<4 x half>`."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c in "<[{(") - (c in ">]})")
        if depth == 0 and c == " " and not text[i:].startswith(" addrspace("):
            return text[:i]
    return text


def _split(text: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        depth += (c in "([{<") - (c in ")]}>")
        if c == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    return [*parts, text[start:].strip()]
