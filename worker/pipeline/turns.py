"""Turns: requests wait until their call may go, first come, first served. `flow.py` decides when that is."""

import asyncio
from collections import deque

from worker.pipeline.flow import Call, Flow


class Turns:
    """Lets calls go, one after the other. Each that went must end."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._waiting: deque[asyncio.Future[Call]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    async def next(self, *, in_front: bool = False) -> Call:
        """Wait until a call may go. `in_front`: before all others that wait."""
        if not self._waiting and self._flow.wait() == 0:
            return self._flow.begin()
        turn: asyncio.Future[Call] = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if in_front else self._waiting.append)(turn)
        self._go()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.ended(turn.result())
            raise

    def ended(self, call: Call) -> None:
        """The call is over, or was not made: others may go."""
        self._flow.abandoned(call)
        if self._waiting:
            self._go()
        else:
            self._flow.nobody_waits()

    def _go(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            if self._waiting[0].done():  # it was cancelled
                self._waiting.popleft()
                continue
            wait = self._flow.wait()
            if wait:
                self._timer = asyncio.get_running_loop().call_later(wait, self._go)
            if wait != 0:
                return
            self._waiting.popleft().set_result(self._flow.begin())
