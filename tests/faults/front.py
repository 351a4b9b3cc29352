"""Marketing Cloud under a host name and behind TLS, so that names and certificates can go wrong."""

import ssl
from pathlib import Path
from typing import Self

import trustme

from tests.faults.proxy import Proxy

HOST = "localhost"


class Front:
    """Stands before the server at `127.0.0.1:port` while its context lasts. `folder` takes the authority that
    workers trust, and a flag."""

    def __init__(self, port: int, folder: Path) -> None:
        authority = trustme.CA()
        self._right = _context(authority)
        self._strange = _context(trustme.CA())
        self._proxy = Proxy("127.0.0.1", port, tls=self._right)
        self._authority = folder / "front-ca.pem"
        self._no_names = folder / "no-names"
        authority.cert_pem.write_to_path(str(self._authority))

    async def __aenter__(self) -> Self:
        await self._proxy.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._proxy.__aexit__()

    @property
    def environment(self) -> dict[str, str]:
        """What workers need to go this way."""
        url = f"https://{HOST}:{self._proxy.port}"
        return {
            "OTT_MC_AUTH_URL": url,
            "OTT_MC_REST_URL": url,
            "OTT_MC_CA_FILE": str(self._authority),
            "FAULTS_NO_DNS": str(self._no_names),
        }

    async def show_a_strangers_certificate(self) -> None:
        """One that no worker trusts, on new connections; those that stand are closed."""
        await self._proxy.present(self._strange)

    async def show_the_right_certificate(self) -> None:
        await self._proxy.present(self._right)

    def lose_names(self) -> None:
        """No worker finds the host any more; connections that stand are closed."""
        self._no_names.touch()
        self._proxy.cut()

    def find_names(self) -> None:
        self._no_names.unlink(missing_ok=True)


def _context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    return context
