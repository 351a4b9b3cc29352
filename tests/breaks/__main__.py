"""Break each promise on purpose, and see which tests notice: `python -m tests.breaks [WORD...] [--list]`.

Each row of table.py is applied to a copy of the checkout, and its tests run there. A break that no test
notices, or that no longer fits the code, makes the exit code 1. With words only the rows that hold all of
them run. The tests need a RabbitMQ, as ever (OTT_TEST_AMQP_URLS).
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.breaks.table import BREAKS, Break

ROOT = Path(__file__).parents[2]
COPIED = ("worker", "tests", "deploy", "pyproject.toml", "README.md", "docker-compose.yml", ".github", ".ci")
TIMEOUT = 600  # seconds for the tests of one row


def main(arguments: list[str]) -> int:
    words = [word for word in arguments if not word.startswith("-")]
    rows = [row for row in BREAKS if all(word in " ".join(row) for word in words)]
    if "--list" in arguments:
        for row in rows:
            print(f"{_fits(ROOT, row)!s:5} {row.promise}: {row.file}")
        return int(not all(_fits(ROOT, row) for row in rows))
    print("| broken | noticed by | seconds |\n|---|---|---|", flush=True)
    noticed = 0
    with tempfile.TemporaryDirectory(prefix="ott-breaks-") as folder:
        copy = Path(folder)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif (ROOT / name).exists():
                shutil.copy(ROOT / name, copy / name)
        for row in rows:
            began = time.monotonic()
            failed = _run(copy, row)
            noticed += bool(failed)
            shown = "<br>".join(failed) or "**nothing**"
            print(f"| {row.promise} | {shown} | {time.monotonic() - began:.0f} |", flush=True)
    print(f"{noticed} of {len(rows)} breaks were noticed.")
    return int(noticed < len(rows))


def _fits(root: Path, row: Break) -> bool:
    file = root / row.file
    return file.exists() and file.read_text("utf-8").count(row.old) == 1


def _run(copy: Path, row: Break) -> list[str]:
    """The first tests that fail with the break, or nothing."""
    if not _fits(copy, row):
        print(f"{row.promise}: its text does not stand once in {row.file}", file=sys.stderr)
        return []
    place = copy / row.file
    whole = place.read_text("utf-8")
    place.write_text(whole.replace(row.old, row.new), "utf-8")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", *shlex.split(row.tests)],
            cwd=copy / "tests",
            env=os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        return re.findall(r"^(?:FAILED|ERROR) (?:tests/)?(\S+)", done.stdout, re.MULTILINE)
    except subprocess.TimeoutExpired:
        return [f"no end within {TIMEOUT} s"]
    finally:
        place.write_text(whole, "utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
