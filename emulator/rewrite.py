"""What is rewritten in preprocessed MSL before it is C++: declarations only, never a kernel's body.

- function constants become variables that the runtime sets before the library is used;
- explicit instantiations with [[host_name]] become entries of the library;
- for each kernel a table of where its parameters come from: the attributes' own expressions.

Line numbers stay as they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .errors import CompileError

# Attributes of parameters, and what they are called in runtime/abi.h.
SOURCES = {
    "threadgroup_position_in_grid": "GroupPosition",
    "threadgroups_per_grid": "GroupsPerGrid",
    "thread_position_in_threadgroup": "ThreadPositionInGroup",
    "thread_position_in_grid": "ThreadPositionInGrid",
    "threads_per_threadgroup": "ThreadsPerGroup",
    "dispatch_threads_per_threadgroup": "ThreadsPerGroup",
    "threads_per_grid": "ThreadsPerGrid",
    "thread_index_in_threadgroup": "ThreadIndexInGroup",
    "thread_index_in_simdgroup": "Lane",
    "simdgroup_index_in_threadgroup": "Simdgroup",
    "threads_per_simdgroup": "LanesPerSimdgroup",
    "thread_execution_width": "LanesPerSimdgroup",
    "simdgroups_per_threadgroup": "SimdgroupsPerGroup",
}

INSIDE = r"(?:(?!\]\]).)*"  # of [[ ]]
CONSTANT = re.compile(
    r"(?:\bconst\s+)?\bconstant\s+(?P<type>[\w:]+)\s+(?P<name>\w+)\s*"
    r"\[\[\s*function_constant\s*\((?P<index>[^\]]*)\)\s*\]\]\s*;"
)
KERNEL = re.compile(
    rf"(?:\[\[\s*kernel\b(?P<more>{INSIDE})\]\]|\bkernel\b)\s*void\s+(?P<name>\w+)\s*\(", re.S
)
INSTANCE = re.compile(
    rf"\btemplate\s*(?P<attributes>(?:\[\[{INSIDE}\]\]\s*)+)decltype\s*\((?P<function>.*?)\)\s*"
    r"(?P<again>[^;{}()]*?)\s*;",
    re.S,
)
HOST_NAME = re.compile(r'host_name\s*\(\s*"([^"]*)"\s*\)')
MAX_THREADS = re.compile(r"max_total_threads_per_threadgroup\s*\((.*)\)", re.S)
THREADGROUP_INDEX = re.compile(
    r"\[\[\s*threadgroup\s*\(\s*\w+\s*\)\s*\]\]"
)  # a word, as an attribute
SCOPE = re.compile(
    r'"(?:\\.|[^"\\])*"|\bnamespace\s+(?P<name>[\w:]*)\s*\{|(?P<open>\{)|(?P<close>\})'
)

UNNUMBERED = "?"


@dataclass
class Parameter:
    """One parameter of a kernel."""

    name: str
    source: str  # enumerator of softmetal::Source
    index: str = "0"  # of a buffer: an expression
    used: str = "true"  # an expression: the value of [[function_constant(c)]]
    counted: bool = False  # the index is not written, but the next free one


@dataclass
class Kernel:
    """The definition of a kernel function."""

    namespace: str  # "" or "a::b"
    name: str
    template: str  # "template <class T, int D>" or ""
    max_threads: str
    parameters: list[Parameter]

    @property
    def qualified(self) -> str:
        """The function's name with its namespaces."""
        return f"{self.namespace}::{self.name}" if self.namespace else self.name


@dataclass
class Constant:
    """A function constant."""

    namespace: str
    name: str
    type: str


@dataclass
class Rewritten:
    """Text that a C++ compiler takes, and what was found in it."""

    text: str
    kernels: list[Kernel] = field(default_factory=list)
    constants: list[Constant] = field(default_factory=list)
    instances: list[tuple[str, str]] = field(default_factory=list)  # host name, function


def rewrite(text: str) -> Rewritten:
    """Preprocessed MSL as C++.

    Raises:
        CompileError: a kernel's signature has something that the software device does not have.
    """
    scopes = _scopes(text)
    result = Rewritten(text)
    for match in KERNEL.finditer(text):
        kernel = _kernel(text, match, _namespace(scopes, match.start()))
        if kernel:
            result.kernels.append(kernel)
    for match in CONSTANT.finditer(text):
        namespace = _namespace(scopes, match.start())
        result.constants.append(Constant(namespace, match["name"], match["type"]))
    for match in INSTANCE.finditer(text):
        host_name = HOST_NAME.search(match["attributes"])
        if host_name:
            result.instances.append((host_name[1], " ".join(match["function"].split())))
    plain = [k for k in result.kernels if not k.template]
    result.instances += [(k.name, k.qualified) for k in plain]
    text = INSTANCE.sub(_blank_if_named, CONSTANT.sub(_variable, text))
    result.text = THREADGROUP_INDEX.sub("", text)
    return result


