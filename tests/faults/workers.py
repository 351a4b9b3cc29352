"""Workers as processes of their own: started, watched, frozen, killed."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import aiohttp

from worker.events import EVENTS

LAUNCHER = Path(__file__).with_name("stops.py")
SAMPLE_EVERY = 0.25  # seconds
STATES = {EVENTS[fact].text: fact for fact in ("subscribed", "active", "subscription_ended")}
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Stop:
    """Where a worker stops itself: at the `number`th pass of a point of stops.py."""

    point: str
    number: int = 1
    signal: str = "KILL"


@dataclass(eq=False)
class Worker:
    """One `ott-worker run`. Its log goes to a file."""

    number: int
    process: asyncio.subprocess.Process
    log: Path
    peak_memory: int = 0  # bytes
    peak_files: int = 0
    killed: bool = False

    @property
    def runs(self) -> bool:
        return self.process.returncode is None

    @property
    def is_frozen(self) -> bool:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
        return False

    def events(self) -> list[dict[str, object]]:
        """What it has logged, line by line."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def told(self, fact: str) -> int:
        """How often it has logged this event (worker/events.py)."""
        return sum(entry.get("event") == EVENTS[fact].text for entry in self.events())

    @property
    def is_active(self) -> bool:
        """Whether it has been given deliveries in its newest subscription."""
        states = [STATES[text] for entry in self.events() if (text := str(entry.get("event"))) in STATES]
        return self.runs and bool(states) and states[-1] == "active"

    def kill(self) -> None:
        """kill -9."""
        self.killed = True
        self._signal(signal.SIGKILL)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def interrupt(self, number: signal.Signals = signal.SIGTERM) -> None:
        self._signal(number)

    async def end(self) -> None:
        """Drain it; kill it where that takes too long."""
        self.thaw()
        self.interrupt()
        try:
            async with asyncio.timeout(15):
                await self.process.wait()
        except TimeoutError:
            self.kill()
            await self.process.wait()

    async def page(self, path: str) -> str | None:
        """A page of its admin server, or None while there is none."""
        urls = [entry["url"] for entry in self.events() if "url" in entry]
        if not urls or not self.runs or self.is_frozen:
            return None
        timeout = aiohttp.ClientTimeout(total=2)
        with contextlib.suppress(aiohttp.ClientError, TimeoutError):
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(f"{urls[0]}{path}") as response,
            ):
                return await response.text()
        return None

    def sample(self) -> None:
        """Take memory and open files down."""
        with contextlib.suppress(OSError, ValueError):
            process = Path(f"/proc/{self.process.pid}")
            resident = int((process / "statm").read_text().split()[1]) * PAGE
            self.peak_memory = max(self.peak_memory, resident)
            self.peak_files = max(self.peak_files, len(os.listdir(process / "fd")))

    def _signal(self, number: signal.Signals) -> None:
        if self.runs:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)


class Workers:
    """The workers of one deployment; dead ones are replaced while `keep` is above what runs."""

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        enter: Callable[[int], Sequence[str]] = lambda number: (),
    ) -> None:
        """`enter(n)` is what the command of the n-th worker begins with, for one on another host."""
        self.all: list[Worker] = []
        self.environment = dict(environment)
        self._enter = enter
        self.keep = 0
        self.stop: Callable[[], Stop] | None = None  # where each of them stops itself
        self._folder = folder
        self._numbers = count(1)
        self._sampler = asyncio.create_task(self._watch())

    @property
    def running(self) -> list[Worker]:
        return [worker for worker in self.all if worker.runs]

    @property
    def active(self) -> Worker | None:
        """The one that is given the deliveries, as far as it knows."""
        return next((worker for worker in self.running if worker.is_active), None)

    @property
    def stopped(self) -> int:
        """How many of them ended as if killed, and not by `Worker.kill`."""
        return sum(w.process.returncode == -signal.SIGKILL and not w.killed for w in self.all)

    def told(self, fact: str) -> int:
        """How often those that run have stated this fact (stops.py)."""
        return sum(worker.told(fact) for worker in self.running)

    async def start(self, stop: Stop | None = None, **environment: str) -> Worker:
        """Start one and return when it has subscribed."""
        worker = await self._spawn(stop, environment)
        deadline = time.monotonic() + 60
        while worker.runs and not worker.is_frozen and not worker.told("subscribed"):
            assert time.monotonic() < deadline, f"no subscription: {worker.log.read_text()[-2000:]}"
            await asyncio.sleep(0.02)
        return worker

    async def end(self) -> None:
        """Drain all of them."""
        self.keep = 0
        self._sampler.cancel()
        await asyncio.gather(self._sampler, return_exceptions=True)
        await asyncio.gather(*(worker.end() for worker in self.running))

    async def _spawn(self, stop: Stop | None, environment: Mapping[str, str] | None = None) -> Worker:
        number = next(self._numbers)
        log = self._folder / f"worker-{number}.log"
        if stop is None and self.stop is not None:
            stop = self.stop()
        arguments = [stop.point, str(stop.number), stop.signal] if stop else []
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                *self._enter(number),
                sys.executable,
                str(LAUNCHER),
                *arguments,
                cwd=self._folder,
                env={**_bare(), **self.environment, **(environment or {})},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        worker = Worker(number, process, log)
        self.all.append(worker)
        return worker

    async def _watch(self) -> None:
        while True:
            for worker in self.running:
                worker.sample()
            for _ in range(self.keep - len(self.running)):
                await self._spawn(None)
            await asyncio.sleep(SAMPLE_EVERY)


def _bare() -> dict[str, str]:
    """This process's environment without any setting of a worker."""
    return {name: value for name, value in os.environ.items() if not name.startswith("OTT_")}
