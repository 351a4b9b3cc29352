"""What is shipped beside the code: locks, scripts, the image, the compose file. Real validators hold them."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from typer.main import get_command

from worker.cli.app import app
from worker.settings import Settings, variable

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUNTIME, DEV, BUILD = "requirements.lock", "requirements-dev.lock", "requirements-build.lock"
OTEL = "requirements-otel.lock"
LOCKS = (RUNTIME, OTEL, DEV, BUILD)
PYTHONS = ("3.11", "3.12", "3.13", "3.14")
TOOLS = Path(sys.executable).parent


def entries(lock: str) -> list[str]:
    """The lock's logical lines: a requirement with its hashes each."""
    text = (ROOT / "deploy" / lock).read_text().replace("\\\n", "")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def pins(lock: str, python: str) -> dict[str, Version]:
    """Name and version of what the lock installs with that Python."""
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    requirements = [Requirement(entry.split(" --hash", 1)[0]) for entry in entries(lock)]
    return {
        canonicalize_name(r.name): Version(str(r.specifier).removeprefix("=="))
        for r in requirements
        if r.marker is None or r.marker.evaluate(environment)
    }


def wanted(what: str) -> list[Requirement]:
    """What pyproject.toml asks of a lock."""
    asked = {
        RUNTIME: PROJECT["project"]["dependencies"],
        OTEL: PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["otel"],
        DEV: PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["dev"],
        BUILD: PROJECT["build-system"]["requires"],
    }
    return [Requirement(line) for line in asked[what]]


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_of_a_lock_is_one_exact_version_with_hashes(lock):
    for entry in entries(lock):
        assert re.fullmatch(r"[a-z0-9-]+==\S+( ; [^#]+?)?(\s+--hash=sha256:[0-9a-f]{64})+\s*", entry), entry


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_satisfies_what_the_project_asks_for(lock, python):
    pinned = pins(lock, python)

    for requirement in wanted(lock):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version in requirement.specifier if version else False, f"{requirement}: run deploy/lock"


def test_the_tests_run_with_the_very_versions_that_are_shipped():
    for python in PYTHONS:
        assert pins(RUNTIME, python).items() <= pins(OTEL, python).items() <= pins(DEV, python).items()


def shell_scripts() -> Iterator[Path]:
    for path in [*(ROOT / "deploy").rglob("*"), *(ROOT / ".ci").rglob("*")]:
        if path.is_file() and (path.suffix == ".sh" or re.match(rb"#!.*\b(ba)?sh\b", path.read_bytes()[:80])):
            yield path.relative_to(ROOT)


def test_shellcheck_finds_nothing_in_any_shell_script():
    scripts = sorted(shell_scripts())

    assert {Path("deploy/quickstart"), Path("deploy/test"), Path(".ci/run")} <= set(scripts)
    check("shellcheck", "--external-sources", "--enable=check-set-e-suppressed", *map(str, scripts))


def test_hadolint_finds_nothing_in_the_dockerfile():
    check("hadolint", "--failure-threshold", "style", "deploy/Dockerfile")


def test_the_compose_file_follows_the_compose_specification():
    check("check-jsonschema", "--builtin-schema", "vendor.compose-spec", "docker-compose.yml")


@pytest.mark.parametrize(
    "where", ["docker-compose.yml", "deploy/kubernetes", "deploy/systemd", "deploy/docs"]
)
def test_what_is_shipped_names_only_settings_that_the_worker_has(where):
    paths = [path for path in (ROOT / where, *(ROOT / where).rglob("*")) if path.is_file()]
    named = {name for path in paths for name in re.findall(r"\bOTT_[A-Z_]+[A-Z]", path.read_text())}
    settings = {variable(field) for field in Settings.model_fields}
    assert named
    assert named <= settings | {f"{name}_FILE" for name in settings}


def test_the_compose_files_commands_exist():
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"].values()
    for service in (service for service in services if "build" in service):  # which run our image
        command, *arguments = service["command"]
        found: Any = get_command(app).get_command(None, command)
        options = {name for option in found.params for name in option.opts}
        assert {argument for argument in arguments if argument.startswith("--")} <= options


def check(tool: str, *arguments: str) -> None:
    """Run a validator on the checkout; what it says is the test's message."""
    done = subprocess.run([TOOLS / tool, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