def entries(source: Rewritten) -> str:
    """C++ that goes after the text: the tables and softmetal_library()."""
    out: list[str] = ['\n# 1 "<software metal: entries>"\n']
    by_name = {kernel.qualified: kernel for kernel in source.kernels}
    for kernel in source.kernels:
        body = _bindings(kernel)
        out.append(f"namespace {kernel.namespace} {{\n{body}}}\n" if kernel.namespace else body)
    rows = []
    for host_name, function in source.instances:
        name, arguments = re.fullmatch(r"([\w:\s]+?)\s*(<.*>)?", function, re.S).groups("")
        found = by_name.get(name.removeprefix("::"))
        if found is None:
            raise CompileError(f'host_name("{host_name}"): there is no kernel function {name}')
        bindings = f"{_sibling(found, 'softmetal_bindings_')}{arguments}"
        entry = f"softmetal::Entry<decltype({function}), {function}, {bindings}>"
        rows.append(
            f'    {{"{host_name}", {entry}::run, {entry}::parameters, {bindings}::kMaxThreads}},\n'
        )
    constants = [
        f'    {{"{c.name}", {_in(c, "softmetal_index_")}, sizeof({_in(c, "softmetal_value_")}), '
        f"&{_in(c, 'softmetal_value_')}}},\n"
        for c in source.constants
    ]
    out.append(_LIBRARY % ("".join(rows), len(rows), "".join(constants), len(constants)))
    return "".join(out)


_LIBRARY = """
namespace softmetal_entries {
using namespace softmetal;
static const KernelEntry kernels[] = {
%s    {nullptr, nullptr, nullptr, 0}};
static const u32 kernel_count = %d;
static const ConstantEntry constants[] = {
%s    {nullptr, 0, 0, nullptr}};
static const u32 constant_count = %d;
}
extern "C" {
extern const softmetal::SiteEntry softmetal_sites[];
extern const softmetal::u32 softmetal_site_count;
extern const softmetal::CoverageEntry softmetal_coverage[];
extern const softmetal::u32 softmetal_coverage_count;
extern softmetal::u8 softmetal_covered[];
__attribute__((visibility("default"))) softmetal::LibraryEntry softmetal_library() {
  return {softmetal_entries::kernels, softmetal_entries::kernel_count,
          softmetal_entries::constants, softmetal_entries::constant_count,
          softmetal_sites, softmetal_site_count,
          softmetal_coverage, softmetal_coverage_count, softmetal_covered};
}
}
"""


def _scopes(text: str) -> list[tuple[int, str]]:
    """(position, namespace from there on), in order."""
    stack: list[str | None] = []
    scopes = [(0, "")]
    for match in SCOPE.finditer(text):
        if match["close"]:
            if stack:
                stack.pop()
        elif match["open"]:
            stack.append(None)
        elif match["name"] is not None:
            stack.append(match["name"])
        else:
            continue
        scopes.append((match.end(), "::".join(name for name in stack if name)))
    return scopes


def _namespace(scopes: list[tuple[int, str]], position: int) -> str:
    low, high = 0, len(scopes)
    while high - low > 1:
        middle = (low + high) // 2
        if scopes[middle][0] <= position:
            low = middle
        else:
            high = middle
    return scopes[low][1]


def _closing(text: str, start: int, pair: str) -> int:
    """The position of what closes the bracket at `start`."""
    depth = 0
    for i in range(start, len(text)):
        if text[i] == pair[0]:
            depth += 1
        elif text[i] == pair[1]:
            depth -= 1
            if depth == 0:
                return i
    raise CompileError(f"unbalanced {pair[0]}: {text[start : start + 60]!r}")


