"""Addresses of RabbitMQ's direct reply-to.

RabbitMQ decodes such an address when it is published to, and one that it cannot decode ends the connection.
An address is `amq.rabbitmq.reply-to.PID.KEY`, both in base64, and PID an Erlang process id with the name of a
node in it (the same on 3.10 and 4.0). The worker reads nothing else from it.
"""

import base64
import binascii
from typing import Final

DIRECT_REPLY_TO: Final = "amq.rabbitmq.reply-to."
_PIDS: Final = {b"\x83X": 12, b"\x83g": 9}  # its external format, and the bytes that follow the node's name
_NAMES: Final = {b"d": 2, b"v": 2, b"s": 1, b"w": 1}  # an atom's format, and the bytes of its length


def is_direct_reply(queue: str) -> bool:
    """Whether this is the address of a direct reply, well-formed or not."""
    return queue.startswith(DIRECT_REPLY_TO)


def is_well_formed(address: str) -> bool:
    """Whether RabbitMQ can decode the address of a direct reply."""
    parts = address.removeprefix(DIRECT_REPLY_TO).split(".")
    if len(parts) != 2:
        return False
    try:
        pid, key = (base64.b64decode(part, validate=True) for part in parts)
    except (binascii.Error, ValueError):
        return False
    length_bytes = _NAMES.get(pid[2:3])
    if not key or pid[:2] not in _PIDS or length_bytes is None:
        return False
    length = int.from_bytes(pid[3 : 3 + length_bytes], "big")
    name = pid[3 + length_bytes : 3 + length_bytes + length]
    return b"@" in name and len(pid) == 3 + length_bytes + length + _PIDS[pid[:2]]
