"""`POST /ott/v1/registration` (API document; contract §6)."""

import time
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Self

from worker.contract.secrets import SecretMask
from worker.events import Called, EventListener, Tracing
from worker.marketing_cloud.accounts import Accounts
from worker.marketing_cloud.answer import Answer, masked, read_answer
from worker.marketing_cloud.http import EnsureLease, Http, HttpEndpoint, NoAnswer
from worker.marketing_cloud.response import Response
from worker.marketing_cloud.token import Token
from worker.settings import Settings

REGISTRATION = "/ott/v1/registration"
ENDPOINTS_KEPT = 100


class MarketingCloud:
    """One tenant of Marketing Cloud. Use as a context manager."""

    def __init__(self, settings: Settings, events: EventListener, tracing: Tracing | None = None) -> None:
        self._http = Http(settings, events.descriptors_short)
        self._send = self._http.send if tracing is None else partial(self._send_traced, tracing)
        self._events = events
        self._endpoint = lru_cache(maxsize=ENDPOINTS_KEPT)(self._prepare)
        self.accounts = Accounts(settings, self._http, events)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.accounts.close()
        await self._http.close()

    async def register(self, body: bytes, token: Token, ensure_lease: EnsureLease) -> Answer:
        """Send one registration. The answer holds no secret. Never raises. Awaits `ensure_lease` immediately
        before the request is written."""
        endpoint = self._endpoint(token)
        started = time.perf_counter()
        try:
            response = Response(*await self._send(endpoint, body, ensure_lease))
        except NoAnswer as error:
            self._events.call_ended(None, time.perf_counter() - started)
            return Answer(None, f"Marketing Cloud did not answer: {error}.")
        self._events.call_ended(response.status, time.perf_counter() - started)
        answer = read_answer(response, datetime.now(UTC))
        # An error may quote the request, its headers included.
        return masked(answer, SecretMask.of_body(body, token.value)) if answer.message else answer

    async def _send_traced(
        self, tracing: Tracing, endpoint: HttpEndpoint, body: bytes, ensure_lease: EnsureLease
    ) -> Called:
        return await tracing.call(
            lambda headers: self._http.send(endpoint.plus(headers), body, ensure_lease),
            str(endpoint.url),
        )

    def _prepare(self, token: Token) -> HttpEndpoint:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token.value}"}
        return self._http.endpoint(token.rest_url + REGISTRATION, headers)