def _kernel(text: str, match: re.Match[str], namespace: str) -> Kernel | None:
    start = match.end() - 1
    end = _closing(text, start, "()")
    if not text[end + 1 :].lstrip().startswith("{"):
        return None  # a declaration
    template = ""
    before = text[: match.start()].rstrip()
    if before.endswith(">"):
        depth = 0
        for i in range(len(before) - 1, -1, -1):
            depth += (before[i] == ">") - (before[i] == "<")
            if depth == 0:
                break
        if before[:i].rstrip().endswith("template"):
            template = "template " + " ".join(before[i:].split())
    limit = MAX_THREADS.search(match["more"] or "")
    parts = [part for part in _split(text[start + 1 : end]) if part.strip()]
    parameters = [_parameter(match["name"], part) for part in parts]
    _number_the_rest(match["name"], parameters)
    return Kernel(namespace, match["name"], template, limit[1] if limit else "1024", parameters)


def _split(text: str) -> list[str]:
    """At the commas outside of all brackets."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(text):
        if c in "([{<":
            depth += 1
        elif c in ")]}>":
            depth -= 1
        elif c == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    return [*parts, text[start:]]


def _number_the_rest(kernel: str, parameters: list[Parameter]) -> None:
    """Buffers without an index count from 0, as in Metal, if none has one."""
    buffers = [p for p in parameters if p.source == "Buffer"]
    unnumbered = [p for p in buffers if p.index == UNNUMBERED]
    if unnumbered and len(unnumbered) < len(buffers):
        name = unnumbered[0].name
        raise CompileError(f"kernel {kernel}: parameter '{name}' has no [[buffer(index)]]")
    for i, parameter in enumerate(unnumbered):
        parameter.index, parameter.counted = str(i), True


def _parameter(kernel: str, text: str) -> Parameter:
    text = re.sub(r"(?m)^#.*$", "", text)
    attributes = re.search(r"\[\[(.*)\]\]", text, re.S)
    declarator = text[: attributes.start()] if attributes else text
    name = re.findall(r"\w+", declarator)[-1]
    if not attributes and re.search(r"[*&]", declarator):
        return Parameter(name, "Buffer", UNNUMBERED)
    if not attributes:
        raise CompileError(f"kernel {kernel}: parameter '{name}' has no attribute")
    parameter = None
    used = "true"
    for attribute in _split(attributes[1]):
        word, argument = re.fullmatch(r"\s*(\w+)\s*(?:\((.*)\))?\s*", attribute, re.S).groups()
        if word == "buffer":
            parameter = Parameter(name, "Buffer", " ".join(argument.split()))
        elif word == "function_constant":
            used = " ".join(argument.split())
        elif word in SOURCES:
            parameter = Parameter(name, SOURCES[word])
        else:
            raise CompileError(
                f"kernel {kernel}: parameter '{name}': the software device has no [[{word}]]"
            )
    if parameter is None:
        raise CompileError(f"kernel {kernel}: parameter '{name}' is bound to nothing")
    parameter.used = used
    return parameter


def _bindings(kernel: Kernel) -> str:
    sources = "".join(f"::softmetal::Source::{p.source}, " for p in kernel.parameters)
    fill = "".join(
        f"    out[{i}] = {{::softmetal::Source::{p.source}, "
        f"static_cast<::softmetal::u32>({p.index}), ({p.used}) ? true : false, false, "
        f'"{p.name}"}};\n'
        for i, p in enumerate(kernel.parameters)
    )
    return (
        f"{kernel.template}\nstruct softmetal_bindings_{kernel.name} {{\n"
        f"  static constexpr ::softmetal::u32 kCount = {len(kernel.parameters)};\n"
        f"  static constexpr ::softmetal::u32 kMaxThreads = {kernel.max_threads};\n"
        f"  static constexpr ::softmetal::Source kSources[] = "
        f"{{{sources}::softmetal::Source::Buffer}};\n"
        f"  static void fill(::softmetal::Parameter* out) {{\n{fill}  }}\n}};\n"
    )


def _sibling(kernel: Kernel, prefix: str) -> str:
    scope = f"{kernel.namespace}::" if kernel.namespace else ""
    return f"{scope}{prefix}{kernel.name}"


def _in(constant: Constant, prefix: str) -> str:
    scope = f"{constant.namespace}::" if constant.namespace else ""
    return f"{scope}{prefix}{constant.name}"


def _variable(match: re.Match[str]) -> str:
    type_, name = match["type"], match["name"]
    return (
        f"static {type_} softmetal_value_{name}; "
        f"static const {type_}& {name} = softmetal_value_{name}; "
        f"static constexpr unsigned softmetal_index_{name} = static_cast<unsigned>("
        f"{match['index']});" + "\n" * match[0].count("\n")
    )


def _blank_if_named(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n") if HOST_NAME.search(match["attributes"]) else match[0]
