"""A release that was built from the tree is installed elsewhere, and used."""

import asyncio
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.rig import MESSENGER, environment

ONE_BROKER = "What is released is no matter of RabbitMQ's version."

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
CLIENT = """
import asyncio, json, sys
from worker.client import RegistrationClient
async def main():
    async with RegistrationClient() as client:
        print((await client.register(json.loads(sys.argv[1]))).status)
asyncio.run(main())
"""


async def run(*command: str | Path, **variables: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *map(str, command),
        env=variables or None,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel. Its dependencies are the tests' own."""
    folder = tmp_path_factory.mktemp("release")
    build = [sys.executable, ROOT / "deploy" / "lib" / "release.py", folder / "dist"]
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(build, capture_output=True, text=True, check=False, env=os.environ | {"PATH": path})
    assert done.returncode == 0, done.stderr
    built = [Path(line) for line in done.stdout.split()]
    endings = [file.name.removeprefix(f"ott_registration_worker-{VERSION}") for file in built]
    assert endings == ["-py3-none-any.whl", ".tar.gz", ".cdx.json"]
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", built[0]]
    subprocess.run([*install, "--target", folder / "wheel"], check=True, capture_output=True)
    return folder / "wheel"


async def test_the_wheel_is_installed_and_used(rig, installed):
    await rig.start()
    variables = environment(rig.settings()) | {"PYTHONPATH": str(installed)}
    command = (sys.executable, installed / "bin" / "ott-worker")
    assert await run(*command, "--version", **variables) == f"ott-worker {VERSION}\n"
    where = await run(sys.executable, "-c", "import worker; print(worker.__file__)", **variables)
    assert where.startswith(str(installed))
    asyncapi = json.loads(await run(*command, "schema", "--asyncapi", **variables))
    assert asyncapi["info"]["version"] == VERSION
    said = await run(sys.executable, "-c", CLIENT, json.dumps(MESSENGER), **variables)
    assert said == "registered\n"


def test_the_bill_of_materials_lists_what_the_lock_installs(installed):
    (file,) = (installed.parent / "dist").glob("*.cdx.json")
    document = json.loads(file.read_text())
    listed = {(part["name"], part["version"]) for part in document["components"]}
    lock = (ROOT / "deploy" / "requirements.lock").read_text()
    assert listed == set(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", lock, re.MULTILINE))
