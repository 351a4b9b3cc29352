"""The set-up that `deploy/quickstart` and `deploy/test` share: which Python, an environment that heals."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# A project that builds with a backend of its own, so that nothing has to be fetched.
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "probe"
version = "1"
"""
BACKEND = """
import pathlib, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    name = "probe-1-py3-none-any.whl"
    with zipfile.ZipFile(pathlib.Path(folder, name), "w") as wheel:
        wheel.writestr("probe.pth", str(pathlib.Path.cwd()))
        wheel.writestr("probe-1.dist-info/METADATA", "Metadata-Version: 2.1\\nName: probe\\nVersion: 1\\n")
        wheel.writestr("probe-1.dist-info/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr("probe-1.dist-info/RECORD", "")
    return name

build_wheel = build_editable
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small project with our set-up, in a folder with a space in its name."""
    root = tmp_path / "a checkout"
    shutil.copytree(ROOT / "deploy" / "lib", root / "deploy" / "lib")
    (root / "pyproject.toml").write_text(PROJECT)
    (root / "backend.py").write_text(BACKEND)
    for lock in ("requirements.lock", "requirements-dev.lock", "requirements-build.lock"):
        (root / "deploy" / lock).write_text("# nothing\n")
    return root


def set_up(checkout: Path, what: str = "runtime", **variables: str) -> str:
    """Run the installer as the scripts do; what it said."""
    done = subprocess.run(
        [sys.executable, "-I", checkout / "deploy" / "lib" / "install.py", what],
        env=os.environ | variables,
        cwd="/",
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def runs(checkout: Path) -> bool:
    """Whether the environment has a Python that finds the project."""
    python = checkout / ".venv" / "bin" / "python"
    return subprocess.run([python, "-c", "import backend"], cwd="/", check=False).returncode == 0


def test_what_is_installed_is_installed_again_only_when_a_lock_has_changed(checkout: Path) -> None:
    first = set_up(checkout, VIRTUAL_ENV="/another/project", PYTHONPATH="/another/project", PIP_USER="1")
    assert "Making .venv" in first
    assert runs(checkout)
    assert set_up(checkout) == ""

    (checkout / "deploy" / "requirements.lock").write_text("# still nothing\n")

    again = set_up(checkout)
    assert "Installing" in again
    assert "Making" not in again
    assert "requirements-dev.lock" in set_up(checkout, "dev")
    assert set_up(checkout) == "", "the tests' environment is enough for the quickstart"


def test_an_installation_that_was_killed_is_made_anew_the_next_time(checkout: Path) -> None:
    backend = checkout / "backend.py"
    backend.write_text("import os, signal; os.kill(os.getppid(), signal.SIGKILL); raise SystemExit(9)")
    with pytest.raises(AssertionError, match="failed, for the reason above"):
        set_up(checkout)
    backend.write_text(BACKEND)

    assert "Making .venv" in set_up(checkout)
    assert runs(checkout)


def test_an_environment_that_is_not_whole_or_not_of_this_place_is_not_used(checkout: Path) -> None:
    set_up(checkout)
    venv = checkout / ".venv"
    pip = next(venv.glob("lib/python*/site-packages/pip"))
    assert usable(checkout)

    for part in (venv / "bin" / "python", pip):
        elsewhere = part.rename(part.with_name("elsewhere"))
        assert not usable(checkout), f"{part} is missing"
        elsewhere.rename(part)
    assert usable(checkout)
    assert not usable(checkout.rename(checkout.with_name("moved"))), "its scripts name the old place"


def usable(checkout: Path) -> bool:
    """The installer's own judgement of the environment, without mending it."""
    ask = "import runpy, sys; sys.exit(not runpy.run_path(sys.argv[1])['is_usable']())"
    installer = checkout / "deploy" / "lib" / "install.py"
    return subprocess.run([sys.executable, "-I", "-c", ask, installer], check=False).returncode == 0


def interrupt(
    command: Sequence[str | Path], when: str, *, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Press Ctrl-C, which reaches the whole group, once the command's standard error tells `when`."""
    program = subprocess.Popen(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert program.stderr is not None
    for line in program.stderr:
        if when in line:
            break
    time.sleep(0.1)  # what was told then is under way
    os.killpg(program.pid, signal.SIGINT)
    out, err = program.communicate(timeout=60)
    return subprocess.CompletedProcess(command, program.returncode, out, err)


def test_ctrl_c_while_the_environment_is_made_ends_all_of_it_without_a_traceback(checkout: Path) -> None:
    done = interrupt(
        [sys.executable, "-I", checkout / "deploy" / "lib" / "install.py", "runtime"], "Making .venv"
    )

    assert (done.returncode, done.stderr) == (130, "")
    left = [p for p in Path("/proc").glob("[0-9]*/cmdline") if str(checkout).encode() in _read(p)]
    assert left == []
    assert "Making .venv" in set_up(checkout), "half an environment is none"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize("script", ["with_broker.py", "checks.py"])
def test_ctrl_c_while_a_script_is_still_importing_ends_it_without_a_word(checkout: Path, script: str) -> None:
    slow = "import sys, time; print('importing', file=sys.stderr, flush=True); time.sleep(60)"
    (checkout / "deploy" / "lib" / "brokers.py").write_text(slow)

    done = interrupt([sys.executable, checkout / "deploy" / "lib" / script, "true"], "importing")

    assert (done.returncode, done.stderr) == (130, "")


STAND_IN = """#!/bin/sh
# A Python {version} {ability} the modules that make virtual environments.
case $* in
    *version_info*3,\\ 11*) exit {too_old} ;;
    *ensurepip*) exit {bare} ;;
    *version_info*) echo python{version}-venv ;;
esac
"""


def find_python(folder: Path, **pythons: str) -> subprocess.CompletedProcess[str]:
    """Look for a Python where these are all there is."""
    tools = folder / "bin"
    tools.mkdir()
    for name, text in pythons.items():
        path = tools / name.replace("_", ".")
        path.write_text(text)
        path.chmod(0o755)
    return subprocess.run(
        ["/bin/sh", "-euc", ". deploy/lib/python.sh; find_python"],
        cwd=ROOT,
        env={"PATH": str(tools)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def python(version: str, *, venv: bool = True) -> str:
    too_old = int(version.split(".")[1]) < 11
    return STAND_IN.format(
        version=version, ability="with" if venv else "without", too_old=int(too_old), bare=int(not venv)
    )


def test_python3_is_taken_where_it_is_new_enough(tmp_path: Path) -> None:
    found = find_python(tmp_path, python3=python("3.12"), python3_14=python("3.14"))

    assert found.stdout == "python3\n"


def test_an_old_python3_and_one_that_cannot_make_environments_are_passed_over(tmp_path: Path) -> None:
    found = find_python(
        tmp_path, python3=python("3.9"), python3_13=python("3.13", venv=False), python3_11=python("3.11")
    )

    assert found.stdout == "python3.11\n"


def test_without_any_python_one_line_says_what_to_install(tmp_path: Path) -> None:
    found = find_python(tmp_path, python3=python("3.10"))

    assert (found.returncode, found.stdout) == (1, "")
    assert len(found.stderr.splitlines()) == 1
    assert "Python 3.11 or later was not found" in found.stderr


def test_where_a_part_of_python_is_missing_and_cannot_be_installed_one_line_names_it(tmp_path: Path) -> None:
    found = find_python(tmp_path, python3=python("3.12", venv=False))

    assert (found.returncode, found.stdout) == (1, "")
    assert len(found.stderr.splitlines()) == 1
    assert "install python3.12-venv" in found.stderr
