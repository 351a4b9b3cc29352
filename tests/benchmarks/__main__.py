"""Measure the worker beside other ways to do the same work: `python -m tests.benchmarks --help`."""

import argparse
import asyncio
import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.benchmarks import environment, report
from tests.benchmarks.broker import Broker
from tests.benchmarks.scenarios import Bench

RESULTS = Path(__file__).parent / "results.json"
PROBE_LIMIT = 500.0  # requests a second; what sends and receives them takes a share of the machine too
SCENARIOS = ("compare", "latency", "added", "stages")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Needs a RabbitMQ that is otherwise idle; takes about 5 minutes.",
        epilog="Example: python -m tests.benchmarks --only compare --contender ott-worker FastStream",
    )
    parser.add_argument(
        "--amqp-url", default=os.environ.get("OTT_AMQP_URL", "amqp://guest:guest@127.0.0.1:5672/")
    )
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=SCENARIOS, metavar="SCENARIO")
    parser.add_argument("--rounds", type=int, default=5, help="repeats of each comparison (default 5)")
    parser.add_argument("--contender", nargs="+", default=(), help="names; all by default")
    parser.add_argument("--print", action="store_true", help="only print; leave README.md alone")
    arguments = parser.parse_args()
    print(report.text(asyncio.run(_measure(arguments))))


async def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    bench = Bench(environment.prepare(), arguments.amqp_url, arguments.rounds, _tell)
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() and not arguments.print else {}
    results |= await _circumstances(arguments.amqp_url)
    for name in arguments.only:
        if name == "compare":
            results[name] = await bench.compare(arguments.contender)
        elif name == "added":
            known = results.get("latency", {}).get("50")
            results[name] = await bench.added(min(PROBE_LIMIT, (known["rate"] if known else 1000.0) / 2))
        else:
            results[name] = await getattr(bench, name)()
        if not arguments.print:
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            report.write(results)
    return results


async def _circumstances(amqp_url: str) -> dict[str, str]:
    async with Broker(amqp_url) as broker:
        rabbitmq = broker.version
    packages = ", ".join(f"{name} {version(name)}" for name in ("aio-pika", "aiormq", "aiohttp", "uvloop"))
    cpu = next(
        (
            line.partition(": ")[2]
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{os.cpu_count()} cores ({cpu}), broker, upstream and contender together",
        "versions": f"RabbitMQ {rabbitmq}, Python {platform.python_version()}, {packages}",
    }


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
