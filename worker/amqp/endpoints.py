"""The nodes that OTT_AMQP_URL names, and the addresses of their names."""

import asyncio
import socket
from dataclasses import dataclass
from typing import Final

from yarl import URL

from worker.errors import BrokerUnreachable
from worker.settings import Settings, split_urls

HEARTBEAT: Final = 10  # seconds; a stuck peer is found within 33
PORTS: Final = {"amqp": 5672, "amqps": 5671}

# Loop times by address, for all connections of a process.
_failed_at: dict[tuple[str, int], float] = {}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address of one node. `url` names the node, and holds user, password and virtual host."""

    url: URL
    address: str
    port: int

    @property
    def node(self) -> str:
        """The node as messages name it."""
        return node_name(self.url)

    @property
    def is_tls(self) -> bool:
        return self.url.scheme == "amqps"

    @property
    def vhost(self) -> str:
        return vhost_of(self.url)

    def failed(self) -> None:
        """Try the other addresses first: it cannot be reached, or its connection was lost."""
        _failed_at[self.address, self.port] = asyncio.get_running_loop().time()

    def succeeded(self) -> None:
        """Forget that it failed."""
        _failed_at.pop((self.address, self.port), None)


def node_urls(settings: Settings) -> list[URL]:
    """The nodes as OTT_AMQP_URL names them now: its file is read anew each time, so that a rotated password
    is taken up. Raises BrokerUnreachable where it holds no URL any more."""
    try:
        urls = [URL(text) for text in split_urls(settings.now("amqp_url"))]
    except ValueError:
        urls = []
    if not urls or any(url.scheme not in PORTS or not url.host for url in urls):
        raise BrokerUnreachable("OTT_AMQP_URL_FILE no longer holds an amqp:// or amqps:// URL")
    return [url.with_query(heartbeat=url.query.get("heartbeat", HEARTBEAT)) for url in urls]


def vhost_of(url: URL) -> str:
    """The virtual host that a URL names."""
    return url.path[1:].replace("%2F", "/") or "/"


def node_name(url: URL) -> str:
    """Host and port of a node."""
    return f"{url.host}:{url.port or PORTS[url.scheme]}"


async def resolve(url: URL) -> list[Endpoint]:
    """The addresses of a node, one at least. Raises OSError where its name is not known."""
    host, port = url.host or "", url.port or PORTS[url.scheme]
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = dict.fromkeys(str(where[0]) for *_, where in found)
    return [Endpoint(url, address, port) for address in addresses]


def by_trust(endpoints: list[Endpoint]) -> list[Endpoint]:
    """The same order, but with those that failed last at the end."""
    return sorted(endpoints, key=lambda endpoint: _failed_at.get((endpoint.address, endpoint.port), 0.0))
