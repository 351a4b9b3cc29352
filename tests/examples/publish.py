"""Hand a registration over and go on: RabbitMQ has it safe when `publish` returns.

The reply goes to the queue PREFIX.replies, and `ott-worker journal --id` tells what became of it. Needs
RabbitMQ and a worker that has run once.
"""

import asyncio

from worker.client import RegistrationClient


async def main() -> None:
    async with RegistrationClient() as client:
        request_id = await client.publish(
            {
                "ottPlatformName": "line",
                "ottPlatformAttributes": {
                    "channelId": "23493453984234345",
                    "channelName": "SFMC Engineers",
                    "channelSecret": "03d537gg656gvkbe9b430f002e9c4517",
                    "customerConnectSecret": "31234arajcauoherbasuhb213ijqjohbjhb123",
                    "endpointUrl": "https://example.com/1732555047025799",
                    "isTransactional": True,
                    "isTestChannel": False,
                    "isActive": True,
                },
            }
        )
        print(f"request {request_id} is on its way")


if __name__ == "__main__":
    asyncio.run(main())
