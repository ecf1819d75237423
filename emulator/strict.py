"""Mode T: the source with Metal's address spaces as those of OpenCL C++, which clang enforces."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from . import toolchain
from .compile import DEFINES, INCLUDES, WARNINGS, preprocess
from .rewrite import CONSTANT, HOST_NAME, INSTANCE, THREADGROUP_INDEX
from .stock import threadgroup_arrays
from .syntax import Diagnostic, Node, Source

# The generic address space is there for what the compiler makes itself: it copies structs through
# references of no space. That nobody else uses it is looked up in the syntax tree.
EXTENSIONS = (
    "-all,+cl_khr_fp16,+__opencl_c_program_scope_global_variables,+__opencl_c_generic_address_space"
)
FLAGS = (
    "-x",
    "clcpp",
    "-cl-std=CLC++2021",
    "-cl-no-stdinc",
    "-cl-single-precision-constant",
    "-Xclang",
    f"-cl-ext={EXTENSIONS}",
    "-include",
    toolchain.MSL / "softmetal" / "prefix_types.h",
)
METHOD_QUALIFIERS = re.compile(r"\)(?: const)? __generic(?= |$)")
TYPED = {
    "VarDecl",
    "ParmVarDecl",
    "FieldDecl",
    "FunctionDecl",
    "CXXMethodDecl",
    "CStyleCastExpr",
    "CXXFunctionalCastExpr",
    "CXXReinterpretCastExpr",
    "CXXStaticCastExpr",
}


def check_types(
    source: str, *, stock: bool = False, includes: Sequence[Path] = ()
) -> list[Diagnostic]:
    """Pointers and references that do not say what they point to.

    Arguments are those of Library.

    Raises:
        CompileError: the source does not compile with strict address spaces; the message is the
            compiler's text.
        ToolMissing: there is no compiler.
    """
    text = preprocess(source, ("-D__OPENCL_CPP_VERSION__=202100",), tuple(includes))
    if stock:
        text = threadgroup_arrays(text)
    text = CONSTANT.sub(_constant, text)
    text = THREADGROUP_INDEX.sub("", INSTANCE.sub(_instance, text))
    tree = Source(text, [*FLAGS, *INCLUDES, *DEFINES, *WARNINGS])
    found = (_generic(node) for node in tree.nodes())
    return list(dict.fromkeys(diagnostic for diagnostic in found if diagnostic))


def _generic(node: Node) -> Diagnostic | None:
    if node.kind not in TYPED or node.is_implicit or not node.is_ours:
        return None
    # `this` of a method is not written, so it may be of any space.
    if "__generic" not in METHOD_QUALIFIERS.sub(")", node.type):
        return None
    name = node.data.get("name", "a cast")
    return node.diagnostic(
        "address-space", f"{name} points or refers to memory of no address space: {node.type}"
    )


def _constant(match: re.Match[str]) -> str:
    type_, name = match["type"], match["name"]
    lines = "\n" * match[0].count("\n")
    return (
        f"constant {type_} {name} = {type_}(); "
        f"constant unsigned softmetal_index_{name} = unsigned({match['index']});{lines}"
    )


def _instance(match: re.Match[str]) -> str:
    if not HOST_NAME.search(match["attributes"]):
        return match[0]
    function = " ".join(match["function"].split())
    return f"template decltype({function}) {function};" + "\n" * match[0].count("\n")
