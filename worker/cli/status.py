"""`ott-worker status`: one screen that shows what is happening, at any width (contract §9)."""

import asyncio
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import itemgetter
from typing import Annotated, Any

import typer

from worker.amqp.connection import connected
from worker.amqp.stream_reader import StreamReader
from worker.broker.last_hour import HOUR, MINUTE, LastHour, Settled
from worker.broker.situation import Condition, Overview, State, advice, judge, read_overview
from worker.broker.topology import Topology
from worker.cli import output
from worker.cli.output import Column, Table
from worker.contract.settlement import brief
from worker.contract.status import GateStatus, WorkerStatus
from worker.contract.timestamps import how_long, span
from worker.contract.words import STATUSES
from worker.dead_letters.facts import Cause, LetterFacts, Selection, causes_of
from worker.dead_letters.letter import Letter
from worker.dead_letters.queue import open_dead_letters
from worker.errors import BrokerUnreachable, QueueInUse, TopologyError
from worker.settings import Settings, load_settings

WATCH_INTERVAL = 2.0  # seconds
RATE_BUDGET = 5.0  # seconds that reading the last hour of the journal may take
LETTERS_LOOKED_AT = 5_000  # the oldest; in a longer queue only these are counted by cause
LETTERS_INTERVAL = 30.0  # seconds after which --watch looks at them again although their number is the same
CLEAR = "\x1b[2J\x1b[H"
CAUSES_SHOWN = 5
WIDTH = 100  # columns of prose where there is no terminal


@dataclass(slots=True)
class Screen:
    """All that is shown. `rates` are those of the last minute and hour, None where there is no journal.
    `causes` are those of the `looked_at` oldest dead letters."""

    prefix: str
    broker: str
    at: datetime
    situation: Sequence[Condition]
    overview: Overview
    rates: tuple[Settled, Settled] | None = None
    causes: Sequence[Cause] = ()
    looked_at: int = 0

    def document(self) -> dict[str, Any]:
        """What `--json` prints."""
        overview = self.overview
        rates = zip(("minute", "hour"), self.rates or (), strict=False)
        return {
            "prefix": self.prefix,
            "broker": self.broker,
            "at": f"{self.at:%Y-%m-%dT%H:%M:%S.%fZ}",
            "situation": [condition.document() for condition in self.situation],
            **overview.document(),
            "rates": {
                name: {"seconds": round(rate.seconds), **{s: rate.counts.get(s, 0) for s in STATUSES}}
                for name, rate in rates
            },
            "deadLetters": [cause.summary() | {"hint": advice(cause.reason)} for cause in self.causes],
            "problems": overview.problems,
        }


def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh every two seconds.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object, with --watch one after another.")
    ] = False,
) -> None:
    """Show what the workers do and why, the queues, the rates, and why requests died. Changes nothing.

    Example: ott-worker status --watch
    """
    asyncio.run(_status(load_settings(), watch=watch, as_json=as_json))


async def _status(settings: Settings, *, watch: bool, as_json: bool) -> None:
    looks = _Looks(settings)
    _show(await looks.read(), watch=watch, as_json=as_json)
    while watch:
        await asyncio.sleep(WATCH_INTERVAL)
        try:
            _show(await looks.read(), watch=watch, as_json=as_json)
        except BrokerUnreachable as error:
            typer.echo(f"ott-worker: {error}; trying again", err=True)


def _show(screen: Screen, *, watch: bool, as_json: bool) -> None:
    if as_json:
        output.json_line(screen.document())
    else:
        if watch and sys.stdout.isatty():
            output.write(CLEAR)
        print_screen(screen, output.width())
    output.flush()


