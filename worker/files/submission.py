"""A bulk job, on one page.

a row is read, in a thread                      rows.py
→ left out, if an earlier run has settled it    job_database.py
→ kept back, if it is damaged or invalid        job_database.py, check.py
→ published, when there is room                 outstanding.py, broker/requester.py
→ answered, on the job's own queue              broker/requester.py
→ written to the results file, and counted      results.py, progress.py
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from uuid import uuid4

from worker.broker.requester import Requester, cancel_all, look_for_workers
from worker.broker.status import read_workers
from worker.contract.reply import MalformedReply, Reply
from worker.contract.timestamps import text_of
from worker.errors import Interrupted, WorkerError
from worker.files.check import findings
from worker.files.job_database import JobDatabase, parse_request_id, request_id
from worker.files.outstanding import Outstanding
from worker.files.progress import Notices, Tally
from worker.files.results import INVALID, SETTLED, Results, ResultsFileError, RowResult
from worker.files.rows import Reading, Row
from worker.settings import Settings

LAST_REPLIES: Final = 5.0  # seconds to wait for replies after an interruption
COLLECT: Final = 30.0  # seconds to take in what an earlier run left in the queue
QUEUE_EXPIRES: Final = 24 * 3600.0  # seconds in which an interrupted job can be resumed without loss
ASK_AFTER: Final = 2  # seconds without a reply, before the workers are asked why
ASK_INTERVAL: Final = 3  # seconds
ASK_TIMEOUT: Final = 10.0  # seconds
BATCH: Final = 100  # rows that the reading thread hands over at once


class NoReplies(WorkerError):
    """No reply came for as long as the user would wait."""


@dataclass(frozen=True, slots=True)
class SubmissionPlan:
    """What a job does. It waits for the next reply for `reply_timeout` seconds, or for ever. `outstanding`
    rows at most wait for theirs, or as many as are settled soon; `rate` is the most rows a second."""

    reading: Reading
    account_id: str | None = None
    outstanding: int | None = None
    rate: float | None = None
    wait: bool = True
    reply_timeout: float | None = None
    send_damaged: bool = False


class Submission:
    """One run of a job. `tally`, `notices` and `out` tell how it stands.

    With `resumed` it is the same job again: rows keep their request ids, and replies that came after the
    earlier run had ended are taken in. With `gives_back` the database keeps the rows that are not registered.
    """

    def __init__(
        self,
        settings: Settings,
        plan: SubmissionPlan,
        database: JobDatabase,
        results: Results | None = None,
        *,
        resumed: bool = False,
        gives_back: bool = False,
    ) -> None:
        self.tally = Tally()
        self.notices = Notices()
        self.out = Outstanding(plan.outstanding, plan.rate)
        self.job = database.job or uuid4().hex
        self._settings = settings
        self._plan = plan
        self._database = database
        self._results = results
        self._resumed = resumed
        self._gives_back = gives_back
        self._late = 0
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, stop: asyncio.Event) -> None:
        """Submit all rows and follow their replies. `stop` ends it early; set again, it ends the wait for
        the last replies too. Raises Interrupted, or what ended the job: BrokerUnreachable, TopologyError,
        PublishRefused, UsageError, Unreadable, ResultsFileError or NoReplies."""
        await self._look_for_workers()
        on_reply = self._on_reply if self._plan.wait else None
        async with Requester(
            self._settings, self.job, on_reply, expires=QUEUE_EXPIRES, events=self.notices
        ) as self._requester:
            work = asyncio.create_task(self._work(), name="work")
            watch = asyncio.create_task(self._watch(), name="watch")
            stopped = asyncio.create_task(stop.wait(), name="stop")
            try:
                await _first(work, watch, self._failed, stopped)
                if not work.done():
                    await self._end_early(work, stop)
                await work
            finally:
                await cancel_all(work, watch, stopped)
                for row in self.out.rows() if self._gives_back else ():
                    error = "No reply came; it may be registered all the same."
                    self._database.give_back(row, [error])
                if len(self.out):
                    self._requester.keep_queue()

    async def _work(self) -> None:
        await self._take_late_replies()
        problem = None
        try:
            async with aclosing(read_ahead(self._plan.reading)) as rows:
                async for row in rows:
                    self.tally.read, self.tally.read_bytes = row.number, row.read
                    if not self._plan.reading.rereadable:
                        self._database.add(row)
                    if not self._is_left_out(row) and not self._is_kept_back(row):
                        await self._submit(row)
        except WorkerError as error:
            problem = error
        self.tally.total = self.tally.read
        await self.out.none()
        if problem is not None:
            raise problem

    async def _take_late_replies(self) -> None:
        """Process the replies that arrived after the previous run ended."""
        waiting = self._requester.waiting_at_start if self._resumed else 0
        with suppress(TimeoutError):  # the connection is lost again; they are taken in later
            async with asyncio.timeout(COLLECT):
                await self.out.until(lambda: self._late >= waiting)

    def _is_kept_back(self, row: Row) -> bool:
        damaged = () if self._plan.send_damaged and row.body else self._database.problems(row)
        errors = list(map(str, findings(row, damaged, self._settings.max_body_bytes)))
        if errors:
            self._record_unsent(row, INVALID, *errors)
        return bool(errors)

    def _is_left_out(self, row: Row) -> bool:
        if not self._resumed:
            return False
        # With `--as-of now` (0) rows have no time of their own, so superseded rows are sent again.
        statuses = SETTLED[:1] if self._plan.reading.as_of == 0 else SETTLED
        settled = self._database.settled(row, statuses)
        if self._database.must_follow(row):
            return False
        if settled:
            self.tally.skipped += 1
            return True
        later = self._database.newest(row)
        if later < row.place:
            return False
        error = f"Row {later}, a later one, is registered for the same resource."
        self._record_unsent(row, "superseded", error)
        return True

    def _record_unsent(self, row: Row, status: str, *errors: str) -> None:
        self._record(RowResult.unsent(row, request_id(self.job, row.place), status, errors), row)

    def _at(self, row: Row) -> str:
        return row.at if len(self._plan.reading.paths) == 1 else f"{row.file} {row.at}"

    async def _submit(self, row: Row) -> None:
        name = request_id(self.job, row.place)
        await self.out.room()
        if self._resumed:
            self._database.goes_out(row)
        self.out.add(name, row)
        account = row.account_id or self._plan.account_id
        resource = (account, row.platform, row.resource_id) if row.resource_id else None
        confirmed = self._requester.send(
            row.body,
            request_id=name,
            account_id=account,
            as_of=None if row.true_at is None else text_of(row.true_at),
            lane=resource,
        )
        confirmed.add_done_callback(partial(self._on_confirm, name, len(row.body)))

    def _on_confirm(self, name: str, size: int, sent: "asyncio.Future[None]") -> None:
        self.out.confirmed(size)
        if sent.cancelled():
            return
        error = sent.exception()
        if error is not None:
            self._fail(error)
            return
        self.tally.published += 1
        if not self._plan.wait:
            self.out.answered(name)

    def _on_reply(self, name: str, body: bytes) -> None:
        parts = parse_request_id(name)
        if parts is None or parts[0] != self.job:
            return
        try:
            reply = Reply.parse(body)
        except MalformedReply:
            return
        if row := self.out.answered(name):
            if reply.status == "superseded" and not (reply.superseded_by or "").startswith(self.job):
                self.tally.overtaken.add(self._at(row))
            self._record(RowResult.of(parts[1], reply, row.line, row.file), row)
            return
        # A repeat, or the answer to what an earlier run had out; that row is counted when it is read.
        self._late += 1
        if self._resumed and reply.status in SETTLED:
            self._write(RowResult.of(parts[1], reply, *self._database.where(parts[1])))

    def _record(self, result: RowResult, row: Row) -> None:
        self.tally.add(result, self._at(row))
        if self._gives_back and result.status not in SETTLED:
            self._database.give_back(row, result.errors)
        self._write(result)

    def _write(self, result: RowResult) -> None:
        if self._resumed:
            self._database.note(result)
        try:
            if self._results is not None:
                self._results.write(result)
        except ResultsFileError as error:
            self._fail(error)
            raise

    def _fail(self, error: BaseException) -> None:
        if not self._failed.done():
            self._failed.set_exception(error)
            self._failed.exception()  # retrieved: the job may have ended already

    async def _watch(self) -> None:
        """Tell why nothing comes back, and end the job after its time-out."""
        timeout = self._plan.reply_timeout
        while True:
            await asyncio.sleep(1)
            idle = self.out.idle
            if timeout is not None and idle > timeout:
                raise NoReplies(f"No reply came for {timeout:g} s. {self._how_to_go_on()}")
            if idle < ASK_AFTER:
                self.notices.job = ""
                self.notices.workers_told([])
            elif int(idle) % ASK_INTERVAL == 0:
                await self._ask_workers()

    async def _ask_workers(self) -> None:
        with suppress(WorkerError, TimeoutError):  # this user may not be allowed to read it
            async with asyncio.timeout(ASK_TIMEOUT):
                self.notices.workers_told(await read_workers(self._settings))
        try:
            await self._look_for_workers()
        except WorkerError as error:
            self.notices.job = str(error)

    async def _look_for_workers(self) -> None:
        queue = f"{self._settings.prefix}.requests"
        workers = await look_for_workers(self._settings)
        self.notices.job = "" if workers else f"No worker takes requests from {queue}: start one."

    async def _end_early(self, work: "asyncio.Task[None]", stop: asyncio.Event) -> None:
        """Publish nothing more, wait a moment for what is out, and raise Interrupted."""
        await cancel_all(work)
        self.notices.job = "Stopping: waiting for the last replies (again to leave at once)."
        stop.clear()
        again, none = asyncio.create_task(stop.wait()), asyncio.create_task(self.out.none())
        await _first(again, none, timeout=LAST_REPLIES)
        await cancel_all(again, none)
        raise Interrupted(f"Interrupted after row {self.tally.read}. {self._how_to_go_on()}")

    def _how_to_go_on(self) -> str:
        resume = "go on with --resume" if self._results else "with --results, --resume could go on from here"
        if not len(self.out):
            return f"Nothing is out; {resume}"
        missing = "published and not answered" if self._plan.wait else "not confirmed by the broker"
        return f"{str(self.out).capitalize()} {missing}; {resume}"


_Batch = list[Row | Exception | None]  # None behind the last row, or what ended the reading


async def read_ahead(reading: Reading) -> AsyncGenerator[Row, None]:
    """The rows, read in a thread of its own: standard input blocks, and parsing must not hold up heartbeats.
    Raises what reading raises."""
    loop = asyncio.get_running_loop()
    batches: asyncio.Queue[_Batch] = asyncio.Queue()
    size = BATCH if reading.rereadable else 1  # rows of a pipe are sent as they come
    room = threading.Semaphore(2 * BATCH // size)
    given_up = threading.Event()

    def hand_over(batch: _Batch) -> None:
        room.acquire()
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(batches.put_nowait, batch)

    # A daemon, for a read of standard input cannot be ended.
    reader = (reading, size, hand_over, given_up)
    threading.Thread(target=_read, args=reader, name="rows", daemon=True).start()
    try:
        while True:
            for each in await batches.get():
                if each is None:
                    return
                if isinstance(each, Exception):
                    raise each
                yield each
            room.release()
    finally:
        given_up.set()
        room.release()


def _read(
    reading: Reading, size: int, hand_over: Callable[[_Batch], None], given_up: threading.Event
) -> None:
    batch: _Batch = []
    try:
        for row in reading.rows():
            batch.append(row)
            if len(batch) == size:
                hand_over(batch)
                batch = []
            if given_up.is_set():
                return
        batch.append(None)
    except Exception as error:
        batch.append(error)
    hand_over(batch)


async def _first(*ends: "asyncio.Future[Any]", timeout: float | None = None) -> None:
    """Wait until one of them ends, and raise its error."""
    done, _ = await asyncio.wait(ends, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    for end in done:
        end.result()
