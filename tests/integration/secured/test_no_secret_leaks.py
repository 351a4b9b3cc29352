"""Secrets go to Marketing Cloud and, with the request, into the dead letter's body. Nowhere else."""

import asyncio
import contextlib
import json
import os
import re
import resource
import sys
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import aio_pika
import aiohttp
import pytest

from tests.faults.proxy import overheard
from tests.integration.secured.conftest import SecuredBroker
from tests.integration.secured.ports import free_port
from tests.rig import LINE, MESSENGER, Requester, until
from tests.sandbox_faults import Reset, Status
from worker.marketing_cloud.answer import MESSAGE_LIMIT
from worker.sandbox import Sandbox

CLIENT_SECRET = f"canary-client-secret-{uuid4().hex}"
PASSWORD = f"canary-amqp-password-{uuid4().hex}"
SEALING_KEY = "Y2FuYXJ5LXNlYWxpbmcta2V5LWNhbmFyeS1zZWFsaW4="


@dataclass
class Stage:
    """A worker in a process of its own, and everything that it can be heard saying."""

    requester: Requester
    sandbox: Sandbox
    log: Path
    url: str
    pid: int
    said: bytearray  # to Marketing Cloud

    @property
    def tokens(self) -> set[str]:
        return {token.decode() for token in re.findall(rb"Authorization: Bearer (\S+)", self.said)}

    async def pages(self) -> list[str]:
        async with aiohttp.ClientSession() as session:
            texts = []
            for path in ("/metrics", "/livez", "/readyz"):
                async with session.get(self.url + path) as response:
                    texts.append(f"{response.headers} {await response.text()}")
            return texts

    async def journal(self) -> list[aio_pika.abc.AbstractIncomingMessage]:
        """All its messages. A stream has no end that it would tell of."""
        found: list[aio_pika.abc.AbstractIncomingMessage] = []
        queue = await self.requester.channel.get_queue(f"{self.requester.prefix}.journal", ensure=False)
        await self.requester.channel.set_qos(100)
        with contextlib.suppress(TimeoutError):
            async with queue.iterator(arguments={"x-stream-offset": "first"}, timeout=1.0) as messages:
                async for message in messages:
                    found.append(message)
                    await message.ack()
        return found


@contextlib.asynccontextmanager
async def stage(broker: SecuredBroker, prefix: str, tmp_path: Path, **more: str) -> AsyncIterator[Stage]:
    user = f"u{uuid4().hex[:8]}"
    broker.ctl("add_user", user, PASSWORD)
    broker.ctl("set_permissions", user, ".*", ".*", ".*")
    url = broker.url.replace("guest:guest", f"{user}:{PASSWORD}")
    log, port = tmp_path / "log", free_port()
    sandbox = Sandbox(client_id="sandbox", client_secret=CLIENT_SECRET, account_ids={"100"})
    async with sandbox, overheard(sandbox.url) as (upstream, said), Requester(url, prefix) as requester:
        environment = os.environ | {
            "OTT_AMQP_URL": url,
            "OTT_PREFIX": prefix,
            "OTT_MC_AUTH_URL": upstream,
            "OTT_MC_REST_URL": upstream,
            "OTT_MC_CLIENT_ID": "sandbox",
            "OTT_MC_CLIENT_SECRET": CLIENT_SECRET,
            "OTT_MC_ACCOUNT_ID": "100",
            "OTT_LOG_LEVEL": "debug",
            "OTT_ADMIN_PORT": str(port),
            "OTT_RETRY_BASE": "0.02",
            "OTT_RETRY_ATTEMPTS": "2",
            "OTT_GATE_AFTER": "50",
            "OTT_MAX_BODY_BYTES": "20000",
            **more,
        }
        with open(log, "wb") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "worker", "run", env=environment, stdout=output, stderr=output
            )
        try:
            await until(lambda: "subscribed" in log.read_text(), "the subscription")
            yield Stage(requester, sandbox, log, f"http://127.0.0.1:{port}", process.pid, said)
        finally:
            process.terminate()
            await process.wait()
            broker.ctl("delete_user", user)


