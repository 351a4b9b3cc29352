"""`ott-worker status`: the state of the deployment on one screen, at any width (contract §9)."""

import asyncio
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from operator import itemgetter
from typing import Annotated, Any

import typer

from worker.amqp.connection import connected
from worker.amqp.stream_reader import StreamReader
from worker.broker.last_hour import HOUR, MINUTE, LastHour
from worker.broker.situation import State, advice, judge, read_overview
from worker.broker.topology import Topology
from worker.cli import output
from worker.cli.output import Column, Table
from worker.contract.selection import Selection
from worker.contract.settlement import brief
from worker.contract.status import GateStatus, WorkerStatus
from worker.contract.timestamps import how_long, span
from worker.contract.words import STATUSES
from worker.dead_letters.letter import BY_ERROR, Facts, Letter, causes_of
from worker.dead_letters.queue import open_dead_letters
from worker.errors import BrokerUnreachable, QueueInUse, TopologyError
from worker.settings import Settings, load_settings

WATCH_INTERVAL = 2.0  # seconds
RATE_BUDGET = 5.0  # seconds that reading the last hour of the journal may take
LETTERS_LOOKED_AT = 5_000  # the oldest letters; only these are counted by cause
LETTERS_INTERVAL = 30.0  # seconds after which --watch reads the letters again in any case
CLEAR = "\x1b[2J\x1b[H"
CAUSES_SHOWN = 5
WIDTH = 100  # columns of text without a terminal


def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh every two seconds.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object, with --watch one after another.")
    ] = False,
) -> None:
    """Show the workers' states and causes, the queues, the rates and the dead letters. Changes nothing.

    Example: ott-worker status --watch"""
    asyncio.run(_status(Screen(load_settings()), watch=watch, as_json=as_json))


async def _status(screen: "Screen", *, watch: bool, as_json: bool) -> None:
    await screen.read()
    while True:
        if as_json:
            output.json_line(screen.document())
        else:
            if watch and sys.stdout.isatty():
                output.write(CLEAR)
            screen.print(output.width())
        output.flush()
        if not watch:
            return
        await asyncio.sleep(WATCH_INTERVAL)
        try:
            await screen.read()
        except BrokerUnreachable as error:
            typer.echo(f"ott-worker: {error}; trying again", err=True)


