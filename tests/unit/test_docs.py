"""The documents: links lead somewhere, commands exist, tables are the code's, first pages are short."""

import functools
import re
import runpy
import sys
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from worker.cli.app import app
from worker.telemetry.log import SETTLED_FIELDS

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PAGES = [
    *(ROOT / name for name in ("README.md", "worker/contract/README.md", ".github/CONTRIBUTING.md")),
    *sorted((ROOT / "deploy").rglob("*.md")),
    *sorted((ROOT / "tests").glob("*/README.md")),
]
FENCE = re.compile(r"^ *```.*?^ *```$", re.DOTALL | re.MULTILINE)

COMMAND = re.compile(r"(?:^|[`(;&|] ?|-- )ott-worker ([a-z][a-z-]+)([^\n`#|]*)", re.MULTILINE)


def text_of(page: Path) -> str:
    """Without code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """As GitHub makes them from the headings."""
    titles = re.findall(r"^#+ (.*)$", text_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text_of(page)):
        path, _, anchor = target.partition("#")
        leads_to = (page.parent / path).resolve() if path else page
        assert leads_to.exists(), target
        assert not anchor or anchor in anchors(leads_to), target


def test_pages_that_are_made_from_the_code_are_up_to_date(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reference"])
    outdated = runpy.run_path(str(DEPLOY / "lib" / "reference.py"))["outdated"]
    assert outdated() == [], "run deploy/fix"


def test_the_version_is_the_one_of_the_newest_release_notes_and_of_the_pages():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    notes = (DEPLOY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", notes, re.MULTILINE)[0] == version
    overlay = DEPLOY / "kubernetes" / "overlays" / "production" / "kustomization.yaml"
    assert f"newTag: {version}" in overlay.read_text(encoding="utf-8")
    named = {found for page in PAGES for found in re.findall(r"worker-([\d.]+)-py3", page.read_text("utf-8"))}
    assert named <= {version}


def test_the_page_on_logs_names_fields_that_a_settled_line_has():
    page = (DEPLOY / "docs" / "monitoring.md").read_text("utf-8")
    found = re.search(r"`settled` event for each request, with ([^.]*)\.", page)
    assert found
    assert set(re.findall(r"`(\w+)`", found[1])) <= set(SETTLED_FIELDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_is_named_exists_with_its_options(page):
    if page.name == "CHANGELOG.md":
        return  # tells what was
    for command, rest in COMMAND.findall(page.read_text(encoding="utf-8")):
        words = [command]
        if command in ("dead-letters", "partitions") and (found := re.match(r" ([a-z]+)", rest)):
            words.append(found[1])
        known = help_of(*words)
        for option in re.findall(r"(?<=\s)--[a-z-]+", rest):
            assert option in known, (words, option)


@functools.cache
def help_of(*words: str) -> str:
    result = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, words
    return result.output