async def all_kinds_of_traffic(on: Stage, broker: SecuredBroker, secrets: dict[str, str]) -> list[str]:
    """Everything that a request can come to, each with secrets in it; the correlation ids."""
    good = [body(MESSENGER, secrets), body(LINE, secrets)]
    own = [value for name, value in secrets.items() if name in MESSENGER["ottPlatformAttributes"]]
    bad = [
        body(MESSENGER, secrets, endpointUrl=None),
        body(LINE, secrets, isActive="perhaps", channelName=[secrets["channelSecret"]]),
        body(LINE, {name: {"nested": value} for name, value in secrets.items()}),
        body(MESSENGER, secrets).replace(b"messenger", secrets["applicationSecret"].encode()),
        body(MESSENGER, secrets)[:-5],
        body(MESSENGER, secrets, **{secrets["pageAccessToken"]: 1, "padding": "x" * 20_000}),
        b'{"a": 1, "a": "' + secrets["channelSecret"].encode() + b'"}',
        secrets["channelSecret"].encode("utf-16"),
    ]
    sent = [await on.requester.publish(one) for one in good + bad]
    sent.append(await on.requester.publish(good[0], headers={"x-ott-account-id": "999"}))
    await on.requester.publish(good[0], reply_to="amq.topic")
    await on.requester.publish(bad[0], reply_to="nobody.is.here")
    for correlation_id in sent:
        await on.requester.reply(correlation_id)
    quoting = " and ".join([*own, *on.tokens])
    cut = "x" * (MESSAGE_LIMIT - 20) + own[0]
    faults: list[list[Any]] = [
        [Status(path="registration", status=400, message=cut, count=1)],
        [Status(path="registration", status=400, message=f"Wrong: {quoting}", errorcode=10006, count=1)],
        [Status(path="registration", status=400, body=json.dumps(_quoted(quoting)), count=1)],
        [Status(path="registration", status=500, body=quoting, count=2)],
        [Status(path="registration", status=503, message=quoting, count=2)],
        [Status(path="registration", status=401, message=quoting, count=1)],
        [Reset(path="registration", count=2)],
    ]
    for some in faults:
        for correlation_id in sent:
            await on.requester.reply(correlation_id)
        on.sandbox.faults.add(*some)
        sent.append(await on.requester.publish(good[0]))
    for correlation_id in sent:
        await on.requester.reply(correlation_id)
    on.sandbox.faults.add(Status(path="token", status=401, body=f'{{"error": "{CLIENT_SECRET}"}}', count=2))
    on.sandbox.revoke_tokens()
    sent.append(await on.requester.publish(good[0]))
    await on.requester.reply(sent[-1])
    return sent


def body(example: dict[str, Any], secrets: dict[str, Any], **more: Any) -> bytes:
    attributes = example["ottPlatformAttributes"]
    given = {name: secrets.get(name, value) for name, value in attributes.items()}
    return json.dumps({**example, "ottPlatformAttributes": {**given, **more}}).encode()


def _quoted(text: str) -> dict[str, Any]:
    return {
        "message": text,
        "documentation": text,
        "validationErrors": [{"message": text, "errorcode": 10005, "documentation": text}],
    }


def shown(messages: Iterable[aio_pika.abc.AbstractIncomingMessage], *, bodies: bool) -> list[str]:
    return [f"{m.info()} {m.headers} {m.body.decode(errors='replace') if bodies else ''}" for m in messages]


@pytest.mark.parametrize(("sealed", "log_format"), [(False, "json"), (True, "console")])
async def test_secrets_stay_where_they_must(secured, prefix, tmp_path, secret_values, sealed, log_format):
    more = {"OTT_LOG_FORMAT": log_format} | ({"OTT_DEAD_LETTER_KEYS": f"one:{SEALING_KEY}"} if sealed else {})
    async with stage(secured, prefix, tmp_path, **more) as on:
        await all_kinds_of_traffic(on, secured, secret_values)
        secured.ctl("close_all_connections", "--vhost", "/", "a canary")
        await until(lambda: on.log.read_text().count("publisher connected") > 1, "the reconnection")
        pages = await on.pages()
        command_line = Path(f"/proc/{on.pid}/cmdline").read_text()
        assert resource.prlimit(on.pid, resource.RLIMIT_CORE) == (0, 0)
        replies = [m for same in on.requester.replies.values() for m in same]
        async with Requester(on.requester._url, prefix) as on.requester:
            dead = await on.requester.take_all("dead")
            own_replies = await on.requester.take_all("replies")
            journal = await on.journal()
    log = on.log.read_text()
    assert "settled" in log
    assert len(dead) > 10
    assert own_replies
    assert journal
    heard = [
        log,
        command_line,
        *pages,
        *shown(replies, bodies=True),
        *shown(own_replies, bodies=True),
        *shown(journal, bodies=True),
        *shown((letter for letter in dead if not letter.routing_key), bodies=sealed),
        # RabbitMQ itself dead-letters what is too large to be kept by the worker, as it came.
        *shown((letter for letter in dead if letter.routing_key), bodies=False),
    ]
    assert on.tokens
    for secret in (*secret_values.values(), *on.tokens, CLIENT_SECRET, PASSWORD, SEALING_KEY):
        for text in heard:
            assert secret not in text, f"{secret[:20]}… in {text[:200]}"
    assert sealed or any(secret_values["channelSecret"] in text for text in shown(dead, bodies=True))