class Screen:
    """The status when it was last read."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._hour = LastHour()
        self._letters: list[Facts] = []
        self._letters_problem = ""  # why they could not be read
        self._letters_seen = (0, float("-inf"))  # their number, and when they were read

    async def read(self) -> None:
        """Read the status. Raises BrokerUnreachable."""
        async with connected(self._settings, "status") as connection:
            names = Topology(self._settings.prefix)
            overview, rates = await read_overview(connection, names), {}
            try:
                if self._settings.journal:
                    await self._hour.read(StreamReader(connection, names.journal), RATE_BUDGET)
                    rates = {"minute": self._hour.settled(MINUTE), "hour": self._hour.settled(HOUR)}
            except TopologyError as error:
                overview.problems.append(str(error))
            self._broker = f"RabbitMQ {connection.server_version}"
        await self._read_letters(overview.queues.get("dead", 0))
        if self._letters_problem:
            overview.problems.append(self._letters_problem)
        self._at, self._overview, self._rates = datetime.now(UTC), overview, rates
        self._situation = judge(overview, Counter(letter["reason"] for letter in self._letters))

    async def _read_letters(self, count: int) -> None:
        """Read the dead letters again if their number has changed, or after LETTERS_INTERVAL."""
        before, at = self._letters_seen
        if count == before and time.monotonic() - at < LETTERS_INTERVAL:
            return
        self._letters, self._letters_problem = [], ""
        try:
            if count:
                async with open_dead_letters(self._settings) as queue:
                    self._letters = await queue.read(Selection(), Letter.shown, LETTERS_LOOKED_AT)
        except (TopologyError, QueueInUse) as error:
            self._letters_problem = str(error)
        self._causes = causes_of(self._letters, BY_ERROR)
        self._letters_seen = count, time.monotonic()

    def document(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {
            "prefix": self._settings.prefix,
            "broker": self._broker,
            "at": f"{self._at:%Y-%m-%dT%H:%M:%S.%fZ}",
            "situation": [condition.document() for condition in self._situation],
            **self._overview.document(),
            "rates": self._rates,
            "deadLetters": [{**cause, "hint": advice(cause["reason"])} for cause in self._causes],
            "problems": self._overview.problems,
        }

    def print(self, width: int | None) -> None:
        """Print the status, `width` columns wide or, with None, as wide as needed."""
        now, overview = self._at, self._overview
        output.line(f"{self._settings.prefix} · {self._broker} · {now:%Y-%m-%d %H:%M:%S} UTC")
        for number, condition in enumerate(self._situation):
            if number and condition.state in (State.DEAD_LETTERS, State.INCOMPLETE):
                continue  # printed below
            _prose(condition.line(now), width)
            _prose(condition.advice, width, indent="  " if number else "")
        _table([*_worker_columns(overview.workers, now)], overview.workers, width)
        for worker in overview.lost:
            ago = f"{how_long(worker.at, now)} ago ({worker.at:%H:%M} UTC)"
            _prose(f"{worker.place}: last report {ago}: killed or cut off", width, indent="  ")
        _table(
            _titled("QUEUE", "WAITING"), [(q, f"{count:,}") for q, count in overview.queues.items()], width
        )
        titles = _titled("SETTLED", *(status.upper() for status in STATUSES), "PER S")
        _table(titles, [_rates(rate) for rate in self._rates.values()], width)
        shown = self._causes[:CAUSES_SHOWN]
        causes = [(f"{each['count']:,}", each["reason"], brief(each["error"]) or "-") for each in shown]
        _table([*_titled("DEAD", "REASON"), Column("ERROR", itemgetter(2), least=24)], causes, width)
        for reason in dict.fromkeys(cause["reason"] for cause in shown):
            _prose(f"{reason}: {advice(reason)}", width, indent="  ")
        if shown:
            is_part = len(self._letters) < overview.queues.get("dead", 0)
            which = f" (the causes of the oldest {len(self._letters):,} are shown)" if is_part else ""
            _prose(f"See ott-worker dead-letters list --by error{which}", width)
        for problem in overview.problems:
            _prose(f"Not shown: {problem}", width)


def _worker_columns(workers: Sequence[WorkerStatus], now: datetime) -> Iterator[Column]:
    yield Column("WORKER", lambda each: each.place, least=16)
    yield Column("STATE", lambda each: each.condition)
    yield Column("GATE", lambda each: _gate(each.gate, now))
    if any(each.partitions for each in workers):
        yield Column("PARTITIONS", lambda each: ",".join(map(str, each.partitions)) or "-", least=12)
    yield Column("IN FLIGHT", lambda each: f"{each.in_flight:,}")
    yield Column("PER S", lambda each: _rate(each.rate_per_second))
    if any(each.pace is not None for each in workers):
        yield Column("PACE", lambda each: "-" if each.pace is None else _rate(each.pace))
    yield Column("RECONNECTS", lambda each: str(each.reconnects), rank=2)
    yield Column("VERSION", lambda each: each.version, rank=1)


def _titled(*titles: str) -> list[Column]:
    """Columns for rows that are tuples."""
    return [Column(title, itemgetter(number)) for number, title in enumerate(titles)]


def _table(columns: Sequence[Column], rows: Sequence[Any], width: int | None) -> None:
    if rows:
        output.line("")
        Table(columns, rows, width).print()


def _gate(gate: GateStatus, now: datetime) -> str:
    return gate.state if gate.since is None else f"{gate.state} {how_long(gate.since, now)}"


def _rates(rate: Mapping[str, int]) -> tuple[str, ...]:
    seconds, counts = rate["seconds"], [rate[status] for status in STATUSES]
    title = {MINUTE: "last minute", HOUR: "last hour"}.get(seconds, f"last {span(seconds)}")
    return title, *(f"{count:,}" for count in counts), _rate(sum(counts) / max(1, seconds))


def _rate(per_second: float) -> str:
    return f"{per_second:,.1f}" if per_second >= 1 or not per_second else f"{per_second:.2g}"


def _prose(text: str, width: int | None, indent: str = "") -> None:
    # Commands must not break at hyphens, so that they can be copied.
    room = (width or WIDTH) - 1 - len(indent)
    for line in textwrap.wrap(text, max(room, 1), break_on_hyphens=False):
        output.line(indent + line)
