"""The house: who may import whom, and which libraries stay in which room."""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import worker

ROOT = Path(worker.__file__).parent

# From the journey's top down to the ground. A module may import its own floor and those below it.
FLOORS = [
    {"cli", "__main__"},
    {"console"},
    {"dead_letters", "client", "sandbox", "telemetry"},
    {"files"},
    {"service"},
    {"partitions"},
    {"pipeline"},
    {"broker", "marketing_cloud"},
    {"amqp"},
    {"contract", "events", "backoff"},
    {"serving"},
    {"settings"},
    {"errors", "release"},
]
ROOMS = {name: floor for floor, names in enumerate(FLOORS) for name in names}
LIBRARIES = {
    "aio_pika": {"amqp", "broker", "client"},
    "aiormq": {"amqp", "broker"},
    "pamqp": {"amqp", "broker"},
    "aiohttp": {"broker", "console", "marketing_cloud", "sandbox", "serving", "telemetry"},
    "jinja2": {"console"},
    "rich": {"cli"},
    "typer": {"cli"},
}


def imports() -> Iterator[tuple[Path, str]]:
    for path in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from ((path, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield path, node.module


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_module_has_a_floor():
    rooms = {room(path) for path in ROOT.rglob("*.py")} - {"__init__"}
    assert rooms <= set(ROOMS)


def test_imports_run_one_way():
    upward = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path, module in imports()
        if module.startswith("worker.")
        and room(path) != "__init__"
        and ROOMS[module.split(".")[1]] < ROOMS[room(path)]
    ]
    assert upward == []


def test_the_amqp_and_http_clients_stay_in_their_rooms():
    strays = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path, module in imports()
        if room(path) not in LIBRARIES.get(module.split(".")[0], {room(path)})
    ]
    assert strays == []


def test_rooms_do_not_import_each_other_in_a_circle():
    edges: dict[str, set[str]] = {}
    for path, module in imports():
        if module.startswith("worker.") and (target := module.split(".")[1]) != room(path):
            edges.setdefault(room(path), set()).add(target)
    TopologicalSorter(edges).prepare()  # raises CycleError


CLIENTS = {"aiohttp", "aiormq", "cryptography", "jinja2", "opentelemetry", "prometheus_client", "structlog"}
IMPORTED = """
import json, sys
from typer.main import get_command
from worker.cli.app import app
command = get_command(app)
for word in sys.argv[1:]:
    command = command.get_command(None, word)
print(json.dumps(list(sys.modules)))
"""


@pytest.mark.parametrize(
    ("words", "needed"),
    [
        ("", set()),
        ("schema", set()),
        ("submit", set()),  # --check needs no broker's client
        ("dead-letters list", {"aiormq"}),
        ("journal", {"aiormq"}),
        ("check", {"aiormq", "aiohttp"}),
        ("run", {"aiormq", "aiohttp", "prometheus_client", "structlog"}),
    ],
)
def test_a_command_imports_the_libraries_that_it_needs_and_no_others(words, needed):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED, *words.split()], capture_output=True, text=True, check=True
    )
    assert CLIENTS & set(json.loads(done.stdout)) == needed


def test_the_client_for_publishers_loads_nothing_that_it_does_not_need():
    code = "import json, sys, worker.client; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in json.loads(done.stdout)}
    needless = CLIENTS - {"aiormq"} | {"typer", "rich", "uvloop", "aiolimiter", "click"}
    assert needless & loaded == set()
    ours = {name for name in json.loads(done.stdout) if name.startswith("worker.")}
    assert {name.split(".")[1] for name in ours} <= {
        *("client", "broker", "amqp", "contract", "events", "backoff", "settings", "errors")
    }
