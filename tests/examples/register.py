"""Register some pages at the same time and look at what comes back.

Needs RabbitMQ and a running worker. The broker is the one that OTT_AMQP_URL names; OTT_PREFIX, if set, is the
worker's.
"""

import asyncio

from worker.client import OutcomeUnknown, RegistrationClient, WorkerError


def page(page_id: str, name: str) -> dict[str, object]:
    return {
        "ottPlatformName": "messenger",
        "ottPlatformAttributes": {
            "applicationId": "1093076390764037",
            "applicationSecret": "03d537gg656gvkbe9b430f002e9c4517",
            "pageId": page_id,
            "pageName": name,
            "pageAccessToken": "someaccesstoken4fasdcruib213123knubkdnfisdubnu12312ub3pijnb",
            "endpointUrl": "https://graph.facebook.com/v2.6/me/messages",
            "callbackVerifyToken": "this_is_the_verify_token",
            "isActive": True,
        },
    }


async def register(client: RegistrationClient, registration: dict[str, object]) -> None:
    try:
        reply = await client.register(registration, timeout=60)
    except OutcomeUnknown as unknown:
        print(unknown)  # it may be registered or not; `ott-worker journal --id` tells
        return
    except WorkerError as error:
        print(f"not sent: {error}")
        return
    if reply.status == "registered":
        print(f"{reply.platform} {reply.resource_id} is registered")
    else:
        print(f"{reply.resource_id} is {reply.status}: {reply.message}")
        for entry in reply.errors:
            print(f"  {entry.errorcode} {entry.message}")


async def main() -> None:
    async with RegistrationClient() as client:
        pages = [page("1732555047025799", "SFMC Engineers"), page("1732555047025800", "")]
        await asyncio.gather(*(register(client, registration) for registration in pages))


if __name__ == "__main__":
    asyncio.run(main())
