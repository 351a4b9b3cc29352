"""Make .venv and install what a lock file names: `install.py runtime|dev`.

Runs with any Python from 3.11, before anything is installed. A stamp in .venv holds what was installed, so
that a second run has nothing to do. An environment that was left half made is made anew.
"""

import os
import signal

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Until there is something to put away, Ctrl-C ends it without a word: the other imports take their time.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import contextlib
import fcntl
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
UNFINISHED = VENV / "ott-unfinished"
LOCKS = {
    "runtime": ("requirements-build.lock", "requirements.lock"),
    "dev": ("requirements-build.lock", "requirements-dev.lock"),
}


def main(what: str) -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        # One at a time, on the folder itself: no lock file to leave behind.
        folder = os.open(ROOT, os.O_RDONLY)
        fcntl.flock(folder, fcntl.LOCK_EX)
        if not _is_installed(what):
            _install(what)
    except subprocess.CalledProcessError:
        _say("Installing into .venv failed, for the reason above; run this again to start afresh")
        return 1
    return 0


def _is_installed(what: str) -> bool:
    # The development environment holds all of the runtime's.
    return any(_read(_stamp(kind)) == _expected() for kind in (what, "dev")) and is_usable()


def _install(what: str) -> None:
    if not is_usable():
        _say(f"Making .venv with Python {sys.version.split()[0]}")
        shutil.rmtree(VENV, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(VENV)])
    _say(f"Installing the locked dependencies ({', '.join(LOCKS[what])}): a minute or so, once")
    UNFINISHED.touch()
    _stamp("runtime").unlink(missing_ok=True)
    _stamp("dev").unlink(missing_ok=True)
    _pip("--require-hashes", *(f"--requirement={ROOT / 'deploy' / lock}" for lock in LOCKS[what]))
    # The build backend is one of the locked, so that nothing unlocked is fetched to build with.
    _pip("--no-deps", "--no-index", "--no-build-isolation", f"--editable={ROOT}")
    _stamp(what).write_text(_expected())
    UNFINISHED.unlink()


def _pip(*arguments: str) -> None:
    pip = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input", "-qq", "install"]
    # A user-wide setting must not lead it out of .venv.
    _run([*pip, *arguments], PIP_USER="0")


def _run(command: Sequence[str], **variables: str) -> None:
    """Run it to its end; its standard output holds nothing to pass on. Raises CalledProcessError.

    In a session of its own, so that Ctrl-C reaches this program alone, which then ends the other with all
    that it has started: Python programs would each print a traceback.
    """
    with subprocess.Popen(
        command, stdout=sys.stderr, env=os.environ | variables, start_new_session=True
    ) as program:
        try:
            code = program.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGTERM)
            raise
    if code:
        raise subprocess.CalledProcessError(code, command)


def is_usable() -> bool:
    """Whether .venv is whole, was made here (its scripts name its path) and has a Python that runs (the
    system's may have gone)."""
    stamps = [_stamp(kind) for kind in LOCKS if _stamp(kind).exists()]
    made_elsewhere = any(not _read(stamp).startswith(f"{VENV}\n") for stamp in stamps)
    if UNFINISHED.exists() or made_elsewhere or not PYTHON.exists():
        return False
    ask = "import sys, pip; sys.exit(sys.version_info < (3, 11))"
    return subprocess.run([PYTHON, "-c", ask], capture_output=True, check=False).returncode == 0


def _expected() -> str:
    inputs = [
        ROOT / "pyproject.toml",
        *(ROOT / "deploy" / lock for locks in LOCKS.values() for lock in locks),
    ]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in inputs]
    return "\n".join([str(VENV), *digests, ""])


def _stamp(what: str) -> Path:
    return VENV / f"ott-installed-{what}"


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
