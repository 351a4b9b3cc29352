"""The libraries' own log lines."""

import logging


def silence_libraries() -> None:
    """Keep them out: some print whole messages, secrets included."""
    logging.getLogger().handlers[:] = [logging.NullHandler()]
    for name in ("aiormq", "aio_pika", "aiohttp", "asyncio"):
        library = logging.getLogger(name)
        library.handlers[:] = [logging.NullHandler()]
        library.propagate = False
        library.setLevel(logging.CRITICAL)
