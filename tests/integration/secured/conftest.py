"""A RabbitMQ of our own, with a throw-away certificate authority, mutual TLS and users of its own."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.faults.node import ROOTS, Node
from tests.integration.secured.ports import free_port, wait_for_port

DEPLOY = Path(__file__).parents[3] / "deploy"


@dataclass(frozen=True)
class Authority:
    """A certificate authority and what it has signed, as PEM files."""

    folder: Path
    certificates: trustme.CA

    @classmethod
    def make(cls, folder: Path) -> "Authority":
        authority = cls(folder, trustme.CA())
        authority.certificates.cert_pem.write_to_path(str(authority.ca))
        authority.issue("client", "ott-worker.example")
        return authority

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.pem"

    def key(self, name: str) -> Path:
        return self.folder / f"{name}.key"

    def issue(self, name: str, *identities: str) -> None:
        """A certificate for these host names or addresses."""
        leaf = self.certificates.issue_cert(*identities)
        leaf.private_key_pem.write_to_path(str(self.key(name)))
        with open(self.file(name), "wb") as file:
            file.writelines(blob.bytes() for blob in leaf.cert_chain_pems)


@dataclass(frozen=True)
class SecuredBroker:
    """A private node: its plain URL, and the port on which it speaks TLS and wants a client certificate."""

    node: Node
    tls_port: int
    authority: Authority

    @property
    def url(self) -> str:
        return self.node.url

    def ctl(self, *arguments: str) -> str:
        return self.node.run("ctl", "--quiet", *arguments)

    def add_tenant(self, vhost: str, user: str, password: str) -> None:
        """A virtual host in which guest and this user may do everything. Both end with the node, and are made
        in one step, because each run of rabbitmqctl takes a second."""
        rights = {"vhost": vhost, "configure": ".*", "write": ".*", "read": ".*"}
        document = {
            "vhosts": [{"name": vhost}],
            "users": [{"name": user, "password": password, "tags": ""}],
            "permissions": [{"user": name, **rights} for name in ("guest", user)],
        }
        file = self.node.folder / f"{vhost}.json"
        file.write_text(json.dumps(document))
        self.ctl("import_definitions", str(file))

    def url_of(self, user: str, password: str, vhost: str) -> str:
        return self.url.replace("guest:guest@", f"{user}:{password}@") + vhost

    def tls_url(self, host: str = "localhost") -> str:
        return f"amqps://guest:guest@{host}:{self.tls_port}/"


@pytest.fixture(scope="package")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    made = Authority.make(tmp_path_factory.mktemp("authority"))
    made.issue("broker", "localhost")
    made.issue("sandbox", "localhost")
    return made


# What RabbitMQ's version may change runs on each, all else on the first: what users may do, and TLS.
ON_EACH = {
    "test_a_user_can_do_what_it_must_and_nothing_else",
    "test_worker_and_publisher_do_their_work_with_their_users",
    "test_a_worker_registers_over_mutual_tls",
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "secured" in metafunc.fixturenames:
        roots = ROOTS if metafunc.function.__name__ in ON_EACH else ROOTS[:1]
        metafunc.parametrize("secured", roots, indirect=True, scope="package")


@pytest.fixture(scope="package")
def secured(request: pytest.FixtureRequest, authority: Authority) -> Iterator[SecuredBroker]:
    port = free_port()
    settings = {
        "listeners.ssl.1": f"127.0.0.1:{port}",
        "ssl_options.cacertfile": authority.ca,
        "ssl_options.certfile": authority.file("broker"),
        "ssl_options.keyfile": authority.key("broker"),
        "ssl_options.verify": "verify_peer",
        "ssl_options.fail_if_no_peer_cert": "true",
    }
    with Node(*(f"{name}={value}" for name, value in settings.items()), root=request.param) as node:
        wait_for_port(port)  # which may open after the other one
        yield SecuredBroker(node, port, authority)
