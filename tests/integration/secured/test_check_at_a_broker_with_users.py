"""What `check` finds out about a broker that has users, virtual hosts and limits (contract §8)."""

from uuid import uuid4

import pytest

from tests.commands import Checked, checked_with
from tests.integration.secured.conftest import SecuredBroker
from tests.rig import Requester, declare
from worker.settings import load_settings

PREFIX = "ott.check"


class Tenant:
    """A virtual host with a user, who may do everything until `allow` says what."""

    def __init__(self, broker: SecuredBroker) -> None:
        self._broker = broker
        self.vhost, self.user = f"check-{uuid4().hex[:8]}", f"user-{uuid4().hex[:8]}"
        broker.add_tenant(self.vhost, self.user, "s3cret-one")

    def ctl(self, *arguments: str) -> None:
        self._broker.ctl(*arguments)

    def allow(self, configure: str, write: str, read: str) -> None:
        self.ctl("set_permissions", "-p", self.vhost, self.user, configure, write, read)

    def url(self, user: str = "", password: str = "s3cret-one", vhost: str = "") -> str:
        return self._broker.url_of(user or self.user, password, vhost or self.vhost)

    async def declare(self) -> None:
        """Let all objects be there."""
        await declare(load_settings(amqp_url=self.url("guest", "guest"), prefix=PREFIX))

    async def messages(self) -> list[int]:
        async with Requester(self.url("guest", "guest"), PREFIX) as looking:
            return [await looking.depth(name) for name in ("requests", "replies", "dead")]


@pytest.fixture
def tenant(secured: SecuredBroker) -> Tenant:
    return Tenant(secured)


async def check(url: str, **variables: str) -> Checked:
    checked = await checked_with({"OTT_AMQP_URL": url, "OTT_PREFIX": PREFIX, **variables})
    assert "s3cret-one" not in checked.out
    return checked


WORKER = {
    "OTT_MC_AUTH_URL": "http://127.0.0.1:1",
    "OTT_MC_REST_URL": "http://127.0.0.1:1",
    "OTT_MC_CLIENT_ID": "id",
    "OTT_MC_CLIENT_SECRET": "secret",
}


async def test_an_operator_who_may_do_all_of_it(tenant):
    await tenant.declare()
    done = await check(tenant.url())
    assert done.code == 0, done.out
    assert (
        done.line("permissions") == f"ok    permissions user {tenant.user} has the permissions of an operator"
    )
    assert await tenant.messages() == [0, 0, 0]


async def test_an_operator_who_may_not_order_nor_read_the_dead_letters(tenant):
    await tenant.declare()
    tenant.allow(".*", "^$", r"^(ott\.check\.(journal|status|control))$")
    done = await check(tenant.url())
    assert done.code == 3
    found = done.line("permissions")
    assert found.startswith(f"FAIL  permissions user {tenant.user} may not read ott.check.dead, ")
    assert "write ott.check with the routing key control" in found
    assert r"read ^(ott\.check\.dead)$, write ^(ott\.check)$" in found
    assert f"in the virtual host {tenant.vhost}" in found


async def test_a_worker_who_may_not_take_requests(tenant):
    await tenant.declare()
    tenant.allow("^$", r"^(amq\.default)$", r"^(ott\.check\.(journal|control))$")
    done = await check(tenant.url(), **WORKER, OTT_DECLARE="false")
    found = done.line("permissions")
    assert "may not read ott.check.requests, write ott.check.dead, which a worker needs" in found
    assert r"grant it read ^(ott\.check\.requests)$, write ^(ott\.check\.dead)$" in found
    assert await tenant.messages() == [0, 0, 0]
