"""Marketing Cloud under a host name and behind TLS, so that names and certificates can go wrong."""

import ssl
from pathlib import Path

import trustme

from tests.faults.proxy import Proxy

HOST = "localhost"


class Front(Proxy):
    """Stands before the server at `127.0.0.1:port`. `folder` takes the authority that workers trust, and a
    flag."""

    def __init__(self, port: int, folder: Path) -> None:
        authority = trustme.CA()
        self.right, self.strange = _context(authority), _context(trustme.CA())
        super().__init__("127.0.0.1", port, tls=self.right)
        self._authority = folder / "front-ca.pem"
        self._no_names = folder / "no-names"
        authority.cert_pem.write_to_path(str(self._authority))

    @property
    def environment(self) -> dict[str, str]:
        """What workers need to go this way."""
        urls = dict.fromkeys(("OTT_MC_AUTH_URL", "OTT_MC_REST_URL"), f"https://{HOST}:{self.port}")
        return urls | {"OTT_MC_CA_FILE": str(self._authority), "FAULTS_NO_DNS": str(self._no_names)}

    def lose_names(self) -> None:
        """No worker finds the host any more; connections that stand are closed, and those that are opened by
        what was found before are reset."""
        self._no_names.touch()
        self.refusing = True
        self.cut()

    def find_names(self) -> None:
        self.refusing = False
        self._no_names.unlink(missing_ok=True)


def _context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(HOST).configure_cert(context)
    return context
