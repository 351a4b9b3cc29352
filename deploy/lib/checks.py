"""Lint, types and all tests: `checks.py`. With arguments only pytest, with these arguments.

The tests find their RabbitMQ in OTT_AMQP_URL. OTT_TEST_AMQP_URLS, a list separated by commas, names further
ones on which the broker tests run too; the tests get it with the first one added in front.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import foreground  # first of all that takes its time
from with_broker import with_broker

from worker.settings import load_settings

LINT = {
    "ruff check": ("ruff", "check"),
    "ruff format": ("ruff", "format", "--check"),
    "mypy": ("mypy",),
    "mypy deploy": ("mypy", "deploy/lib"),
}

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Tests mostly wait; a file keeps to one process, for the brokers of its own that it may have started. In the
# order of the folders the files of short tests (unit) come last: no process is left alone with a long one.
SIDE_BY_SIDE = ("-n", "8", "--dist", "loadfile", "--no-loadscope-reorder")


def checks(environment: Mapping[str, str]) -> int:
    outcome = {}
    if not sys.argv[1:]:
        for name, command in LINT.items():
            print(f"== {name}", flush=True)
            outcome[name] = _python(command, environment)
    if not sys.argv[1:] or any("console" in argument for argument in sys.argv[1:]):
        _want_browser()
    print("== pytest", flush=True)
    outcome["pytest"] = _python(("pytest", *(sys.argv[1:] or SIDE_BY_SIDE)), _for_tests(environment))
    if len(outcome) > 1:
        print("==", " · ".join(f"{name}: {'failed' if code else 'ok'}" for name, code in outcome.items()))
    return outcome["pytest"] or max(outcome.values())


def _want_browser() -> None:
    """The console is tested in a real browser, where there is one or the system can install it."""
    if any(shutil.which(name) for name in BROWSERS):
        return
    installer = Path(__file__).parent / "system-install"
    code = subprocess.run(
        [installer, BROWSERS[0], "the console's tests in a browser"], check=False
    ).returncode
    if code:
        print(
            f"== NO BROWSER: the console is NOT tested in one. Install {BROWSERS[0]} and run this again.",
            flush=True,
        )


def _python(module: tuple[str, ...], environment: Mapping[str, str]) -> int:
    return foreground.run([sys.executable, "-m", *module], environment)


def _for_tests(environment: Mapping[str, str]) -> dict[str, str]:
    beside_python = str(Path(sys.executable).parent)
    url = environment.get("OTT_AMQP_URL") or load_settings().amqp_url.get_secret_value()
    further = environment.get("OTT_TEST_AMQP_URLS", "").split(",")
    urls = dict.fromkeys([url, *(name for name in map(str.strip, further) if name)])
    return dict(environment) | {
        "PATH": os.pathsep.join((beside_python, environment["PATH"])),
        "OTT_TEST_AMQP_URLS": ",".join(urls),
    }


if __name__ == "__main__":
    sys.exit(with_broker(checks))
