"""Break each promise on purpose, and see which tests notice: `python -m tests.breaks [WORD...] [--list]`.

Each row of table.txt (a promise, a file, what goes out of it and what comes in, and the tests that should
notice) is applied to a copy of the checkout, and its tests run there. A break that no test notices, or that
no longer fits the code, makes the exit code 1. With words only the rows that hold all of them run. The tests
need a RabbitMQ, as ever (OTT_TEST_AMQP_URLS).
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.support.markdown import print_head, print_row

ROOT = Path(__file__).parents[2]
NOT_COPIED = shutil.ignore_patterns(".git", ".venv", "__pycache__")
TIMEOUT = 600  # seconds for the tests of one row


class Break(NamedTuple):
    """A promise that is broken by replacing a text that stands once in a file."""

    promise: str
    file: str
    old: str
    new: str
    tests: str  # arguments of pytest, files below tests/


def _table() -> Iterator[Break]:
    for block in Path(__file__).with_name("table.txt").read_text("utf-8").split("\n\n"):
        if not block.startswith("# "):
            promise, file, *changes, tests = block.strip("\n").split("\n")
            old, new = ("\n".join(line[1:] for line in changes if line[0] == sign) for sign in "-+")
            yield Break(promise, file, old, new, tests)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.breaks", description=__doc__)
    parser.add_argument("words", metavar="WORD", nargs="*", help="only the rows that hold all of them")
    parser.add_argument("--list", action="store_true", help="only tell whether the rows fit the code")
    given = parser.parse_args()
    rows = [row for row in _table() if all(word in " ".join(row) for word in given.words)]
    if given.list:
        for row in rows:
            print(f"{_fits(ROOT, row)!s:5} {row.promise}: {row.file}")
        return int(not all(_fits(ROOT, row) for row in rows))
    print_head("broken", "noticed by", "seconds")
    noticed = 0
    with tempfile.TemporaryDirectory(prefix="ott-breaks-") as folder:
        copy = Path(folder)
        shutil.copytree(ROOT, copy, ignore=NOT_COPIED, dirs_exist_ok=True)
        for row in rows:
            began = time.monotonic()
            failed = _run(copy, row)
            noticed += bool(failed)
            shown = "<br>".join(failed) or "**nothing**"
            print_row(row.promise, shown, f"{time.monotonic() - began:.0f}")
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
    sys.exit(main())
