"""The pages: links lead somewhere, and what `explain` prints in the guide is what it prints."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from command_line import call

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
EXPLAINED = re.findall(
    r"^(mlx-sdpa-ext explain [^\n]*)\n```\n\n```text\n(.*?)```",
    (ROOT / "docs" / "guide.md").read_text(),
    re.S | re.M,
)


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\((?!https?:)(.*?)\)", text):
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def test_the_guide_explains_something():
    assert EXPLAINED


@pytest.mark.parametrize("command, printed", EXPLAINED)
def test_explain_in_the_guide(command, printed):
    done = call(*shlex.split(command)[1:], "--mlx", "0.32.4")  # whichever is installed
    assert done.stdout.split() == printed.split()
