"""Measure the worker beside other ways to do the same work: `python -m tests.benchmarks --help`."""

import argparse
import asyncio
import json
import os
import platform
import statistics
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.benchmarks.contender import ALL, OURS, Contender
from tests.benchmarks.measure import Run, Work, run
from tests.rig import DEFAULT_URL
from worker.amqp.connection import connect
from worker.settings import load_settings

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
LATENCIES = (0.0, 0.05, 0.2, 1.0)  # seconds
Table = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Needs a RabbitMQ that is otherwise idle; takes about 5 minutes.",
        epilog="Example: python -m tests.benchmarks --only compare --contender ott-worker",
    )
    parser.add_argument("--amqp-url", default=os.environ.get("OTT_AMQP_URL", DEFAULT_URL))
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=SCENARIOS, metavar="SCENARIO")
    parser.add_argument("--rounds", type=int, default=5, help="repeats of each comparison (default 5)")
    parser.add_argument("--contender", nargs="+", default=(), help="names; all by default")
    parser.add_argument("--print", action="store_true", help="only print; leave README.md alone")
    print(text(asyncio.run(_measure(parser.parse_args()))))


async def _measure(arguments: argparse.Namespace) -> Table:
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() and not arguments.print else {}
    results |= await _circumstances(arguments.amqp_url)
    for name in arguments.only:
        results[name] = await SCENARIOS[name][0](Bench(arguments))
        if not arguments.print:
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            write(results)
    return results


async def _circumstances(amqp_url: str) -> dict[str, str]:
    connection = await connect(load_settings(amqp_url=amqp_url), "benchmark")
    rabbitmq = connection.server_version
    await connection.close()
    packages = ", ".join(f"{name} {version(name)}" for name in ("aio-pika", "aiormq", "aiohttp", "uvloop"))
    cpus = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    cpu = cpus[0].partition(": ")[2] if cpus else platform.machine()
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{os.cpu_count()} cores ({cpu}), broker, upstream and contender together",
        "versions": f"RabbitMQ {rabbitmq}, Python {platform.python_version()}, {packages}",
    }


class Bench:
    """All scenarios on one broker."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._given = arguments

    async def _run(self, contender: Contender, work: Work, what: str) -> Run:
        made = await run(contender, self._given.amqp_url, work)
        told = f"{contender.name} {what}: {made.rate:.0f}/s, {made.cpu:.0f} µs, {made.memory:.0f} MB"
        print(told, file=sys.stderr, flush=True)
        return made

    async def compare(self) -> Table:
        """All contenders, taking turns, so that what else the machine does falls on all of them."""
        chosen = [c for c in ALL if not self._given.contender or c.name in self._given.contender]
        runs: dict[str, list[Run]] = {contender.name: [] for contender in chosen}
        for number in range(self._given.rounds):
            for contender in chosen:
                runs[contender.name].append(await self._run(contender, Work(), f"round {number + 1}"))
        ours = runs[OURS.name]
        return {
            name: {
                "cpu": _spread([r.cpu for r in made]),
                "rate": _spread([r.rate for r in made]),
                "memory": max(r.memory for r in made),
                "first": statistics.median(r.first_reply for r in made),
                "cpu_ratio": _spread([o.cpu / r.cpu for o, r in zip(ours, made, strict=True)]),
                "rate_ratio": _spread([o.rate / r.rate for o, r in zip(ours, made, strict=True)]),
            }
            for name, made in runs.items()
        }

    async def latency(self) -> Table:
        """Throughput against what prefetch and latency allow."""
        table: Table = {}
        for latency in LATENCIES:
            bound = Work.prefetch / latency if latency else float("inf")
            few = bound <= 1_200
            work = (
                Work(int(bound * 14), latency=latency, warm=int(bound * 2)) if few else Work(latency=latency)
            )
            made = await self._run(OURS, work, f"{latency * 1000:.0f} ms")
            limit = min(bound, 1_000_000 / (table["0"]["cpu"] if table else made.cpu))
            table[f"{latency * 1000:.0f}"] = {"rate": made.rate, "limit": limit, "cpu": made.cpu}
        return table


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def write(results: Table) -> None:
    """Put what was measured into README.md."""
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n{text(results)}\n{END}{rest.partition(END)[2]}")


def text(results: Table) -> str:
    """All tables, in Markdown."""
    parts = [f"Measured {results['date']} on {results['machine']}. {results['versions']}."]
    return "\n\n".join(
        parts + [made(results[name]) for name, (_, made) in SCENARIOS.items() if name in results]
    )


def _compared(table: Table) -> str:
    head = ("", "CPU µs a request", "worker ÷ this, pair by pair", "requests/s", "worker ÷ this", "peak MB")
    shapes = {"cpu": "{:.0f}", "cpu_ratio": "{:.2f}", "rate": "{:.0f}", "rate_ratio": "{:.2f}"}
    rows = [
        (
            f"**{name}**" if name == OURS.name else name,
            *(
                "{} ({} to {})".format(*(shape.format(row[key][k]) for k in ("median", "low", "high")))
                for key, shape in shapes.items()
            ),
            f"{row['memory']:.0f}",
            f"{row['first']:.1f}",
        )
        for name, row in table.items()
    ]
    about = "### The same work, side by side\n\nMedian (lowest to highest).\n\n"
    return about + _table((*head, "s to first reply"), rows)


def _latencies(table: Table) -> str:
    head = ("upstream takes", "requests/s", "limit", "reached", "CPU µs")
    rows = [
        (
            f"{ms} ms",
            *(f"{x:.0f}" for x in (r["rate"], r["limit"])),
            f"{r['rate'] / r['limit']:.1%}",
            f"{r['cpu']:.0f}",
        )
        for ms, r in table.items()
    ]
    about = "Prefetch 200; the limit is min(prefetch ÷ latency, one core ÷ CPU per request at 0 ms)."
    return f"### Upstream latency\n\n{about}\n\n" + _table(head, rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


SCENARIOS = {"compare": (Bench.compare, _compared), "latency": (Bench.latency, _latencies)}

if __name__ == "__main__":
    main()
