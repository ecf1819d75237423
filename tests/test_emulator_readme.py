"""emulator/README.md: its examples run and print what it says, its tables name what there is."""

from __future__ import annotations

import contextlib
import io
import re
from dataclasses import fields
from pathlib import Path

import pytest

import emulator
from emulator.lint import FORBIDDEN

pytestmark = pytest.mark.emulator

ROOT = Path(__file__).parents[1] / "emulator"
README = (ROOT / "README.md").read_text()


def test_the_examples_print_what_the_page_says():
    examples = re.findall(r"```python\n(.*?)```\n```text\n(.*?)```", README, re.S)
    assert len(examples) == README.count("```python") == README.count("```text") >= 4
    names: dict = {}  # the page is one program
    for number, (program, wanted) in enumerate(examples, 1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(program, f"README.md, example {number}", "exec"), names)
        assert printed.getvalue() == wanted
    emulator.take_report()


def section(title: str) -> str:
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", README, re.S | re.M)
    return text


def first_cells(title: str) -> set[str]:
    """The names in the first column of a section's table."""
    cells = re.findall(r"^\| (`.*?`) \|", section(title), re.M)
    return {name for cell in cells for name in re.findall(r"`(.*?)`", cell)}


def kinds(folder: str, function: str) -> set[str]:
    """The kinds of findings that the sources of a folder write."""
    text = "".join(path.read_text() for path in (ROOT / folder).glob("*.cpp"))
    calls = re.findall(rf"\b{function}\(([^;]*?), ", text)
    return {kind for call in calls for kind in re.findall(r'"([a-z-]+)"', call)}


def test_the_kinds_of_findings():
    assert first_cells("Findings") == kinds("runtime", "find")
    assert first_cells("The host side") == kinds("double", "found")


def test_the_rules_of_the_lint():
    named = re.findall(r'diagnostic\(\s*"([\w-]+)"', (ROOT / "lint.py").read_text())
    assert first_cells("Read the text") == {*named, *(rule for rule, _ in FORBIDDEN.values())}


def test_the_counters():
    assert set(re.findall(r"`(\w+)`", section("Counters"))) == {
        field.name for field in fields(emulator.Counters)
    }


def test_the_variables():
    text = "".join(path.read_text() for path in ROOT.rglob("*") if path.suffix in (".py", ".cpp"))
    read = set(re.findall(r'(?:environ(?:\.get)?[(\[]|getenv\()\s*"(\w+)"', text))
    # how the runtime finds this package, and where users keep caches
    internal = {"SOFTMETAL_PYTHON", "SOFTMETAL_PYTHONPATH", "XDG_CACHE_HOME"}
    assert first_cells("Environment") == read - internal


def test_the_links():
    text = re.sub(r"```.*?```", "", README, flags=re.S)
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    anchors = {"#" + re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
    for target in re.findall(r"\]\((.*?)\)", text):
        assert target in anchors if target.startswith("#") else (ROOT / target).exists(), target
    files = re.findall(r"`((?:\w+/)*\w+\.(?:py|cpp|h))`", section("How it works"))
    assert files and all((ROOT / file).exists() for file in files)
