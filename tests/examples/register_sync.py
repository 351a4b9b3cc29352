"""Register a page from code without an event loop, as in a Django or Flask view.

Needs RabbitMQ and a running worker. The broker is the one that OTT_AMQP_URL names; OTT_PREFIX, if set, is the
worker's.
"""

from worker.client import OutcomeUnknown, SyncRegistrationClient, WorkerError

PAGE = {
    "ottPlatformName": "messenger",
    "ottPlatformAttributes": {
        "applicationId": "1093076390764037",
        "applicationSecret": "03d537gg656gvkbe9b430f002e9c4517",
        "pageId": "1732555047025799",
        "pageName": "SFMC Engineers",
        "pageAccessToken": "someaccesstoken4fasdcruib213123knubkdnfisdubnu12312ub3pijnb",
        "endpointUrl": "https://graph.facebook.com/v2.6/me/messages",
        "callbackVerifyToken": "this_is_the_verify_token",
        "isActive": True,
    },
}


def view(client: SyncRegistrationClient) -> str:
    """What a view would answer. The client is opened once for a process and shared by its threads."""
    try:
        reply = client.register(PAGE, timeout=60)
    except OutcomeUnknown as unknown:
        return str(unknown)  # registered or not: `ott-worker journal --id` tells
    except WorkerError as error:
        return f"not sent: {error}"
    if reply.status == "registered":
        return f"{reply.platform} {reply.resource_id} is registered"
    return f"{reply.resource_id} is {reply.status}: {reply.message}"


if __name__ == "__main__":
    with SyncRegistrationClient() as client:
        print(view(client))
