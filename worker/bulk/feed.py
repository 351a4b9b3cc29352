"""Rows read in a thread of their own: standard input blocks, and parsing must not hold up heartbeats."""

import asyncio
import threading
from typing import Self

from worker.bulk.readers import Reading, Row
from worker.errors import WorkerError

AHEAD = 100  # rows read before they are asked for


class Feed:
    """Iterates over the rows of a reading, and raises what it raises. Use as a context manager."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._loop = asyncio.get_running_loop()
        self._rows: asyncio.Queue[Row | BaseException | None] = asyncio.Queue()
        self._room = threading.Semaphore(AHEAD)
        self._ended = False

    def __enter__(self) -> Self:
        # A daemon, for a read of standard input cannot be ended.
        threading.Thread(target=self._read, name="rows", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended = True
        self._room.release()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Row:
        row = await self._rows.get()
        self._room.release()
        if row is None:
            raise StopAsyncIteration
        if isinstance(row, BaseException):
            raise row
        return row

    def _read(self) -> None:
        try:
            for row in self._reading.rows():
                self._room.acquire()
                if self._ended:
                    return
                self._hand_over(row)
            self._hand_over(None)
        except Exception as error:
            self._hand_over(error if isinstance(error, WorkerError) else error.with_traceback(None))

    def _hand_over(self, row: Row | BaseException | None) -> None:
        try:
            self._loop.call_soon_threadsafe(self._rows.put_nowait, row)
        except RuntimeError:
            self._ended = True  # the loop is closed: nobody reads any more
