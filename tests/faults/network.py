"""Three hosts on this machine: network namespaces on one bridge, whose links can be cut without a word.

The host itself is on the bridge too, as `HUB`. A cut gives both ends a hardware address for the other one
that nobody has, so that packets vanish as they do in a real partition: no reset, no unreachable message.
"""

import contextlib
import itertools
import os
import random
import shutil
import subprocess
from collections.abc import Iterable
from typing import Self

from tests import watchdog

HUB = 0
HOSTS = (1, 2, 3)
NOBODY = "02:de:ad:00:00:01"


class NoNamespaces(Exception):
    """This machine allows no network namespaces; one line that says why."""


class Network:
    """Host n has the address `address(n)` in the namespace `namespace(n)`; 0 is the hub."""

    def __init__(self) -> None:
        self._name = f"ott{os.getpid() % 10_000}"
        self._net = f"10.77.{random.SystemRandom().randrange(256)}"
        self._cuts: set[tuple[int, int]] = set()
        self._left = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Raises NoNamespaces."""
        if shutil.which("ip") is None or shutil.which("nsenter") is None:
            raise NoNamespaces("ip and nsenter are not installed (packages iproute2 and util-linux)")
        self._left.enter_context(watchdog.afterwards(*self._removals))
        try:
            self._build()
        except subprocess.CalledProcessError as error:
            self.__exit__()
            raise NoNamespaces(f"{' '.join(error.cmd)}: {error.stderr.strip()}") from None
        return self

    def __exit__(self, *_: object) -> None:
        for command in self._removals:
            subprocess.run(command, capture_output=True, check=False)
        self._left.close()

    @property
    def _removals(self) -> list[list[str]]:
        """The namespaces take their ends of the links with them."""
        names = [*map(self.namespace, HOSTS), f"{self._name}-br"]
        return [*(["ip", "netns", "del", name] for name in names), ["ip", "link", "del", self._device(HUB)]]

    def address(self, host: int) -> str:
        return f"{self._net}.{254 if host == HUB else host}"

    def namespace(self, host: int) -> str:
        return f"{self._name}-{host}"

    def enter(self, host: int) -> list[str]:
        """What a command begins with that runs on this host."""
        return [] if host == HUB else ["nsenter", f"--net=/run/netns/{self.namespace(host)}"]

    def cut(self, side: Iterable[int], other: Iterable[int]) -> None:
        """Let nothing pass between two sides any more."""
        for a, b in itertools.product(side, other):
            for here, there in ((a, b), (b, a)):
                self._on(
                    here, "neigh", "replace", self.address(there), "lladdr", NOBODY, "nud", "permanent",
                    "dev", self._device(here),
                )  # fmt: skip
                self._cuts.add((here, there))

    def join(self, side: Iterable[int], other: Iterable[int]) -> None:
        """Undo the cuts between two sides."""
        for a, b in itertools.product(side, other):
            for here, there in self._cuts & {(a, b), (b, a)}:
                self._on(here, "neigh", "del", self.address(there), "dev", self._device(here))
                self._cuts.remove((here, there))

    def heal(self) -> None:
        """Undo every cut."""
        self.join((HUB, *HOSTS), (HUB, *HOSTS))

    def _build(self) -> None:
        bridge = f"{self._name}-br"
        _ip("netns", "add", bridge)
        _ip("-n", bridge, "link", "add", "br0", "type", "bridge")
        _ip("-n", bridge, "link", "set", "br0", "up")
        for host in (HUB, *HOSTS):
            if host != HUB:
                _ip("netns", "add", self.namespace(host))
                self._on(host, "link", "set", "lo", "up")
            device, port = self._device(host), f"port{host}"
            _ip("-n", bridge, "link", "add", port, "type", "veth", "peer", "name", f"{self._name}p{host}")
            self._place(bridge, f"{self._name}p{host}", host, device)
            _ip("-n", bridge, "link", "set", port, "master", "br0", "up")
            self._on(host, "addr", "add", f"{self.address(host)}/24", "dev", device)
            self._on(host, "link", "set", device, "up")

    def _place(self, bridge: str, peer: str, host: int, device: str) -> None:
        where = str(os.getpid()) if host == HUB else self.namespace(host)
        _ip("-n", bridge, "link", "set", peer, "netns", where)
        self._on(host, "link", "set", peer, "name", device)

    def _device(self, host: int) -> str:
        return f"{self._name}-hub" if host == HUB else "eth0"

    def _on(self, host: int, *arguments: str) -> None:
        _ip(*(() if host == HUB else ("-n", self.namespace(host))), *arguments)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)
