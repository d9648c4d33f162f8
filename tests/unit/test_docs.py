"""The pages name what the code has, all of it and nothing else, and no link is dead."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
import typer

from trackside import errors
from trackside.cli.app import app
from trackside.config import PREFIX, Settings
from trackside.models import BreakerState, JobState, Reason
from trackside.story import RULES

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("deploy/*.md"))]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
TROUBLES = (ROOT / "docs" / "troubleshooting.md").read_text()


def first_column(page: str, heading: str) -> list[str]:
    """The words in the first column of the table whose heading row begins with `heading`."""
    rows = page.partition(f"\n| {heading} |")[2].splitlines()[2:]
    found: list[str] = []
    for row in rows:
        if not row.startswith("|"):
            break
        found += re.findall(r"`([^`]+)`", row.split("|")[1])
    return found


def subclasses(kind: type[BaseException]) -> Iterator[str]:
    for each in kind.__subclasses__():
        if each.__module__ == errors.__name__:
            yield each.__name__
            yield from subclasses(each)


@pytest.mark.parametrize(
    ("page", "heading", "words"),
    [
        (TROUBLES, "state", [state.value for state in JobState]),
        (TROUBLES, "reason", [reason.value for reason in Reason]),
        (TROUBLES, "rule", list(RULES)),
        (TROUBLES, "error", list(subclasses(errors.TracksideError))),
        (OPERATIONS, "breaker", [state.value for state in BreakerState]),
        (OPERATIONS, "variable", [PREFIX + field.name.upper() for field in fields(Settings)]),
    ],
)
def test_a_table_lists_what_the_code_has(page: str, heading: str, words: list[str]) -> None:
    listed = first_column(page, heading)
    assert len(words) > 2
    assert sorted(listed) == sorted(words)


def test_no_cell_of_the_tables_is_left_open() -> None:
    assert "?" not in re.sub(r"`[^`]*`", "", TROUBLES)


def test_every_command_is_on_the_operations_page_and_every_command_there_exists() -> None:
    group = typer.main.get_command(app)
    commands = set(getattr(group, "commands", {}))
    assert len(commands) > 20
    text = OPERATIONS + (ROOT / "README.md").read_text()
    assert commands - set(re.findall(r"trackside ([a-z]+)", text)) - {"demo"} == set()
    named = {word for page in (OPERATIONS, TROUBLES) for word in re.findall(r"`trackside ([a-z]+)", page)}
    assert named - commands == set()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_is_dead(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(target)
    assert dead == []
