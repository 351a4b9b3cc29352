"""Rate and memory of bulk jobs of several sizes, answered by a worker and the sandbox.

    python -m tests.benchmarks.bulk [--rows 1000,10000,100000]

Needs RabbitMQ at OTT_AMQP_URL. Prints the table of `bulk.md`; all it makes is removed at the end. One job
may take a quarter of an hour at the most. Seconds include the start of the program.
"""

import argparse
import asyncio
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen
from uuid import uuid4

from tests.benchmarks.process import Process
from tests.rig import DEFAULT_URL, MESSENGER, delete_objects

COMMAND = (sys.executable, "-m", "worker")
PORT = 18981
LIMIT = 900  # seconds for one job
HEADING = """\
| rows | file | seconds | rows/s | peak memory | CPU of the job | with `--resume` | peak memory then |
|---:|---:|---:|---:|---:|---:|---:|---:|"""


@dataclass(frozen=True)
class Run:
    seconds: float
    peak: float  # megabytes
    cpu: float  # seconds


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    arguments.add_argument("--rows", default="1000,10000,100000")
    given = arguments.parse_args()
    url = os.environ.get("OTT_AMQP_URL", DEFAULT_URL)
    prefix = f"benchmark.{uuid4().hex[:12]}"
    sandbox = f"http://127.0.0.1:{PORT}"
    environment = {
        "OTT_AMQP_URL": url,
        "OTT_PREFIX": prefix,
        "OTT_MC_AUTH_URL": sandbox,
        "OTT_MC_REST_URL": sandbox,
        "OTT_MC_CLIENT_ID": "sandbox",
        "OTT_MC_CLIENT_SECRET": "sandbox",
        "OTT_ADMIN_PORT": "",
    }
    with tempfile.TemporaryDirectory() as folder:
        try:
            measure([int(rows) for rows in given.rows.split(",")], environment, Path(folder))
        finally:
            asyncio.run(delete_objects(url, prefix))


def measure(sizes: list[int], environment: dict[str, str], folder: Path) -> None:
    sandbox = [*COMMAND, "sandbox", "--port", str(PORT), "--history-limit", "100"]
    with (
        Process(sandbox, environment, folder / "sandbox.log") as cloud,
        Process([*COMMAND, "run"], environment, folder / "worker.log") as worker,
    ):
        wait_for(lambda: "subscribed" in (folder / "worker.log").read_text())
        wait_for(answers)
        print(
            f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}\n\n{HEADING}"
        )
        for rows in sizes:
            path = folder / f"{rows}.csv"
            write_csv(path, rows)
            first = submit(path, environment, folder)
            again = submit(path, environment, folder, "--resume")
            cloud.check()
            worker.check()
            print(
                f"| {rows:,} | {path.stat().st_size / 1e6:.1f} MB | {first.seconds:.1f} | "
                f"{rows / first.seconds:,.0f} | {first.peak:.0f} MB | {first.cpu:.1f} s | "
                f"{again.seconds:.1f} s | {again.peak:.0f} MB |",
                flush=True,
            )


def submit(path: Path, environment: dict[str, str], folder: Path, *options: str) -> Run:
    """Run the command to its end; raises where not all rows are registered."""
    results = path.with_suffix(".results.jsonl")
    command = [*COMMAND, "submit", str(path), "--quiet", "--results", str(results), *options]
    with Process(command, environment, folder / "submit.log") as process:
        started = time.monotonic()
        peak = cpu = 0.0
        while process.runs:
            peak, cpu = max(peak, process.peak_memory()), max(cpu, process.cpu() / 1_000_000)
            if time.monotonic() - started > LIMIT:
                raise RuntimeError(f"not done within {LIMIT} s")
            time.sleep(0.05)
        if process.code:
            raise RuntimeError(f"submit ended with {process.code}")
        return Run(time.monotonic() - started, peak, cpu)


def answers() -> bool:
    try:
        with urlopen(f"http://127.0.0.1:{PORT}/sandbox/faults", timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError("the worker and the sandbox did not start")
        time.sleep(0.1)


def write_csv(path: Path, rows: int) -> None:
    attributes = MESSENGER["ottPlatformAttributes"]
    row = ",".join(str(value) for value in {**attributes, "pageId": "{}"}.values())
    with path.open("w") as file:
        file.write(f"ottPlatformName,{','.join(attributes)}\n")
        file.writelines(f"messenger,{row.format(number)}\n" for number in range(rows))


if __name__ == "__main__":
    main()
