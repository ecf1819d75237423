"""What no compiler rejects here and Metal does, or this project: found in the syntax tree."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import toolchain
from .compile import DEFINES, FLAGS, INCLUDES, WARNINGS, preprocess
from .rewrite import entries, rewrite
from .stock import threadgroup_arrays
from .syntax import Diagnostic, Node, Source

# The words are macros here, and types are printed either way.
SPACE = re.compile(r"address_space\([123]\)|\b(device|constant|threadgroup)\b")
CONSTANT_SPACE = re.compile(r"address_space\(2\)|\bconstant\b")
FUNCTION_POINTER = re.compile(r"\(\*[^()]*\)\s*\(")
DOUBLE = re.compile(r"\bdouble\b")
FUNCTIONS = {"FunctionDecl", "CXXMethodDecl", "CXXConstructorDecl", "CXXConversionDecl"}
DECLARATIONS = FUNCTIONS | {"VarDecl", "ParmVarDecl", "FieldDecl"}
SCOPES = {"TranslationUnitDecl", "NamespaceDecl", "LinkageSpecDecl"}
RECORDS = {
    "CXXRecordDecl",
    "ClassTemplateSpecializationDecl",
    "ClassTemplatePartialSpecializationDecl",
}
FORBIDDEN = {
    "LambdaExpr": ("lambda", "lambdas are not part of Metal"),
    "GotoStmt": ("goto", "goto is not part of Metal"),
    "IndirectGotoStmt": ("goto", "goto is not part of Metal"),
    "GCCAsmStmt": ("asm", "there is no assembly in Metal"),
    "CXXNewExpr": ("new", "there is no heap"),
    "CXXDeleteExpr": ("new", "there is no heap"),
    "CXXThrowExpr": ("throw", "there are no exceptions"),
    "CXXTryStmt": ("throw", "there are no exceptions"),
    "CXXDynamicCastExpr": ("virtual", "there is no run-time type information"),
    "CXXTypeidExpr": ("virtual", "there is no run-time type information"),
}


def lint(source: str, *, stock: bool = False, includes: Sequence[Path] = ()) -> list[Diagnostic]:
    """What the text has that it must not have. README.md lists the rules.

    Arguments are those of Library.

    Raises:
        CompileError: the source does not compile at all; the message is the compiler's text.
        ToolMissing: there is no compiler.
    """
    text = preprocess(source, includes=tuple(includes))
    if stock:
        text = threadgroup_arrays(text)
    rewritten = rewrite(text)
    prefix = ["-include", toolchain.MSL / "softmetal" / "prefix.h"]
    flags = ["-x", "c++", *FLAGS, *INCLUDES, *DEFINES, *WARNINGS, *prefix]
    flags.append("-DSOFTMETAL_LINT")
    if "-fno-exceptions" in flags:  # so that they are a finding, with its line
        flags[flags.index("-fno-exceptions")] = "-fexceptions"
    tree = Source(rewritten.text + entries(rewritten), flags)
    declared = _Declared(
        frozenset(kernel.name for kernel in rewritten.kernels),
        frozenset(constant.name for constant in rewritten.constants),
        frozenset((k.name, p.name) for k in rewritten.kernels for p in k.parameters if p.counted),
    )
    found: list[Diagnostic] = []
    nodes = list(tree.nodes())
    for node in nodes:
        if node.is_ours and not node.is_implicit:
            found += _diagnostics(node, declared)
    return list(dict.fromkeys([*found, *_recursive(nodes)]))


@dataclass(frozen=True)
class _Declared:
    kernels: frozenset[str]
    constants: frozenset[str]
    counted: frozenset[tuple[str, str]]  # kernel and parameter: a buffer without an index


def _diagnostics(node: Node, declared: _Declared) -> Iterator[Diagnostic]:
    kind, type_ = node.kind, node.type
    if kind in FORBIDDEN:
        yield node.diagnostic(*FORBIDDEN[kind])
    if kind in DECLARATIONS:
        if DOUBLE.search(type_):
            yield node.diagnostic("double", f"{node.name} is a double: {type_}")
        if FUNCTION_POINTER.search(type_):
            yield node.diagnostic("function-pointer", f"{node.name} is a pointer to a function")
    if kind in FUNCTIONS and node.data.get("virtual"):
        yield node.diagnostic("virtual", f"{node.name} is virtual")
    if kind == "VarDecl":
        yield from _variable(node, declared)
    of_kernel = kind == "ParmVarDecl" and node.parents[-1].name in declared.kernels
    if of_kernel and (node.parents[-1].name, node.name) in declared.counted:
        yield node.diagnostic("buffer-index", f"{node.name} has no [[buffer(index)]]")
    if of_kernel and re.search(r"[*&]", type_) and not SPACE.search(type_):
        yield node.diagnostic("kernel-parameter", f"{node.name} of a kernel has no address space")
    yield from _conversion(node)


def _variable(node: Node, declared: _Declared) -> Iterator[Diagnostic]:
    outside = node.parents[-1].kind
    member = outside in RECORDS
    if node.name.startswith("softmetal_"):
        return
    if outside in SCOPES or member or outside == "VarTemplateDecl":
        if not CONSTANT_SPACE.search(node.type) and node.name not in declared.constants:
            yield node.diagnostic(
                "global", f"{node.name} is outside of all functions and not in constant memory"
            )
        return
    if node.data.get("storageClass") == "static":
        yield node.diagnostic("static-local", f"{node.name} is a static variable of a function")
    function = next((p for p in reversed(node.parents) if p.kind in FUNCTIONS), None)
    if function and function.name not in declared.kernels and _is_threadgroup_array(node.data):
        yield node.diagnostic(
            "threadgroup-variable",
            f"{node.name} is a threadgroup variable of {function.name}, which is not a kernel",
        )


def _is_threadgroup_array(data: dict[str, Any]) -> bool:
    """Whether it is initialised with what SOFTWARE_METAL_THREADGROUP expands to."""
    todo = [data]
    while todo:
        at = todo.pop()
        names = (at.get("referencedDecl", {}).get("name"), at.get("name"))
        if "threadgroup_object" in names or "softmetal_threadgroup_array" in names:
            return True
        if at.get("kind") == "UnresolvedLookupExpr" and at.get("name") == "threadgroup_object":
            return True
        todo += [child for child in at.get("inner", ()) if child]
    return False


def _conversion(node: Node) -> Iterator[Diagnostic]:
    to = node.data.get("type", {})
    to = to.get("desugaredQualType") or to.get("qualType", "")
    if node.kind == "CompoundAssignOperator" and to == "__bf16":
        compute = node.data.get("computeResultType", {}).get("qualType", "")
        if compute in {"float", "half", "_Float16", "double"}:
            yield node.diagnostic("bfloat", f"an implicit conversion of {compute} to bfloat")
    cast = node.data.get("castKind")
    if cast is None or not node.children:
        return
    of = node.children[0].get("type", {})
    of = of.get("desugaredQualType") or of.get("qualType", "")
    if node.kind == "ImplicitCastExpr":
        explicit = node.data.get("isPartOfExplicitCast")
        if cast == "FloatingCast" and to == "__bf16" and not explicit:
            yield node.diagnostic("bfloat", f"an implicit conversion of {of} to bfloat")
    elif cast == "BitCast" and _is_vector(to) and _is_vector(of) and _element(to) != _element(of):
        yield node.diagnostic(
            "vector-cast", f"{of} to {to} reinterprets the bits here and converts on Metal"
        )


def _is_vector(type_: str) -> bool:
    return "ext_vector_type" in type_ and not re.search(r"[*&]", type_)


def _element(type_: str) -> str:
    return re.sub(r"__attribute__\(\(ext_vector_type\(\d+\)\)\)", "", type_).strip()


def _recursive(nodes: Sequence[Node]) -> Iterator[Diagnostic]:
    """Functions of ours that call themselves, through others too."""
    first: dict[str, str] = {}  # declaration -> the first one of the same function
    where: dict[str, Node] = {}
    calls: dict[str, set[str]] = {}
    for node in nodes:
        if node.kind in FUNCTIONS:
            own = node.data["id"]
            first[own] = first.get(node.data.get("previousDecl", ""), own)
            where.setdefault(first[own], node)
        called = node.data.get("referencedDecl", {}).get("id") or node.data.get(
            "referencedMemberDecl"
        )
        if called and isinstance(called, str):
            function = next((p for p in reversed(node.parents) if p.kind in FUNCTIONS), None)
            if function:
                caller = first[function.data["id"]]
                calls.setdefault(caller, set()).add(called)
    graph = {
        caller: {first.get(called, called) for called in callees}
        for caller, callees in calls.items()
    }
    for caller, node in where.items():
        if node.is_ours and caller in _reachable(graph, caller):
            yield node.diagnostic("recursion", f"{node.name} calls itself")


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    seen: set[str] = set()
    todo = list(graph.get(start, ()))
    while todo:
        at = todo.pop()
        if at not in seen:
            seen.add(at)
            todo += graph.get(at, ())
    return seen
