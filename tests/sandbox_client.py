"""A plain HTTP client of the sandbox, for the tests of the sandbox itself."""

from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

import aiohttp

from tests.rig import messenger

CREDENTIALS = {"grant_type": "client_credentials", "client_id": "sandbox", "client_secret": "sandbox"}


class Response(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: bytes
    json: Any


class SandboxClient:
    """Speaks to the sandbox at `url`; `token` is fetched on entry."""

    def __init__(self, url: str, timeout: float = 10) -> None:
        self.url = url
        self.token = ""
        self._timeout = timeout

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=self._timeout))
        self.token = (await self.get_token()).json["access_token"]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()

    async def call(self, method: str, path: str, **options: Any) -> Response:
        """Any call; follows no redirect."""
        async with self._session.request(
            method, self.url + path, allow_redirects=False, **options
        ) as response:
            body = await response.read()
            is_json = response.content_type == "application/json"
            try:
                document = await response.json() if is_json else None
            except ValueError:
                document = None
            return Response(response.status, response.headers, body, document)

    async def get_token(self, **fields: Any) -> Response:
        """`POST /v2/token`"""
        return await self.call("POST", "/v2/token", json={**CREDENTIALS, **fields})

    async def register(self, body: bytes | None = None, **headers: str) -> Response:
        """`POST /ott/v1/registration`, by default of the API's Messenger example."""
        sent = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json", **headers}
        return await self.call(
            "POST", "/ott/v1/registration", data=messenger() if body is None else body, headers=sent
        )
