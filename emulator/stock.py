"""A pass for kernels that are not ours: threadgroup arrays as Metal declares them.

`threadgroup T name[n];` in a block becomes the runtime's array. Our own kernels say
SOFTWARE_METAL_THREADGROUP instead (through their own macro), and are compiled as they are written.
"""

from __future__ import annotations

import re

ARRAY = re.compile(
    r"(?P<lead>(?:^|(?<=[;{}])|(?<![\w(,<])\n)\s*)threadgroup\s+(?P<type>[\w:]+(?:\s*<[^;<>]*>)?)\s+"
    r"(?P<name>\w+)\s*(?P<dimensions>(?:\[[^;\[\]]*\]\s*)*);"
)


def threadgroup_arrays(text: str) -> str:
    """Preprocessed MSL with the runtime's threadgroup arrays and variables."""
    count = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal count
        count += 1
        dimensions = match["dimensions"].strip()
        target = f"{match['type']} {dimensions}" if dimensions else match["type"]
        if not dimensions:
            target = f"{match['type']} [1]"
        alias = f"softmetal_array_{count}"
        value = f"(*::softmetal::threadgroup_object<{alias}>(100000 + {count}))"
        if not dimensions:
            value += "[0]"
        lines = "\n" * (match[0].count("\n") - match["lead"].count("\n"))
        return (
            f"{match['lead']}typedef {_typedef(target, alias)}; "
            f"threadgroup auto& {match['name']} = {value};{lines}"
        )

    return ARRAY.sub(replace, text)


def _typedef(target: str, alias: str) -> str:
    type_, _, dimensions = target.partition(" [")
    return f"{type_} {alias}[{dimensions}"
