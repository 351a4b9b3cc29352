"""The README says what is: its settings are the code's, its links lead somewhere, its commands exist."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from worker.cli.app import app
from worker.settings import Settings, variable

ROOT = Path(__file__).parents[2]
RELEASE = re.compile(r"^## (\S+)$", re.MULTILINE)
README = (ROOT / "README.md").read_text(encoding="utf-8")


def settings_table() -> str:
    rows = ["| variable | default | |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.default
        if isinstance(default, SecretStr):
            default = default.get_secret_value()
        if isinstance(default, bool):
            default = str(default).lower()
        shown = "" if default is None else f"`{default}`"
        rows.append(f"| `{variable(name)}` | {shown} | {field.description} |")
    return "\n".join(rows)


def test_the_settings_table_is_the_codes() -> None:
    table = re.search(r"<!-- settings: .*?-->\n(.*?)\n?<!-- end of settings -->", README, re.DOTALL)
    assert table is not None
    assert table[1].strip() == settings_table()


def test_the_version_is_the_one_of_the_newest_release_notes() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    notes = (ROOT / "deploy" / "CHANGELOG.md").read_text(encoding="utf-8")
    assert RELEASE.findall(notes)[0] == project["version"]
    overlay = ROOT / "deploy" / "kubernetes" / "overlays" / "production" / "kustomization.yaml"
    assert f"newTag: {project['version']}" in overlay.read_text(encoding="utf-8")


def test_the_first_screen_has_the_picture_and_the_two_commands() -> None:
    first_screen = "\n".join(README.splitlines()[:24])
    assert "```mermaid" in first_screen
    assert "./deploy/quickstart" in first_screen
    assert "./deploy/test" in first_screen
    assert "docker compose up" in README


def test_every_setting_of_the_contract_is_there() -> None:
    names = {variable(name) for name in Settings.model_fields}
    assert {"OTT_AMQP_URL", "OTT_HOLD_LIMIT", "OTT_MC_INSECURE_HTTP", "OTT_JOURNAL_MAX_BYTES"} <= names


@pytest.mark.parametrize("document", ["README.md", "deploy/README.md", "deploy/CHANGELOG.md"])
def test_links_lead_to_files(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_every_command_that_is_named_exists_with_its_options() -> None:
    for command, rest in re.findall(r"ott-worker ([a-z-]+)([^\n`#]*)", README):
        words = [command]
        if command == "dead-letters":
            words.append(re.search(r"[a-z]+", rest or "list")[0])
        result = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "200"})
        assert result.exit_code == 0, words
        for option in re.findall(r"--[a-z-]+", rest):
            assert option in result.output, (words, option)


def test_the_figures_on_the_first_screen_are_the_measured_ones() -> None:
    report = (ROOT / "tests" / "benchmarks" / "README.md").read_text(encoding="utf-8")
    measured = {
        name: re.search(rf"^\| (?:\*\*)?{re.escape(name)}(?:\*\*)? \| (\d+) \(", report, re.MULTILINE)
        for name in ("ott-worker", "aio-pika + aiohttp")
    }
    ours, loop = (found[1] for found in measured.values() if found is not None)
    first_screen = "\n".join(README.splitlines()[:30])
    assert re.findall(r"(\d+) µs", first_screen) == [ours, loop]


def test_modules_are_run_with_the_python_that_has_what_they_need() -> None:
    for path in [
        ROOT / "README.md",
        ROOT / "deploy" / "README.md",
        ROOT / "tests" / "benchmarks" / "bulk.md",
    ]:
        commands = re.findall(r"^.*python -m tests\..*$", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert [command for command in commands if ".venv/bin/python -m" not in command] == []


def test_the_json_of_the_readme_is_json() -> None:
    blocks = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    assert [json.loads(block)["status"] for block in blocks] == ["registered", "rejected"]
