"""What is measured: each function runs one table's worth and returns it as plain data."""

import asyncio
import json
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import aiormq
from pamqp import commands

from tests.benchmarks import stages
from tests.benchmarks.contender import ALL, OURS, Contender, body, requests
from tests.benchmarks.environment import LOG, Environment
from tests.benchmarks.measure import Run, Work, _until, run, stage
from tests.benchmarks.process import Process

Table = dict[str, Any]
LATENCIES = (0.0, 0.05, 0.2, 1.0)  # seconds


class Bench:
    """All scenarios on one broker."""

    def __init__(self, environment: Environment, amqp_url: str, rounds: int, tell: Callable[[str], None]):
        self._environment = environment
        self._amqp_url = amqp_url
        self._rounds = rounds
        self._tell = tell

    async def _run(self, contender: Contender, work: Work, what: str = "") -> Run:
        result = await run(contender, self._environment, self._amqp_url, work)
        self._tell(
            f"{contender.name} {what}: {result.rate:.0f}/s, {result.cpu:.0f} µs, {result.memory:.0f} MB"
        )
        return result

    async def compare(self, names: Sequence[str] = ()) -> Table:
        """All contenders, taking turns, so that what else the machine does falls on all of them."""
        chosen = [c for c in ALL if not names or c.name in names]
        runs: dict[str, list[Run]] = {contender.name: [] for contender in chosen}
        for number in range(self._rounds):
            for contender in chosen:
                runs[contender.name].append(await self._run(contender, Work(), f"round {number + 1}"))
        return {
            name: {
                "cpu": _spread([r.cpu for r in made]),
                "rate": _spread([r.rate for r in made]),
                "memory": max(r.memory for r in made),
                "first": statistics.median(r.first_reply for r in made),
                "cpu_ratio": _spread([o.cpu / r.cpu for o, r in zip(runs[OURS.name], made, strict=True)]),
                "rate_ratio": _spread([o.rate / r.rate for o, r in zip(runs[OURS.name], made, strict=True)]),
            }
            for name, made in runs.items()
        }

    async def latency(self) -> Table:
        """Throughput against what prefetch and latency allow."""
        table: Table = {}
        cpu_limit = 0.0
        for latency in LATENCIES:
            prefetch = Work.prefetch
            bound = prefetch / latency if latency else float("inf")
            requests = 15_000 if bound > 1_200 else int(bound * 14)
            warm = 1_500 if bound > 1_200 else int(bound * 2)
            made = await self._run(
                OURS, Work(requests, latency=latency, warm=warm), f"{latency * 1000:.0f} ms"
            )
            cpu_limit = cpu_limit or 1_000_000 / made.cpu
            limit = min(bound, cpu_limit)
            table[f"{latency * 1000:.0f}"] = {"rate": made.rate, "limit": limit, "cpu": made.cpu}
        return table

    async def added(self, rate: float, latency: float = 0.05, seconds: float = 10.0) -> Table:
        """Latency over the upstream's own at `rate` requests a second."""
        work = Work(latency=latency)
        async with stage(OURS, self._amqp_url, work) as on:
            with Process(OURS.command(self._environment), on.settings, LOG) as process:
                probe = _Probe(on.settings, rate)
                async with probe:
                    await probe.send(int(rate * 2))
                    await _until(on.upstream, int(rate * 2), process)
                    probe.forget()
                    await probe.send(int(rate * seconds))
                    await probe.all_answered()
        inside, outside = probe.inside(latency), probe.outside(latency)
        return {
            "rate": rate,
            "latency": latency,
            "inside": _percentiles(inside),
            "outside": _percentiles(outside),
        }

    async def stages(self, seconds: int = 8) -> Table:
        """Cost of a request by stage: CPU from /proc, shares from a sampling profiler's stacks."""
        work = Work(30_000)
        async with stage(OURS, self._amqp_url, work) as on:
            await on.broker.fill(on.queue, requests(work.resources, work.size, on.replies), work.requests)
            with Process(OURS.command(self._environment), on.settings, LOG) as process:
                await _until(on.upstream, work.warm, process)
                before, cpu = on.upstream.requests, process.cpu()
                stacks = await asyncio.to_thread(_sample, self._environment, process.pid, seconds)
                spent = (process.cpu() - cpu) / (on.upstream.requests - before)
        return {"cpu": spent, "shares": stages.shares(stacks)}


class _Probe:
    """Sends requests at a steady rate and notes when their replies come."""

    def __init__(self, settings: dict[str, str], rate: float) -> None:
        self._settings = settings
        self._rate = rate
        self._sent: dict[str, float] = {}
        self._answered: dict[str, float] = {}
        self._held: list[float] = []

    async def __aenter__(self) -> Self:
        self._connection = await aiormq.connect(self._settings["BENCH_AMQP_URL"])
        self._channel = await self._connection.channel(publisher_confirms=False)
        await self._channel.basic_consume(self._settings["BENCH_REPLIES"], self._on_reply, no_ack=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close()

    async def _on_reply(self, message: aiormq.abc.DeliveredMessage) -> None:
        document = json.loads(message.body)
        self._answered[document["requestId"]] = time.perf_counter()
        received, completed = (datetime.fromisoformat(document[f"{k}At"]) for k in ("received", "completed"))
        self._held.append((completed - received).total_seconds())

    async def send(self, count: int) -> None:
        began = time.perf_counter()
        for number in range(count):
            message_id = f"{began}-{number}"
            properties = commands.Basic.Properties(
                message_id=message_id, reply_to=self._settings["BENCH_REPLIES"], delivery_mode=2
            )
            due = began + number / self._rate
            if (wait := due - time.perf_counter()) > 0.001:
                await asyncio.sleep(wait)
            self._sent[message_id] = time.perf_counter()
            await self._channel.basic_publish(
                body(number % 1000, 1000), routing_key=self._settings["BENCH_QUEUE"], properties=properties
            )

    def forget(self) -> None:
        self._sent.clear()
        self._answered.clear()
        self._held.clear()

    async def all_answered(self) -> None:
        async with asyncio.timeout(60):
            while not self._sent.keys() <= self._answered.keys():
                await asyncio.sleep(0.05)

    def inside(self, latency: float) -> list[float]:
        """Seconds in the worker, from arrival to the reply's writing, over the upstream's."""
        return [held - latency for held in self._held]

    def outside(self, latency: float) -> list[float]:
        """Seconds from the request's publishing to the reply's arrival, over the upstream's."""
        return [self._answered[name] - sent - latency for name, sent in self._sent.items()]


def _sample(environment: Environment, pid: int, seconds: int) -> Counter[tuple[str, ...]]:
    with tempfile.NamedTemporaryFile(suffix=".txt") as file:
        command = [str(environment.bin / "py-spy"), "record", "--pid", str(pid), "--format", "raw"]
        command += ["--rate", "400", "--duration", str(seconds), "--output", file.name]
        subprocess.run(command, check=True, capture_output=True)
        return stages.read(Path(file.name).read_text())


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {f"p{p}": ordered[min(len(ordered) - 1, len(ordered) * p // 100)] for p in (50, 99)}