class _Looks:
    """What one look after another shows. The dead letters are looked at again when their number changes, or
    now and then."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._hour = LastHour()
        self._letters: list[LetterFacts] = []
        self._problem = ""  # why they could not be looked at
        self._count = 0
        self._looked_at = float("-inf")

    async def read(self) -> Screen:
        """The screen now. Raises BrokerUnreachable."""
        async with connected(self._settings, "status") as connection:
            names = Topology(self._settings.prefix)
            overview = await read_overview(connection, names)
            rates = None
            try:
                if self._settings.journal:
                    await self._hour.read(StreamReader(connection, names.journal), RATE_BUDGET)
                    rates = self._hour.settled(MINUTE), self._hour.settled(HOUR)
            except TopologyError as error:
                overview.problems.append(str(error))
            broker = f"RabbitMQ {connection.server_version}"
        await self._read_letters(overview.queues.get("dead", 0))
        if self._problem:
            overview.problems.append(self._problem)
        situation = judge(
            overview,
            names,
            dead=Counter(letter.reason for letter in self._letters),
        )
        causes = causes_of(self._letters, by_error=True)
        now = datetime.now(UTC)
        return Screen(
            self._settings.prefix, broker, now, situation, overview, rates, causes, len(self._letters)
        )

    async def _read_letters(self, count: int) -> None:
        if count == self._count and time.monotonic() - self._looked_at < LETTERS_INTERVAL:
            return
        self._letters, self._problem = [], ""
        try:
            if count:
                async with open_dead_letters(self._settings) as queue:
                    self._letters = await queue.read(Selection(), Letter.facts, LETTERS_LOOKED_AT)
        except (TopologyError, QueueInUse) as error:
            self._problem = str(error)
        self._count, self._looked_at = count, time.monotonic()


def print_screen(screen: Screen, width: int | None) -> None:
    """Print it, `width` columns wide, or as wide as it is."""
    overview = screen.overview
    output.line(f"{screen.prefix} · {screen.broker} · {screen.at:%Y-%m-%d %H:%M:%S} UTC")
    for number, condition in enumerate(screen.situation):
        if number and condition.state in (State.DEAD_LETTERS, State.INCOMPLETE):
            continue  # told below
        _prose(condition.line(screen.at), width)
        _prose(condition.advice, width, indent="" if number == 0 else "  ")
    _workers(overview.workers, screen.at, width)
    for worker in overview.lost:
        ago = f"{how_long(worker.at, screen.at)} ago ({worker.at:%H:%M} UTC)"
        _prose(f"{worker.place}: last heard {ago}: killed, or cut off from RabbitMQ", width, indent="  ")
    queues = [(name, f"{messages:,}") for name, messages in overview.queues.items()]
    _table(_titled("QUEUE", "WAITING"), queues, width)
    if screen.rates is not None:
        titles = _titled("SETTLED", *(status.upper() for status in STATUSES), "PER S")
        _table(titles, list(_rates(*screen.rates)), width)
    _causes(screen, width)
    if overview.problems:
        output.line("")
        for problem in overview.problems:
            _prose(f"Not shown: {problem}", width)


def _workers(workers: Sequence[WorkerStatus], now: datetime, width: int | None) -> None:
    columns = [
        Column("WORKER", lambda each: each.place, least=16),
        Column("STATE", lambda each: each.condition),
        Column("GATE", lambda each: _gate(each.gate, now)),
        Column("PARTITIONS", lambda each: _ranges(each.partitions)),
        Column("IN FLIGHT", lambda each: f"{each.in_flight:,}"),
        Column("PER S", lambda each: _rate(each.rate_per_second)),
        Column("PACE", lambda each: "-" if each.pace is None else _rate(each.pace)),
        Column("RECONNECTS", lambda each: str(each.reconnects), rank=2),
        Column("VERSION", lambda each: each.version, rank=1),
    ]
    unused = {"PARTITIONS"} if not any(each.partitions for each in workers) else set()
    if all(each.pace is None for each in workers):
        unused.add("PACE")
    _table([column for column in columns if column.title not in unused], workers, width)


def _table(columns: Sequence[Column], rows: Sequence[Any], width: int | None) -> None:
    if rows:
        output.line("")
        Table(columns, rows, width).print()


def _titled(*titles: str) -> list[Column]:
    """Columns for rows that are tuples."""
    return [Column(title, itemgetter(place)) for place, title in enumerate(titles)]


def _gate(gate: GateStatus, now: datetime) -> str:
    return gate.state if gate.since is None else f"{gate.state} {how_long(gate.since, now)}"


def _ranges(numbers: list[int]) -> str:
    """`1-3,7`, or `-`."""
    spans: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], number)
        else:
            spans.append((number, number))
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans) or "-"


def _rates(minute: Settled, hour: Settled) -> Iterator[tuple[str, ...]]:
    titles = ("last minute", "last hour" if hour.seconds >= 3600 else f"last {span(hour.seconds)}")
    for title, rate in zip(titles, (minute, hour), strict=True):
        yield title, *(f"{rate.counts.get(status, 0):,}" for status in STATUSES), _rate(rate.per_second)


def _causes(screen: Screen, width: int | None) -> None:
    if not screen.causes:
        return
    output.line("")
    is_part = screen.looked_at < screen.overview.queues.get("dead", 0)
    which = f" (of the oldest {screen.looked_at:,})" if is_part else ""
    _prose(f"DEAD LETTERS by cause{which}: ott-worker dead-letters list --by error", width)
    advised: set[str] = set()
    for cause in screen.causes[:CAUSES_SHOWN]:
        text = f"{cause.count:>7,}  {cause.reason}: {brief(cause.error) or '-'}"
        room = (width or WIDTH) - 1
        output.line(text if len(text) <= room else f"{text[: room - 1]}…")
        if cause.reason not in advised:
            _prose(f"→ {advice(cause.reason)}", width, indent=" " * 9)
            advised.add(cause.reason)
    if len(screen.causes) > CAUSES_SHOWN:
        output.line(f"{len(screen.causes) - CAUSES_SHOWN:>7,}  more causes")


def _prose(text: str, width: int | None, indent: str = "") -> None:
    # A command that is broken at its hyphen could not be pasted.
    room = (width or WIDTH) - 1 - len(indent)
    for line in textwrap.wrap(text, max(room, 1), break_on_hyphens=False):
        output.line(indent + line)


def _rate(per_second: float) -> str:
    return f"{per_second:,.1f}" if per_second >= 1 or not per_second else f"{per_second:.2g}"
