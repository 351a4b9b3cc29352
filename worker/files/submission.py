"""A bulk job, on one page.

a row is read, in a thread                      rows.py
→ skipped, if an earlier run has settled it     job_database.py
→ not sent, if it is damaged or invalid         job_database.py, rows.py
→ published, when the pace allows it            job.py, broker/requester.py
→ answered, on the job's own queue              broker/requester.py
→ written to the results file, and counted      results.py, job.py"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Future
from contextlib import aclosing, suppress
from functools import partial
from itertools import islice
from typing import Any, Final
from uuid import uuid4

from worker.amqp.connection import cancel_all
from worker.broker.requester import Requester, look_for_workers
from worker.broker.situation import obstacle
from worker.broker.status import read_workers
from worker.contract.reply import MalformedReply, parse_reply
from worker.contract.timestamps import text_of
from worker.errors import Interrupted, WorkerError
from worker.files.job import Notices, Outstanding, Plan, Tally
from worker.files.job_database import INVALID, SETTLED, JobDatabase, RowResult, request_id
from worker.files.results import Results
from worker.files.rows import Reading, Row
from worker.settings import Settings

LAST_REPLIES: Final = 5.0  # seconds to wait for replies after an interruption
COLLECT: Final = 30.0  # seconds to receive the replies that an earlier run left in the queue
QUEUE_EXPIRES: Final = 24 * 3600.0  # seconds in which an interrupted job can be resumed without loss
ASK_INTERVAL: Final = 2.0  # seconds without a reply before, and then between, checks of the workers
ASK_TIMEOUT: Final = 10.0  # seconds
BATCH: Final = 100  # rows that are read at once


class Submission:
    """One run of a job. `tally`, `notices` and `out` show its progress."""

    def __init__(
        self, settings: Settings, plan: Plan, database: JobDatabase, results: Results | None
    ) -> None:
        self.tally = Tally()
        self.notices = Notices()
        self.out = Outstanding(plan.outstanding, plan.rate)
        self._job = database.job or uuid4().hex
        self._settings = settings
        self._plan = plan
        self._database = database
        self._results = results
        self._late = 0
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, stop: asyncio.Event) -> None:
        """Submit all rows and follow their replies; `stop` ends it early. Raises Interrupted, or the error
        that ended the job: BrokerUnreachable, TopologyError, PublishRefused, UsageError, Unreadable, or a
        WorkerError if the results file cannot be written."""
        on_reply = self._on_reply if self._plan.wait else None
        async with Requester(
            self._settings, self._job, on_reply, expires=QUEUE_EXPIRES, events=self.notices
        ) as self._requester:
            work = asyncio.create_task(self._work(), name="work")
            watch = asyncio.create_task(self._watch(), name="watch")
            stopped = asyncio.create_task(stop.wait(), name="stop")
            try:
                ends: list[asyncio.Future[Any]] = [work, watch, stopped, self._failed]
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
                for ended in (self._failed, watch):
                    if ended.done():
                        ended.result()
                if not work.done():
                    await self._end_early(work)
                await work
            finally:
                await cancel_all(work, watch, stopped)
                for row, _ in self.out.rows.values() if self._plan.reading.failed else ():
                    self._database.add_failed(row, ["No reply arrived; it may be registered nevertheless."])
                if self.out.rows:
                    self._requester.keep_queue()

    async def _work(self) -> None:
        # Replies that arrived after the earlier run had ended.
        waiting = self._requester.waiting_at_start if self._plan.resumed else 0
        with suppress(TimeoutError):  # after another loss of the connection they are received later
            async with asyncio.timeout(COLLECT):
                await self.out.until(lambda: self._late >= waiting)
        problem = None
        try:
            async with aclosing(read_ahead(self._plan.reading)) as rows:
                async for row in rows:
                    self.tally.read += 1
                    if not self._plan.reading.rereadable:
                        self._database.add(row)
                    if not self._is_settled(row) and not self._is_invalid(row):
                        await self._submit(row)
        except WorkerError as error:
            problem = error
        self.tally.total = self.tally.read
        await self.out.until(lambda: not self.out.rows)
        if problem is not None:
            raise problem

    def _is_invalid(self, row: Row) -> bool:
        limit = self._settings.max_body_bytes
        found = self._database.findings(row, limit, send_damaged=self._plan.send_damaged)
        if found:
            self._record(RowResult.unsent(row, self._name(row), INVALID, found), row)
        return bool(found)

    def _is_settled(self, row: Row) -> bool:
        if not self._plan.resumed:
            return False
        # With `--as-of now` (0) rows have no time of their own, so superseded rows are sent again.
        statuses = SETTLED[:1] if self._plan.reading.as_of == 0 else SETTLED
        settled_by = self._database.settled_by(row, statuses)
        if settled_by == row.place:
            self.tally.skipped += 1
        elif settled_by is not None:
            error = f"Row {settled_by}, a later one, is registered for the same resource."
            self._record(RowResult.unsent(row, self._name(row), "superseded", [error]), row)
        return settled_by is not None

    def _name(self, row: Row) -> str:
        return request_id(self._job, row, row.account_id or self._plan.account_id)

    def _at(self, row: Row) -> str:
        return str(row.shown_as) if len(self._plan.reading.paths) == 1 else f"{row.file} {row.shown_as}"

    async def _submit(self, row: Row) -> None:
        name = self._name(row)
        await self.out.room()
        if self._plan.resumed:
            self._database.mark_sent(row, name)
        self.out.add(name, row)
        account = row.account_id or self._plan.account_id
        confirmed = self._requester.send(
            row.body,
            request_id=name,
            account_id=account,
            as_of=None if row.true_at is None else text_of(row.true_at),
            lane=(account, row.platform, row.resource_id) if row.resource_id else None,
        )
        confirmed.add_done_callback(partial(self._on_confirm, name))

    def _on_confirm(self, name: str, sent: "asyncio.Future[None]") -> None:
        if sent.cancelled():
            return
        if error := sent.exception():
            self._fail(error)
            return
        self.tally.published += 1
        if not self._plan.wait:
            self.out.answered(name)

    def _on_reply(self, name: str, body: bytes) -> None:
        try:
            self._take_reply(name, body)
        except Exception as error:  # the results file or the database cannot be written
            self._fail(error)
            raise

    def _take_reply(self, name: str, body: bytes) -> None:
        job, number = name.partition("-")[0], name.rpartition("-")[2]
        if job != self._job or not number.isdecimal():
            return
        try:
            reply = parse_reply(body)
        except MalformedReply:
            return
        place = int(number)
        line, file, sent_as = self._database.where(place)
        about = (reply.request_id, reply.status, reply.platform, reply.resource_id, reply.messages)
        result = RowResult(place, *about, line, file)
        if row := self.out.answered(name):
            if reply.status == "superseded" and not (reply.superseded_by or "").startswith(job):
                self.tally.overtaken.add(self._at(row))
            self._record(result, row)
            return
        # A repeat, or the reply to a row of an earlier run; that row is counted when it is read.
        self._late += 1
        if self._plan.resumed and reply.status in SETTLED and sent_as in (None, name):
            self._write(result)

    def _record(self, result: RowResult, row: Row) -> None:
        self.tally.add(result, self._at(row))
        if self._plan.reading.failed and result.status not in SETTLED:
            self._database.add_failed(row, result.errors)
        self._write(result)

    def _write(self, result: RowResult) -> None:
        if self._results is not None:
            self._results.write(result)

    def _fail(self, error: BaseException) -> None:
        if not self._failed.done():
            self._failed.set_exception(error)
            self._failed.exception()  # retrieved: the job may have ended already

    async def _watch(self) -> None:
        """Report why no replies arrive."""
        while True:
            await asyncio.sleep(ASK_INTERVAL)
            if self.out.idle < ASK_INTERVAL:
                self.notices.workers = self.notices.job = ""
                continue
            with suppress(WorkerError, TimeoutError):  # this user may not be allowed to read it
                async with asyncio.timeout(ASK_TIMEOUT):
                    self.notices.workers = obstacle(await read_workers(self._settings))
            try:
                workers = await look_for_workers(self._settings)
            except WorkerError as error:
                self.notices.job = str(error)
            else:
                queue = f"{self._settings.prefix}.requests"
                self.notices.job = "" if workers else f"No worker consumes requests from {queue}: start one."

    async def _end_early(self, work: "asyncio.Task[None]") -> None:
        """Publish no more rows, wait a moment for the outstanding ones, and raise Interrupted."""
        await cancel_all(work)
        self.notices.job = "Stopping: waiting for the last replies."
        with suppress(TimeoutError):
            async with asyncio.timeout(LAST_REPLIES):
                await self.out.until(lambda: not self.out.rows)
        missing = "published and not answered" if self._plan.wait else "not confirmed by the broker"
        out = f"{len(self.out.rows):,} rows are {missing}" if self.out.rows else "No row is outstanding"
        resume = "continue with --resume" if self._results else "with --results, --resume could continue it"
        raise Interrupted(f"Interrupted after row {self.tally.read}. {out}; {resume}")


async def read_ahead(reading: Reading) -> AsyncGenerator[Row, None]:
    """The rows, read in threads: standard input blocks, and parsing must not delay heartbeats. Raises as
    `Reading.rows` does."""
    rows = reading.rows()
    size = BATCH if reading.rereadable else 1  # rows of a pipe are sent as they arrive
    while True:
        batch: Future[list[Row | Exception]] = Future()
        # A daemon: a read of standard input cannot be cancelled, and an executor would wait for it at the
        # exit.
        threading.Thread(target=_read, args=(rows, size, batch), name="rows", daemon=True).start()
        read = await asyncio.wrap_future(batch)
        if not read:
            return
        for each in read:
            if isinstance(each, Exception):
                raise each
            yield each


def _read(rows: Iterator[Row], size: int, batch: "Future[list[Row | Exception]]") -> None:
    batch.set_running_or_notify_cancel()
    read: list[Row | Exception] = []
    try:
        read.extend(islice(rows, size))
    except Exception as error:
        read.append(error)
    batch.set_result(read)
