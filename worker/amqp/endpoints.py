"""The nodes that OTT_AMQP_URL names, and the addresses of their names."""

import asyncio
import socket
import ssl
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

    def failed(self) -> None:
        """Try the other addresses first: it cannot be reached, or its connection was lost."""
        _failed_at[self.address, self.port] = asyncio.get_running_loop().time()

    def succeeded(self) -> None:
        """Forget that it failed."""
        _failed_at.pop((self.address, self.port), None)

    @property
    def failed_at(self) -> float:
        """Loop time of its last failure, 0 without one."""
        return _failed_at.get((self.address, self.port), 0.0)


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


def port_of(url: URL) -> int:
    """The port that a URL names."""
    return url.port or PORTS[url.scheme]


def node_name(url: URL) -> str:
    """Host and port of a node."""
    return f"{url.host}:{port_of(url)}"


def tls_context(settings: Settings, url: URL) -> ssl.SSLContext | None:
    """The TLS context for a node with an amqps:// URL. Raises SettingsError."""
    return settings.tls("amqp") if url.scheme == "amqps" else None


async def resolve(url: URL) -> list[Endpoint]:
    """The addresses of a node, one at least. Raises OSError where its name is not known."""
    port = port_of(url)
    found = await asyncio.get_running_loop().getaddrinfo(url.host, port, type=socket.SOCK_STREAM)
    addresses = dict.fromkeys(str(where[0]) for *_, where in found)
    return [Endpoint(url, address, port) for address in addresses]
