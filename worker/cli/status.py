"""`ott-worker status`: one screen that shows what is happening (contract §9)."""

import asyncio
import sys
import time
from datetime import UTC, datetime
from typing import Annotated

import typer

from worker.amqp.connection import connected
from worker.amqp.stream_reader import StreamReader
from worker.broker.last_hour import HOUR, MINUTE, LastHour
from worker.broker.overview import read_overview
from worker.broker.situation import Trend, judge
from worker.broker.topology import Topology
from worker.cli import output
from worker.cli.status_screen import Causes, Screen, print_screen
from worker.dead_letters.groups import causes_of
from worker.dead_letters.letter import Letter
from worker.dead_letters.queue import open_dead_letters
from worker.dead_letters.selection import Selection
from worker.errors import BrokerUnreachable, QueueInUse, TopologyError
from worker.settings import Settings, load_settings

WATCH_INTERVAL = 2.0  # seconds
RATE_BUDGET = 5.0  # seconds that reading the last hour of the journal may take
LETTERS_LOOKED_AT = 5_000  # the oldest; in a longer queue only these are counted by cause
LETTERS_INTERVAL = 30.0  # seconds after which --watch looks at them again although their number is the same
CLEAR = "\x1b[2J\x1b[H"


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
        self._trend = Trend()
        self._hour = LastHour()
        self._causes = Causes()
        self._count = 0
        self._causes_at = float("-inf")

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
        found = await self._read_causes(overview.queues.get("dead", 0))
        if found.problem:
            overview.problems.append(found.problem)
        growth = self._trend.growth(time.monotonic(), overview.queues.get("requests"))
        situation = judge(overview, names, growth=growth, dead=found.largest())
        return Screen(self._settings.prefix, broker, datetime.now(UTC), situation, overview, rates, found)

    async def _read_causes(self, count: int) -> Causes:
        """The causes of the letters. `problem` says if this user may not read them or the queue is in use."""
        now = time.monotonic()
        if count != self._count or now - self._causes_at > LETTERS_INTERVAL:
            self._causes = await self._look() if count else Causes()
            self._count, self._causes_at = count, now
        return self._causes

    async def _look(self) -> Causes:
        found = Causes()
        try:
            async with open_dead_letters(self._settings) as queue:
                facts = await queue.read(Selection(), Letter.facts, LETTERS_LOOKED_AT)
            found.looked_at, found.groups = len(facts), causes_of(facts, by_error=True)
        except (TopologyError, QueueInUse) as error:
            found.problem = str(error)
        return found
